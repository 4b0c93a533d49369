"""Studies of defenses: attacks against detectors, repairs, adaptive attackers, and what many scans together show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from markupsafe import Markup

from tomosec.record import DefenseResult, Record
from tomosec.report import wording
from tomosec.report.figures import Line, Point, line_plot
from tomosec.report.study_cells import (
    ASR,
    CA,
    RA,
    Figure,
    Shown,
    budget_of,
    labels_of,
    mean_of,
    metric_cell,
    stealth_cell,
)
from tomosec.report.study_figures import matrix_plot
from tomosec.report.tables import Cell, Footnotes, Table, estimate_cell, summary_cell
from tomosec.study import Inspected, Study, inspected

#: Roles that have an AUROC of triggered against clean scans or images.
DETECTORS = ("scan-detector", "input-detector", "prediction-wrapper", "sample-filter")
#: Roles behind which a model reads.
READERS = ("repair", "scan-purifier", "prediction-wrapper", "training-defense", "sample-filter")
#: The field that curves go over.
_BUDGET = ("threat.budget.value",)
#: More curves than this are a tangle; a matrix shows them.
_MOST_CURVES = 10


def detect(study: Study, records: Sequence[Record]) -> Shown:
    """AUROC and detection at 5 % false alarms of every detector against every attack."""
    attacked = [record for record in records if record.experiment.get("attack") is not None]
    names = _names(attacked, DETECTORS)
    if not names:
        return (), ()
    labels = labels_of(attacked)
    tables, figures, curves = [], list[Figure](), list[Figure]()
    for title, metric in (
        ("AUROC", "auroc"),
        ("Detected at 5% false alarms", "tpr_at_5"),
        ("False alarms at 5%", "fpr_at_5"),
        ("Detected at 1% false alarms", "tpr_at_1"),
    ):
        notes, rows, values = Footnotes(), list[tuple[Cell, ...]](), list[list[float | None]]()
        for label, record in zip(labels, attacked, strict=True):
            cells = [_defense_cell(record, name, metric, notes) for name in names]
            values.append([cell.sort for cell in cells])
            stealth = (stealth_cell(record, "rmse_hu"), stealth_cell(record, "psnr_db"))
            rows.append((Cell(label, link=f"run-{record.id}"), *stealth, *cells))
        if not any(value is not None for line in values for value in line):
            continue
        if metric == "fpr_at_5" and all(line == values[0] for line in values):
            # Clean scans know no attack: the rows are one.
            rows = [(Cell("clean scans"), Cell(wording.DASH), Cell(wording.DASH), *rows[0][3:])]
        head = ("Attack", "RMSE, body", "PSNR", *names)
        tables.append(Table(f"{title}, by detector", head, tuple(rows), (*_detection_notes(attacked, names), *notes.lines())))
        if metric == "auroc":
            curves = _curves_by_detector(study, attacked, names)
            figures += curves
        if metric in ("auroc", "tpr_at_5") and not curves:
            text = partial(wording.value, metric)
            said = "; ".join(f"{label}: {_said(names, line, text)}" for label, line in zip(labels, values, strict=True))
            drawing = matrix_plot(
                labels, names, values, row_label="attack", column_label="detector", alt=said, name=f"{study.name}-{metric}"
            )
            caption = "AUROC in percent (50: blind)" if metric == "auroc" else "Share detected at 5% false alarms, in percent"
            figures.append(Figure(f"{caption}, mean over the seeds.", drawing))
    return tuple(tables), tuple(figures)


def adaptive(study: Study, records: Sequence[Record]) -> Shown:
    """What an attack that adapts pays for being unseen: success beside detection."""
    attacked = [record for record in records if record.experiment.get("attack") is not None]
    if not attacked:
        return (), ()
    notes, rows, names = Footnotes(), list[tuple[Cell, ...]](), _names(attacked, DETECTORS)
    for label, record in zip(labels_of(attacked), attacked, strict=True):
        seen = [
            (cell.sort, name) for name in names if (cell := _defense_cell(record, name, "auroc", Footnotes())).sort is not None
        ]
        best = max(seen, default=None)
        rows.append(
            (
                Cell(label, link=f"run-{record.id}"),
                metric_cell(record, ASR, notes, strong=True),
                metric_cell(record, CA, notes),
                stealth_cell(record, "rmse_hu"),
                Cell(
                    wording.DASH if best is None else f"{best[0]:.3f}",
                    "" if best is None else best[1],
                    None if best is None else best[0],
                ),
            )
        )
    head = ("Attack", "ASR", "Clean accuracy", "RMSE, body", "Highest AUROC of any detector")
    note = (
        "The highest AUROC is the most favorable of all detectors for the defender, chosen afterwards; each is in the next table."
    )
    said = (note, *_values_note(attacked), *_not_adaptive(attacked, names), *notes.lines())
    table = Table("What adapting costs, and what it hides", head, tuple(rows), said)
    tables, figures = detect(study, records)
    return (table, *tables), figures


def repair(study: Study, records: Sequence[Record]) -> Shown:
    """What is left of each attack behind each repair, and what inspectors make of the networks."""
    attacked = [record for record in records if record.experiment.get("attack") is not None]
    names = _names(attacked, READERS)
    labels = labels_of(attacked)
    tables, figures = [], []
    wanted: tuple[tuple[str, Callable[[Record, str, Footnotes], Cell]], ...] = (
        ("ASR behind it", lambda record, name, notes: _behind(record, name, "triggered", "asr", notes)),
        ("Clean accuracy behind it", lambda record, name, notes: _behind(record, name, "clean", "accuracy", notes)),
        ("DER", lambda record, name, notes: _defense_cell(record, name, "der", notes)),
    )
    two = all(record.data is None or len(record.data.classes) == 2 for record in attacked)
    if not two:
        robust = "Robust accuracy behind it"
        wanted += ((robust, lambda record, name, notes: _behind(record, name, "triggered", "robust_accuracy", notes)),)
    before = {"ASR behind it": ASR, "Clean accuracy behind it": CA, "Robust accuracy behind it": RA}
    for title, cell_of in wanted if names else ():
        notes, rows, values = Footnotes(), list[tuple[Cell, ...]](), list[list[float | None]]()
        for label, record in zip(labels, attacked, strict=True):
            without = metric_cell(record, before[title], notes) if title in before else Cell("0.500")
            cells = [cell_of(record, name, notes) for name in names]
            values.append([without.sort, *(cell.sort for cell in cells)])
            rows.append((Cell(label, link=f"run-{record.id}"), without, *cells))
        columns = ("no defense", *names)
        note = "Clean data for repairing are the validation slices. DER is 0.5 where a defense changes nothing, 1 at best."
        note += " With two classes robust accuracy is 1 − ASR." if two else ""
        said = (note, *_values_note(attacked), *_not_adaptive(attacked, names), *notes.lines())
        tables.append(Table(title, ("Attack", *columns), tuple(rows), said))
        if title != "DER":
            alt = "; ".join(f"{label}: {_said(columns, line, wording.share)}" for label, line in zip(labels, values, strict=True))
            drawing = matrix_plot(
                labels, columns, values, row_label="attack", column_label="defense", alt=alt, name=f"{study.name}-{title[:3]}"
            )
            figures.append(Figure(f"{title} in percent, mean over the seeds.", drawing))
    inspected = _inspections(study, attacked)
    found, drawn = detect(study, [record for record in records if _names([record], DETECTORS)])
    return (*tables, *inspected, *found), (*figures, *drawn)


def _inspections(study: Study, attacked: Sequence[Record]) -> tuple[Table, ...]:
    """Scores of clean networks and of each attack's, and how well they tell them apart."""
    names, labels = _names(attacked, ("inspector",)), labels_of(attacked)
    notes, rows = Footnotes(), list[tuple[Cell, ...]]()
    told = {(item.name, item.cell): item for item in study.inspections}
    for name in names:
        clean, others = inspected(attacked, name)
        groups: list[tuple[str, str | None, list[Inspected]]] = [("clean", None, clean)]
        groups += [
            (label, record.id, [item for item in others if item.of == record.id])
            for label, record in zip(labels, attacked, strict=True)
        ]
        groups += [("all attacks", "", others)] if len(attacked) > 1 else []
        for label, cell, networks in groups:
            scores = ", ".join(f"{score:.3g}" for score in sorted(item.score for item in networks))
            found = told.get((name, cell)) if cell is not None else None
            auroc, p_values = Cell(wording.DASH), Cell(wording.DASH)
            if found is not None:
                auroc = estimate_cell("auroc", found.auroc, notes, with_n=False)
                p_values = p_values if cell == "" else Cell(", ".join(f"{p:.2g}" for p in reversed(found.p_values)))
            if networks:
                shown = Cell(wording.DASH if cell == "" else scores)
                rows.append((Cell(name), Cell(label), Cell(str(len(networks))), shown, p_values, auroc))
    if not rows:
        return ()
    note = "Higher is more suspicious. A clean network counts once, however many cells attack it. " + (
        "p: by rank among the clean networks, in the order of the scores. The interval takes all networks of a seed for one case."
        if told
        else "A ROC needs eight clean and eight attacked networks at least; there are fewer."
    )
    head = ("Inspector", "Networks", "n", "Scores", "p", "AUROC against clean")
    return (Table("Inspected networks", head, tuple(rows), (note, *_not_adaptive(attacked, names), *notes.lines())),)


