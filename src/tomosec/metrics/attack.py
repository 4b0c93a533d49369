"""Clean accuracy, attack success and what medical readers ask for, from the per-sample table. No torch here.

A function takes the rows of **one** condition (one seed, model and input): slices of several seeds share their patients and
are never pooled; :func:`by_seed` applies a metric to each seed.

Attack success is measured on source samples that are not of the target class (BackdoorBench, Wu et al. 2022): a sample of
the target class is "successful" without an attack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomosec.errors import InputError
from tomosec.metrics.statistics import (
    MIN_RARE,
    Cohort,
    Estimate,
    FloatArray,
    IntArray,
    SeedSummary,
    bootstrap_estimate,
    join_notes,
    over_seeds,
    proportion,
    wilson,
)
from tomosec.metrics.table import SampleTable


@dataclass(frozen=True, slots=True)
class _Cases:
    """What is scored: slices, or patients."""

    patient: NDArray[np.str_]
    target: IntArray
    prediction: IntArray
    scores: FloatArray
    unit: Literal["slices", "patients"]
    note: str = ""


def by_seed(table: SampleTable, metric: Callable[[SampleTable], Estimate]) -> SeedSummary:
    """Apply a metric to the rows of each seed.

    Args:
        table: rows of one model and input, any number of seeds.
        metric: for instance ``lambda rows: attack_success_rate(rows, target=0)``.
    """
    return over_seeds({seed: metric(table.select(seed=seed)) for seed in table.seeds()})


def classification_metrics(table: SampleTable, classes: Sequence[str], positive: int) -> dict[str, Estimate]:
    """How well a model classifies, per slice and per patient; on clean inputs ``accuracy`` is the CA.

    A patient's scores are the means of its slices' scores and its prediction is the first maximum of them. Patients whose
    slices have several true classes have no class of their own and are left out of the patient's metrics, as the note says.

    Args:
        table: rows of one condition.
        classes: names of the K classes.
        positive: the class that sensitivity finds; the others are negative.

    Returns:
        ``accuracy``, ``balanced_accuracy`` (mean recall of all K classes), ``sensitivity``, ``specificity``, ``auroc``
        (positive against the rest), all in [0, 1], and the same with the prefix ``patient_``.

    Raises:
        InputError: several conditions, or classes that do not fit the table.
    """
    _one_condition(table)
    if len(classes) != table.classes or not 0 <= positive < len(classes):
        raise InputError(f"{len(classes)} class names and positive class {positive} for a table of {table.classes} classes")
    slices = _Cases(table.patient, table.target, table.prediction, table.scores, "slices")
    return {
        **_classification(slices, classes, positive),
        **{f"patient_{name}": estimate for name, estimate in _classification(_per_patient(table), classes, positive).items()},
    }


def attack_success_rate(
    table: SampleTable, target: int, sources: Collection[int] | None = None, *, class_names: Sequence[str] | None = None
) -> Estimate:
    """ASR: fraction of non-target source slices that are predicted as the target.

    On the clean model's rows this is the floor: what a trigger does without a backdoor. With two classes it is the
    false-negative or false-positive rate under the trigger.

    Args:
        table: rows of one condition with triggered inputs.
        target: the attacker's class; its samples never count.
        sources: true classes that the attack claims; all others but the target if not given.
        class_names: for the note.

    Raises:
        InputError: several conditions; or classes outside the table's; or ``sources`` that is empty or holds the target.
    """
    rows = source_rows(table, target, sources)
    return proportion(rows.prediction == target, rows.patient, rows.target, class_names=class_names, empty="no source slices")


def attack_success_rate_on_correct(
    table: SampleTable,
    reference: SampleTable,
    target: int,
    sources: Collection[int] | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> Estimate:
    """ASR among the source slices that a reference classifies correctly: errors of the task are not the attack's success.

    Args:
        table: rows of one condition with triggered inputs.
        reference: the clean model's rows on clean inputs, of the same seed.
        target: as in :func:`attack_success_rate`.
        sources: as there.
        class_names: for the note.

    Raises:
        InputError: as there; or the reference has another seed or lacks a sample.
    """
    rows = source_rows(table, target, sources)
    correct = _matched(rows, reference, reference.prediction == reference.target)
    rows = rows.where(correct)
    return proportion(
        rows.prediction == target,
        rows.patient,
        rows.target,
        class_names=class_names,
        empty="no source slices classified correctly",
    )


def patient_attack_success_rate(
    table: SampleTable,
    target: int,
    sources: Collection[int] | None = None,
    *,
    clean: SampleTable | None = None,
    class_names: Sequence[str] | None = None,
) -> Estimate:
    """Patient-level ASR: fraction of patients with more than half of their source slices predicted as the target.

    Args:
        table: rows of one condition with triggered inputs.
        target: as in :func:`attack_success_rate`.
        sources: as there.
        class_names: for the note.
        clean: the same model's rows on clean inputs; with them, only patients that are *not* taken for the target without
            the trigger count, so that the rate is one of patients whose finding flips.

    Raises:
        InputError: as in :func:`attack_success_rate`; or ``clean`` has another seed or lacks a sample.
    """
    rows = source_rows(table, target, sources)
    cohort = Cohort.of(rows.patient, rows.target)
    flipped = _majority(cohort, rows.prediction == target)
    # With several source classes in one patient, the patient counts in its most frequent one; the lowest on a tie.
    label = _most_frequent(cohort, rows.target)
    keep = np.ones(len(cohort), dtype=bool)
    note = ""
    if clean is not None:
        keep = ~_majority(cohort, _matched(rows, clean, clean.prediction == target))
        if excluded := int((~keep).sum()):
            note = f"{excluded} of {len(cohort)} patients left out: taken for the target without the trigger"
    patients = np.array(cohort.patients, dtype=np.str_)
    estimate = proportion(
        flipped[keep], patients[keep], label[keep], class_names=class_names, unit="patients", empty="no source patients"
    )
    return estimate.model_copy(update={"note": join_notes(estimate.note, note)})


def robust_accuracy(
    table: SampleTable, target: int, sources: Collection[int] | None = None, *, class_names: Sequence[str] | None = None
) -> Estimate:
    """RA: fraction of non-target source slices with the trigger that are still predicted as what they are.

    With two classes RA = 1 − ASR; with more, a prediction may be neither right nor the target.

    Args:
        table: rows of one condition with triggered inputs.
        target: as in :func:`attack_success_rate`.
        sources: as there.
        class_names: for the note.

    Raises:
        InputError: as in :func:`attack_success_rate`.
    """
    rows = source_rows(table, target, sources)
    return proportion(
        rows.prediction == rows.target, rows.patient, rows.target, class_names=class_names, empty="no source slices"
    )


def source_rows(table: SampleTable, target: int, sources: Collection[int] | None = None) -> SampleTable:
    """Rows that an attack is measured on: of the source classes, never of the target class.

    Raises:
        InputError: as in :func:`attack_success_rate`.
    """
    _one_condition(table)
    wanted = sorted(set(range(table.classes)) - {target}) if sources is None else sorted(set(sources))
    if not 0 <= target < table.classes or not wanted or not all(0 <= k < table.classes for k in wanted) or target in wanted:
        raise InputError(
            f"target class {target} with source classes {wanted} for a table of {table.classes} classes; "
            f"sources are some of 0 to {table.classes - 1} without the target"
        )
    return table.where(np.isin(table.target, wanted))


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: probability that a positive scores above a negative, a tie counting half (Mann-Whitney U).

    Args:
        scores: (n,) finite numbers, higher for positives.
        positive: (n,) bool.

    Returns:
        In [0, 1]; NaN where one of the two is missing.

    Raises:
        InputError: lengths differ or a score is not finite.
    """
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if score.shape != label.shape or score.ndim != 1 or not np.isfinite(score).all():
        raise InputError(f"auroc: finite scores and labels of one length are needed, got shapes {score.shape} and {label.shape}")
    negatives, positives = np.sort(score[~label]), score[label]
    if len(negatives) == 0 or len(positives) == 0:
        return math.nan
    wins = np.searchsorted(negatives, positives, "left") + np.searchsorted(negatives, positives, "right")
    return float(wins.sum() / 2 / (len(negatives) * len(positives)))


