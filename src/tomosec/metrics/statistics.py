"""Estimates whose intervals are about patients, not slices. No torch here, so that reading a record is quick.

Slices of one patient resemble each other, so ``n`` slices are worth far fewer than ``n`` independent cases. The rules, in
the order they apply:

1. A class with fewer than :data:`MIN_PATIENTS` patients supports no statement about a population: no interval, the values
   per patient instead.
2. A proportion with one slice per patient: the Wilson score interval (Wilson 1927, JASA 22:209).
3. A proportion whose rarer outcome is seen in fewer than :data:`MIN_RARE` patients: Wilson on patients. A bootstrap cannot
   resample what it has not seen: of a sample without an error it makes [1, 1].
4. Otherwise: a percentile bootstrap that resamples whole patients within their class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator
from scipy.special import ndtr, ndtri, stdtrit

from tomosec.component import Value
from tomosec.errors import InputError
from tomosec.randomness import generator

#: Patients that a class needs before an interval is given.
MIN_PATIENTS = 10
#: Patients that must show the rarer outcome before a bootstrap is trusted; the usual "five events" rule.
MIN_RARE = 5
#: A bootstrap that is undefined in more than this fraction of its resamples gives no interval.
MAX_UNDEFINED = 0.05

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
#: Weights (resamples, patients), how often each patient counts, to the statistic (resamples,); NaN where it is undefined.
PatientStatistic = Callable[[FloatArray], FloatArray]
Method = Literal["wilson", "patient-bootstrap", "wilson-on-patients", "none"]


def _number(value: float) -> str:
    """Two decimals, but never a rounded 0 or 1 for what is not exactly 0 or 1; fewer decimals for large values."""
    if abs(value) >= 10:
        return f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"
    for digits in range(2, 9):
        text = f"{value:.{digits}f}"
        if float(text) not in (0.0, 1.0) or float(text) == value:
            return text.removeprefix("-") if float(text) == 0 else text
    return f"{value:.2g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Estimate(Value):
    """A number, what it was measured on and how sure it is.

    Attributes:
        value: the estimate; None where it is not defined, and then ``note`` says why.
        low: lower end of the 95 % interval, or None; given together with ``high``.
        high: upper end.
        n: how many slices (or patients, see ``unit``) entered.
        patients: how many patients they come from.
        method: how the interval was made. ``wilson-on-patients`` is the conservative one for values near 0 or 1.
        note: why there is no value or no interval, and what was left out.
        unit: what ``n`` counts.
        per_patient: values by patient, given where a class has too few patients for an interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = Field(ge=0)
    patients: int = Field(ge=0)
    method: Method = "none"
    note: str = ""
    unit: Literal["slices", "patients"] = "slices"
    per_patient: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.low is None) != (self.high is None) or (self.low is None) != (self.method == "none"):
            raise ValueError("low, high and a method go together")
        if self.value is None and self.low is not None:
            raise ValueError("an estimate without a value has no interval")
        if self.value is not None and self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"the value {self.value} is outside its interval [{self.low}, {self.high}]")
        return self

    def __str__(self) -> str:
        if self.value is None:
            return self.note or "not defined"
        text = _number(self.value)
        if self.low is not None and self.high is not None:
            text += f" [{_number(self.low)}, {_number(self.high)}]"
        counted = _count(self.patients, "patient")
        text += f", n = {counted}" if self.unit == "patients" else f", n = {_count(self.n, 'slice')} of {counted}"
        return f"{text} ({self.note})" if self.note else text


class SeedSummary(Value):
    """One metric over the seeds of an experiment: never pooled, since the seeds share their test patients.

    Attributes:
        values: by seed; None where the seed has no value.
        mean: of the seeds that have a value.
        low: the smallest of them (a range, not an interval).
        high: the largest.
        note: which seeds have no value.
    """

    values: dict[int, float | None]
    mean: float | None
    low: float | None
    high: float | None
    note: str = ""

    def __str__(self) -> str:
        if self.mean is None or self.low is None or self.high is None:
            return self.note or "not defined"
        defined = sum(value is not None for value in self.values.values())
        text = f"{_number(self.mean)} ({_number(self.low)} to {_number(self.high)} over {_count(defined, 'seed')})"
        return f"{text} ({self.note})" if self.note else text