def screen_power(study: Study, records: Sequence[Record]) -> Shown:
    """Detection of sets of scans against their number and the size of the change."""
    attacked = [record for record in records if record.experiment.get("attack") is not None]
    names = _names(attacked, ("scan-set-detector",))
    if not names:
        return (), ()
    sizes = sorted(
        {
            int(metric.rsplit("_", 1)[1])
            for record in attacked
            for name in names
            for r in _results(record, name)
            for metric in r.metrics
        }
    )
    labels = labels_of(attacked, leave=_BUDGET)
    tables, figures = [], []
    for name in names:
        notes, rows = Footnotes(), list[tuple[Cell, ...]]()
        for label, record in zip(labels, attacked, strict=True):
            cells = []
            for size in sizes:
                cells += [_defense_cell(record, name, f"{rate}_at_5_of_{size}", notes) for rate in ("tpr", "fpr")]
            rows.append((Cell(label, link=f"run-{record.id}"), stealth_cell(record, "rmse_hu"), *cells))
        head = ["Attack", "RMSE, body"]
        for size in sizes:
            head += [f"{size} scans: flagged", f"{size} clean scans: flagged"]
        note = "Share of sets flagged at p of 0.05 or less; sets are of different patients as far as there are. No interval."
        rates = [e for record in attacked for result in _results(record, name) for e in result.metrics.values()]
        sets = "; ".join(dict.fromkeys(e.note for e in rates if e.value is not None and e.note))
        many = (f"Judged for each rate and seed: {sets}.",) if sets else ()
        said = (note, *many, *_not_adaptive(attacked, [name]), *notes.lines())
        tables.append(Table(f"{name}: many scans together", tuple(head), tuple(rows), said))
        metrics = {f", {size} scans": f"tpr_at_5_of_{size}" for size in sizes}
        if drawing := _over_budget(attacked, name, metrics, y_label="sets flagged", drawing=f"{study.name}-{name}"):
            figures.append(Figure(f"{name}: share of sets flagged at p of 0.05 or less, over the size of the change.", drawing))
    return tuple(tables), tuple(figures)


