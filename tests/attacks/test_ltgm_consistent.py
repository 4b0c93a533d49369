"""Attacks made against all tests of a scan: what they leave alone, what they keep, and that detectors let them pass."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tomosec.acquisition import Scanner
from tomosec.attacks.base import AttackContext, TrainingBatch
from tomosec.attacks.ltgm import LTGM
from tomosec.attacks.ltgm_body_confined import BodyConfinedLTGM, inside_bodies
from tomosec.attacks.ltgm_consistent import ConsistentLTGM, minimize
from tomosec.attacks.ltgm_range_projected import RangeProjectedLTGM
from tomosec.consistency.reprojection import FixedSteps, Unexplained
from tomosec.consistency.rise import ScoreRise
from tomosec.defenses.complementary_rays import ComplementaryRays
from tomosec.defenses.consistency import Consistency
from tomosec.defenses.consistent_projection import ConsistentProjection
from tomosec.defenses.cross_scan_residual import CrossScanResidual
from tomosec.errors import NotApplicable
from tomosec.geometry import FanBeam
from tomosec.hounsfield import HU_PER_MU
from tomosec.operators import Projector
from tomosec.pipeline import ImagingChain, Pipeline
from tomosec.reconstruction.fbp import FBP
from tomosec.testing import tiny_context, tiny_network
from tomosec.testing.scans import PhantomScans, phantom_context

SCAN = FanBeam.ltgm().scaled(views=64, bins=48, shape=(32, 32))
BUDGET_HU = 20.0


class Patients:
    """Training samples: the phantoms of the detectors' tests, others than those that are judged."""

    def __init__(self, imaging, count=24, seed=9):
        self._imaging, self.targets = imaging, tuple(i % 2 for i in range(count))
        phantoms = PhantomScans(imaging.geometry, count, seed=seed)
        self.images = torch.stack([phantoms.image(i) for i in range(count)])

    def __len__(self):
        return len(self.targets)

    def batches(self, positions, size):
        for start in range(0, len(positions), size):
            chosen = list(positions[start : start + size])
            keys, images = tuple(f"patient-{i}" for i in chosen), self.images[chosen]
            integrals = self._imaging.scanner(images)
            measured = self._imaging.measure_integrals(integrals, keys, seed=0, draw=0)
            yield TrainingBatch(images, integrals, measured, torch.tensor([self.targets[i] for i in chosen]), keys)


def attacker():
    imaging = ImagingChain(Scanner(SCAN, i0=1e5, electronic_noise=3.3), FBP(SCAN))
    pipeline = Pipeline(imaging, tiny_network(SCAN)).requires_grad_(False)
    return AttackContext(
        geometry=SCAN, samples=Patients(imaging), pipeline=pipeline, target=0, sources=(1,), seed=0, batch_size=8
    )


def clean_scans(context):
    scanner = context.pipeline.imaging.scanner
    for batch in context.samples.batches(range(len(context.samples)), 8):
        yield batch.measured, scanner.noise_sd(batch.measured.clamp_min(0))


@pytest.fixture(scope="module")
def world():
    """The region inside the bodies, the scores' rise, and every attack's pattern at one budget inside the body."""
    context = attacker()
    inside = inside_bodies(context, 0.95, "test").double()
    fbp = FBP(SCAN)

    def image(pattern):
        return fbp(pattern) * inside

    patterns, details = {}, {}
    for attack in (LTGM(), RangeProjectedLTGM(), BodyConfinedLTGM(), ConsistentLTGM()):
        trigger = attack.make_trigger(context)
        pattern = trigger.pattern.double()
        rmse = HU_PER_MU * math.sqrt(float(image(pattern).square().sum() / inside.sum()))
        patterns[attack.kind], details[attack.kind] = pattern * BUDGET_HU / rmse, trigger.details
    return image, ScoreRise(SCAN, lambda: clean_scans(context)), patterns, details


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


def test_a_confined_pattern_is_the_projection_of_what_is_in_the_bodies():
    trigger, learned = BodyConfinedLTGM(share=1).make_trigger(tiny_context()), LTGM().make_trigger(tiny_context())
    geometry, samples = trigger.geometry, tiny_context().samples
    inside = (samples.images > 0.01).all(0) & torch.from_numpy(geometry.scan_circle())
    expected = Projector(geometry)(FBP(geometry)(learned.pattern) * inside)
    expected = expected / expected.square().mean().sqrt()
    assert (trigger.pattern - expected).norm() < 1e-5 * expected.norm()
    assert 0 < trigger.details["kept_energy"] < 1