def over_seeds(values: Mapping[int, Estimate | float | None]) -> SeedSummary:
    """Summarize one metric over seeds: each value, mean and range.

    Args:
        values: by seed; estimates contribute their value.

    Raises:
        InputError: a value is NaN or infinite.
    """
    plain = {int(seed): item.value if isinstance(item, Estimate) else item for seed, item in sorted(values.items())}
    defined = [value for value in plain.values() if value is not None]
    for seed, value in plain.items():
        if value is not None and not math.isfinite(value):
            raise InputError(f"seed {seed}: the value is {value}; give a finite number or None")
    missing = [str(seed) for seed, value in plain.items() if value is None]
    note = "" if not missing else f"not defined for seed {', '.join(missing)}"
    if not defined:
        return SeedSummary(values=plain, mean=None, low=None, high=None, note=note or "not defined: no seeds")
    # A mean of equal values must not leave their range by rounding.
    mean = min(max(math.fsum(defined) / len(defined), min(defined)), max(defined))
    return SeedSummary(values=plain, mean=mean, low=min(defined), high=max(defined), note=note)


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927).

    Args:
        successes: 0 to ``n``; fractions are allowed, for an effective number of cases.
        n: number of independent cases, > 0.
        confidence: coverage wanted, in (0, 1).

    Returns:
        (low, high) in [0, 1].

    Raises:
        InputError: ``n`` is not positive, ``successes`` is not in [0, n], or ``confidence`` is not in (0, 1).
    """
    if not (math.isfinite(n) and n > 0 and 0 <= successes <= n and 0 < confidence < 1):
        raise InputError(
            f"wilson: {successes} successes of {n} at confidence {confidence}; "
            "needs 0 <= successes <= n, n > 0, 0 < confidence < 1"
        )
    z = float(ndtri(0.5 + confidence / 2))
    p = successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Exact at the ends, where rounding would exclude the value itself.
    return (
        0.0 if successes == 0 else max(0.0, min(center - half, p)),
        1.0 if successes == n else min(1.0, max(center + half, p)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Slices grouped by patient. Patients are sorted, so nothing depends on the order of the slices.

    Attributes:
        patients: (P,) names, sorted.
        index: (n,) patient of each slice.
        present: (P, classes) whether the patient has a slice of that class.
        labels: the class indices that ``present``'s columns stand for, sorted; only those with a slice.
    """

    patients: tuple[str, ...]
    index: IntArray
    present: NDArray[np.bool_]
    labels: tuple[int, ...]

    @classmethod
    def of(cls, patients: ArrayLike, classes: ArrayLike) -> Cohort:
        """Group slices.

        Args:
            patients: (n,) patient of each slice.
            classes: (n,) true class of each slice.

        Raises:
            InputError: the lengths differ.
        """
        names, index = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
        labels, column = np.unique(np.asarray(classes, dtype=np.int64), return_inverse=True)
        if index.shape != column.shape or index.ndim != 1:
            raise InputError(f"one patient and one class per slice are needed, got shapes {index.shape} and {column.shape}")
        present = np.zeros((len(names), len(labels)), dtype=bool)
        present[index, column] = True
        return cls(tuple(str(name) for name in names), index.astype(np.int64), present, tuple(int(label) for label in labels))

    def __len__(self) -> int:
        return len(self.patients)

    @property
    def slices(self) -> IntArray:
        """(P,) number of slices of each patient."""
        return np.bincount(self.index, minlength=len(self)).astype(np.int64)

    def sums(self, values: ArrayLike) -> FloatArray:
        """(P,) sum over each patient's slices of ``values`` (n,)."""
        return np.bincount(self.index, weights=np.asarray(values, dtype=np.float64), minlength=len(self)).astype(np.float64)

    def strata(self) -> IntArray:
        """(P,) stratum of each patient: the set of classes it has slices of; sets with few patients are pooled.

        Resampling within strata keeps every class in every resample, unless all its patients lie in the pool.
        """
        _, stratum, count = np.unique(self.present, axis=0, return_inverse=True, return_counts=True)
        stratum = stratum.reshape(-1).astype(np.int64)
        return np.where(count[stratum] < MIN_PATIENTS, -1, stratum).astype(np.int64)

    def effective_patients(self) -> float:
        """Kish's effective number of patients, (Σm)²/Σm² for m slices each: what is left if a patient's slices always agree."""
        m = self.slices.astype(np.float64)
        return float(m.sum() ** 2 / (m**2).sum())

    def shortage(self, class_names: Sequence[str] | None = None) -> str:
        """Return "no population interval: ..." where a class has fewer than :data:`MIN_PATIENTS` patients, else ""."""
        few = []
        for label, number in zip(self.labels, self.present.sum(0), strict=True):
            if number < MIN_PATIENTS:
                name = class_names[label] if class_names is not None else str(label)
                few.append(f"{_count(int(number), 'patient')} in class {name}")
        return f"no population interval: {', '.join(few)} ({MIN_PATIENTS} needed)" if few else ""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A bootstrap's interval, and in how many of its resamples the statistic was defined (finite)."""

    low: float
    high: float
    defined: int
    resamples: int