def _curves_by_detector(study: Study, records: Sequence[Record], names: Sequence[str]) -> list[Figure]:
    """A figure per detector where budgets differ and the attacks are few enough for curves; else none."""
    several = len({budget_of(record) for record in records}) > 1
    if not several or len(set(labels_of(records, leave=_BUDGET))) > _MOST_CURVES:
        return []
    figures = []
    for name in names:
        drawing = _over_budget(records, name, {"": "auroc"}, y_label="AUROC", drawing=f"{study.name}-{name}")
        if drawing is not None:
            figures.append(Figure(f"{name}: AUROC in percent over the size of the change (50: blind).", drawing))
    return figures


def _over_budget(
    records: Sequence[Record], name: str, metrics: Mapping[str, str], *, y_label: str, drawing: str
) -> Markup | None:
    """A curve per attack and metric of one detector over the budget, with the seeds' intervals; None where there is no value.

    Args:
        records: of attacks.
        name: of the detector.
        metrics: what is added to an attack's label, and the metric that is drawn.
        y_label: of the axis.
        drawing: makes the figure's ids unique on the page.
    """
    lines: dict[str, dict[float, list[Point]]] = {}
    for label, record in zip(labels_of(records, leave=_BUDGET), records, strict=True):
        budget, results = budget_of(record), _results(record, name)
        for added, metric in metrics.items():
            found = [e for result in results if (e := result.metrics.get(metric)) is not None]
            points = [Point(e.value, e.low, e.high) for e in found if e.value is not None]
            if budget is not None and points:
                lines.setdefault(label + added, {})[budget] = points
    if not lines:
        return None
    shown = [Line(label, points, group=i) for i, (label, points) in enumerate(lines.items())]
    alt = "; ".join(
        f"{line.label}: "
        + ", ".join(f"{x:g} HU {wording.share(sum(p.value for p in at) / len(at))}" for x, at in sorted(line.points.items()))
        for line in shown
    )
    return line_plot(shown, x_label="budget, RMSE in HU", y_label=y_label, alt=alt, name=drawing)


