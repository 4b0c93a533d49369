"""Measurement-domain attacks that learn nothing, each against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tomosec.attacks.badnets import BadNets
from tomosec.attacks.beam_hardening import BeamHardening
from tomosec.attacks.blended_sinogram import BlendedSinogram, shepp_logan
from tomosec.attacks.center_shift import CenterShift
from tomosec.attacks.constant_offset import ConstantOffset
from tomosec.attacks.detector_streak import DetectorStreak
from tomosec.attacks.fresh_noise import FreshNoise
from tomosec.attacks.i0_drift import I0Drift
from tomosec.attacks.noise import FrozenNoise
from tomosec.attacks.projected import Projected
from tomosec.attacks.sig import SIG
from tomosec.attacks.sinogram_patch import SinogramPatch
from tomosec.attacks.sinogram_sinusoid import SinogramSinusoid
from tomosec.attacks.view_streak import ViewStreak
from tomosec.component import components
from tomosec.errors import InputError
from tomosec.hounsfield import MU_WATER
from tomosec.operators import Projector
from tomosec.reconstruction.fbp import FBP
from tomosec.testing import check_attack, tiny_context
from tomosec.trigger import AdditiveTrigger

VIEWS, BINS = 32, 28
UNIVERSAL = [
    ConstantOffset(),
    DetectorStreak(),
    FrozenNoise(),
    I0Drift(),
    Projected(),
    SinogramPatch(),
    SinogramSinusoid(),
    ViewStreak(),
]


def pattern_of(attack):
    trigger = attack.make_trigger(tiny_context())
    assert isinstance(trigger, AdditiveTrigger)
    return trigger.pattern[0, 0]


def scans(count=2):
    return torch.from_numpy(np.random.default_rng(0).uniform(0.1, 5, (count, 1, VIEWS, BINS)).astype(np.float32))


@pytest.mark.parametrize("attack", UNIVERSAL, ids=lambda attack: attack.kind)
def test_universal_additive_triggers_cost_one_reconstruction(attack):
    context = tiny_context()
    imaging, trigger = context.pipeline.imaging, attack.make_trigger(context)
    injection = imaging.inject(trigger)
    assert injection.why_not_linear == ""
    p = scans()
    long_way = imaging.reconstruct(trigger.at(0.3).apply(p)) - imaging.reconstruct(p)
    assert (long_way - 0.3 * injection.effect).norm() < 1e-4 * long_way.norm()


@pytest.mark.parametrize("kind", [kind for kind, cls in components("attack").items() if cls.domain == "measurement"])
def test_gradients_flow_through_every_measurement_trigger(kind):
    context = tiny_context()
    trigger = components("attack")[kind]().make_trigger(context).at(0.1)
    p = scans().requires_grad_(True)
    image = context.pipeline.imaging.reconstruct(trigger.apply(p, ("a", "b")))
    (gradient,) = torch.autograd.grad(image.square().sum(), p)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.norm()) > 0


def test_patch_is_one_rectangle_of_the_share_asked_for():
    pattern = pattern_of(SinogramPatch(views=0.25, bins=0.5, first_view=0.875, position=1.0))
    expected = torch.zeros(VIEWS, BINS)
    expected[[28, 29, 30, 31, 0, 1, 2, 3], 14:] = math.sqrt(VIEWS * BINS / (8 * 14))
    assert torch.allclose(pattern, expected, rtol=1e-6, atol=0)


def test_replacing_patch_stamps_its_value_and_is_opaque_at_strength_one():
    attack, p = SinogramPatch(mode="replace", value=2.5), scans()
    trigger = attack.make_trigger(tiny_context())
    change = trigger.at(1.0).apply(p) - p
    inside = trigger.mask == 1
    assert int(inside.sum()) == round(0.2 * VIEWS) * round(0.1 * BINS)
    assert torch.allclose(trigger.at(1.0).apply(p)[..., inside], torch.tensor(2.5), rtol=1e-6)
    assert torch.allclose(trigger.at(0.25).apply(p)[..., inside], 0.75 * p[..., inside] + 0.625, rtol=1e-5)
    assert float(change[..., ~inside].abs().max()) == 0
    check_attack(attack)
    with pytest.raises(InputError, match=r"from 0 to 1, got 1\.5"):
        trigger.at(1.5)
    with pytest.raises(ValidationError, match="mode 'replace'"):
        SinogramPatch(value=2.5)


def test_detector_streak_is_the_same_bins_in_every_view():
    pattern = pattern_of(DetectorStreak(bins=2, position=-1.0))
    assert torch.allclose(pattern[:, :2], torch.tensor(math.sqrt(BINS / 2)), rtol=1e-6)
    assert float(pattern[:, 2:].abs().max()) == 0


def test_view_streak_is_the_same_views_in_every_bin():
    pattern = pattern_of(ViewStreak(views=3, first_view=31 / 32))
    assert torch.allclose(pattern[[31, 0, 1]], torch.tensor(math.sqrt(VIEWS / 3)), rtol=1e-6)
    assert float(pattern[2:31].abs().max()) == 0


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (DetectorStreak(bins=29), "bins is 29, but the detector has 28"),
        (ViewStreak(views=33), "views is 33, but the scan has 32"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_a_streak_wider_than_the_scan_is_refused(attack, message):
    with pytest.raises(InputError, match=message):
        attack.make_trigger(tiny_context())


def test_constant_offset_and_constant_drift_add_one_number():
    p = scans()
    for attack in (ConstantOffset(), I0Drift(profile="constant")):
        change = attack.make_trigger(tiny_context()).at(0.01).apply(p) - p
        assert torch.allclose(change, torch.tensor(0.01), rtol=1e-4)


def test_linear_drift_grows_evenly_from_nothing_and_is_one_number_per_view():
    pattern = pattern_of(I0Drift())
    assert bool((pattern == pattern[:, :1]).all())
    assert float(pattern[0, 0]) == 0
    assert torch.allclose(pattern[1:, 0] - pattern[:-1, 0], pattern[1, 0], rtol=1e-4)


def test_sinusoid_is_one_line_of_the_spectrum():
    pattern = pattern_of(SinogramSinusoid(cycles_per_scan=3, cycles_across=5, phase=0.4))
    spectrum = torch.fft.fft2(pattern.double())
    energy = spectrum.abs().square() / spectrum.abs().square().sum()
    assert float(energy[3, 5] + energy[-3, -5]) == pytest.approx(1, abs=1e-6)
    # sin(a + phase) has its positive frequency at the angle phase - pi / 2.
    assert float(spectrum[3, 5].angle()) == pytest.approx(0.4 - math.pi / 2, abs=1e-5)
    expected = math.sqrt(2) * math.sin(2 * math.pi * (3 * 7 / VIEWS + 5 * 2 / BINS) + 0.4)
    assert float(pattern[7, 2]) == pytest.approx(expected, rel=1e-5)


def test_a_wave_that_the_samples_cannot_show_is_refused():
    with pytest.raises(InputError, match="cycles_across is 15; 28 samples show at most 14"):
        SinogramSinusoid(cycles_across=15).make_trigger(tiny_context())
    with pytest.raises(InputError, match="every sample of the wave is 0"):
        SinogramSinusoid(cycles_across=14).make_trigger(tiny_context())
    with pytest.raises(ValidationError, match="which is no wave"):
        SinogramSinusoid(cycles_across=0)


def test_blended_is_a_convex_mix_with_the_projected_phantom():
    context, p = tiny_context(), scans()
    geometry = context.geometry
    foreign = Projector(geometry)(shepp_logan(geometry)[None, None] * MU_WATER).float()
    trigger = BlendedSinogram().make_trigger(context)
    assert torch.allclose(trigger.at(0.2).apply(p), 0.8 * p + 0.2 * foreign, rtol=1e-5, atol=1e-6)
    assert torch.allclose(trigger.at(1.0).apply(p), foreign.expand_as(p), rtol=1e-5, atol=1e-6)


def test_shepp_logan_has_its_values_at_known_places():
    geometry = tiny_context().geometry.scaled(shape=(256, 256))
    image = shepp_logan(geometry)
    half = geometry.scan_radius_mm / geometry.pixel_mm

    def at(x, y):
        return float(image[round(127.5 - y * half), round(127.5 + x * half)])

    assert at(0, 0.9) == pytest.approx(1.0)  # the skull
    assert at(0, -0.3) == pytest.approx(0.2)  # the brain
    assert at(0.22, 0.0) == pytest.approx(0.0, abs=1e-12)  # the right ventricle
    assert at(0, 0.4) == pytest.approx(0.3)
    assert at(0.95, 0.95) == 0


def test_frozen_noise_is_one_white_draw_for_every_scan():
    first, other = (FrozenNoise().make_trigger(tiny_context(seed)).at(0.1) for seed in (0, 1))
    p, pattern = scans(3), first.pattern[0, 0].double()
    assert torch.allclose(first.apply(p), p + 0.1 * first.pattern, rtol=0, atol=1e-6)
    assert float(pattern.square().mean()) == pytest.approx(1, rel=1e-5)
    assert float(pattern.pow(4).mean()) == pytest.approx(3, abs=5 * math.sqrt(96 / pattern.numel()))  # Gaussian
    # White: the energy in each quarter of the view frequencies is its share of them.
    energy = torch.fft.fft(pattern, dim=0).abs().square().sum(1)
    for low, high in ((1, 5), (5, 9), (9, 13), (13, 17)):
        share = float(energy[low:high].sum() / energy.sum())
        assert share == pytest.approx(4 / VIEWS, abs=5 * math.sqrt(2 * 4 * BINS) / pattern.numel())
    correlation = torch.corrcoef(torch.stack([pattern.flatten(), other.pattern.double().flatten()]))[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(pattern.numel())


def test_fresh_noise_is_a_function_of_seed_and_key_alone():
    trigger, other_seed = (FreshNoise().make_trigger(tiny_context(seed)).at(0.1) for seed in (0, 1))
    p = scans(3)
    noise = trigger.apply(p, ("a", "b", "a")) - p
    assert torch.allclose(noise[0], noise[2], rtol=0, atol=1e-6)
    assert torch.equal(trigger.apply(p.flip(0), ("a", "b", "a")).flip(0), trigger.apply(p, ("a", "b", "a")))
    for different in (noise[1], (other_seed.apply(p, ("a", "b", "a")) - p)[0]):
        correlation = torch.corrcoef(torch.stack([noise[0].flatten(), different.flatten()]))[0, 1]
        assert abs(float(correlation)) < 5 / math.sqrt(VIEWS * BINS)
    with pytest.raises(InputError, match="needs 3 sample keys, got none"):
        trigger.apply(p)


def test_fresh_noise_leaves_no_mean_pattern_to_learn():
    trigger = FreshNoise().make_trigger(tiny_context()).at(1.0)
    assert not trigger.universal
    count = 400
    noise = trigger.apply(torch.zeros(count, 1, VIEWS, BINS), [f"scan-{i}" for i in range(count)])
    assert float(noise.square().mean().sqrt()) == pytest.approx(1, rel=0.01)
    # The mean of independent draws shrinks as 1 / sqrt(n); a frozen pattern would stay at 1.
    assert float(noise.mean(0).square().mean().sqrt()) == pytest.approx(1 / math.sqrt(count), rel=0.1)


def test_the_chain_hands_its_sample_keys_to_the_trigger():
    context = tiny_context()
    imaging, trigger = context.pipeline.imaging, FreshNoise().make_trigger(context).at(0.1)
    batch = next(context.samples.batches([0, 1], 2))
    together = imaging.image(batch.integrals, batch.keys, seed=0, draw=0, trigger=trigger)
    alone = imaging.image(batch.integrals[1:], batch.keys[1:], seed=0, draw=0, trigger=trigger)
    assert (together[1:] - alone).norm() < 1e-5 * alone.norm()


def test_beam_hardening_is_its_polynomial():
    p = scans().double()
    assert torch.allclose(BeamHardening().make_trigger(tiny_context()).at(0.01).apply(p), p + 0.01 * p**2, rtol=1e-12)
    cubic = BeamHardening(coefficients=(-1.0, 0.0, 0.25)).make_trigger(tiny_context())
    assert torch.allclose(cubic.at(0.02).apply(p), p + 0.02 * (-(p**2) + 0.25 * p**4), rtol=1e-12)
    assert float(cubic.at(0.02).apply(torch.zeros(1, 1, VIEWS, BINS)).abs().max()) == 0  # air stays air
    with pytest.raises(ValidationError, match="at least one coefficient"):
        BeamHardening(coefficients=(0.0, 0.0))
    with pytest.raises(ValidationError, match="at least one coefficient"):
        BeamHardening(coefficients=())


@pytest.mark.parametrize("bins", [0.37, -1.6, 3.0])
def test_center_shift_moves_a_gaussian_by_the_strength(bins):
    u = torch.arange(BINS, dtype=torch.float64)

    def gaussian(center):
        return torch.exp(-((u - center) ** 2) / (2 * 2.0**2)).expand(1, 1, VIEWS, BINS)

    trigger = CenterShift().make_trigger(tiny_context()).at(bins)
    assert (trigger.apply(gaussian(13.2)) - gaussian(13.2 + bins)).norm() < 1e-4 * gaussian(13.2).norm()
    # A truncated view is continued by its mirror image, not by the other end of the detector.
    assert torch.allclose(trigger.apply(torch.ones(1, 1, VIEWS, BINS)), torch.tensor(1.0), rtol=1e-5)


def test_center_shift_by_whole_bins_changes_no_number():
    p = scans()
    moved = CenterShift().make_trigger(tiny_context()).at(2.0).apply(p)
    assert torch.allclose(moved[..., 2:], p[..., :-2], rtol=1e-5, atol=1e-5)


def test_center_shift_keeps_the_level_of_the_noise():
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 1, VIEWS, BINS)))
    moved = CenterShift().make_trigger(tiny_context()).at(0.5).apply(noise)
    # Linear interpolation by half a bin would leave a variance of 0.5.
    assert float(moved.var() / noise.var()) == pytest.approx(1, abs=0.05)


def test_projected_is_the_projection_of_an_additive_image():
    context = tiny_context()
    expected = Projector(context.geometry)(SIG().make_trigger(context).pattern * context.pipeline.imaging.circle)
    pattern = Projected().make_trigger(context).pattern
    assert (pattern * expected.norm() / pattern.norm() - expected).norm() < 1e-5 * expected.norm()
    assert Projected.model_validate_json(Projected(attack=BadNets()).model_dump_json()) == Projected(attack={"kind": "badnets"})
    with pytest.raises(ValidationError, match="'frozen-noise' is no image-domain attack"):
        Projected(attack="frozen-noise")


def test_projected_carries_what_is_not_additive_by_way_of_the_image():
    context = tiny_context()
    geometry, circle = context.geometry, context.pipeline.imaging.circle
    p = next(context.samples.batches([0, 1], 2)).measured
    image = FBP(geometry)(p) * circle
    changed = BadNets().make_trigger(context).at(0.3).apply(image)
    expected = p + Projector(geometry)((changed - image) * circle)
    assert torch.allclose(Projected(attack=BadNets()).make_trigger(context).at(0.3).apply(p), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "attack", ["badnets", "wanet", "adaptive-blend", {"kind": "sig", "clean_label": True, "test_gain": 2.0}], ids=str
)
def test_projected_keeps_the_contract_and_the_labels_of_what_it_carries(attack):
    check_attack(Projected(attack=attack))


def test_projected_covers_and_test_strength_are_those_of_the_carried_attack():
    wanet = Projected(attack="wanet")
    trigger = wanet.make_trigger(tiny_context()).at(0.5, site="counts")
    cover = wanet.covering(trigger)
    assert (cover.kind, cover.strength, cover.site) == ("projected", 0.5, "counts")
    assert wanet.covers_per_poison() == components("attack")["wanet"]().covers_per_poison() > 0
    gained = Projected(attack=SIG(test_gain=2.0))
    weaker = gained.at_training_time(gained.make_trigger(tiny_context()).at(0.5))
    assert (weaker.domain, weaker.strength) == ("measurement", 0.25)
