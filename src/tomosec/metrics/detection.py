"""How well a defense notices, and what a repair is worth. Thresholds come from clean calibration alone. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from tomosec.errors import InputError
from tomosec.metrics.attack import auroc_estimate
from tomosec.metrics.statistics import Estimate, join_notes, proportion

#: False-positive rates that detection is quoted at, with the ending of their metrics' names.
RATES = {0.01: "1", 0.05: "5"}


def detection_metrics(
    clean: ArrayLike,
    triggered: ArrayLike,
    patients: Sequence[str],
    classes: Sequence[int],
    *,
    clean_p: ArrayLike | None = None,
    triggered_p: ArrayLike | None = None,
    held_out: int = 0,
    class_names: Sequence[str] | None = None,
) -> dict[str, Estimate]:
    """Detection of triggered samples among clean ones.

    Args:
        clean: (n,) scores of test samples without the trigger; higher is more suspicious.
        triggered: (n,) scores of the same samples with it.
        patients: (n,) patient of each sample.
        classes: (n,) class of each sample, for resampling.
        clean_p: (n,) p-values of the clean scores by calibration; None where no verdict is possible.
        triggered_p: (n,) those of the triggered scores.
        held_out: calibration patients behind the p-values.
        class_names: for notes.

    Returns:
        ``auroc``; ``tpr_at_1`` and ``tpr_at_5``: share of triggered samples flagged at a threshold that clean calibration says
        1 % and 5 % of clean scans pass; ``fpr_at_1`` and ``fpr_at_5``: share of clean test samples that this threshold flags.

    Raises:
        InputError: lengths differ, a score is not finite, or a p-value is not one.
    """
    scores = [np.asarray(item, dtype=np.float64) for item in (clean, triggered)]
    if not scores[0].shape == scores[1].shape == (len(patients),) == (len(classes),):
        raise InputError(
            f"detection: {scores[0].size} clean and {scores[1].size} triggered scores, {len(patients)} patients, "
            f"{len(classes)} classes; as many of each are needed"
        )
    if not all(np.isfinite(item).all() for item in scores):
        raise InputError("detection: a score is not finite")
    for title, values in (("clean", clean_p), ("triggered", triggered_p)):
        if values is not None and not ((p := np.asarray(values, dtype=np.float64)) > 0).all() & (p <= 1).all():
            raise InputError(f"detection: a p-value of a {title} sample is not in (0, 1]")
    both = np.concatenate(scores)
    is_triggered = np.repeat([False, True], len(patients))
    out = {"auroc": auroc_estimate(both, is_triggered, [*patients, *patients], [*classes, *classes], class_names=class_names)}
    for rate, name in RATES.items():
        for title, values in (("tpr", triggered_p), ("fpr", clean_p)):
            note = f"n too small: {held_out} calibration patients reach p = {1 / (held_out + 1):.2g} at the least"
            if values is None or (held_out + 1) * rate < 1 - 1e-9:
                out[f"{title}_at_{name}"] = Estimate(value=None, n=len(patients), patients=len(set(patients)), note=note)
            else:
                flagged = np.asarray(values, dtype=np.float64) <= rate + 1e-12
                found = proportion(flagged, patients, classes, class_names=class_names)
                said = f"{held_out} calibration patients"
                out[f"{title}_at_{name}"] = found.model_copy(update={"note": join_notes(found.note, said)})
    return out


def defense_effectiveness(*, asr_before: float, asr_after: float, ca_before: float, ca_after: float) -> float:
    """DER = (max(0, loss of ASR) - max(0, loss of CA) + 1) / 2, in [0, 1]; 0.5 is no effect (Zhu et al., ICCV 2023)."""
    for name, value in (("asr_before", asr_before), ("asr_after", asr_after), ("ca_before", ca_before), ("ca_after", ca_after)):
        if not 0 <= value <= 1:
            raise InputError(f"defense_effectiveness: {name} is {value}; rates are from 0 to 1")
    return (max(0.0, asr_before - asr_after) - max(0.0, ca_before - ca_after) + 1) / 2
