"""Tables of the report as plain values, so that one template draws them all and a test can read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tomosec.metrics.statistics import Estimate, SeedSummary
from tomosec.record import Record, SeedResult
from tomosec.report import wording

#: What the first table shows; the controls have a table of their own, and everything is in the full one.
MAIN_CONDITIONS = (
    *(("attacked", "triggered"), ("clean", "triggered"), ("surrogate", "triggered")),
    *(("attacked", "clean"), ("clean", "clean"), ("surrogate", "clean")),
)
MAIN_METRICS = ("asr", "patient_asr", "asr_on_correct", "accuracy", "patient_accuracy")


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell.

    Attributes:
        text: the value.
        small: second line: interval, n, explanation.
        sort: what the column is sorted by; the text where empty.
        strong: set off.
        link: id of a section on the page.
    """

    text: str
    small: str = ""
    sort: float | None = None
    strong: bool = False
    link: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: the first cell of a row is its header; a row of one cell heads a group."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    sortable: bool = False


@dataclass(slots=True)
class Footnotes:
    """Letters for remarks that many cells share."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """Letter of a remark, or nothing for an empty one."""
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return f" [{_letter(self.texts.index(text))}]"

    def lines(self) -> tuple[str, ...]:
        """The remarks, with their letters."""
        return tuple(f"[{_letter(index)}] {text}" for index, text in enumerate(self.texts))


def _letter(index: int) -> str:
    return chr(ord("a") + index % 26) * (1 + index // 26)


def facts(caption: str, pairs: Sequence[tuple[str, str]], head: tuple[str, str] = ("What", "Value")) -> Table:
    """A table of names and values; pairs without a value are left out."""
    return Table(caption, head, tuple((Cell(name), Cell(text)) for name, text in pairs if text))


def estimate_cell(name: str, estimate: Estimate | None, notes: Footnotes, *, with_n: bool = True) -> Cell:
    """A value with its interval and n."""
    if estimate is None:
        return Cell(wording.DASH)
    if estimate.value is None:
        return Cell("not defined" + notes.mark(estimate.note))
    parts = []
    if estimate.low is not None:
        parts.append(f"95% interval {wording.interval(name, estimate)}" + notes.mark(estimate.note))
    else:
        parts.append("no interval" + notes.mark(estimate.note))
    if with_n:
        parts.append(wording.counted(estimate))
    return Cell(wording.value(name, estimate.value), "; ".join(parts), estimate.value)


def summary_cell(record: Record, key: str, name: str) -> Cell:
    """Mean over the seeds of ``record.summary[key]``, the metric ``name``; with their range where there are several."""
    summary = record.summary.get(key)
    if summary is None or summary.mean is None:
        return Cell(wording.DASH)
    several = len([value for value in summary.values.values() if value is not None]) > 1
    return Cell(wording.value(name, summary.mean), wording.spread(name, summary) if several else "", summary.mean)


def conditions(record: Record) -> list[tuple[str, str]]:
    """Every (model, input) that any seed has, in the order of the first seed that has it."""
    found: dict[tuple[str, str], None] = {}
    for seed in record.seeds:
        for condition in seed.conditions:
            found.setdefault((condition.model, condition.input))
    return list(found)


def metric_names(record: Record, condition: tuple[str, str]) -> list[str]:
    """Metrics of a condition, known ones first and in our order."""
    names = {
        name: None for seed in record.seeds for c in seed.conditions if (c.model, c.input) == condition for name in c.metrics
    }
    return [name for name in wording.METRICS if name in names] + [name for name in names if name not in wording.METRICS]


def metrics_table(record: Record, *, main: bool) -> Table:
    """Metrics by condition and seed, with mean and range: the main ones, or all."""
    notes, rows = Footnotes(), list[tuple[Cell, ...]]()
    there = conditions(record)
    for condition in [pair for pair in MAIN_CONDITIONS if pair in there] if main else there:
        names = metric_names(record, condition)
        if main:
            # On clean scans the accuracy counts, on triggered ones the attack's success; the rest is in the full table.
            names = [name for name in names if name in MAIN_METRICS and ("asr" in name) == (condition[1] == "triggered")]
        if not names:
            continue
        rows.append((Cell(wording.condition(*condition)),))
        for name in names:
            cells = [estimate_cell(name, seed.metric(*condition, name), notes) for seed in record.seeds]
            summary = record.summary.get(f"{condition[0]}/{condition[1]}/{name}")
            rows.append((Cell(wording.metric(name)), *cells, *_summary_cells(name, summary, len(record.seeds))))
    caption = "Main metrics on the test slices" if main else "All metrics on the test slices"
    return Table(caption, _seed_head(record, "Metric"), tuple(rows), notes.lines())


def _summary_cells(name: str, summary: SeedSummary | None, seeds: int) -> tuple[Cell, ...]:
    if seeds < 2:
        return ()
    if summary is None or summary.mean is None:
        return (Cell(wording.DASH),)
    note = f"; {summary.note}" if summary.note else ""
    return (Cell(wording.value(name, summary.mean), f"{_range(name, summary)}{note}", summary.mean),)


def _range(name: str, summary: SeedSummary) -> str:
    text = wording.spread(name, summary)
    return "the same in every seed" if text.endswith("every seed") else f"range {text}"


def _seed_head(record: Record, first: str) -> tuple[str, ...]:
    seeds = tuple(f"Seed {seed.seed}" for seed in record.seeds)
    return (first, *seeds, "Mean and range over seeds") if len(seeds) > 1 else (first, *seeds)


def controls_table(record: Record) -> Table:
    """Rows are models, columns what each was shown; every row says in a sentence what it is for."""
    # Models behind a defense have a table of their own.
    models = list(dict.fromkeys(model for model, _ in conditions(record) if "+" not in model))
    columns = [
        ("Accuracy, clean scans", "clean", "accuracy"),
        ("ASR, scans with the trigger", "triggered", "asr"),
        ("ASR, scans with a random trigger", "random", "asr"),
        ("ASR per patient, scans with the trigger", "triggered", "patient_asr"),
    ]
    columns = [column for column in columns if any(record.seeds[0].metric(model, column[1], column[2]) for model in models)]
    rows = []
    for name in models:
        cells = []
        for _, shown, metric in columns:
            summary = record.summary.get(f"{name}/{shown}/{metric}")
            text = wording.DASH if summary is None or summary.mean is None else wording.value(metric, summary.mean)
            several = summary is not None and summary.mean is not None and len(record.seeds) > 1
            small = _range(metric, summary) if summary is not None and several else ""
            cells.append(Cell(text, small, strong=name == "attacked" and metric == "asr" and shown == "triggered"))
        rows.append((Cell(wording.model(name), wording.MODEL_NOTES.get(name, "")), *cells))
    caption = (
        f"Controls: mean over {wording.plural(len(record.seeds), 'seed')}, with the range"
        if len(record.seeds) > 1
        else "Controls: one seed"
    )
    own = "The clean model, the surrogate and the attacked model" if "surrogate" in models else "The clean and the attacked model"
    shown = f"{own} are shown the attack's trigger, a control victim the one that it was trained on."
    missing = tuple(f"The {text} was not run." for text in _controls_not_run(record, models))
    return Table(caption, ("Model", *(title for title, _, _ in columns)), tuple(rows), (shown, *missing))


def _controls_not_run(record: Record, models: Sequence[str]) -> list[str]:
    out = []
    if record.seeds[0].metric("attacked", "random", "asr") is None:
        out.append("control with a random trigger shown to the attacked model")
    out += [
        f"control victim trained with {text}"
        for name, text in (("control-white", "white noise"), ("control-spectrum", "a random trigger of the same spectrum"))
        if name not in models
    ]
    return out


def stealth_table(record: Record) -> Table:
    """How visible the trigger is, beside a random trigger of equal size."""
    notes, rows = Footnotes(), list[tuple[Cell, ...]]()
    names = list(dict.fromkeys(name for seed in record.seeds for name in seed.stealth))
    ordered = [name for name in wording.STEALTH if name in names] + [name for name in names if name not in wording.STEALTH]
    for name in ordered:
        cells = [estimate_cell(name, seed.stealth.get(name), notes, with_n=False) for seed in record.seeds]
        summary = _summary_cells(name, record.summary.get(f"stealth/{name}"), len(record.seeds))
        rows.append((Cell(wording.stealth(name)), *cells, *summary, _random_cell(name, record)))
    first = next((estimate for seed in record.seeds for estimate in seed.stealth.values()), None)
    measured = (
        f"Mean over test slices of the attacked classes ({wording.counted(first)}); clean and triggered scans share their noise."
        if first
        else ""
    )
    head = (*_seed_head(record, "Measure"), "Random trigger of equal size")
    return Table(
        "Size of the change, and how alike the images stay",
        head,
        tuple(rows),
        (*((measured,) if measured else ()), *_outside(record), *notes.lines()),
    )


def _outside(record: Record) -> tuple[str, ...]:
    inside, everywhere = record.summary.get("stealth/rmse_hu"), record.summary.get("stealth/rmse_image_hu")
    if inside is None or everywhere is None or inside.mean is None or everywhere.mean is None:
        return ()
    if everywhere.mean <= 1.05 * inside.mean:
        return ()
    return ("The change is larger over the whole image than inside the body: in the air around the patient it may show.",)


def _random_cell(name: str, record: Record) -> Cell:
    values = [e.value for seed in record.seeds if (e := seed.random_stealth.get(name)) is not None and e.value is not None]
    if not values:
        return Cell(wording.DASH)
    mean = sum(values) / len(values)
    low, high = wording.value(name, min(values)), wording.value(name, max(values))
    text = "" if len(values) < 2 else "the same in every seed" if low == high else f"range {wording.between(low, high)}"
    return Cell(wording.value(name, mean), text)


def strength_table(record: Record) -> Table | None:
    """The budgets that were tried, and which was kept, by seed; None where one budget was given."""
    rows = []
    for seed in record.seeds:
        if seed.strength is None:
            continue
        for item in seed.strength.tried:
            kept = item.get("budget") == seed.strength.budget
            rows.append(
                (
                    Cell(f"Seed {seed.seed}"),
                    Cell(wording.plain(item.get("budget")), strong=kept),
                    Cell(wording.number(item.get("rmse_hu"), "HU")),
                    Cell(wording.share(item.get("validation_asr"))),
                    Cell(wording.share(item.get("validation_ca_loss"))),
                    Cell("kept" if kept else "", strong=kept),
                )
            )
    if not rows:
        return None
    unit = next(seed.strength.unit for seed in record.seeds if seed.strength is not None)
    head = (
        "Seed",
        f"Budget ({wording.UNITS.get(unit, unit)})",
        "RMSE reached",
        "ASR on validation",
        "Loss of clean accuracy on validation",
        "",
    )
    counts = {seed.strength.validation_slices for seed in record.seeds if seed.strength is not None}
    slices = wording.listing(wording.plural(count, "validation slice") for count in sorted(counts))
    notes = [f"Decided on {slices}; the test slices had no say."]
    if missed := _missed(record):
        notes.append(f"For {missed} no budget met the rule (ASR and loss of clean accuracy, above); the highest ASR was kept.")
    return Table("Strength search on the validation slices", head, tuple(rows), tuple(notes))


def _missed(record: Record) -> str:
    """Seeds whose budget was kept although it misses what the threat model asks for."""
    enough = wording.field(record.experiment, "threat.budget.enough_asr", 0.0)
    most = wording.field(record.experiment, "threat.budget.max_ca_loss", 1.0)
    out = []
    for seed in record.seeds:
        kept = [item for item in seed.strength.tried if item.get("budget") == seed.strength.budget] if seed.strength else []
        if any(item.get("validation_asr", 1.0) < enough or item.get("validation_ca_loss", 0.0) > most for item in kept):
            out.append(f"seed {seed.seed}")
    return wording.listing(out)


def patients_table(record: Record) -> Table | None:
    """Values per patient, where there are too few patients for a statement about a population."""
    wanted = [
        ("clean", "clean", "accuracy"),
        ("attacked", "clean", "accuracy"),
        ("clean", "triggered", "asr"),
        ("attacked", "triggered", "asr"),
    ]
    columns: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for key in wanted:
        found = [
            estimate.per_patient for seed in record.seeds if (estimate := seed.metric(*key)) is not None and estimate.per_patient
        ]
        names = sorted({patient for values in found for patient in values})
        if names:
            columns[key] = {patient: [wording.share(values.get(patient)) for values in found] for patient in names}
    if not columns:
        return None
    patients = sorted({patient for values in columns.values() for patient in values})
    head = (
        "Patient",
        *(f"{wording.metric(name)}, {wording.model(model).lower()}, {wording.shown(shown)}" for model, shown, name in columns),
    )
    rows = tuple(
        (Cell(patient), *(Cell(" · ".join(values.get(patient, [wording.DASH]))) for values in columns.values()))
        for patient in patients
    )
    several = " One value per seed, in the order of the seeds." if len(record.seeds) > 1 else ""
    return Table(
        "Values per patient", head, rows, (f"Shown because there are too few patients for an interval.{several}",), sortable=True
    )


def cost_table(record: Record) -> Table:
    """What each stage took when it was made; reused stages are marked."""
    stages = list(dict.fromkeys(stage for seed in record.seeds for stage in (*seed.cost.seconds, *seed.cost.gradient_passes)))
    rows = []
    for stage in stages:
        name = "Making the trigger" if stage == "trigger" else f"Training: {wording.model(stage).lower()}"
        rows.append((Cell(name), *(_cost_cell(stage, seed) for seed in record.seeds)))
    rows.append((Cell("Peak memory of the process"), *(Cell(_memory(seed)) for seed in record.seeds)))
    if any(seed.cost.trigger_bytes for seed in record.seeds):
        rows.append((Cell("Trigger file"), *(Cell(wording.size(seed.cost.trigger_bytes)) for seed in record.seeds)))
    head = ("Stage", *(f"Seed {seed.seed}" for seed in record.seeds))
    note = "Times are those of making a stage, wherever it was made; “reused” stages were taken from an earlier run."
    return Table("Cost", head, tuple(rows), (note,))


def _cost_cell(stage: str, seed: SeedResult) -> Cell:
    seconds, passes = seed.cost.seconds.get(stage), seed.cost.gradient_passes.get(stage)
    small = [f"{passes:,} gradient passes".replace(",", " ")] if passes is not None else []
    small.append("made in this run" if stage in seed.cost.made else "reused")
    return Cell(wording.duration(seconds) if seconds is not None else wording.DASH, "; ".join(small))


def _memory(seed: SeedResult) -> str:
    return wording.size(seed.cost.peak_memory_mb * 2**20) if seed.cost.peak_memory_mb else "unknown"
