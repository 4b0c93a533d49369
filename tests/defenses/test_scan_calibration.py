"""Halves, spreads and p-values: what every detector of measured data stands on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from slice_scans import SliceScans

from tomosec.consistency.spread import Moments, SpreadFit
from tomosec.defenses.calibration import MIN_HELD_OUT, HeldOut, halves, one_of_each
from tomosec.defenses.combination import combine, half_cauchy_combination
from tomosec.defenses.complementary_rays import ComplementaryRays
from tomosec.defenses.consistency import Consistency
from tomosec.errors import InputError, NotApplicable
from tomosec.screening.panel import Panel
from tomosec.testing import tiny_geometry
from tomosec.testing.scans import PhantomScans, phantom_context


def assert_super_uniform(p_values, levels=(0.05, 0.1, 0.2, 0.5)):
    """P(p <= a) <= a + 3 binomial sd."""
    p = np.asarray(p_values)
    for a in levels:
        assert np.mean(p <= a + 1e-12) <= a + 3 * math.sqrt(a * (1 - a) / len(p)), f"P(p <= {a}) = {np.mean(p <= a):.3f}"


def test_halves_are_of_patients_and_do_not_depend_on_their_order():
    patients = [f"p{i % 17}" for i in range(60)]
    parts = halves(patients, 3, "test")
    fit, held = ({patients[i] for i in side} for side in (parts.fit, parts.held_out))
    assert not fit & held
    assert fit | held == set(patients)
    assert abs(len(parts.fit) - len(parts.held_out)) <= 4
    assert float(parts.weights.sum()) == pytest.approx(len(held))
    assert sorted({patients[::-1][i] for i in halves(patients[::-1], 3, "test").fit}) == sorted(fit)
    assert {patients[i] for i in halves(patients, 4, "test").fit} != fit


def test_two_patients_are_too_few_to_have_a_spread_and_to_hold_one_out():
    with pytest.raises(NotApplicable, match="3 patients at least; there are 4 scan"):
        halves(["a", "a", "b", "b"], 0, "air-rays")


def test_streamed_moments_are_those_of_all_values():
    values = torch.from_numpy(1e4 + np.random.default_rng(0).standard_normal((23, 5)))
    moments = Moments()
    for part in values.split((1, 7, 0, 15)):
        moments.update(part)
    assert torch.allclose(moments.mean, values.mean(0), rtol=1e-14)
    assert torch.allclose(moments.variance, values.var(0), rtol=1e-9)


@pytest.mark.parametrize("scans", [3, 400])
def test_a_spread_is_the_scans_own_noise_and_what_it_does_not_explain(scans):
    rng = np.random.default_rng(1)
    nominal = torch.from_numpy(rng.uniform(0.5, 2.0, (scans, 4000)))
    extra = torch.cat([torch.zeros(2000), torch.full((2000,), 3.0)])
    values = torch.from_numpy(rng.standard_normal((scans, 4000))) * (nominal + extra).sqrt() + 5
    fit = SpreadFit(exact=True)
    fit.update(values, nominal)
    spread = fit.finish()
    fresh = torch.from_numpy(rng.uniform(0.5, 8.0, (50, 4000)))
    z = spread.whiten(torch.from_numpy(rng.standard_normal((50, 4000))) * (fresh + extra).sqrt() + 5, fresh)
    if scans == 400:
        assert float(z[:, :2000].square().mean()) == pytest.approx(1, abs=0.05)
        assert float(z[:, 2000:].square().mean()) == pytest.approx(1, abs=0.05)
    else:  # shrunk to the noise model, so the unexplained part is underestimated, but nothing explodes
        assert 1 < float(z[:, 2000:].square().mean()) < 6
        assert float(z.abs().max()) < 30


def test_scans_without_the_noise_model_of_the_calibration_are_refused():
    fit = SpreadFit(exact=True)
    fit.update(torch.randn(5, 3), torch.ones(5, 3))
    with pytest.raises(InputError, match="some have a noise model"):
        fit.update(torch.randn(5, 3), None)
    with pytest.raises(InputError, match="these scans have no noise model"):
        fit.finish().whiten(torch.randn(2, 3), None)


def test_a_p_value_counts_the_held_out_scores_that_are_as_high():
    held = HeldOut(torch.arange(19.0, dtype=torch.float64), torch.ones(19, dtype=torch.float64))
    found = held.p_values(torch.tensor([-1.0, 0.0, 17.5, 18.0, 99.0]))
    assert found.tolist() == pytest.approx([1.0, 1.0, 2 / 20, 2 / 20, 1 / 20])
    assert HeldOut(held.scores[:18], held.weights[:18]).p_values(torch.zeros(1)) is None
    # Two scans of one patient count half each.
    shared = HeldOut(torch.arange(40.0, dtype=torch.float64), torch.full((40,), 0.5, dtype=torch.float64))
    assert shared.patients == 20
    assert shared.p_values(torch.tensor([39.0]))[0] == pytest.approx(1.5 / 21)


def test_p_values_are_super_uniform_on_exchangeable_scores():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(np.round(rng.standard_normal((2000, MIN_HELD_OUT + 1)), 1))  # with ties
    weights = torch.ones(MIN_HELD_OUT, dtype=torch.float64)
    p = [float(HeldOut(row[:-1], weights).p_values(row[-1:])[0]) for row in scores]
    assert_super_uniform(p)
    assert np.mean(p) < 0.6  # and not only because they are large


@pytest.mark.parametrize("dependence", [0.0, 0.7, 1.0])
def test_combined_p_values_are_super_uniform_whatever_the_dependence(dependence):
    rng = np.random.default_rng(2)
    n, tests = MIN_HELD_OUT, 5
    p = []
    for _ in range(800):
        common, own = rng.standard_normal((n + 1, 1)), rng.standard_normal((n + 1, tests))
        table = torch.from_numpy(dependence * common + math.sqrt(1 - dependence**2) * own)
        p.append(float(combine(table[-1:], table[:-1])[1][0]))
    assert_super_uniform(p)
    assert 0.4 < np.mean(p) < 0.6


def test_a_combined_score_goes_on_rising_beyond_all_clean_scans():
    rng = np.random.default_rng(3)
    held = torch.from_numpy(rng.standard_normal((30, 4)))
    rising = torch.zeros(6, 4, dtype=torch.float64)
    rising[:, 2] = torch.tensor([0.0, 2.0, 5.0, 20.0, 1e3, 1e9])
    score, p = combine(rising, held)
    assert bool((score.diff() > 0).all())
    assert bool(torch.isfinite(score).all())
    assert p[-1] == pytest.approx(1 / 31)
    assert combine(rising, held[:10])[1] is None


def test_detectors_that_find_a_scan_calmer_than_all_do_not_outvote_the_one_that_sees_it():
    rng = np.random.default_rng(4)
    held = torch.from_numpy(rng.standard_normal((99, 11)))
    usual = torch.zeros(1, 11, dtype=torch.float64)
    usual[0, 3] = held[:, 3].max() + 1
    calm = usual - 10
    calm[0, 3] = usual[0, 3]
    (score, calmer), p = combine(torch.cat([usual, calm]), held)
    assert float((p[0] - p[1]).abs()) < 0.03
    assert float(p.max()) < 0.1
    assert 0 < float(score - calmer) < 0.2, "what is calm adds less than what is usual, and next to nothing"


def test_half_cauchy_combination_has_its_closed_form():
    assert float(half_cauchy_combination(torch.tensor([0.03, 0.03, 0.03]))) == pytest.approx(0.03)
    two = half_cauchy_combination(torch.tensor([0.01, 0.4]))
    expected = 1 - 2 / math.pi * math.atan((1 / math.tan(0.005 * math.pi) + 1 / math.tan(0.2 * math.pi)) / 2)
    assert float(two) == pytest.approx(expected, rel=1e-6)
    assert float(half_cauchy_combination(torch.tensor([1e-200, 1.0], dtype=torch.float64))) == pytest.approx(2e-200, rel=1e-6)
    assert float(half_cauchy_combination(torch.tensor([1.0, 1.0]))) == 1


def test_one_scan_of_each_patient_is_drawn_whatever_the_order():
    patients = [f"p{i % 9}" for i in range(30)]
    drawn = one_of_each(patients, 3)
    assert sorted(patients[i] for i in drawn) == sorted(set(patients))
    assert list(drawn) == sorted(drawn)
    assert {i // 9 for i in drawn} != {0}, "not always the first"
    assert one_of_each(patients, 3) == drawn != one_of_each(patients, 4)
    assert one_of_each(["a", "b", "c"], 0) == (0, 1, 2)
    parts = halves(patients, 3, "test")
    held = [patients[i] for i in parts.held_out]
    assert sorted(held[i] for i in parts.one_each) == sorted(set(held))


@pytest.mark.parametrize("alike", [0.0, 0.7, 1.0])
def test_combined_p_values_are_super_uniform_with_several_scans_of_a_patient(alike):
    """Ranked among all scans with a weight each, scans of one patient that are alike raised five times too many alarms."""
    rng = np.random.default_rng(5)
    n, each, tests = MIN_HELD_OUT, 4, 6
    patients = [f"p{i // each}" for i in range(n * each)]
    p = []
    for trial in range(800):
        common, own = rng.standard_normal((n + 1, 1, tests)), rng.standard_normal((n + 1, each, tests))
        table = torch.from_numpy(alike * common + math.sqrt(1 - alike**2) * own)
        p.append(float(combine(table[-1, :1], table[:-1].reshape(-1, tests)[list(one_of_each(patients, trial))])[1][0]))
    assert_super_uniform(p)
    assert 0.45 < np.mean(p) < 0.6


def test_the_combination_is_ranked_among_one_scan_of_each_patient():
    context = replace(phantom_context(tiny_geometry(), 1), clean=SliceScans(tiny_geometry(), 44, 3))
    detection = Consistency().calibrate(context)
    assert detection.held_out == 22
    scan = PhantomScans(tiny_geometry(), 1, seed=1, change=torch.full(tiny_geometry().sinogram_shape, 0.1)).at([0])
    found = detection.examine(scan)
    assert found.verdicts.p_value == pytest.approx(1 / 23)
    assert found.reasons["air-rays"].p_value == pytest.approx(1 / 23)
    again = Consistency().restore(detection.tensors(), tiny_geometry())
    assert torch.equal(again.judge(scan).score, found.verdicts.score)
    panel = Panel.calibrated(context)
    assert len(panel.scores) == panel.held_out == 22
    judged = panel.judge(scan)
    assert (judged.score, judged.p_value) == (float(found.verdicts.score), float(found.verdicts.p_value))
    assert Panel.restored(panel.components, panel.tensors(), tiny_geometry(), {}).judge(scan).score == judged.score


@pytest.mark.parametrize("detector", [ComplementaryRays(), Consistency()], ids=["one", "combined"])
def test_clean_scans_of_other_patients_have_super_uniform_p_values(detector):
    p = []
    for group in range(6):
        detection = detector.calibrate(phantom_context(tiny_geometry(), 42, seed=100 + group))
        p += detection.judge(PhantomScans(tiny_geometry(), 12, seed=200 + group).at(range(12))).p_value.tolist()
    # The scans of a group share their calibration; their number is taken as that of the groups' halves.
    for a in (0.1, 0.2, 0.5):
        assert np.mean(np.asarray(p) <= a + 1e-12) <= a + 3 * math.sqrt(a * (1 - a) / 36)
    assert np.mean(p) == pytest.approx(0.5, abs=0.15)


def test_memory_of_a_calibration_does_not_grow_with_the_scans():
    few, many = (ComplementaryRays().calibrate(phantom_context(tiny_geometry(), count)).tensors() for count in (44, 88))
    sizes = [{name: value.numel() for name, value in kept.items() if "held_out" not in name} for kept in (few, many)]
    assert sizes[0] == sizes[1]


def test_ten_scans_give_scores_and_three_a_score_and_two_a_reason():
    scan = PhantomScans(tiny_geometry(), 1, seed=9).at([0])
    for count in (10, 3):
        verdict = Consistency().calibrate(phantom_context(tiny_geometry(), count)).judge(scan)
        assert verdict.p_value is None
        assert bool(torch.isfinite(verdict.score).all())
    with pytest.raises(NotApplicable, match="3 patients at least"):
        Consistency().calibrate(phantom_context(tiny_geometry(), 2))
