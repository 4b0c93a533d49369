"""Detection metrics against known answers."""

from __future__ import annotations

import numpy as np
import pytest

from tomosec.errors import InputError
from tomosec.metrics.detection import defense_effectiveness, detection_metrics

PATIENTS = [f"p{k // 2}" for k in range(60)]
CLASSES = [int(k >= 30) for k in range(60)]


def scores(shift, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal(60), random.standard_normal(60) + shift


def test_a_perfect_detector_has_an_auroc_of_one_and_a_useless_one_a_half():
    assert detection_metrics(*scores(100.0), PATIENTS, CLASSES)["auroc"].value == 1.0
    clean, _ = scores(0.0)
    assert detection_metrics(clean, clean, PATIENTS, CLASSES)["auroc"].value == 0.5


def test_the_auroc_is_that_of_scikit_learn_and_its_interval_holds_it():
    from sklearn.metrics import roc_auc_score

    clean, triggered = scores(1.0)
    found = detection_metrics(clean, triggered, PATIENTS, CLASSES)["auroc"]
    assert found.value == pytest.approx(roc_auc_score([0] * 60 + [1] * 60, np.concatenate([clean, triggered])))
    assert found.low < found.value < found.high
    assert found.patients == 30


def test_rates_count_p_values_at_or_below_the_level():
    p_clean = np.linspace(0.02, 1.0, 60)  # 0.02, 0.037, ...: two at 5 %, none at 1 %
    p_triggered = np.r_[np.full(30, 0.01), np.full(30, 0.05)]
    found = detection_metrics(*scores(1.0), PATIENTS, CLASSES, clean_p=p_clean, triggered_p=p_triggered, held_out=99)
    assert found["tpr_at_1"].value == 0.5
    assert found["tpr_at_5"].value == 1.0
    assert found["fpr_at_1"].value == 0.0
    assert found["fpr_at_5"].value == pytest.approx(2 / 60)


@pytest.mark.parametrize(
    ("held_out", "at_1", "at_5"), [(18, False, False), (19, False, True), (98, False, True), (99, True, True)]
)
def test_rates_that_calibration_cannot_reach_are_not_given(held_out, at_1, at_5):
    p = np.full(60, 1 / (held_out + 1))
    found = detection_metrics(*scores(1.0), PATIENTS, CLASSES, clean_p=p, triggered_p=p, held_out=held_out)
    assert (found["tpr_at_1"].value is not None) == at_1
    assert (found["tpr_at_5"].value is not None) == at_5
    if not at_1:
        assert "n too small" in found["tpr_at_1"].note


def test_without_p_values_no_rate_is_given():
    found = detection_metrics(*scores(1.0), PATIENTS, CLASSES)
    assert {name for name, estimate in found.items() if estimate.value is None} == {
        "tpr_at_1",
        "tpr_at_5",
        "fpr_at_1",
        "fpr_at_5",
    }


def test_bad_scores_are_refused():
    clean, triggered = scores(1.0)
    with pytest.raises(InputError, match="59 clean"):
        detection_metrics(clean[:-1], triggered, PATIENTS, CLASSES)
    with pytest.raises(InputError, match="not finite"):
        detection_metrics(np.r_[clean[:-1], np.nan], triggered, PATIENTS, CLASSES)
    for wrong in (np.nan, 0.0, 1.5):  # which would count as not flagged, or as flagged
        with pytest.raises(InputError, match="p-value of a triggered sample"):
            detection_metrics(clean, triggered, PATIENTS, CLASSES, triggered_p=np.r_[np.full(59, 0.5), wrong], held_out=99)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((0.9, 0.1, 0.95, 0.95), 0.9),
        ((0.9, 0.9, 0.95, 0.95), 0.5),
        ((0.9, 0.9, 0.95, 0.55), 0.3),
        ((0.2, 0.9, 0.5, 0.9), 0.5),
        ((1.0, 0.0, 1.0, 0.0), 0.5),
    ],
)
def test_defense_effectiveness_has_the_sign_of_its_definition(rates, expected):
    before, after, ca_before, ca_after = rates
    found = defense_effectiveness(asr_before=before, asr_after=after, ca_before=ca_before, ca_after=ca_after)
    assert found == pytest.approx(expected)


def test_rates_outside_zero_and_one_are_refused():
    with pytest.raises(InputError, match=r"asr_after is 1\.5"):
        defense_effectiveness(asr_before=1.0, asr_after=1.5, ca_before=1.0, ca_after=1.0)
