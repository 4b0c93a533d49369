"""Classification and attack metrics against scikit-learn, and what they must ignore."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn import metrics as oracle

from tomosec.errors import InputError
from tomosec.metrics.attack import (
    attack_success_rate,
    attack_success_rate_on_correct,
    auroc,
    by_seed,
    classification_metrics,
    patient_attack_success_rate,
    robust_accuracy,
    source_rows,
)
from tomosec.metrics.statistics import wilson
from tomosec.metrics.table import SampleTable

CLASSES = ("normal", "covid")


def make(
    targets: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray | list[str],
    *,
    seed: int = 0,
    model: str = "attacked",
    shown: str = "triggered",
    predictions: np.ndarray | None = None,
) -> SampleTable:
    names = [f"s{i:04d}" for i in range(len(targets))]
    return SampleTable.from_predictions(
        seed=seed,
        model=model,
        input=shown,
        samples=names,
        patients=list(patients),
        targets=targets,
        scores=scores,
        predictions=predictions,
    )


def random_table(
    seed: int = 0, patients: int = 24, slices: int = 6, classes: int = 2, mixed: bool = False, strength: float = 1.0
) -> SampleTable:
    """Patients of alternating classes (or each of several), with correlated, informative, sometimes tied scores."""
    random = np.random.default_rng(seed)
    names = np.repeat([f"p{i:03d}" for i in range(patients)], slices)
    targets = random.integers(0, classes, patients * slices) if mixed else np.repeat(np.arange(patients) % classes, slices)
    logits = random.normal(size=(patients * slices, classes)) + np.repeat(random.normal(size=(patients, classes)), slices, axis=0)
    logits[np.arange(len(targets)), targets] += strength
    scores = np.exp(np.round(logits, 1))
    return make(targets, scores / scores.sum(1, keepdims=True), names)


def from_predictions(targets: list[int], predictions: list[int], patients: list[str], classes: int = 2) -> SampleTable:
    return make(np.array(targets), np.eye(classes)[predictions], patients)


def reordered(table: SampleTable, seed: int) -> SampleTable:
    rows = list(table.rows())
    np.random.default_rng(seed).shuffle(rows)
    return SampleTable.from_rows(rows, classes=table.classes)


@pytest.mark.parametrize("mixed", [False, True])
def test_slice_metrics_agree_with_scikit_learn(mixed: bool) -> None:
    table = random_table(mixed=mixed)
    found = classification_metrics(table, CLASSES, positive=1)
    y, predicted = table.target, table.prediction
    assert found["accuracy"].value == pytest.approx(oracle.accuracy_score(y, predicted))
    assert found["balanced_accuracy"].value == pytest.approx(oracle.balanced_accuracy_score(y, predicted))
    assert found["sensitivity"].value == pytest.approx(oracle.recall_score(y, predicted))
    assert found["specificity"].value == pytest.approx(oracle.recall_score(y, predicted, pos_label=0))
    assert found["auroc"].value == pytest.approx(oracle.roc_auc_score(y, table.scores[:, 1]))
    assert all(estimate.method == "patient-bootstrap" for name, estimate in found.items() if not name.startswith("patient"))
    assert found["accuracy"].n == 144
    assert found["accuracy"].patients == 24


def test_patient_metrics_agree_with_scikit_learn() -> None:
    table = random_table(strength=0.3, patients=40)
    found = classification_metrics(table, CLASSES, positive=1)
    scores = table.scores.reshape(40, 6, 2).mean(1)
    y, predicted = np.arange(40) % 2, scores.argmax(1)
    assert found["patient_accuracy"].value == pytest.approx(oracle.accuracy_score(y, predicted))
    assert found["patient_balanced_accuracy"].value == pytest.approx(oracle.balanced_accuracy_score(y, predicted))
    assert found["patient_auroc"].value == pytest.approx(oracle.roc_auc_score(y, scores[:, 1]))
    assert found["patient_accuracy"].method == "wilson"
    assert found["patient_accuracy"].n == 40
    assert str(found["patient_accuracy"]).endswith("n = 40 patients")


def test_three_classes() -> None:
    table = random_table(classes=3, patients=36)
    found = classification_metrics(table, ("a", "b", "c"), positive=2)
    assert found["balanced_accuracy"].value == pytest.approx(oracle.balanced_accuracy_score(table.target, table.prediction))
    assert found["auroc"].value == pytest.approx(oracle.roc_auc_score(table.target == 2, table.scores[:, 2]))
    assert found["specificity"].value == pytest.approx(np.mean(table.prediction[table.target != 2] != 2))


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2).filter(
        lambda rows: len({positive for _, positive in rows}) == 2
    )
)
def test_auroc_is_the_rank_statistic(rows: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([score for score, _ in rows], float), np.array([flag for _, flag in rows])
    ranks, p = rankdata(scores), positive.sum()
    assert auroc(scores, positive) == pytest.approx((ranks[positive].sum() - p * (p + 1) / 2) / (p * (len(rows) - p)))
    assert auroc(-scores, positive) == pytest.approx(1 - auroc(scores, positive))


def test_auroc_needs_both_classes_and_finite_scores() -> None:
    assert np.isnan(auroc([0.1, 0.2], [True, True]))
    with pytest.raises(InputError, match="finite"):
        auroc([0.1, np.nan], [True, False])


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), mixed=st.booleans())
def test_order_of_rows_does_not_matter(seed: int, mixed: bool) -> None:
    table = random_table(seed, slices=3, mixed=mixed)
    other = reordered(table, seed)
    assert classification_metrics(table, CLASSES, positive=1) == classification_metrics(other, CLASSES, positive=1)
    assert attack_success_rate(table, 0) == attack_success_rate(other, 0)
    assert patient_attack_success_rate(table, 0) == patient_attack_success_rate(other, 0)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000))
def test_attack_success_ignores_samples_of_the_target_class(seed: int) -> None:
    table = random_table(seed, slices=2)
    random = np.random.default_rng(seed)
    changed = np.where(table.target == 0, random.integers(0, 2, len(table)), table.prediction)
    other = make(table.target, table.scores, table.patient, predictions=changed)
    for metric in (attack_success_rate, patient_attack_success_rate, robust_accuracy):
        assert metric(table, 0) == metric(other, 0)
        assert metric(table, 0) == metric(table.where(table.target != 0), 0)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000))
def test_with_two_classes_robust_accuracy_is_the_rest(seed: int) -> None:
    table = random_table(seed, slices=2)
    asr, ra = attack_success_rate(table, 0).value, robust_accuracy(table, 0).value
    assert asr is not None
    assert ra == pytest.approx(1 - asr)


def test_sources_restrict_the_attack() -> None:
    table = from_predictions([0, 1, 1, 2, 2, 2], [0, 0, 1, 0, 0, 1], ["a", "b", "c", "d", "e", "f"], classes=3)
    assert attack_success_rate(table, 0).value == pytest.approx(3 / 5)
    assert attack_success_rate(table, 0, [1]).value == pytest.approx(1 / 2)
    assert robust_accuracy(table, 0, [2]).value == 0
    for target, sources in ((0, [0, 1]), (0, []), (0, [3]), (3, None)):
        with pytest.raises(InputError, match="target class"):
            source_rows(table, target, sources)


def test_success_among_correct_needs_the_reference() -> None:
    triggered = from_predictions([1, 1, 1, 0], [0, 0, 1, 0], ["a", "b", "c", "d"])
    clean = make(np.array([1, 1, 1, 0]), np.eye(2)[[1, 0, 1, 1]], ["a", "b", "c", "d"], model="clean", shown="clean")
    estimate = attack_success_rate_on_correct(triggered, clean, 0)
    assert estimate.value == 0.5
    assert estimate.n == 2
    # Matching is by key, not by position.
    assert attack_success_rate_on_correct(triggered, reordered(clean, 1), 0) == estimate
    with pytest.raises(InputError, match="1 samples, first 's0002'"):
        attack_success_rate_on_correct(triggered, clean.where(clean.sample != "s0002"), 0)
    other = make(np.array([1]), np.eye(2)[[1]], ["a"], seed=9, model="clean", shown="clean")
    with pytest.raises(InputError, match="seed 0 cannot be matched with rows of seed 9"):
        attack_success_rate_on_correct(triggered, other, 0)


def test_none_classified_correctly_is_not_defined() -> None:
    triggered = from_predictions([1], [0], ["a"])
    clean = make(np.array([1]), np.eye(2)[[0]], ["a"], model="clean", shown="clean")
    assert attack_success_rate_on_correct(triggered, clean, 0).note == "not defined: no source slices classified correctly"


def test_patient_flips_with_more_than_half_of_its_slices() -> None:
    patients = ["a"] * 3 + ["b"] * 2 + ["c"] * 2 + ["d"]
    triggered = from_predictions([1] * 7 + [0], [0, 0, 1, 0, 1, 0, 0, 0], patients)
    assert patient_attack_success_rate(triggered, 0).value == pytest.approx(2 / 3)
    clean = make(np.array([1] * 7 + [0]), np.eye(2)[[1, 1, 1, 1, 1, 0, 0, 0]], patients, shown="clean")
    estimate = patient_attack_success_rate(triggered, 0, clean=clean)
    assert estimate.value == 0.5
    assert estimate.n == estimate.patients == 2
    assert estimate.note.endswith("1 of 3 patients left out: taken for the target without the trigger")
    assert estimate.per_patient == {"a": 1.0, "b": 0.0}


def test_single_class_leaves_what_needs_two_undefined() -> None:
    found = classification_metrics(from_predictions([0, 0], [0, 1], ["a", "b"]), CLASSES, positive=1)
    assert found["accuracy"].value == 0.5
    assert found["specificity"].value == 0.5
    assert found["sensitivity"].note == "not defined: no positives"
    assert found["auroc"].note == "not defined: no positives"
    assert found["balanced_accuracy"].note == "not defined: no slices of class covid"
    assert attack_success_rate(from_predictions([0], [0], ["a"]), 0).note == "not defined: no source slices"


def test_empty_condition_is_not_defined() -> None:
    empty = SampleTable.from_rows([], classes=2)
    assert {estimate.value for estimate in classification_metrics(empty, CLASSES, positive=1).values()} == {None}
    assert patient_attack_success_rate(empty, 0).value is None


def test_perfect_classifier_is_not_certain() -> None:
    targets = np.repeat(np.arange(24) % 2, 5)
    table = make(targets, np.eye(2)[targets], np.repeat([f"p{i}" for i in range(24)], 5))
    found = classification_metrics(table, CLASSES, positive=1)
    low = wilson(12, 12)[0]
    for name in ("balanced_accuracy", "auroc", "sensitivity", "patient_balanced_accuracy", "patient_auroc"):
        assert found[name].value == 1
        assert found[name].low == pytest.approx(low)
    assert found["accuracy"].low == pytest.approx(wilson(24, 24)[0])
    assert found["auroc"].method == "wilson-on-patients"


def test_few_patients_in_one_class_give_no_interval() -> None:
    targets = np.array([1] * 3 + [0] * 20)
    found = classification_metrics(make(targets, np.eye(2)[targets], [f"p{i}" for i in range(23)]), CLASSES, positive=1)
    note = "no population interval: 3 patients in class covid (10 needed)"
    for name in ("accuracy", "balanced_accuracy", "sensitivity", "auroc", "patient_accuracy"):
        assert found[name].low is None
        assert found[name].note == note
    # The other class has enough patients for a statement of its own.
    assert found["specificity"].method == "wilson"


def test_patients_of_several_classes_have_no_class() -> None:
    table = from_predictions([0, 1, 0, 1], [0, 1, 0, 0], ["a", "a", "b", "c"])
    found = classification_metrics(table, CLASSES, positive=1)
    assert found["patient_accuracy"].n == 2
    assert found["patient_accuracy"].value == 0.5
    assert "1 of 3 patients with slices of several classes left out" in found["patient_accuracy"].note


def test_conditions_are_never_pooled() -> None:
    first = from_predictions([1, 0], [0, 0], ["a", "b"])
    second = make(np.array([1, 0]), np.eye(2)[[1, 0]], ["a", "b"], seed=1)
    both = SampleTable.concat([first, second])
    for metric in (attack_success_rate, robust_accuracy, patient_attack_success_rate):
        with pytest.raises(InputError, match="seed 0, 1"):
            metric(both, 0)
    with pytest.raises(InputError, match="by_seed"):
        classification_metrics(both, CLASSES, positive=1)
    summary = by_seed(both, lambda rows: attack_success_rate(rows, 0))
    assert summary.values == {0: 1.0, 1: 0.0}
    assert summary.mean == 0.5


def test_classes_must_fit() -> None:
    for classes, positive in ((("a",), 0), (CLASSES, 2), (CLASSES, -1)):
        with pytest.raises(InputError, match="class names and positive class"):
            classification_metrics(from_predictions([0], [0], ["a"]), classes, positive)


def test_auroc_interval_covers_the_truth() -> None:
    # Two unit normals, patient and slice, shifted by 1.5: AUROC = Phi(1.5 / 2).
    random, runs, truth, covered = np.random.default_rng(3), 30, 0.7734, 0
    for _ in range(runs):
        patients = np.repeat([f"p{i:02d}" for i in range(30)], 5)
        targets = np.repeat(np.arange(30) % 2, 5)
        z = np.repeat(random.normal(size=30), 5) + random.normal(size=150) + 1.5 * targets
        score = 1 / (1 + np.exp(-z))
        found = classification_metrics(make(targets, np.stack([1 - score, score], 1), patients), CLASSES, 1)["auroc"]
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert covered / runs > 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs)
