"""A record on the terminal: the numbers that a reader looks for first, each with what it was measured on. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tomosec.cli.console import say, show_table
from tomosec.metrics.statistics import Estimate, SeedSummary
from tomosec.record import Record
from tomosec.varying import differing, flatten

#: What each line of the table shows: label, model, input, metric.
LINES = (
    ("Clean accuracy, clean model", "clean", "clean", "accuracy"),
    ("Clean accuracy, attacked model", "attacked", "clean", "accuracy"),
    ("Attack success, attacked model", "attacked", "triggered", "asr"),
    ("  floor: clean model, same trigger", "clean", "triggered", "asr"),
    ("  control: random trigger, attacked model", "attacked", "random", "asr"),
    ("  control: model trained on a white random trigger", "control-white", "triggered", "asr"),
    ("  control: model trained on a random trigger, same spectrum", "control-spectrum", "triggered", "asr"),
)


#: Up to this many records are shown in full; a sweep is a table with one line each.
IN_FULL = 3


def show_records(records: Sequence[Record]) -> None:
    """Print each record, or one table of them all where they are many."""
    if len(records) <= IN_FULL:
        for record in records:
            show_record(record)
        return
    varying = differing([record.experiment for record in records])
    flat = {record.id: flatten(record.experiment) for record in records}
    rows = [
        [
            record.id,
            *(_shown(flat[record.id].get(name)) for name in varying),
            headline(record, "attacked", "clean", "accuracy") or headline(record, "clean", "clean", "accuracy"),
            headline(record, "attacked", "triggered", "asr"),
            headline(record, "clean", "triggered", "asr"),
            headline(record, "attacked", "random", "asr"),
            ", ".join(f"{result.strength.rmse_hu:.2f}" for result in record.seeds if result.strength is not None),
            "" if record.status == "success" else record.status,
        ]
        for record in records
    ]
    say("")
    show_table(["id", *(name.removesuffix(".kind") for name in varying), "CA", "ASR", "floor", "random", "RMSE, HU", ""], rows)
    say("CA, ASR: clean accuracy and attack success of the attacked model; floor: the trigger on the clean model;")
    say("random: a random trigger of equal size on the attacked model; means over seeds.")
    for line in what_it_is_about(records[0]):
        say(line)


def _shown(value: Any) -> str:
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def show_record(record: Record) -> None:
    """Print the headline numbers of one record, and which data, split and seeds they are about."""
    say(f"\n{record.title or 'experiment'} ({record.id}): {record.status}", style="bold")
    if record.status != "success":
        say(f"  {record.error or 'no result yet'}")
        return
    several = len(record.seeds) > 1
    rows = [
        [label, *_numbers(record, model, shown, metric)]
        for label, model, shown, metric in LINES
        if _has(record, model, shown, metric)
    ]
    rows += _size_of_change(record)
    show_table(["", "mean (range)" if several else "value [95 % interval]", "measured on"], rows)
    if record.severity is not None:
        reason = record.severity.reason
        say(f"Severity: {record.severity.level}. {reason[:1].upper()}{reason[1:]}.")
    for line in what_it_is_about(record):
        say(line)


def what_it_is_about(record: Record) -> list[str]:
    """On which data, split and seeds the numbers of a record were measured."""
    seeds = ", ".join(str(result.seed) for result in record.seeds)
    lines = []
    if record.data is not None:
        test, people = record.data.slices.get("test", {}), record.data.patients.get("test", {})
        counts = ", ".join(f"{test.get(name, 0)} {name} of {people.get(name, 0)} patients" for name in record.data.classes)
        lines += [f"Data: {record.data.dataset}, test slices: {counts}.", record.data.split]
        if missing := _why_no_interval(record):
            lines.append(f"{missing[:1].upper()}{missing[1:]}.")
        if record.data.shares_patients:
            lines.append("Training and test share patients: nothing here is about new patients.")
    one = " Only one: nothing here is about the spread between trainings." if len(record.seeds) == 1 else ""
    return [*lines, f"Seeds: {seeds}.{one}"]


def _why_no_interval(record: Record) -> str:
    notes = [
        estimate.note
        for result in record.seeds
        for condition in result.conditions
        for name, estimate in condition.metrics.items()
        if name in ("accuracy", "asr") and estimate.value is not None and estimate.low is None
    ]
    return notes[0] if notes else ""


def headline(record: Record, model: str, shown: str, metric: str) -> str:
    """One metric in a few characters: ``0.94``, the mean over seeds where there are several; empty where it was not measured."""
    summary = record.summary.get(f"{model}/{shown}/{metric}")
    if summary is not None and summary.mean is not None:
        return f"{summary.mean:.2f}"
    for result in record.seeds:
        found = result.metric(model, shown, metric)
        if found is not None and found.value is not None:
            return f"{found.value:.2f}"
    return ""


def _has(record: Record, model: str, shown: str, metric: str) -> bool:
    return any(result.metric(model, shown, metric) is not None for result in record.seeds)


def _numbers(record: Record, model: str, shown: str, metric: str) -> list[str]:
    estimates = [found for result in record.seeds if (found := result.metric(model, shown, metric)) is not None]
    return _cells(estimates, record.summary.get(f"{model}/{shown}/{metric}"))


def _cells(estimates: Sequence[Estimate], summary: SeedSummary | None, digits: int = 3, unit: str = "") -> list[str]:
    """The number and what it was measured on."""
    first = estimates[0]
    of = f"{first.n} slices of {first.patients} patients" if first.unit == "slices" else f"{first.n} patients"
    if (
        len(estimates) > 1
        and summary is not None
        and summary.mean is not None
        and summary.low is not None
        and summary.high is not None
    ):
        spread = f"{summary.mean:.{digits}f} ({summary.low:.{digits}f} to {summary.high:.{digits}f}){unit}"
        return [spread, f"{of}, {len(estimates)} seeds"]
    if first.value is None:
        return [first.note or "not defined", of]
    interval = "" if first.low is None or first.high is None else f" [{first.low:.{digits}f}, {first.high:.{digits}f}]"
    return [f"{first.value:.{digits}f}{interval}{unit}", of]


def _size_of_change(record: Record) -> list[list[str]]:
    strengths = [result.strength for result in record.seeds if result.strength is not None]
    rows = []
    if strengths:
        reached = ", ".join(f"{strength.rmse_hu:.2f} HU" for strength in strengths)
        budgets = sorted({f"{strength.budget:g} {strength.unit}" for strength in strengths})
        picked = "chosen on validation from " if len(strengths[0].tried) > 1 else ""
        tried = ", ".join(f"{item['budget']:g}" for item in strengths[0].tried) if picked else ""
        rows.append(["Image change on training slices, RMSE", reached, f"budget {', '.join(budgets)} {picked}{tried}".strip()])
    if record.seeds:
        for name, label in (("rmse_hu", "Image change on test slices, RMSE"), ("max_hu", "  largest change of a pixel")):
            found = [result.stealth[name] for result in record.seeds if name in result.stealth]
            if found:
                rows.append([label, *_cells(found, record.summary.get(f"stealth/{name}"), digits=2, unit=" HU")])
    return rows
