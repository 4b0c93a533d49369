"""Calibrated detectors on noisy scans: what each catches, what it misses, where it points, and how an adaptive attack gets by."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from slice_scans import NoisierScans, SliceScans

from tomosec.consistency.spread import Spread
from tomosec.defenses.air_rays import AirRays
from tomosec.defenses.complementary_rays import ComplementaryRays
from tomosec.defenses.consistency import Consistency
from tomosec.defenses.cross_scan_residual import CrossScanResidual
from tomosec.defenses.noise_statistics import NoiseStatistics
from tomosec.defenses.reprojection_residual import ReprojectionResidual
from tomosec.errors import InputError, NotApplicable, TruncationWarning
from tomosec.geometry import FanBeam
from tomosec.operators import Projector
from tomosec.operators.complementary import complementary, symmetrize
from tomosec.reconstruction.fbp import FBP
from tomosec.testing.scans import PhantomScans, phantom_context

SCAN = FanBeam.ltgm().scaled(views=96, bins=72, shape=(48, 48))
CLEAN = 42
TESTS = 16


@pytest.fixture(scope="module")
def consistency():
    return Consistency().calibrate(phantom_context(SCAN, CLEAN))


@pytest.fixture(scope="module")
def scans():
    return PhantomScans(SCAN, TESTS, seed=5).at(range(TESTS))


@pytest.fixture(scope="module")
def triggers():
    """Patterns of unit RMS: a masked gradient as LTGM's, the gradient itself, and the two adaptive variants."""
    rng, fbp = np.random.default_rng(0), FBP(SCAN)
    field = torch.from_numpy(rng.standard_normal((1, 1, *SCAN.shape)) * (SCAN.pixel_radii_mm() < 150))
    field = F.conv2d(field, torch.full((1, 1, 5, 5), 1 / 25, dtype=torch.float64), padding=2)
    p = torch.zeros(1, 1, *SCAN.sinogram_shape, dtype=torch.float64, requires_grad=True)
    (naive,) = torch.autograd.grad((fbp(p) * field).sum(), p)
    masked = naive * torch.from_numpy(rng.random(SCAN.sinogram_shape) < 0.5)
    unit = masked.square().mean().sqrt()
    image, radius = fbp(masked), torch.from_numpy(SCAN.pixel_radii_mm())
    projected, confined = (Projector(SCAN)(image * (radius < r)) for r in (SCAN.scan_radius_mm, 100.0))
    return {
        "naive": (naive / naive.square().mean().sqrt())[0, 0],
        "masked": (masked / unit)[0, 0],
        "symmetrized": (symmetrize(SCAN, masked) / unit)[0, 0],
        "projected": (projected / unit)[0, 0],
        "confined": (confined / unit)[0, 0],
    }


def changed(scans, pattern, strength):
    return replace(scans, line_integrals=(scans.line_integrals + strength * pattern).float())


def caught(consistency, scans, clean):
    """By member: in how many scans the p-value is less than it was."""
    before, after = consistency.reasons(clean), consistency.reasons(scans)
    return {name: float((after[name].p_value < before[name].p_value).double().mean()) for name in after}


def complementary_of(patch):
    """The rays that see what the patch's rays see, from the other side."""
    return complementary(SCAN, patch.double()[None, None])[0, 0].abs()


def test_clean_residuals_are_at_their_null(consistency, scans):
    for name in ("complementary-rays", "helgason-ludwig", "fourier-wedge", "pairwise-consistency", "air-rays"):
        member = consistency.members[name]
        assert float(member.calibration.scores.mean()) == pytest.approx(1, abs=0.2), name
        assert float(member.score(scans).mean()) == pytest.approx(1, abs=0.2), name
        assert 0.2 < float(member.judge(scans).p_value.mean()) < 0.8, name