def _names(records: Sequence[Record], roles: Sequence[str]) -> list[str]:
    """Names of the defenses of some roles, in the order of the recipes."""
    results = (result for record in records for seed in record.seeds for result in seed.defenses)
    return list(dict.fromkeys(result.name for result in results if result.role in roles))


def _said(names: Sequence[str], values: Sequence[float | None], text: Callable[[float | None], str]) -> str:
    """Names with their values, for those who do not see the figure."""
    return ", ".join(f"{name} {text(value)}" for name, value in zip(names, values, strict=True))


def _results(record: Record, name: str) -> list[DefenseResult]:
    return [result for seed in record.seeds for result in seed.defenses if result.name == name]


def _not_adaptive(records: Sequence[Record], names: Sequence[str]) -> tuple[str, ...]:
    """Which of these defenses met no attack that was made to get past them: said under every table that has them."""
    naive = [name for name in names if not any(result.adaptive for record in records for result in _results(record, name))]
    return (f"Not adaptively evaluated: {', '.join(naive)}.",) if naive else ()


def _values_note(records: Sequence[Record]) -> tuple[str, ...]:
    """What stands in the cells."""
    if any(len(record.seeds) > 1 for record in records):
        return ("Means over the seeds with their range; never pooled.",)
    return ("One seed: values with their 95% interval over patients, where there is one.",)


def _refused(record: Record, name: str, notes: Footnotes) -> Cell | None:
    """Why a defense has no value in any seed; None where it has one, or was not asked for."""
    results = _results(record, name)
    if not results or not all(result.why_not or result.failed for result in results):
        return None
    failed = next((result.failed for result in results if result.failed), "")
    return Cell(f"failed{notes.mark(failed)}" if failed else f"n/a{notes.mark(results[0].why_not)}")


def _defense_cell(record: Record, name: str, metric: str, notes: Footnotes) -> Cell:
    """One seed: the value with its interval. Several: mean and range."""
    results = _results(record, name)
    if refused := _refused(record, name, notes):
        return refused
    found = [e for result in results if (e := result.metrics.get(metric)) is not None]
    if len(found) == 1 and found[0].value is not None:
        cell = estimate_cell(metric, found[0], Footnotes(), with_n=False)
        small = "" if found[0].low is None else cell.small.split(" [")[0].removeprefix("95% interval ")
        return Cell(cell.text, small, cell.sort)
    cell = summary_cell(record, f"defense/{name}/{metric}", metric)
    return cell if cell.sort is not None else Cell(wording.DASH + notes.mark(found[0].note if found else ""))


def _behind(record: Record, name: str, shown: str, metric: str, notes: Footnotes) -> Cell:
    if refused := _refused(record, name, notes):
        return refused
    source = (f"attacked+{name}", shown, metric)
    cell = metric_cell(record, source, notes)
    return Cell(cell.text, cell.small, mean_of(record, source), cell.strong)


def _detection_notes(records: Sequence[Record], names: Sequence[str]) -> tuple[str, ...]:
    """What was told from what, by how many, and which detectors nobody tried to get past."""
    there = [r for record in records for seed in record.seeds for r in seed.defenses if r.name in names and "auroc" in r.metrics]
    judges, filters = ([r for r in there if (r.role == "sample-filter") == wanted] for wanted in (False, True))
    said = []
    if judges:
        n = wording.counted(judges[0].metrics["auroc"])
        said.append(f"Triggered source slices against the same slices without the trigger ({n}, both together).")
    if held := sorted({result.held_out for result in judges if result.held_out}):
        said.append(f"p-values are from {wording.listing(map(str, held))} held-out calibration patients.")
    if filters:
        n = wording.counted(filters[0].metrics["auroc"])
        called = ", ".join(dict.fromkeys(result.name for result in filters))
        said.append(f"{called}: poisoned slices among all training slices ({n}).")
    return (" ".join((*said, *_values_note(records), *_not_adaptive(records, names))),)
