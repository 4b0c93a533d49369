"""From a seed's sample table to the metrics of every condition in it; what `rescore` repeats without a network."""

from __future__ import annotations

from collections.abc import Sequence

from tomosec.metrics.attack import (
    attack_success_rate,
    attack_success_rate_on_correct,
    classification_metrics,
    patient_attack_success_rate,
    robust_accuracy,
)
from tomosec.metrics.detection import defense_effectiveness
from tomosec.metrics.statistics import Estimate
from tomosec.metrics.table import SampleTable, input_at, split_input
from tomosec.record import Condition, DefenseResult

#: Inputs that carry a trigger, real or random; the others are measured by how well they are classified.
TRIGGERED_INPUTS = ("triggered", "random")


def conditions(table: SampleTable, classes: Sequence[str], target: int, sources: Sequence[int]) -> tuple[Condition, ...]:
    """Metrics of every (model, input) of one seed's rows, in the order of the table.

    What is measured against clean scans is measured against those of the same scan setting.

    Args:
        table: rows of one seed.
        classes: class names.
        target: the attacker's class.
        sources: the attacked classes; sensitivity is that of the first of them.
    """
    pairs = dict.fromkeys(zip(table.model.tolist(), table.input.tolist(), strict=True))
    out = []
    for model, shown in pairs:
        rows = table.select(model=model, input=shown)
        metrics = classification_metrics(rows, classes, positive=sources[0])
        kind, setting = split_input(shown)
        if kind in TRIGGERED_INPUTS:
            unattacked = input_at("clean", setting)
            reference, clean = (table.select(model=name, input=unattacked) for name in ("clean", model))
            metrics |= _attack_metrics(rows, reference, clean, classes, target, sources)
        out.append(Condition(model=model, input=shown, metrics=metrics))
    return tuple(out)


def _attack_metrics(
    rows: SampleTable, reference: SampleTable, clean: SampleTable, classes: Sequence[str], target: int, sources: Sequence[int]
) -> dict[str, Estimate]:
    return {
        "asr": attack_success_rate(rows, target, sources, class_names=classes),
        "asr_on_correct": attack_success_rate_on_correct(rows, reference, target, sources, class_names=classes),
        "patient_asr": patient_attack_success_rate(rows, target, sources, class_names=classes, clean=clean),
        "robust_accuracy": robust_accuracy(rows, target, sources, class_names=classes),
    }


def with_effectiveness(results: Sequence[DefenseResult], measured: Sequence[Condition]) -> tuple[DefenseResult, ...]:
    """Add the defense effectiveness rating, ``der``, to defenses that a model reads through."""
    values = {
        (condition.model, condition.input, name): estimate.value
        for condition in measured
        for name, estimate in condition.metrics.items()
    }
    out = []
    for result in results:
        before, after = (
            [values.get((model, shown, metric)) for shown, metric in (("triggered", "asr"), ("clean", "accuracy"))]
            for model in ("attacked", result.model)
        )
        known = [value for value in (*before, *after) if value is not None]
        if result.model and len(known) == 4:
            asr_before, ca_before, asr_after, ca_after = known
            der = defense_effectiveness(asr_before=asr_before, asr_after=asr_after, ca_before=ca_before, ca_after=ca_after)
            estimate = Estimate(value=der, n=1, patients=0, note="from four rates, without an interval")
            result = result.model_copy(update={"metrics": {**result.metrics, "der": estimate}})
        out.append(result)
    return tuple(out)