def test_a_constant_offset_is_consistent_and_fails_air_rays(consistency, scans):
    offset = changed(scans, torch.ones(SCAN.sinogram_shape), 0.005)
    found = caught(consistency, offset, scans)
    assert float(consistency.members["air-rays"].judge(offset).p_value.max()) == pytest.approx(1 / (consistency.held_out + 1))
    for name in ("complementary-rays", "helgason-ludwig", "fourier-wedge", "pairwise-consistency"):
        assert found[name] < 0.2, name
    assert float(consistency.judge(offset).p_value.mean()) < 0.1


def test_a_masked_gradient_is_caught_and_adaptive_ones_get_by_what_they_were_made_for(consistency, scans, triggers):
    strength, smallest = 0.02, 1 / (consistency.held_out + 1) + 1e-9

    def flagged(kind, member):
        judged = scans if kind == "clean" else changed(scans, triggers[kind], strength)
        p = consistency.members[member].judge(judged).p_value
        return float((p <= smallest).double().mean())

    for member in ("complementary-rays", "fourier-wedge"):
        assert flagged("masked", member) > 0.9, member
        assert flagged("projected", member) < 0.3, member
        assert flagged("naive", member) < 0.3, member
    assert flagged("symmetrized", "complementary-rays") < 0.3
    assert flagged("symmetrized", "fourier-wedge") > 0.9
    # The projection of an image that is as wide as the scan circle shows beside the body; one that is in the body does not.
    assert flagged("projected", "air-rays") > 0.9
    assert flagged("confined", "air-rays") < flagged("clean", "air-rays") + 0.2
    p = {kind: float(consistency.judge(changed(scans, triggers[kind], strength)).p_value.mean()) for kind in triggers}
    clean = float(consistency.judge(scans).p_value.mean())
    assert p["masked"] < 0.1
    assert abs(p["confined"] - clean) < 0.15


def test_the_score_rises_with_the_strength_of_a_planted_pattern(consistency, scans, triggers):
    scores = torch.stack([consistency.judge(changed(scans, triggers["masked"], s)).score for s in (0.0, 0.02, 0.1, 0.5, 2.0)])
    assert bool((scores.mean(1).diff() > 0).all())
    assert bool((scores[-1] > scores[0].max()).all())


@pytest.mark.parametrize("name", ["complementary-rays", "fourier-wedge", "reprojection-residual", "air-rays"])
def test_a_map_shows_where_a_pattern_was_planted(consistency, scans, name):
    rows, columns = slice(40, 46), slice(30, 36)
    if name == "air-rays":
        columns = slice(2, 8)
    patch = torch.zeros(SCAN.sinogram_shape)
    patch[rows, columns] = 0.5
    where = consistency.members[name].where(changed(scans, patch, 1.0)).abs().mean(0)
    if name != "reprojection-residual":  # whose image carries the patch along its lines into quiet rays
        view, bin_ = divmod(int(where.argmax()), SCAN.bins)
        # The other side of the patch's lines is as wrong as the patch: a difference does not say which of the two it is.
        near = F.max_pool2d((patch + (complementary_of(patch) > 0.1))[None], 5, stride=1, padding=2)[0]
        assert near[view, bin_] > 0, f"{name} points at view {view}, bin {bin_}"
    assert float(where[rows, columns].mean()) > 2 * float(where.mean())


def test_the_map_of_the_verdict_is_that_of_the_member_that_saw_it(consistency, scans):
    offset = changed(scans, torch.ones(SCAN.sinogram_shape), 0.02)
    where, air = consistency.where(offset), consistency.members["air-rays"].where(offset)
    assert torch.equal(where, air)


def test_an_examination_is_judged_reasoned_and_mapped_as_one_by_one(consistency, scans):
    found = consistency.examine(scans)
    assert torch.equal(found.verdicts.score, consistency.judge(scans).score)
    assert torch.equal(found.where, consistency.where(scans))
    alone = consistency.members["fourier-wedge-top"].judge(scans)
    assert torch.equal(found.reasons["fourier-wedge-top"].p_value, alone.p_value)


def test_a_profile_of_other_members_is_refused(consistency):
    with pytest.raises(InputError, match="no member"):
        Consistency().restore({}, SCAN)
    with pytest.raises(InputError, match="air-rays"):
        Consistency(members=("fourier-wedge",)).restore(consistency.tensors(), SCAN)


