"""Intervals: known numbers, honest ends, the rule for few patients, and coverage on simulated patients."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tomosec.errors import InputError
from tomosec.metrics.statistics import (
    MIN_PATIENTS,
    Cohort,
    Estimate,
    SeedSummary,
    average,
    over_seeds,
    patient_bootstrap,
    proportion,
    wilson,
)


def cohort(patients: int, slices: int, classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Patients and classes of slices: ``patients`` in each of ``classes``."""
    names = np.array([f"p{i:03d}" for i in range(patients * classes)])
    return np.repeat(names, slices), np.repeat(np.arange(patients * classes) % classes, slices)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Stat. Med. 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
        (100, 100, 0.9630, 1.0),
    ],
)
def test_wilson_gives_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5.1e-5)


@settings(deadline=None)
@given(n=st.integers(1, 2000), data=st.data())
def test_wilson_contains_the_proportion_and_mirrors(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(
    ("successes", "n", "confidence"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (float("nan"), 2, 0.95)]
)
def test_wilson_refuses_what_is_no_proportion(successes: float, n: float, confidence: float) -> None:
    with pytest.raises(InputError, match="wilson"):
        wilson(successes, n, confidence)


def test_one_slice_per_patient_gives_wilson() -> None:
    patients, classes = cohort(29, 1)
    estimate = proportion(np.arange(29) == 0, patients, classes)
    assert estimate.method == "wilson"
    assert (estimate.low, estimate.high) == wilson(1, 29)
    assert str(estimate) == "0.03 [0.01, 0.17], n = 29 slices of 29 patients"


def test_slices_of_one_patient_do_not_count_as_independent() -> None:
    patients, classes = cohort(30, 10)
    success = np.repeat(np.arange(30) % 2 == 0, 10)
    estimate = proportion(success, patients, classes)
    assert estimate.method == "patient-bootstrap"
    assert estimate.low is not None
    assert estimate.high is not None
    # All slices of a patient agree, so 300 slices are worth 30: the t interval of 30 zeros and ones, up to their coarse grid.
    assert estimate.high - estimate.low == pytest.approx(2 * 2.045 * np.sqrt(0.25 / 29), rel=0.1)
    assert estimate.high - estimate.low > 2.5 * (wilson(150, 300)[1] - wilson(150, 300)[0])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_right_is_not_certain(value: float) -> None:
    patients, classes = cohort(24, 5)
    estimate = proportion(np.full(120, bool(value)), patients, classes)
    assert estimate.value == value
    assert estimate.method == "wilson-on-patients"
    assert (estimate.low, estimate.high) == wilson(24 * value, 24)


def test_one_large_patient_is_not_hidden_by_the_number_of_patients() -> None:
    patients = np.array(["big"] * 200 + [f"p{i}" for i in range(19)])
    estimate = proportion(np.ones(219, dtype=bool), patients, np.zeros(219))
    assert estimate.low is not None
    assert estimate.low < 0.3


def test_equal_patients_do_not_make_a_point_interval() -> None:
    patients, classes = cohort(12, 2)
    estimate = proportion(np.arange(24) % 2 == 0, patients, classes)
    assert (estimate.low, estimate.high) == pytest.approx(wilson(6, 12))


def test_few_patients_give_their_own_values_and_no_interval() -> None:
    patients = np.array(["a", "a", "b", "c"] + [f"n{i}" for i in range(12)])
    classes = np.array([1] * 4 + [0] * 12)
    estimate = proportion(np.array([True, False, True, False] + [True] * 12), patients, classes, class_names=("normal", "covid"))
    assert estimate.low is None
    assert estimate.method == "none"
    assert estimate.note == f"no population interval: 3 patients in class covid ({MIN_PATIENTS} needed)"
    assert estimate.per_patient["a"] == 0.5
    assert estimate.per_patient["b"] == 1.0
    assert "no population interval" in str(estimate)


def test_one_patient() -> None:
    estimate = proportion([True, True], ["a", "a"], [0, 0])
    assert str(estimate) == "1.00, n = 2 slices of 1 patient (no population interval: 1 patient in class 0 (10 needed))"


def test_nothing_to_count_is_not_defined() -> None:
    estimate = proportion([], [], [], empty="no positives")
    assert estimate.value is None
    assert str(estimate) == "not defined: no positives"


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_order_of_slices_does_not_matter(seed: int) -> None:
    random = np.random.default_rng(seed)
    patients, classes = cohort(12, 3, classes=2)
    success = random.random(len(patients)) < 0.6
    order = random.permutation(len(patients))
    assert proportion(success, patients, classes) == proportion(success[order], patients[order], classes[order])


@pytest.mark.parametrize(("p", "icc"), [(0.5, 0.3), (0.85, 0.2), (0.95, 0.5)])
def test_intervals_cover_the_truth_where_slices_are_correlated(p: float, icc: float) -> None:
    random = np.random.default_rng(7)
    runs, covered, naive = 150, 0, 0
    for run in range(runs):
        slices = random.integers(3, 15, 20)
        rate = random.beta(p * (1 - icc) / icc, (1 - p) * (1 - icc) / icc, 20)
        patients = np.repeat([f"p{i:02d}" for i in range(20)], slices)
        success = random.random(len(patients)) < np.repeat(rate, slices)
        estimate = proportion(success, patients, np.zeros(len(patients)), seed=run)
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= p <= estimate.high
        low, high = wilson(success.sum(), len(success))
        naive += low <= p <= high
    # 95 % less three binomial standard deviations; an interval over slices is far below.
    assert covered / runs > 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs)
    assert naive / runs < 0.85