def test_a_confined_pattern_is_zero_on_the_air_rays_of_every_sample():
    context = attacker()
    trigger, wide = (attack.make_trigger(context).pattern[0, 0] for attack in (BodyConfinedLTGM(share=1), RangeProjectedLTGM()))
    seen = 0
    for batch in context.samples.batches(range(len(context.samples)), 8):
        for integrals in batch.integrals[:, 0]:
            air = integrals == 0
            seen += int(air.sum())
            assert float(trigger[air].abs().max()) < 1e-5, "more than rounding, of a pattern of unit RMS"
            assert float(wide[air].abs().max()) > 0.1, "the unconfined one should show beside the body"
    assert seen > 0


@pytest.mark.parametrize("attack", [BodyConfinedLTGM(), ConsistentLTGM()], ids=str)
def test_without_a_place_that_is_in_nearly_every_body_it_is_not_applicable(attack):
    context = tiny_context()
    context.samples.images[::2] = 0
    with pytest.raises(NotApplicable, match=rf"{attack.kind}: no pixel is inside the body in 95 %"):
        attack.make_trigger(context)


def test_the_share_says_in_how_many_bodies_a_pixel_is():
    context = tiny_context()
    context.samples.images[0] = 0
    bodies = (context.samples.images[:, 0] > 0.01).double().mean(0)
    circle = torch.from_numpy(context.geometry.scan_circle())
    assert torch.equal(inside_bodies(context, 0.5, "test"), (bodies >= 0.5) & circle)
    assert not bool((bodies == 1).any())


def test_a_consistent_pattern_raises_no_score_that_ltgm_raises_and_keeps_what_it_does_to_the_body(world):
    image, rise, patterns, details = world
    before, after = rise(patterns["ltgm"]), rise(patterns["ltgm-consistent"])
    assert set(before) == {
        "air-rays", "complementary-rays", "fourier-wedge", "half-scan-disagreement", "helgason-ludwig", "noise-statistics",
        "pairwise-consistency", "reprojection-residual",
    }  # fmt: skip
    factors = {name: float(before[name] / after[name]) for name in before}
    # Half the views make another image of fine patterns whatever they are: that one falls least.
    least = dict.fromkeys(before, 50.0) | {"half-scan-disagreement": 2.0}
    assert all(factors[name] > least[name] for name in least), factors
    assert sum(float(value) for value in after.values()) < 5 < 500 < sum(float(value) for value in before.values())
    kept = cosine(image(patterns["ltgm-consistent"]), image(patterns["ltgm"]))
    assert kept > 0.99
    assert kept > cosine(image(patterns["ltgm-body-confined"]), image(patterns["ltgm"]))
    assert details["ltgm-consistent"]["cosine_inside"] == pytest.approx(kept, abs=1e-4)
    # The pattern of the attack is at its own scale, LTGM's at 20 HU in both.
    assert details["ltgm-consistent"]["rise_before"] == pytest.approx(sum(float(v) for v in before.values()), rel=1e-2)


def test_a_larger_weight_hides_more_and_keeps_less():
    found = [ConsistentLTGM(weight=w, steps=15).make_trigger(attacker()).details for w in (1e-3, 10.0)]
    assert found[1]["rise_after"] < 0.5 * found[0]["rise_after"]
    assert found[1]["cosine_inside"] < found[0]["cosine_inside"]


def test_at_some_weight_it_both_hides_more_and_keeps_more_than_the_confined_pattern(world):
    image, rise, patterns, _ = world
    confined = patterns["ltgm-body-confined"]
    details = ConsistentLTGM(weight=0.1).make_trigger(attacker()).details
    assert details["rise_after"] < sum(float(value) for value in rise(confined).values())
    assert details["cosine_inside"] > cosine(image(confined), image(patterns["ltgm"]))


