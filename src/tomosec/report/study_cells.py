"""What the tables of studies are made of: the cells of a run, labels that tell runs apart, and the table of attacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from tomosec.metrics.statistics import Estimate
from tomosec.record import Record
from tomosec.report import wording
from tomosec.report.figures import Point
from tomosec.report.tables import Cell, Footnotes, Table, estimate_cell, summary_cell
from tomosec.varying import differing, flatten

DOMAINS = ("image domain", "measurement domain", "image pattern carried into the sinogram")

Source = tuple[str, str, str]
ASR: Source = ("attacked", "triggered", "asr")
FLOOR: Source = ("clean", "triggered", "asr")
RANDOM: Source = ("attacked", "random", "asr")
RA: Source = ("attacked", "triggered", "robust_accuracy")
CA: Source = ("attacked", "clean", "accuracy")
CLEAN_CA: Source = ("clean", "clean", "accuracy")


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its caption."""

    caption: str
    drawing: Markup


Shown = tuple[tuple[Table, ...], tuple[Figure, ...]]


def attack_of(record: Record) -> str:
    """The attack's kind, with what it carries, as recipes write it; a clean-label attack is said to be one."""
    attack = record.experiment.get("attack")
    if attack is None:
        return "no attack"
    carried = attack.get("attack")
    inner = carried if isinstance(carried, Mapping) else attack
    name = f"{attack['kind']}: {inner['kind']}" if inner is carried else str(attack["kind"])
    return f"{name}, labels kept" if inner.get("clean_label") else name


def domain_of(record: Record) -> int:
    """Index in :data:`DOMAINS`."""
    attack = record.experiment.get("attack") or {}
    return 2 if attack.get("kind") == "projected" else int(wording.field(record.experiment, "threat.site") != "image")


def labels_of(records: Sequence[Record], leave: Sequence[str] = ()) -> list[str]:
    """What tells the cells apart: the attack, then every field that differs and is not in ``leave``."""
    attacked = [record.experiment for record in records if record.experiment.get("attack") is not None]
    names = [name for name in differing(attacked) if not name.endswith(".kind") and name not in ("threat.site", *leave)]
    out = []
    for record in records:
        fields = flatten(record.experiment) if record.experiment.get("attack") is not None else {}
        parts = [_part(name, fields) for name in names if name in fields]
        out.append(", ".join([attack_of(record), *parts]))
    return out


def _part(name: str, fields: Mapping[str, Any]) -> str:
    """A field that tells cells apart, in words."""
    if name == "threat.budget.value":
        unit = str(fields.get("threat.budget.unit", ""))
        return f"{wording.plain(fields[name])} {'HU' if unit == 'hu' else unit}".rstrip()
    return f"{name.split('.')[-1]} {wording.plain(fields[name])}"


def _estimates(record: Record, source: Source) -> list[Estimate]:
    found = [seed.metric(*source) for seed in record.seeds]
    return [estimate for estimate in found if estimate is not None and estimate.value is not None]


def points_of(record: Record, source: Source) -> list[Point]:
    """One point per seed that has a value."""
    return [Point(e.value, e.low, e.high) for e in _estimates(record, source) if e.value is not None]


def mean_of(record: Record, source: Source) -> float | None:
    """Mean over the seeds, or None where it was not measured."""
    summary = record.summary.get("/".join(source))
    return summary.mean if summary is not None else None


def metric_cell(record: Record, source: Source, notes: Footnotes, *, strong: bool = False) -> Cell:
    """One seed: the value with its interval. Several: their mean and range."""
    found = _estimates(record, source)
    if len(record.seeds) == 1 and found:
        cell = estimate_cell(source[2], found[0], notes, with_n=False)
        return Cell(cell.text, cell.small.removeprefix("95% interval "), cell.sort, strong)
    cell = summary_cell(record, "/".join(source), source[2])
    return replace(cell, strong=strong and cell.sort is not None)


def stealth_cell(record: Record, name: str) -> Cell:
    """How visible the change is, mean over the seeds."""
    return replace(summary_cell(record, f"stealth/{name}", name), small="")