def test_bootstrap_matches_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=400)
    result = patient_bootstrap(lambda weights: weights @ values / weights.sum(1), np.zeros(400), resamples=4000)
    assert result.high - result.low == pytest.approx(2 * 1.966 * values.std(ddof=1) / 20, rel=0.05)
    assert result.defined == 4000


def test_bootstrap_keeps_every_stratum_and_repeats() -> None:
    strata = np.array([0] * 3 + [1] * 7)
    seen = []

    def statistic(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        assert (weights[:, :3].sum(1) == 3).all()
        assert (weights[:, 3:].sum(1) == 7).all()
        return weights[:, 0]

    first, second = patient_bootstrap(statistic, strata, seed=4), patient_bootstrap(statistic, strata, seed=4)
    assert first == second
    assert (seen[0] == seen[1]).all()
    patient_bootstrap(statistic, strata, seed=5)
    assert (seen[0] != seen[2]).any()


def test_bootstrap_counts_undefined_resamples() -> None:
    result = patient_bootstrap(lambda weights: np.where(weights[:, 0] > 0, 1.0, np.nan), np.zeros(10))
    assert 0 < result.defined < result.resamples == 2000
    none = patient_bootstrap(lambda weights: np.full(len(weights), np.nan), np.zeros(10))
    assert none.defined == 0
    assert np.isnan(none.low)
    with pytest.raises(InputError, match="0 patients"):
        patient_bootstrap(lambda weights: weights[:, 0], [])


def test_small_sets_of_classes_are_pooled_into_one_stratum() -> None:
    patients = np.array([f"a{i}" for i in range(10)] + ["b", "c", "c"])
    strata = Cohort.of(patients, [0] * 10 + [1, 0, 1]).strata()
    assert len(set(strata[:10])) == 1
    assert strata[10] == strata[11] != strata[0]


def test_average_leaves_out_nan_and_reports_infinity() -> None:
    patients, classes = cohort(12, 2)
    values = np.arange(24.0)
    values[3] = np.nan
    estimate = average(values, patients, classes)
    assert estimate.value == pytest.approx(np.nanmean(values))
    assert estimate.n == 23
    assert estimate.note == "1 slice without a value left out"
    assert estimate.method == "patient-bootstrap"
    values[5] = np.inf
    assert average(values, patients, classes).note.startswith("not defined: infinite for 1 of 23 slices")
    assert average([np.nan], ["a"], [0]).value is None
    assert average([2.0, 4.0], ["a", "a"], [0, 0]).per_patient == {"a": 3.0}
    with pytest.raises(InputError, match="shapes"):
        average([1.0], ["a", "b"], [0, 0])


def test_seeds_are_listed_and_never_pooled() -> None:
    summary = over_seeds({2: 0.8, 0: Estimate(value=0.9, n=5, patients=5), 1: None})
    assert summary.values == {0: 0.9, 1: None, 2: 0.8}
    assert (summary.mean, summary.low, summary.high) == pytest.approx((0.85, 0.8, 0.9))
    assert str(summary) == "0.85 (0.80 to 0.90 over 2 seeds) (not defined for seed 1)"
    assert SeedSummary.model_validate_json(summary.model_dump_json()) == summary
    assert over_seeds({}).mean is None
    with pytest.raises(InputError, match="seed 3"):
        over_seeds({3: float("nan")})


@pytest.mark.parametrize(
    "fields",
    [
        {"value": 0.5, "low": 0.4, "method": "wilson"},
        {"value": 0.5, "low": 0.4, "high": 0.6},
        {"value": 0.5, "low": 0.6, "high": 0.7, "method": "wilson"},
        {"value": None, "low": 0.6, "high": 0.7, "method": "wilson"},
        {"value": float("nan")},
    ],
)
def test_contradictory_estimates_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Estimate.model_validate({"n": 3, "patients": 3, **fields})


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9996, "0.9996"), (1.0, "1.00"), (0.0012, "0.001"), (0.0, "0.00"), (23.46, "23.5"), (1234.5, "1234"), (-0.5, "-0.50")],
)
def test_numbers_are_readable_and_never_rounded_to_certainty(value: float, text: str) -> None:
    assert str(Estimate(value=value, n=1, patients=1)).startswith(f"{text}, n = 1 slice of 1 patient")


def test_statistics_do_not_import_torch() -> None:
    code = "import sys, tomosec.metrics.attack, tomosec.metrics.table; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