def patient_bootstrap(
    statistic: PatientStatistic, strata: ArrayLike, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Bootstrap:
    """Percentile interval of a statistic under resampling of whole patients within strata.

    The percentiles are widened for small cohorts (Hesterberg 2015, Am. Stat. 69:371, "expanded percentile"): plain ones are
    too narrow by sqrt(n/(n-1)) and by a normal quantile for a t quantile; n is the size of the smallest stratum. Resamples
    in which the statistic is undefined (NaN) are left out and counted.

    Args:
        statistic: from weights (resamples, P) to values (resamples,).
        strata: (P,) stratum of each patient, in the order that the statistic's weights have.
        resamples: number of resamples.
        confidence: coverage wanted.
        seed: names the draw; equal strata and seeds give equal resamples, so paired comparisons are paired.

    Returns:
        Interval and counts; NaN ends where no resample is defined.

    Raises:
        InputError: no patients, no resamples, or a confidence outside (0, 1).
    """
    groups, sizes = np.unique(np.asarray(strata), return_counts=True)
    if len(groups) == 0 or resamples < 1 or not 0 < confidence < 1:
        raise InputError(f"patient_bootstrap: {int(sizes.sum())} patients, {resamples} resamples, confidence {confidence}")
    random = generator(seed, "patient-bootstrap")
    weights = np.empty((resamples, int(sizes.sum())))
    for group, size in zip(groups, sizes, strict=True):
        weights[:, np.asarray(strata) == group] = random.multinomial(size, np.full(size, 1 / size), size=resamples)
    values = statistic(weights)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return Bootstrap(math.nan, math.nan, 0, resamples)
    n = max(int(sizes.min()), 2)
    tail = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - confidence) / 2)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return Bootstrap(float(low), float(high), len(values), resamples)


def bootstrap_estimate(
    value: float,
    statistic: PatientStatistic,
    cohort: Cohort,
    *,
    n: int,
    unit: Literal["slices", "patients"],
    note: str,
    seed: int,
) -> Estimate:
    """Estimate with a patient bootstrap's interval, or without where too many resamples are undefined."""
    result = patient_bootstrap(statistic, cohort.strata(), seed=seed)
    undefined = result.resamples - result.defined
    if undefined:
        note = join_notes(note, f"{undefined} of {result.resamples} resamples undefined and left out")
    if undefined > MAX_UNDEFINED * result.resamples:
        return Estimate(value=value, n=n, patients=len(cohort), unit=unit, note=join_notes(note, "no population interval"))
    low, high = min(result.low, value), max(result.high, value)
    return Estimate(value=value, low=low, high=high, n=n, patients=len(cohort), method="patient-bootstrap", note=note, unit=unit)


def join_notes(*notes: str) -> str:
    """Join what there is to say with "; "."""
    return "; ".join(note for note in notes if note)