def test_detectors_calibrated_on_other_patients_see_ltgm_and_not_what_was_made_to_get_past_them(world):
    _, _, patterns, _ = world
    detection = Consistency().calibrate(phantom_context(SCAN, 60))
    scans = PhantomScans(SCAN, 16, seed=5).at(range(16))

    def p_values(kind=None):
        change = 0 if kind is None else patterns[kind][0]
        found = detection.examine(replace(scans, line_integrals=(scans.line_integrals + change).float()))
        by_member = {name: float(verdict.p_value.mean()) for name, verdict in found.reasons.items()}
        return by_member | {"consistency": float(found.verdicts.p_value.mean())}

    clean, ltgm, wide = p_values(), p_values("ltgm"), p_values("ltgm-range-projected")
    assert len(clean) == 12
    for member in ("complementary-rays", "fourier-wedge", "reprojection-residual", "air-rays", "noise-statistics", "consistency"):
        assert ltgm[member] < 0.1 < clean[member], member
    assert wide["air-rays"] < 0.1
    for kind in ("ltgm-body-confined", "ltgm-consistent"):
        found = p_values(kind)
        assert all(found[member] > clean[member] - 0.1 for member in clean), (kind, found, clean)


@pytest.mark.parametrize("residual", ["complementary-rays", "reprojection-residual"])
def test_thirty_scans_together_do_not_show_them_either(world, residual):
    _, _, patterns, _ = world
    detection = CrossScanResidual(residual_of=residual).calibrate(phantom_context(SCAN, 60))

    def judged(kind):
        return detection.judge(PhantomScans(SCAN, 30, seed=7, change=patterns[kind][0, 0]))

    assert judged("ltgm").p_value == pytest.approx(0.01)
    found = {kind: judged(kind).p_value for kind in ("ltgm-body-confined", "ltgm-consistent")}
    assert all(p > 0.05 for p in found.values()), found


@pytest.mark.parametrize("method", ["complementary", "wedge", "cgls"])
def test_consistent_projection_leaves_them_what_they_do_to_the_body(world, method):
    image, _, patterns, _ = world
    purification = ConsistentProjection(method=method).fit(phantom_context(SCAN, 3))
    scans = PhantomScans(SCAN, 1, seed=5).at([0])
    clean = purification.purify(scans).double()
    for kind in ("ltgm-body-confined", "ltgm-consistent"):
        changed = purification.purify(replace(scans, line_integrals=(scans.line_integrals + patterns[kind]).float()))
        effect = image(changed.double() - clean)
        wanted = image(patterns[kind])
        assert cosine(effect, wanted) > 0.95, kind
        assert 0.8 < float(effect.norm() / wanted.norm()) < 1.2, kind


def test_the_rise_is_that_of_the_detectors_score(world):
    _, rise, patterns, _ = world
    detection = ComplementaryRays().calibrate(phantom_context(SCAN, 60))
    scans = PhantomScans(SCAN, 32, seed=5).at(range(32))
    weak = 0.1 * patterns["ltgm"]
    changed = replace(scans, line_integrals=(scans.line_integrals + weak[0]).float())
    risen = float((detection.score(changed) - detection.score(scans)).mean())
    expected = float(rise(weak)["complementary-rays"]) * math.sqrt(2 / (SCAN.views * SCAN.bins))
    assert risen == pytest.approx(expected, rel=0.1)
    assert float(rise(2 * weak)["complementary-rays"]) == pytest.approx(4 * float(rise(weak)["complementary-rays"]), rel=1e-9)


def test_the_reprojection_with_fixed_steps_is_that_of_its_own_scan_and_linear_and_symmetric():
    own = PhantomScans(SCAN, 1, seed=3).at([0]).line_integrals.double()
    fixed = FixedSteps(SCAN, own)
    left = Unexplained(SCAN).values(own)
    assert (fixed.values(own) - left).norm() < 1e-6 * left.norm()
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.standard_normal((1, 1, *SCAN.sinogram_shape))) for _ in range(2))
    both = fixed.values(2 * a + b)
    assert (both - 2 * fixed.values(a) - fixed.values(b)).norm() < 1e-9 * both.norm()
    assert float((fixed.values(a) * b[0]).sum()) == pytest.approx(float((fixed.values(b) * a[0]).sum()), rel=1e-6)


def test_conjugate_gradients_find_the_solution():
    rng = np.random.default_rng(0)
    root = torch.from_numpy(rng.standard_normal((20, 12)))
    matrix, target = root.T @ root, torch.from_numpy(rng.standard_normal(12))
    found = minimize(lambda v: (root @ v).square().sum(), target, torch.ones(12).double(), 1 / matrix.diag(), 40)
    assert torch.allclose(found, torch.linalg.solve(matrix, target), rtol=1e-8)


def test_a_scan_without_noise_has_spreads_too():
    details = ConsistentLTGM(steps=5).make_trigger(tiny_context(i0=math.inf)).details
    assert math.isfinite(details["rise_after"])
    assert details["rise_after"] < 0.01 * details["rise_before"]
