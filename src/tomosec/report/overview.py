"""Several records beside each other: what differs between them, and how success grows with the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from tomosec.record import Record
from tomosec.report import wording
from tomosec.report.figures import Line, Point, line_plot
from tomosec.report.tables import Cell, Table, summary_cell
from tomosec.varying import flatten

BUDGET = "threat.budget.value"
#: More series than this cannot be told apart.
MOST_SERIES = 6


def overview_table(records: Sequence[Record], names: Sequence[str]) -> Table:
    """One row per record: what sets it apart, its state and its main numbers."""
    columns = (
        ("ASR, attacked", "attacked/triggered/asr", "asr"),
        ("ASR, clean (floor)", "clean/triggered/asr", "asr"),
        ("ASR, random trigger", "attacked/random/asr", "asr"),
        ("ASR, white-noise victim", "control-white/triggered/asr", "asr"),
        ("Accuracy, attacked", "attacked/clean/accuracy", "accuracy"),
        ("Accuracy, clean", "clean/clean/accuracy", "accuracy"),
        ("RMSE in the body", "stealth/rmse_hu", "rmse_hu"),
    )
    used = [column for column in columns if any(column[1] in record.summary for record in records)]
    rows = []
    for record in records:
        fields = flatten(record.experiment)
        settings = [Cell(wording.plain(fields.get(name)), sort=_numeric(fields.get(name))) for name in names]
        level = record.severity.level if record.severity is not None else ""
        state = Cell(
            f"{wording.LEVEL_MARKS[level]}\N{NO-BREAK SPACE}{wording.LEVELS[level]}"
            if level
            else wording.STATUS[record.status].capitalize(),
            strong=level in ("critical", "high"),
        )
        rows.append(
            (
                Cell(record.title or record.id, record.id if record.title else "", link=f"run-{record.id}"),
                *settings,
                state,
                *(_mean(record, key, name) for _, key, name in used),
            )
        )
    notes = (
        "Means over the seeds, with their range below; never pooled. Every record has its own section with intervals and n.",
    )
    return Table(
        "All records",
        ("Record", *(_short(name) for name in names), "Result", *(title for title, _, _ in used)),
        tuple(rows),
        notes,
        sortable=True,
    )


def _mean(record: Record, key: str, name: str) -> Cell:
    cell = summary_cell(record, key, name)
    return replace(cell, small="all equal") if cell.small.endswith("every seed") else cell


def states(records: Sequence[Record]) -> str:
    """How many records are in which state, in a sentence."""
    counts = {status: sum(record.status == status for record in records) for status in wording.STATUS}
    return (
        f"{len(records)} records: "
        + ", ".join(f"{count} {wording.STATUS[status]}" for status, count in counts.items() if count)
        + "."
    )


def _numeric(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _short(name: str) -> str:
    return {BUDGET: "Budget", "acquisition.dose": "Dose"}.get(name, name)


def budget_figure(records: Sequence[Record], names: Sequence[str]) -> tuple[Markup | None, str]:
    """ASR over budget, a line per setting of the other fields that vary; with a sentence where it cannot be drawn."""
    if BUDGET not in names:
        return None, ""
    others = [name for name in names if name != BUDGET and not name.startswith("threat.budget.")]
    groups: dict[str, dict[float, list[Record]]] = {}
    for record in records:
        fields = flatten(record.experiment)
        budget = fields.get(BUDGET)
        if "attacked/triggered/asr" in record.summary and isinstance(budget, (int, float)):
            label = ", ".join(f"{_short(name).lower()} {wording.plain(fields.get(name))}" for name in others)
            groups.setdefault(label, {}).setdefault(float(budget), []).append(record)
    if len({budget for cells in groups.values() for budget in cells}) < 2:
        return None, "Fewer than two budgets have results, so success over budget is not drawn."
    if len(groups) > MOST_SERIES:
        return None, f"{len(groups)} settings besides the budget vary, too many for one figure; the table has them all."
    lines = []
    for index, (label, cells) in enumerate(groups.items()):
        lines.append(Line(f"attacked model{f', {label}' if label else ''}", _points(cells, "attacked", "triggered"), group=index))
        floor = _points(cells, "clean", "triggered")
        if floor:
            lines.append(Line(f"clean model (floor){f', {label}' if label else ''}", floor, reference=True, group=index))
    unit = wording.field(records[0].experiment, "threat.budget.unit", "hu")
    alt = "Attack success rate over the budget: " + "; ".join(
        f"{line.label}: "
        + ", ".join(
            f"{x:g}: {wording.share(sum(p.value for p in line.points[x]) / len(line.points[x]))}" for x in sorted(line.points)
        )
        for line in lines
    )
    label = f"budget ({wording.UNITS.get(str(unit), str(unit))})"
    return line_plot(lines, x_label=label, y_label="attack success rate", alt=alt, name="overview-budget"), ""


def _points(cells: Mapping[float, Sequence[Record]], model: str, shown: str) -> dict[float, list[Point]]:
    out: dict[float, list[Point]] = {}
    for budget, records in cells.items():
        found = [
            estimate for record in records for seed in record.seeds if (estimate := seed.metric(model, shown, "asr")) is not None
        ]
        points = [Point(estimate.value, estimate.low, estimate.high) for estimate in found if estimate.value is not None]
        if points:
            out[budget] = points
    return out
