"""What each defense did, as a table: detection, what is left of the attack behind it, what it needed and what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from tomosec.record import DefenseResult, Record
from tomosec.report import wording
from tomosec.report.tables import Cell, Footnotes, Table, estimate_cell, summary_cell

ROLES = {
    "scan-detector": "detects scans",
    "scan-set-detector": "detects sets of scans",
    "scan-purifier": "purifies scans",
    "input-detector": "detects images",
    "prediction-wrapper": "predicts otherwise",
    "inspector": "inspects the network",
    "repair": "repairs the network",
    "sample-filter": "filters training slices",
    "training-defense": "trains otherwise",
}
#: Metrics of a defense: title, name.
DETECTION = (
    ("AUROC", "auroc"),
    ("Detected at 5% false alarms", "tpr_at_5"),
    ("False alarms there", "fpr_at_5"),
    ("Detected at 1% false alarms", "tpr_at_1"),
)

_RATES = (("triggered", "asr"), ("clean", "accuracy"))


def defenses_table(record: Record) -> Table | None:
    """A row per defense; None where none was asked for."""
    names = list(dict.fromkeys(result.name for seed in record.seeds for result in seed.defenses))
    if not names:
        return None
    notes, rows = Footnotes(), list[tuple[Cell, ...]]()
    two = record.data is None or len(record.data.classes) == 2
    rates = _RATES if two else (*_RATES, ("triggered", "robust_accuracy"))
    everything = [result for seed in record.seeds for result in seed.defenses]
    columns = [(title, metric) for title, metric in DETECTION if _has_value(everything, metric)]
    has_others = any(_others([result]) for result in everything)
    for name in names:
        results = [result for result in everything if result.name == name]
        first = results[0]
        role = ROLES.get(first.role, first.role)
        title = Cell(name, role)
        applicable = [result for result in results if not (result.why_not or result.failed)]
        if not applicable:
            refused = Cell(f"failed{notes.mark(first.failed)}" if first.failed else f"not applicable{notes.mark(first.why_not)}")
            rows.append((title, refused, *[Cell(wording.DASH)] * (len(columns) + len(rates) + 2 + has_others)))
            continue
        if len(applicable) < len(results):  # of its seeds; the values are of the others
            reason = next(result.why_not or result.failed for result in results if result.why_not or result.failed)
            title, first = Cell(name + notes.mark(f"{len(applicable)} of {len(results)} seeds: {reason}"), role), applicable[0]
        detection = [_detection(applicable, metric, notes) for _, metric in columns]
        after = [_condition(record, first.model, shown, metric, notes) for shown, metric in rates]
        der = _mean_of(applicable, "der", notes)
        others = "; ".join(_other(applicable, metric) for metric in _others(applicable))
        seconds = [result.seconds for result in applicable]
        used = max(result.clean_slices for result in applicable)
        rows.append(
            (
                title,
                Cell("evaluated adaptively" if first.adaptive else "not adaptively evaluated", ", ".join(first.adaptive)),
                *detection,
                *after,
                der,
                *([Cell(others or wording.DASH)] if has_others else []),
                Cell(wording.duration(sum(seconds) / len(seconds)), f"{wording.plural(used, 'clean slice')}" if used else ""),
            )
        )
    head = ("Defense", "Adaptive attack", *(title for title, _ in columns), "ASR behind it", "Clean accuracy behind it")
    head += () if two else ("Robust accuracy behind it",)
    head += ("DER", "Other") if has_others else ("DER",)
    without = [_condition(record, "attacked", *what, Footnotes()).text for what in rates]
    judged = [e for r in everything if r.role != "sample-filter" and (e := r.metrics.get("auroc"))]
    n = f" ({wording.counted(judged[0])} per seed, both together)" if judged else ""
    robust = "" if two else f", robust accuracy {without[2]}"
    said = (
        f"Without a defense: ASR {without[0]}, clean accuracy {without[1]}{robust}. Clean data for fitting are validation "
        "slices; thresholds come from them alone, and the attack's budget and the early stopping of the trainings were chosen on "
        f"them. Detection is of triggered source slices among the same slices without the trigger{n}; of filters, of poisoned "
        "slices among all training slices. DER is 0.5 where a defense changes nothing, 1 at best. A defense without an adaptive "
        "attack may fail against one made so."
    )
    said += " With two classes robust accuracy is 1 − ASR." if two else ""
    return Table("Would anyone notice?", (*head, "Time"), tuple(rows), (said, *_left_out(everything), *notes.lines()))


def _has_value(results: Sequence[DefenseResult], metric: str) -> bool:
    return any((e := result.metrics.get(metric)) is not None and e.value is not None for result in results)


def _left_out(results: Sequence[DefenseResult]) -> tuple[str, ...]:
    """Columns that no defense has a value for, by the reason that the first of them gives."""
    reasons: dict[str, list[str]] = {}
    for title, metric in DETECTION:
        found = [e for result in results if (e := result.metrics.get(metric)) is not None]
        if found and not _has_value(results, metric):
            reasons.setdefault(found[0].note, []).append(title)
    return tuple(f"Not shown, for no defense has a value: {wording.listing(titles)} ({why})." for why, titles in reasons.items())


def _detection(results: Sequence[DefenseResult], metric: str, notes: Footnotes) -> Cell:
    found = [result.metrics[metric] for result in results if metric in result.metrics]
    if not found:
        return Cell(wording.DASH)
    if len(found) == 1:
        return estimate_cell(metric, found[0], notes, with_n=False)
    return _mean_of(results, metric, notes)


def _mean_of(results: Sequence[DefenseResult], metric: str, notes: Footnotes) -> Cell:
    values = [e.value for result in results if (e := result.metrics.get(metric)) is not None and e.value is not None]
    if not values:
        reason = next((e.note for result in results if (e := result.metrics.get(metric)) is not None), "")
        return Cell(wording.DASH + notes.mark(reason))
    mean = sum(values) / len(values)
    said = wording.between(wording.value(metric, min(values)), wording.value(metric, max(values)))
    return Cell(wording.value(metric, mean), said if len(values) > 1 else "", mean)


def _others(results: Sequence[DefenseResult]) -> list[str]:
    shown = {metric for _, metric in DETECTION} | {"der", "fpr_at_1"}
    return list(dict.fromkeys(name for result in results for name in result.metrics if name not in shown))


def _other(results: Sequence[DefenseResult], metric: str) -> str:
    values = [e.value for result in results if (e := result.metrics.get(metric)) is not None and e.value is not None]
    title = wording.metric(metric)
    if not values:
        return f"{title} {wording.DASH}"
    low, high = wording.value(metric, min(values)), wording.value(metric, max(values))
    return f"{title} {low if low == high else wording.between(low, high)}"


def _condition(record: Record, model: str, shown: str, metric: str, notes: Footnotes) -> Cell:
    if not model:
        return Cell(wording.DASH)
    found = [e for seed in record.seeds if (e := seed.metric(model, shown, metric)) is not None]
    if len(found) == 1:
        return estimate_cell(metric, found[0], notes, with_n=False)
    return summary_cell(record, f"{model}/{shown}/{metric}", metric)
