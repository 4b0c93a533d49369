"""What each study shows: a table and its figures, from the records of its cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tomosec.record import Record, Store
from tomosec.report import overview, wording
from tomosec.report.figures import Line, Point, Row, interval_plot, line_plot
from tomosec.report.study_cells import (
    ASR,
    CA,
    CLEAN_CA,
    DOMAINS,
    FLOOR,
    RANDOM,
    Figure,
    Shown,
    amount_cell,
    attack_table,
    budget_of,
    difference_cell,
    domain_of,
    interval_note,
    labels_of,
    mean_of,
    metric_cell,
    misread_cell,
    points_of,
    signed,
    whole,
)
from tomosec.report.study_defenses import adaptive, detect, repair, screen_power
from tomosec.report.study_figures import Mark, bar_plot, panels_plot, scatter_plot
from tomosec.report.study_matrices import architectures, transfer
from tomosec.report.tables import Cell, Footnotes, Table
from tomosec.study import Study, read_studies

TITLES = {
    "stealth-frontier": "Attack success against the size of the change",
    "scan-parameters": "Triggers learned at one scan setting, applied at others",
    "architectures": "Surrogate and victim networks",
    "poison-rate": "How much of the training data has to be poisoned",
    "ablation": "What each part of LTGM buys",
    "cost": "What an attack costs",
    "detect": "Which attacks detectors see",
    "repair": "What repairs leave of an attack",
    "adaptive": "Attacks made to get past the detectors",
    "screen-power": "What many scans show together",
}


@dataclass(frozen=True, slots=True)
class Block:
    """Everything the page shows about one study."""

    name: str
    title: str
    about: str
    progress: str
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]


def blocks(store: Store, records: Sequence[Record]) -> list[Block]:
    """One block per study that some of ``records`` belong to."""
    shown = {record.id: record for record in records}
    return [
        _block(study, [shown[cell] for cell in study.cells if cell in shown])
        for study in read_studies(store)
        if any(cell in shown for cell in study.cells)
    ]


def _block(study: Study, records: list[Record]) -> Block:
    done = [record for record in records if record.status == "success"]
    tables, figures = _KINDS[study.kind](study, done)
    return Block(study.name, TITLES[study.kind], _about(study, done), _progress(study, records), tables, figures)


def _about(study: Study, done: Sequence[Record]) -> str:
    """Recipe, preset, data, split and seeds that all numbers of the study rest on."""
    preset = f", preset {study.preset}" if study.preset else ""
    text = f"Recipe {study.recipe}{preset}."
    if not done or done[0].data is None:
        return text
    data = done[0].data
    test = sum(data.slices.get("test", {}).values())
    people = sum(data.patients.get("test", {}).values())
    seeds = sorted({seed.seed for record in done for seed in record.seeds})
    shared = " Training and test share patients." if data.shares_patients else ""
    return (
        f"{text} {wording.DATASETS.get(data.dataset, data.dataset).capitalize()}; {wording.plural(test, 'test slice')} of "
        f"{wording.plural(people, 'patient')}; {wording.sentence(data.split)}{shared} "
        f"{wording.plural(len(seeds), 'seed').capitalize()} ({', '.join(map(str, seeds))})."
    )


def _progress(study: Study, records: Sequence[Record]) -> str:
    complete = sum(record.complete for record in records)
    refused = sum(record.status == "not-applicable" for record in records)
    text = f"{complete} of {wording.plural(len(study.cells), 'cell')} complete"
    if refused:
        text += f", {refused} of them not applicable"
    if complete < len(study.cells):
        text += "; the same command goes on with the rest"
    return f"{text}."


def _frontier(study: Study, records: Sequence[Record]) -> Shown:
    if not records:
        return (), ()
    labels = labels_of(records, leave=(overview.BUDGET,))
    budgets = sorted({float(value) for record in records if (value := budget_of(record)) is not None})
    table = attack_table("Every attack at matched budgets", records, labels, budgets=len(budgets) > 1)
    attacked = [(label, record) for label, record in zip(labels, records, strict=True) if points_of(record, ASR)]
    figures = []
    if len(budgets) > 1:
        figures.append(_frontier_panels(attacked))
    elif attacked:
        figures.append(_success_rows(attacked, study.name))
    if attacked:
        figures.append(_visibility(attacked, study.name))
    return (table,), tuple(figures)


def _success_rows(attacked: Sequence[tuple[str, Record]], name: str) -> Figure:
    ordered = sorted(attacked, key=lambda item: -(mean_of(item[1], ASR) or 0.0))
    rows = [
        Row(label, points_of(record, ASR), group=domain_of(record), reference=points_of(record, FLOOR))
        for label, record in ordered
    ]
    said = "; ".join(f"{label} {wording.share(mean_of(record, ASR))}" for label, record in ordered)
    caption = (
        "Attack success with 95% intervals, a point per seed. Orange squares: in measured data; blue circles: in the image; "
        "green triangles: an image pattern carried into the sinogram. Hollow: the floor, the same trigger on the clean model."
    )
    return Figure(caption, interval_plot(rows, x_label="attack success rate", alt=said, name=f"{name}-asr"))


def _frontier_panels(attacked: Sequence[tuple[str, Record]]) -> Figure:
    by_attack: dict[str, dict[float, Record]] = {}
    for label, record in attacked:
        reached = record.summary.get("stealth/rmse_hu")
        budget = budget_of(record)
        if budget is not None and reached is not None:
            by_attack.setdefault(label, {})[budget] = record
    panels = []
    for label, cells in by_attack.items():
        group = domain_of(next(iter(cells.values())))
        lines = [Line(label, {budget: points_of(record, ASR) for budget, record in cells.items()}, group=group)]
        floor = {budget: points for budget, record in cells.items() if (points := points_of(record, FLOOR))}
        panels.append((label, [*lines, Line("floor", floor, reference=True, group=group)]))
    said = "; ".join(
        f"{label}: "
        + ", ".join(f"{budget:g} HU {wording.share(mean_of(record, ASR))}" for budget, record in sorted(cells.items()))
        for label, cells in by_attack.items()
    )
    caption = (
        "Attack success over the budget, a panel per attack; the line joins means over the seeds. "
        "Dotted: the floor, the same trigger on the clean model."
    )
    drawing = panels_plot(panels, x_label="budget, RMSE in HU", y_label="attack success rate", alt=said, name="frontier-panels")
    return Figure(caption, drawing)


def _visibility(attacked: Sequence[tuple[str, Record]], name: str) -> Figure:
    """ASR against PSNR and SSIM: equal RMSE is not equal visibility."""
    quantities = (("psnr_db", "PSNR, dB (peak 2000 HU)"), ("ssim_lung", "SSIM, lung window"))
    largest = max((budget_of(record) or 0.0) for _, record in attacked)
    chosen = [(label, record) for label, record in attacked if (budget_of(record) or 0.0) == largest]
    panels = []
    for key, x_label in quantities:
        marks = []
        for index, (_, record) in enumerate(chosen):
            x, y = record.summary.get(f"stealth/{key}"), mean_of(record, ASR)
            if x is not None and x.mean is not None and y is not None:
                marks.append(Mark(x.mean, y, str(index + 1), domain_of(record)))
        panels.append((x_label, marks))
    said = "; ".join(f"{label}: ASR {wording.share(mean_of(record, ASR))}" for label, record in chosen)
    numbers = ", ".join(f"{i + 1} {label}" for i, (label, _) in enumerate(chosen))
    caption = f"Attack success against how visible the change is, at a budget of {largest:g} HU: {numbers}."
    drawing = scatter_plot(panels, y_label="attack success rate", groups=DOMAINS, alt=said, name=f"{name}-visibility")
    return Figure(caption, drawing)


def _rates(study: Study, records: Sequence[Record]) -> Shown:
    if not records:
        return (), ()
    rate_names = ("threat.poison_rate", "threat.poison_rate_of")
    labels = labels_of(records, leave=rate_names)
    notes, rows = Footnotes(), list[tuple[Cell, ...]]()
    rates = sorted({float(wording.field(r.experiment, "threat.poison_rate", 0.0)) for r in records if r.experiment.get("attack")})
    by_attack: dict[str, dict[float, Record]] = {}
    for label, record in zip(labels, records, strict=True):
        attacked = record.experiment.get("attack") is not None
        rate = float(wording.field(record.experiment, "threat.poison_rate", 0.0))
        of = wording.field(record.experiment, "threat.poison_rate_of", "training-set")
        said = f"{100 * rate:g} % of the {'training set' if of == 'training-set' else 'candidates'}"
        rows.append(
            (
                Cell(label, link=f"run-{record.id}"),
                Cell(said if attacked else wording.DASH),
                metric_cell(record, ASR, notes, strong=True) if attacked else misread_cell(record, notes),
                metric_cell(record, FLOOR, notes),
                metric_cell(record, RANDOM, notes),
                metric_cell(record, CA if attacked else CLEAN_CA, notes),
            )
        )
        if attacked:
            by_attack.setdefault(label, {})[rate] = record
    head = ("Attack", "Poisoned", "ASR", "Floor: clean model", "Random trigger", "Clean accuracy")
    table = Table("Success and accuracy by poison rate", head, tuple(rows), (interval_note(records), *notes.lines()))
    figures = []
    for title, source, word in (("Attack success", ASR, "asr"), ("Clean accuracy", CA, "ca")):
        lines = [
            Line(label, {rates.index(rate): points for rate, r in cells.items() if (points := points_of(r, source))}, group=index)
            for index, (label, cells) in enumerate(by_attack.items())
        ]
        if any(line.points for line in lines):
            said = "; ".join(
                f"{label}: "
                + ", ".join(f"{100 * rate:g} % {wording.share(mean_of(r, source))}" for rate, r in sorted(cells.items()))
                for label, cells in by_attack.items()
            )
            drawing = line_plot(
                lines,
                x_label="poisoned, %",
                y_label=title.lower(),
                alt=f"{title} by poison rate. {said}",
                name=f"{study.name}-{word}",
                ticks=[f"{100 * rate:g}" for rate in rates],
            )
            figures.append(
                Figure(f"{title} of the attacked model over the poison rate; points are seeds, bars 95% intervals.", drawing)
            )
    return (table,), tuple(figures)


def _ablation(study: Study, records: Sequence[Record]) -> Shown:
    if not records:
        return (), ()
    labels = [record.title or label for record, label in zip(records, labels_of(records), strict=True)]
    tables = [attack_table("Each variant at the same budget", records, labels, budgets=False)]
    names = dict(zip((record.id for record in records), labels, strict=True))
    compared = [c for c in study.comparisons if c.id in names and c.difference.value is not None]
    figures = []
    attacked = [(label, record) for label, record in zip(labels, records, strict=True) if points_of(record, ASR)]
    if compared and attacked:
        base = attacked[0][0]
        rows = []
        for identity in dict.fromkeys(c.id for c in compared):
            by_metric = {c.metric: c.difference for c in compared if c.id == identity}
            cells = (difference_cell(by_metric.get("asr")), difference_cell(by_metric.get("accuracy")))
            rows.append((Cell(names[identity], link=f"run-{identity}"), *cells))
        seeds = wording.plural(len(compared[0].seeds), "seed")
        note = (
            f"Each variant minus “{base}” on the same test slices, mean over {seeds}; intervals resample patients and are about "
            "other patients, not about other trainings."
        )
        head = ("Variant", "Difference in ASR, points", "Difference in clean accuracy, points")
        tables.append(Table("Differences to the first variant", head, tuple(rows), (note,)))
        shown = [(names[c.id], c.difference) for c in compared if c.metric == "asr"]
        plotted = [Row(label, [Point(e.value, e.low, e.high)], group=1) for label, e in shown if e.value is not None]
        said = "; ".join(f"{label} {signed(e.value)}" for label, e in shown)
        drawing = interval_plot(
            plotted, x_label="difference in attack success rate", alt=said, name=f"{study.name}-difference", low=-1.0
        )
        figures.append(Figure(f"Difference in attack success to “{base}”, with 95% intervals over patients.", drawing))
    if attacked:
        figures.insert(0, _success_rows(attacked, study.name))
    return tuple(tables), tuple(figures)


def _cost(study: Study, records: Sequence[Record]) -> Shown:
    if not records:
        return (), ()
    labels = labels_of(records, leave=(overview.BUDGET,))
    rows, bars = list[tuple[Cell, ...]](), []
    for label, record in zip(labels, records, strict=True):
        seconds = [seed.cost.seconds["trigger"] for seed in record.seeds if "trigger" in seed.cost.seconds]
        rows.append(
            (
                Cell(label, link=f"run-{record.id}"),
                amount_cell(seconds, wording.duration),
                amount_cell(
                    [float(s.cost.gradient_passes["trigger"]) for s in record.seeds if "trigger" in s.cost.gradient_passes],
                    whole,
                ),
                amount_cell(
                    [s.cost.memory_mb["trigger"] * 2**20 for s in record.seeds if "trigger" in s.cost.memory_mb], wording.size
                ),
                amount_cell([float(s.cost.trigger_bytes) for s in record.seeds if s.cost.trigger_bytes], wording.size),
                amount_cell([s.cost.seconds["attacked"] for s in record.seeds if "attacked" in s.cost.seconds], wording.duration),
                amount_cell([s.cost.seconds["clean"] for s in record.seeds if "clean" in s.cost.seconds], wording.duration),
            )
        )
        if seconds:
            bars.append((label, sum(seconds) / len(seconds)))
    head = (
        "Attack",
        "Making the trigger",
        "Gradient passes",
        "Memory it took",
        "Trigger file",
        "Training the victim",
        "Clean model",
    )
    machines = sorted({f"{r.provenance.device}, {wording.plural(r.provenance.threads, 'thread')}" for r in records})
    notes = (
        f"Mean over the seeds, range below. Machine: {wording.listing(machines)}. Memory: peak while the trigger was made, above "
        "what the process held before; a dash where the system cannot tell. A white-box attacker needs the clean model first.",
    )
    said = "; ".join(f"{label} {wording.duration(amount)}" for label, amount in bars)
    figures: tuple[Figure, ...] = ()
    if any(amount > 0 for _, amount in bars):
        drawing = bar_plot(bars, x_label="seconds for making the trigger", alt=said, name=f"{study.name}-seconds")
        figures = (Figure("Time for making the trigger, mean over the seeds.", drawing),)
    return (Table("Cost by attack", head, tuple(rows), notes, sortable=True),), figures


_KINDS: Mapping[str, Callable[[Study, Sequence[Record]], Shown]] = {
    "stealth-frontier": _frontier,
    "scan-parameters": transfer,
    "architectures": architectures,
    "poison-rate": _rates,
    "ablation": _ablation,
    "cost": _cost,
    "detect": detect,
    "repair": repair,
    "adaptive": adaptive,
    "screen-power": screen_power,
}