def _one_condition(table: SampleTable) -> None:
    for name in ("seed", "model", "input"):
        found = np.unique(getattr(table, name))
        if len(found) > 1:
            raise InputError(
                f"rows of several conditions ({name} {', '.join(map(str, found))}) must not be pooled: select one, or use by_seed"
            )


def _matched(rows: SampleTable, other: SampleTable, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Flags of ``other``'s rows, for the same samples in the order of ``rows``."""
    _one_condition(other)
    if len(rows) and len(other) and rows.seed[0] != other.seed[0]:
        raise InputError(f"rows of seed {rows.seed[0]} cannot be matched with rows of seed {other.seed[0]}")
    known = dict(zip(other.sample.tolist(), flags.tolist(), strict=True))
    missing = [sample for sample in rows.sample.tolist() if sample not in known]
    if missing:
        raise InputError(f"{len(missing)} samples, first {missing[0]!r}, are not among the rows to match with")
    return np.array([known[sample] for sample in rows.sample.tolist()], dtype=bool)


def _majority(cohort: Cohort, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(P,) whether more than half of a patient's slices are flagged."""
    return np.asarray(2 * cohort.sums(flags) > cohort.slices)


def _most_frequent(cohort: Cohort, target: IntArray) -> IntArray:
    """(P,) most frequent class of each patient's slices."""
    counts = np.stack([cohort.sums(target == label) for label in cohort.labels] or [np.zeros(len(cohort))], axis=1)
    return np.asarray(np.array(cohort.labels or (0,))[counts.argmax(1)], dtype=np.int64)


def _per_patient(table: SampleTable) -> _Cases:
    # Sorted, so that means of floats do not depend on the order of the rows.
    order = np.argsort(table.sample, kind="stable")
    target, scores = table.target[order], table.scores[order]
    cohort = Cohort.of(table.patient[order], target)
    means = np.stack([cohort.sums(scores[:, k]) / cohort.slices for k in range(table.classes)], axis=1)
    single = cohort.present.sum(1) == 1
    mixed = int((~single).sum())
    note = f"{mixed} of {len(cohort)} patients with slices of several classes left out" if mixed else ""
    patients = np.array(cohort.patients, dtype=np.str_)
    label = _most_frequent(cohort, target)
    return _Cases(patients[single], label[single], means.argmax(1)[single].astype(np.int64), means[single], "patients", note)


def _classification(cases: _Cases, classes: Sequence[str], positive: int) -> dict[str, Estimate]:
    is_positive, called = cases.target == positive, cases.prediction == positive

    def rate(success: NDArray[np.bool_], among: NDArray[np.bool_], empty: str) -> Estimate:
        return proportion(
            success[among], cases.patient[among], cases.target[among], class_names=classes, unit=cases.unit, empty=empty
        )

    correct = cases.prediction == cases.target
    recalls = [rate(correct, cases.target == k, f"no {cases.unit} of class {name}") for k, name in enumerate(classes)]
    result = {
        "accuracy": rate(correct, np.ones(len(correct), dtype=bool), f"no {cases.unit}"),
        "balanced_accuracy": _balanced_accuracy(cases, classes, recalls),
        "sensitivity": rate(called, is_positive, "no positives"),
        "specificity": rate(~called, ~is_positive, "no negatives"),
        "auroc": _auroc(cases, classes, positive),
    }
    return {name: item.model_copy(update={"note": join_notes(item.note, cases.note)}) for name, item in result.items()}


def _balanced_accuracy(cases: _Cases, classes: Sequence[str], recalls: Sequence[Estimate]) -> Estimate:
    """Mean recall; where a class is too good (or bad) for a bootstrap, the mean of the classes' interval ends, which is wider."""
    cohort = Cohort.of(cases.patient, cases.target)
    n, count = len(cases.target), len(cohort)
    if missing := [recall.note for recall in recalls if recall.value is None]:
        return Estimate(value=None, n=n, patients=count, note=missing[0], unit=cases.unit)
    correct = cases.prediction == cases.target
    wins = [cohort.sums(correct & (cases.target == k)) for k in range(len(classes))]
    total = [cohort.sums(cases.target == k) for k in range(len(classes))]
    value = float(np.mean([w.sum() / t.sum() for w, t in zip(wins, total, strict=True)]))
    if shortage := cohort.shortage(classes):
        per_patient = dict(zip(cohort.patients, (cohort.sums(correct) / cohort.slices).tolist(), strict=True))
        return Estimate(value=value, n=n, patients=count, note=shortage, unit=cases.unit, per_patient=per_patient)
    rare = min(min(int((w > 0).sum()), int((w < t).sum())) for w, t in zip(wins, total, strict=True))
    if rare >= MIN_RARE:

        def statistic(weights: FloatArray) -> FloatArray:
            with np.errstate(invalid="ignore"):
                return np.asarray(np.mean([(weights @ w) / (weights @ t) for w, t in zip(wins, total, strict=True)], axis=0))

        estimate = bootstrap_estimate(value, statistic, cohort, n=n, unit=cases.unit, note="", seed=0)
        if estimate.low != estimate.high or estimate.low is None:
            return estimate
    low = float(np.mean([recall.low for recall in recalls if recall.low is not None]))
    high = float(np.mean([recall.high for recall in recalls if recall.high is not None]))
    method: Literal["wilson-on-patients"] = "wilson-on-patients"
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n, patients=count, method=method, unit=cases.unit)


def _auroc(cases: _Cases, classes: Sequence[str], positive: int) -> Estimate:
    return auroc_estimate(
        cases.scores[:, positive], cases.target == positive, cases.patient, cases.target, class_names=classes, unit=cases.unit
    )


def auroc_estimate(
    scores: ArrayLike,
    positive: ArrayLike,
    patients: ArrayLike,
    strata: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    unit: Literal["slices", "patients"] = "slices",
) -> Estimate:
    """AUROC with a patient bootstrap of its pairwise form: patient a's positives win ``wins[a, b]`` pairs from b's negatives.

    Args:
        scores: (n,) finite numbers, higher for positives.
        positive: (n,) bool.
        patients: (n,) patient of each.
        strata: (n,) class of each; patients are resampled within the sets of classes that they have.
        class_names: for the note.
        unit: what each row is.
    """
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    patient, stratum = np.asarray(patients, dtype=np.str_), np.asarray(strata, dtype=np.int64)
    cohort = Cohort.of(patient, stratum)
    n, count = len(label), len(cohort)
    for there, what in ((label, "no positives"), (~label, "no negatives")):
        if not there.any():
            return Estimate(value=None, n=n, patients=count, note=f"not defined: {what}", unit=unit)
    positives, negatives = cohort.sums(label), cohort.sums(~label)
    owner = cohort.index[label]
    wins = np.zeros((count, count))
    for b in np.flatnonzero(negatives > 0):
        against = np.sort(score[~label & (cohort.index == b)])
        twice = np.searchsorted(against, score[label], "left") + np.searchsorted(against, score[label], "right")
        wins[:, b] = np.bincount(owner, weights=twice / 2, minlength=count)
    pairs = np.outer(positives, negatives)
    value = float(wins.sum() / pairs.sum())
    if shortage := cohort.shortage(class_names):
        return Estimate(value=value, n=n, patients=count, note=shortage, unit=unit)
    lost, won = pairs - wins > 0, wins > 0
    rare = min(int(outcome.any(axis).sum()) for outcome in (lost, won) for axis in (0, 1))
    if rare >= MIN_RARE:

        def statistic(weights: FloatArray) -> FloatArray:
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray(((weights @ wins) * weights).sum(1) / ((weights @ positives) * (weights @ negatives)))

        return bootstrap_estimate(value, statistic, cohort, n=n, unit=unit, note="", seed=0)
    # Pairing each patient of the smaller class with another of the larger gives that many independent pairs, of which a
    # fraction `value` is won on average; all pairs together know more, so Wilson on these few is conservative.
    effective = min(Cohort.of(patient[side], stratum[side]).effective_patients() for side in (label, ~label))
    low, high = wilson(value * effective, effective)
    return Estimate(
        value=value, low=min(low, value), high=max(high, value), n=n, patients=count, method="wilson-on-patients", unit=unit
    )