def test_noise_that_is_too_quiet_counts_as_much_as_too_loud(scans):
    detection = NoiseStatistics().calibrate(phantom_context(SCAN, CLEAN))
    smooth = scans.line_integrals.unfold(2, 3, 1).mean(-1)
    quiet = replace(scans, line_integrals=torch.cat([scans.line_integrals[:, :, :1], smooth, scans.line_integrals[:, :, -1:]], 2))
    loud = changed(scans, torch.from_numpy(np.random.default_rng(1).standard_normal(SCAN.sinogram_shape)), 0.02)
    clean = detection.judge(scans).score
    assert bool((detection.judge(quiet).score > clean).all())
    assert bool((detection.judge(loud).score > clean).all())


def test_a_smoothed_scan_is_seen_together_as_it_is_by_the_one_detector_that_sees_it(consistency, scans):
    p = scans.line_integrals
    smooth = p.clone()
    smooth[:, :, 1:-1] += 0.15 * (p[:, :, :-2] - 2 * p[:, :, 1:-1] + p[:, :, 2:]) / 3
    found = consistency.examine(replace(scans, line_integrals=smooth))
    assert float(found.reasons["noise-statistics"].p_value.mean()) < 0.1
    assert float(found.reasons["fourier-wedge"].p_value.mean()) > 0.9  # calmer than all clean scans
    assert float(found.verdicts.p_value.mean()) < 0.25


@pytest.mark.parametrize("detector", [ComplementaryRays(), NoiseStatistics()], ids=str)
def test_without_a_noise_model_the_clean_spread_alone_is_used(scans, triggers, detector):
    context = phantom_context(SCAN, CLEAN, noise_model=False)
    detection = detector.calibrate(context)
    blind = replace(scans, noise_sd=None)
    assert float(detection.judge(blind).p_value.mean()) > 0.2
    assert float(detection.judge(changed(blind, triggers["masked"], 0.05)).p_value.mean()) < 0.1
    # A model that the calibration did not have does not change the score.
    assert torch.equal(detection.judge(scans).score, detection.judge(blind).score)
    with pytest.raises(InputError, match="no noise model"):
        detector.calibrate(phantom_context(SCAN, 10)).judge(blind)


def test_the_largest_air_sums_are_counted_as_those_of_other_detectors():
    """Of one view with three air rays there are five sums: Z of 1, 2 and 3 by bin, and 6 / √3 by view and of all."""
    nothing = torch.zeros(1, 3, dtype=torch.float64)
    air = Spread(nothing, nothing, gain=0.0, floor=1.0, has_model=False)
    z = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=torch.float64)
    for fraction, squares in ((0.2, [12]), (0.25, [12, 12]), (0.41, [12, 12, 9]), (1, [12, 12, 9, 4, 1])):
        score = AirRays(statistic="top", top_fraction=fraction, margin=0).statistic_of(z, air)
        assert score.tolist() == pytest.approx([np.mean(squares)])


def test_patients_in_every_ray_leave_no_air():
    geometry = SCAN.model_copy(update={"bin_mm": SCAN.bin_mm / 3})
    context = phantom_context(geometry, 6)
    with warnings.catch_warnings(), pytest.raises(NotApplicable, match="every ray meets it"):
        warnings.simplefilter("ignore", TruncationWarning)
        AirRays().calibrate(context)


def test_dark_signs_of_a_bad_scan_are_named(consistency, scans):
    broken = scans.line_integrals.clone()
    broken[1, 0, 3, 4] = torch.nan
    with pytest.raises(InputError, match=r"image 1, view 3, bin 4"):
        consistency.judge(replace(scans, line_integrals=broken))