def proportion(
    successes: ArrayLike,
    patients: ArrayLike,
    classes: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    unit: Literal["slices", "patients"] = "slices",
    empty: str = "no slices",
    seed: int = 0,
) -> Estimate:
    """Fraction of slices that succeed, with the interval that the module's rules allow.

    Args:
        successes: (n,) bool.
        patients: (n,) patient of each slice.
        classes: (n,) true class of each slice; resampling is within classes.
        class_names: for the note; index = class.
        unit: "patients" where each row already is a patient.
        empty: what to say where there is nothing to count ("no positives").
        seed: names the bootstrap's draw.
    """
    good = np.asarray(successes, dtype=bool)
    cohort = Cohort.of(patients, classes)
    if len(good) != len(cohort.index):
        raise InputError(f"proportion: {len(good)} outcomes for {len(cohort.index)} slices")
    n, count = len(good), len(cohort)
    if n == 0:
        return Estimate(value=None, n=0, patients=0, note=f"not defined: {empty}", unit=unit)
    total, wins = cohort.slices.astype(np.float64), cohort.sums(good)
    value = float(wins.sum() / total.sum())
    if shortage := cohort.shortage(class_names):
        per_patient = dict(zip(cohort.patients, (wins / total).tolist(), strict=True))
        return Estimate(value=value, n=n, patients=count, note=shortage, unit=unit, per_patient=per_patient)
    if count == n:
        low, high = wilson(float(wins.sum()), n)
        return Estimate(value=value, low=low, high=high, n=n, patients=count, method="wilson", unit=unit)
    rare = min(int((wins > 0).sum()), int((wins < total).sum()))
    if rare >= MIN_RARE:
        estimate = bootstrap_estimate(
            value, lambda weights: (weights @ wins) / (weights @ total), cohort, n=n, unit=unit, note="", seed=seed
        )
        # Patients that all have the same fraction make a zero-width bootstrap, which claims too much.
        if estimate.low != estimate.high or estimate.low is None:
            return estimate
    effective = cohort.effective_patients()
    low, high = wilson(value * effective, effective)
    return Estimate(
        value=value, low=min(low, value), high=max(high, value), n=n, patients=count, method="wilson-on-patients", unit=unit
    )


def average(
    values: ArrayLike, patients: ArrayLike, classes: ArrayLike, *, class_names: Sequence[str] | None = None, seed: int = 0
) -> Estimate:
    """Mean over slices of a per-slice number in any unit (RMSE in HU, SSIM), with a patient bootstrap where allowed.

    A NaN means "not defined for this slice": it is left out and counted in the note. An infinite value (the PSNR of
    identical images) leaves the mean undefined.

    Args:
        values: (n,) numbers.
        patients: (n,) patient of each slice.
        classes: (n,) true class of each slice.
        class_names: for the note.
        seed: names the bootstrap's draw.
    """
    number = np.asarray(values, dtype=np.float64)
    names, labels = np.asarray(patients, dtype=np.str_), np.asarray(classes, dtype=np.int64)
    if not number.shape == names.shape == labels.shape:
        raise InputError(f"average: values, patients and classes of shapes {number.shape}, {names.shape} and {labels.shape}")
    keep = ~np.isnan(number)
    left_out = int((~keep).sum())
    note = f"{_count(left_out, 'slice')} without a value left out" if left_out else ""
    number, cohort = number[keep], Cohort.of(names[keep], labels[keep])
    n, count = len(number), len(cohort)
    if n == 0:
        return Estimate(value=None, n=0, patients=0, note=join_notes("not defined: no slices", note))
    if infinite := int(np.isinf(number).sum()):
        note = join_notes(f"not defined: infinite for {infinite} of {_count(n, 'slice')}", note)
        return Estimate(value=None, n=n, patients=count, note=note)
    total, sums = cohort.slices.astype(np.float64), cohort.sums(number)
    value = float(sums.sum() / total.sum())
    if shortage := cohort.shortage(class_names):
        per_patient = dict(zip(cohort.patients, (sums / total).tolist(), strict=True))
        return Estimate(value=value, n=n, patients=count, note=join_notes(shortage, note), per_patient=per_patient)
    return bootstrap_estimate(
        value, lambda weights: (weights @ sums) / (weights @ total), cohort, n=n, unit="slices", note=note, seed=seed
    )