def misread_cell(record: Record, notes: Footnotes, shown: str = "clean") -> Cell:
    """How often the clean model misreads source slices that nobody touched: 1 - sensitivity."""
    found = _estimates(record, ("clean", shown, "sensitivity"))
    if not found:
        return Cell(wording.DASH)
    values = [1 - e.value for e in found if e.value is not None]
    small = "misread with no trigger at all"
    if len(found) == 1 and found[0].low is not None and found[0].high is not None:
        small = f"{wording.between(wording.share(1 - found[0].high), wording.share(1 - found[0].low))}; {small}"
    mean = sum(values) / len(values)
    return Cell(wording.share(mean), small, mean)


def interval_note(records: Sequence[Record]) -> str:
    """What the numbers of a table are: means or values, of how many slices."""
    n = next((wording.counted(e) for record in records for e in _estimates(record, ASR)), "")
    if any(len(record.seeds) > 1 for record in records):
        return f"Means over the seeds with their range; never pooled. ASR on source slices, {n} per seed."
    return f"One seed: values with their 95% interval over patients. ASR on source slices, {n}."


def budget_of(record: Record) -> float | None:
    """The one budget of an attacked run, or None."""
    value = wording.field(record.experiment, "threat.budget.value")
    return float(value) if isinstance(value, (int, float)) and record.experiment.get("attack") is not None else None


def attack_table(caption: str, records: Sequence[Record], labels: Sequence[str], *, budgets: bool) -> Table:
    """Rows are cells, grouped by domain: success with its controls, accuracy, and how visible the change is."""
    notes, rows = Footnotes(), list[tuple[Cell, ...]]()
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        heading = "Control" if attack_of(record) in ("no attack", "fresh-noise") else DOMAINS[domain_of(record)].capitalize()
        groups.setdefault(heading, []).append(index)
    for heading in ("Control", *(DOMAINS[index].capitalize() for index in (1, 0, 2))):
        if heading in groups:
            rows.append((Cell(heading),))
        for index in groups.get(heading, ()):
            record = records[index]
            attacked = record.experiment.get("attack") is not None
            budget = wording.field(record.experiment, "threat.budget.value")
            rows.append(
                (
                    Cell(labels[index], link=f"run-{record.id}"),
                    *((Cell(wording.plain(budget) if attacked else wording.DASH),) if budgets else ()),
                    metric_cell(record, ASR, notes, strong=True) if attacked else misread_cell(record, notes),
                    metric_cell(record, FLOOR, notes),
                    metric_cell(record, RANDOM, notes),
                    metric_cell(record, CA if attacked else CLEAN_CA, notes),
                    stealth_cell(record, "rmse_hu"),
                    stealth_cell(record, "max_abs_hu"),
                    stealth_cell(record, "psnr_db"),
                    stealth_cell(record, "ssim_lung"),
                    stealth_cell(record, "sinogram_dprime"),
                )
            )
    head = ("Attack", *(("Budget",) if budgets else ()), "ASR", "Floor: clean model", "Random trigger", "Clean accuracy")
    head += ("RMSE, body", "Largest |ΔHU|", "PSNR", "SSIM, lung window", "d′ in the sinogram")
    return Table(caption, head, tuple(rows), (interval_note(records), *notes.lines()))


def difference_cell(estimate: Estimate | None) -> Cell:
    """A difference of shares in percentage points, set off where its interval leaves out 0."""
    if estimate is None or estimate.value is None:
        return Cell(wording.DASH)
    small = "no interval"
    if estimate.low is not None and estimate.high is not None:
        small = f"{signed(estimate.low)} to {signed(estimate.high)}"
        strong = estimate.low > 0 or estimate.high < 0
    else:
        strong = False
    return Cell(signed(estimate.value), small, estimate.value, strong)


def signed(share: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    if share is None:
        return wording.DASH
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def whole(amount: float) -> str:
    """A count with thin groups."""
    return f"{amount:,.0f}".replace(",", "\N{NO-BREAK SPACE}")


def amount_cell(values: Sequence[float], said: Callable[[float], str]) -> Cell:
    """Mean over the seeds, and their range."""
    if not values:
        return Cell(wording.DASH)
    mean = sum(values) / len(values)
    spread = f"{said(min(values))} to {said(max(values))}" if len(values) > 1 and said(min(values)) != said(max(values)) else ""
    return Cell(said(mean), spread, mean)