def test_thirty_scans_show_what_one_does_not(consistency, triggers):
    weak = 0.004 * triggers["masked"]
    detection = CrossScanResidual().calibrate(phantom_context(SCAN, 60))
    clean = detection.judge(PhantomScans(SCAN, 30, seed=7))
    found = detection.judge(PhantomScans(SCAN, 30, seed=7, change=weak))
    assert clean.p_value > 0.05
    assert found.p_value == pytest.approx(0.01)
    assert found.score > 1.5 * clean.score
    one = consistency.members["complementary-rays"].judge(PhantomScans(SCAN, 30, seed=7, change=weak).at(range(30)))
    assert float(one.p_value.mean()) > 0.15
    place = int(found.where.abs().argmax())
    assert (
        abs(float(triggers["masked"].flatten()[place])) > 1
        or abs(float(complementary_of(triggers["masked"]).flatten()[place])) > 1
    )


def test_fewer_scans_say_less_and_too_few_say_why():
    detection = CrossScanResidual(blocks=8).calibrate(phantom_context(SCAN, 60))
    assert detection.block == 4
    verdict = detection.judge(PhantomScans(SCAN, 3, seed=8))
    assert verdict.p_value is None
    assert "3 scan(s)" in verdict.reason
    assert "in 8 ways only" in detection.judge(PhantomScans(SCAN, 4, seed=8)).reason
    assert detection.judge(PhantomScans(SCAN, 13, seed=8)).p_value is not None


SMALL = FanBeam.ltgm().scaled(views=24, bins=20, shape=(16, 16))
SETS = {
    "one scan of a patient": lambda seed: PhantomScans(SMALL, 12, seed=seed),
    "three scans of a patient": lambda seed: SliceScans(SMALL, 10, 3, seed=seed),
    "noisier": lambda seed: NoisierScans(SMALL, 12, 0.01, seed=seed),
}


@pytest.mark.parametrize("name", SETS)
def test_sets_of_scans_without_a_common_pattern_have_super_uniform_p_values(name):
    """Before the scans were one of each patient and compared with random signs: p <= 0.05 in 22 % and in 95 % of the last two."""
    p = []
    for group in range(24):
        detection = CrossScanResidual(permutations=19).calibrate(phantom_context(SMALL, 44, seed=300 + group))
        p += [detection.judge(SETS[name](400 + 2 * group + k)).p_value for k in (0, 1)]
    # The two sets of a group share their calibration; their number is taken as that of the groups.
    for a in (0.05, 0.1, 0.25, 0.5):
        assert np.mean(np.asarray(p) <= a + 1e-12) <= a + 3 * np.sqrt(a * (1 - a) / 24)
    assert 0.4 < np.mean(p) < 0.75


def test_one_scan_of_each_patient_is_judged():
    detection = CrossScanResidual(permutations=19).calibrate(phantom_context(SMALL, 44))
    several = detection.judge(SliceScans(SMALL, 10, 3, seed=8))
    assert several.scans == 10
    assert several.p_value is not None
    few = detection.judge(SliceScans(SMALL, 5, 6, seed=8))
    assert (few.scans, few.p_value) == (5, None)
    assert "5 scans of different patients, 6 needed" in few.reason


def test_scans_that_are_noisier_than_clean_ones_have_nothing_in_common_and_a_pattern_in_them_is_found(triggers):
    detection = CrossScanResidual().calibrate(phantom_context(SCAN, 60))
    clean = detection.judge(PhantomScans(SCAN, 30, seed=7))
    noisier = detection.judge(NoisierScans(SCAN, 30, 0.01, seed=7))
    assert noisier.score > 1.5 * clean.score
    assert noisier.p_value > 0.05
    found = detection.judge(NoisierScans(SCAN, 30, 0.01, seed=7, change=0.02 * triggers["masked"]))
    assert found.p_value == pytest.approx(0.01)


def test_cross_scan_of_a_short_scan_uses_reprojection():
    detector = CrossScanResidual()
    assert type(detector.residual(SMALL)) is type(ComplementaryRays().residual(SMALL))
    limited = FanBeam.model_validate(SMALL.model_dump() | {"arc": 2.0})
    assert type(detector.residual(limited)) is type(ReprojectionResidual().residual(limited))
    assert CrossScanResidual(residual_of="complementary-rays").why_not(phantom_context(limited, 3))
