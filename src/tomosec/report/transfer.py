"""The trigger and the models at other scan settings, as a table. Several records make a matrix: learned at, applied at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tomosec.metrics.table import input_at
from tomosec.record import Record
from tomosec.report import wording
from tomosec.report.tables import Cell, Footnotes, Table, estimate_cell, summary_cell
from tomosec.setting import SCAN_FIELDS
from tomosec.varying import flatten

#: Columns: title, model, what is shown, metric.
COLUMNS = (
    ("Accuracy, clean model", "clean", "clean", "accuracy"),
    ("Accuracy, attacked model", "attacked", "clean", "accuracy"),
    ("ASR, attacked model", "attacked", "triggered", "asr"),
    ("ASR, clean model (floor)", "clean", "triggered", "asr"),
)


def transfer_table(record: Record) -> Table | None:
    """A row per scan setting, the experiment's own first; None where the experiment names no others."""
    settings: Sequence[Mapping[str, Any]] = record.experiment.get("transfer") or ()
    if not settings or not record.seeds:
        return None
    notes = Footnotes()
    attacked = record.experiment.get("attack") is not None
    columns = [column for column in COLUMNS if attacked or (column[1], column[2]) == ("clean", "clean")]
    rows = [(Cell("Own setting", "where the trigger was learned" if attacked else ""), *_cells(record, "", columns, notes))]
    for setting in settings:
        name = str(setting["name"])
        rows.append((Cell(name, _changes(record.experiment, setting)), *_cells(record, name, columns, notes)))
    if attacked:
        head = ("Setting", *(title for title, *_ in columns), "RMSE inside the body")
        said = (
            "Nothing is trained or scaled anew: the models are those of the experiment, and the trigger keeps its amplitude. On "
            "another geometry a pattern of measured data is read at the rays of that scan.",
        )
    else:
        head, said = (
            ("Setting", *(title for title, *_ in columns)),
            ("Nothing is trained anew: the model is that of the experiment.",),
        )
    several = ("Means over the seeds, with their range below.",) if len(record.seeds) > 1 else ()
    return Table("Transfer to other scan settings", head, tuple(rows), (*said, *several, *notes.lines()))


def own_setting(record: Record) -> str:
    """Name of the setting that is the experiment's own scan, so that a matrix knows its row; empty where none is."""
    for setting in record.experiment.get("transfer") or ():
        if all(setting.get(name) in (None, record.experiment.get(name)) for name in SCAN_FIELDS):
            return str(setting["name"])
    return ""


def _cells(record: Record, setting: str, columns: Sequence[tuple[str, str, str, str]], notes: Footnotes) -> list[Cell]:
    """Metrics of one setting, and the size of the change where there is an attack."""
    out = []
    reasons = {there.note for seed in record.seeds for there in seed.transfer if there.setting == setting and there.note}
    unreached = Cell("not applicable" + notes.mark("; ".join(sorted(reasons))))
    for _, model, shown, metric in columns:
        if reasons and shown == "triggered":
            out.append(unreached)
        elif len(record.seeds) == 1:
            found = record.seeds[0].metric(model, input_at(shown, setting), metric)
            out.append(estimate_cell(metric, found, notes, with_n=False))
        else:
            out.append(summary_cell(record, f"{model}/{input_at(shown, setting)}/{metric}", metric))
    if len(columns) == len(COLUMNS):
        out.append(unreached if reasons else summary_cell(record, f"{input_at('stealth', setting)}/rmse_hu", "rmse_hu"))
    return out


def _changes(experiment: Mapping[str, Any], setting: Mapping[str, Any]) -> str:
    """How the setting's scan differs from the experiment's, as field and value."""
    out = []
    for name in SCAN_FIELDS:
        here, there = flatten(experiment.get(name)), flatten(setting.get(name) or experiment.get(name))
        if there.get("kind") != here.get("kind"):
            out.append(f"{name} {wording.plain(there.get('kind'))}")
            continue
        out += [f"{name}.{field} {wording.plain(value)}" for field, value in there.items() if value != here.get(field)]
    return ", ".join(out) or "the same scan"
