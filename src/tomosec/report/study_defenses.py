"""Studies of defenses: attacks against detectors, repairs, adaptive attackers, and what many scans together show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tomosec.record import DefenseResult, Record
from tomosec.report import wording
from tomosec.report.figures import Line, Point, line_plot
from tomosec.report.study_cells import (
    ASR,
    CA,
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
from tomosec.study import Study

#: Roles that have an AUROC of triggered against clean scans or images.
DETECTORS = ("scan-detector", "input-detector", "prediction-wrapper", "sample-filter")
#: Roles behind which a model reads.
READERS = ("repair", "scan-purifier", "prediction-wrapper", "training-defense")


def detect(study: Study, records: Sequence[Record]) -> Shown:
    """AUROC and detection at 5 % false alarms of every detector against every attack."""
    attacked = [record for record in records if record.experiment.get("attack") is not None]
    names = _names(attacked, DETECTORS)
    if not names:
        return (), ()
    labels = labels_of(attacked)
    adaptive = {name: _adaptive(attacked, name) for name in names}
    tables, figures = [], []
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
            rows.append((Cell(label, link=f"run-{record.id}"), stealth_cell(record, "rmse_hu"), *cells))
        if not any(value is not None for line in values for value in line):
            continue
        if metric == "fpr_at_5" and all(line == values[0] for line in values):
            # Clean scans know no attack: the rows are one.
            rows = [(Cell("clean scans"), Cell(wording.DASH), *rows[0][2:])]
        head = ("Attack", "RMSE, body", *names)
        tables.append(Table(f"{title}, by detector", head, tuple(rows), (_detection_note(attacked, adaptive), *notes.lines())))
        if metric in ("auroc", "tpr_at_5"):
            said = "; ".join(
                f"{label}: "
                + ", ".join(f"{name} {wording.value(metric, value)}" for name, value in zip(names, line, strict=True))
                for label, line in zip(labels, values, strict=True)
            )
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
    notes, rows = Footnotes(), list[tuple[Cell, ...]]()
    for label, record in zip(labels_of(attacked), attacked, strict=True):
        seen = [
            (cell.sort, name)
            for name in _names(attacked, DETECTORS)
            if (cell := _defense_cell(record, name, "auroc", Footnotes())).sort is not None
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
    table = Table("What adapting costs, and what it hides", head, tuple(rows), (note, *notes.lines()))
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
    for title, cell_of in wanted if names else ():
        notes, rows, values = Footnotes(), list[tuple[Cell, ...]](), list[list[float | None]]()
        for label, record in zip(labels, attacked, strict=True):
            without = Cell("0.500") if title == "DER" else metric_cell(record, ASR if title.startswith("ASR") else CA, notes)
            cells = [cell_of(record, name, notes) for name in names]
            values.append([without.sort, *(cell.sort for cell in cells)])
            rows.append((Cell(label, link=f"run-{record.id}"), without, *cells))
        columns = ("no defense", *names)
        note = (
            "Clean data for repairing are the validation slices. DER is 0.5 where a defense changes nothing, 1 at best. No "
            "repair here was evaluated against an attack made to survive it."
        )
        tables.append(Table(title, ("Attack", *columns), tuple(rows), (note, *notes.lines())))
        if title != "DER":
            said = "; ".join(
                f"{label}: {_said(columns, line, wording.share)}" for label, line in zip(labels, values, strict=True)
            )
            drawing = matrix_plot(
                labels, columns, values, row_label="attack", column_label="defense", alt=said, name=f"{study.name}-{title[:3]}"
            )
            figures.append(Figure(f"{title} in percent, mean over the seeds.", drawing))
    inspected = _inspections(study, attacked)
    found, drawn = detect(study, [record for record in records if _names([record], DETECTORS)])
    return (*tables, *inspected, *found), (*figures, *drawn)


def _inspections(study: Study, attacked: Sequence[Record]) -> tuple[Table, ...]:
    """Scores of clean and attacked networks, and how well they tell them apart."""
    rows = []
    for name in _names(attacked, ("inspector",)):
        for shown in ("clean", "attacked"):
            scores = [
                score.value
                for record in attacked
                for result in _results(record, name)
                if (score := result.metrics.get(f"score_{shown}")) is not None and score.value is not None
            ]
            # A clean model of one seed stands in every record; it counts once.
            scores = list(dict.fromkeys(scores)) if shown == "clean" else scores
            text = ", ".join(f"{score:.3g}" for score in sorted(scores)) or wording.DASH
            rows.append((Cell(name), Cell(shown), Cell(str(len(scores))), Cell(text)))
    if not rows:
        return ()
    told = [f"{item.name}: AUROC {estimate_cell('auroc', item.auroc, Footnotes()).text}" for item in study.inspections]
    note = (
        f"Higher is more suspicious. Told apart, {'; '.join(told)}."
        if told
        else "Higher is more suspicious. A ROC needs eight clean and eight attacked networks at least; there are fewer."
    )
    return (Table("Inspected networks", ("Inspector", "Networks", "n", "Scores"), tuple(rows), (note,)),)


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
    leave = ("threat.budget.value",)
    labels = labels_of(attacked, leave=leave)
    tables, figures = [], []
    for name in names:
        notes, rows = Footnotes(), list[tuple[Cell, ...]]()
        lines: dict[tuple[str, int], dict[float, list[Point]]] = {}
        for label, record in zip(labels, attacked, strict=True):
            cells = []
            for size in sizes:
                cells += [_defense_cell(record, name, f"{rate}_at_5_of_{size}", notes) for rate in ("tpr", "fpr")]
                budget, value = budget_of(record), cells[-2].sort
                if budget is not None and value is not None:
                    lines.setdefault((label, size), {})[budget] = [Point(value)]
            rows.append((Cell(label, link=f"run-{record.id}"), stealth_cell(record, "rmse_hu"), *cells))
        head = ["Attack", "RMSE, body"]
        for size in sizes:
            head += [f"{size} scans: flagged", f"{size} clean scans: flagged"]
        note = "Share of sets flagged at p of 0.05 or less; sets are of different patients as far as there are. No interval."
        tables.append(Table(f"{name}: many scans together", tuple(head), tuple(rows), (note, *notes.lines())))
        shown = [Line(f"{label}, {size} scans", points, group=i) for i, ((label, size), points) in enumerate(lines.items())]
        if shown:
            said = "; ".join(
                f"{line.label}: " + ", ".join(f"{x:g} HU {wording.share(p[0].value)}" for x, p in sorted(line.points.items()))
                for line in shown
            )
            drawing = line_plot(
                shown, x_label="budget, RMSE in HU", y_label="sets flagged", alt=said, name=f"{study.name}-{name}"
            )
            figures.append(Figure(f"{name}: share of sets flagged at p of 0.05 or less, over the size of the change.", drawing))
    return tuple(tables), tuple(figures)


def _names(records: Sequence[Record], roles: Sequence[str]) -> list[str]:
    """Names of the defenses of some roles, in the order of the recipes."""
    results = (result for record in records for seed in record.seeds for result in seed.defenses)
    return list(dict.fromkeys(result.name for result in results if result.role in roles))


def _said(names: Sequence[str], values: Sequence[float | None], text: Callable[[float | None], str]) -> str:
    """Names with their values, for those who do not see the figure."""
    return ", ".join(f"{name} {text(value)}" for name, value in zip(names, values, strict=True))


def _results(record: Record, name: str) -> list[DefenseResult]:
    return [result for seed in record.seeds for result in seed.defenses if result.name == name]


def _adaptive(records: Sequence[Record], name: str) -> bool:
    return any(result.adaptive for record in records for result in _results(record, name))


def _defense_cell(record: Record, name: str, metric: str, notes: Footnotes) -> Cell:
    """One seed: the value with its interval. Several: mean and range."""
    results = _results(record, name)
    reasons = [result.why_not for result in results if result.why_not]
    if reasons:
        return Cell("n/a" + notes.mark(reasons[0]))
    found = [e for result in results if (e := result.metrics.get(metric)) is not None]
    if len(found) == 1 and found[0].value is not None:
        cell = estimate_cell(metric, found[0], Footnotes(), with_n=False)
        small = "" if found[0].low is None else cell.small.split(" [")[0].removeprefix("95% interval ")
        return Cell(cell.text, small, cell.sort)
    cell = summary_cell(record, f"defense/{name}/{metric}", metric)
    return cell if cell.sort is not None else Cell(wording.DASH + notes.mark(found[0].note if found else ""))


def _behind(record: Record, name: str, shown: str, metric: str, notes: Footnotes) -> Cell:
    reasons = [result.why_not for result in _results(record, name) if result.why_not]
    if reasons:
        return Cell("n/a" + notes.mark(reasons[0]))
    source = (f"attacked+{name}", shown, metric)
    cell = metric_cell(record, source, notes)
    return Cell(cell.text, cell.small, mean_of(record, source), cell.strong)


def _detection_note(records: Sequence[Record], adaptive_: dict[str, bool]) -> str:
    found = [r for record in records for seed in record.seeds for r in seed.defenses if not r.why_not and "auroc" in r.metrics]
    n = wording.counted(found[0].metrics["auroc"]) if found else ""
    held = sorted({result.held_out for result in found})
    naive = [name for name, has in adaptive_.items() if not has]
    text = (
        f"Triggered source slices against the same slices without the trigger ({n}, both together); p-values from "
        f"{wording.listing(map(str, held))} held-out calibration patients."
    )
    return f"{text} Not adaptively evaluated: {', '.join(naive)}." if naive else text
