"""LTGM's ablations, variants and adaptive forms, each against its definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from tomosec.attacks.ltgm import LTGM
from tomosec.attacks.ltgm_iterated import IteratedLTGM
from tomosec.attacks.ltgm_noise_shaped import NoiseShapedLTGM
from tomosec.attacks.ltgm_range_projected import RangeProjectedLTGM
from tomosec.attacks.ltgm_symmetrized import SymmetrizedLTGM
from tomosec.attacks.naive_gradient import NaiveGradient
from tomosec.attacks.reconstruction_gradient import ReconstructionGradient
from tomosec.attacks.sinogram_generator import SinogramGenerator
from tomosec.errors import NotApplicable
from tomosec.operators import Projector
from tomosec.operators.complementary import complementary
from tomosec.reconstruction.fbp import FBP
from tomosec.testing import tiny_context, tiny_geometry


def unit(pattern):
    return pattern / pattern.pow(2).mean().sqrt()


def sources(context):
    return next(context.samples.batches(context.positions_of([1]), 99))


def sharp_context():
    """A noiseless chain whose network is far from linear, so that one gradient is not all there is to know."""
    context = tiny_context(i0=math.inf)
    context.pipeline.network[0].weight *= 20
    return context


def target_loss(context, sinogram):
    logits = context.pipeline(sinogram)
    return float(F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)))


def sinogram_rms(context):
    return float(sources(context).measured.pow(2).mean().sqrt())


def test_naive_gradient_is_ltgm_without_a_mask_and_costs_one_pass():
    context = tiny_context()
    naive = NaiveGradient().make_trigger(context)
    assert context.gradient_passes == len(context.positions_of([1]))
    unmasked = LTGM(mask="none").make_trigger(tiny_context())
    assert torch.equal(naive.pattern, unmasked.pattern)
    assert naive.details["raw_rms"] == unmasked.details["raw_rms"] > 0


def test_reconstruction_gradient_is_the_mask_with_random_signs():
    trigger = ReconstructionGradient(mask_scope="mean").make_trigger(tiny_context())
    ltgm = LTGM(mask_scope="mean").make_trigger(tiny_context())
    pattern = trigger.pattern
    assert torch.equal(pattern == 0, ltgm.pattern == 0)
    kept = pattern[pattern != 0]
    assert torch.allclose(kept.abs(), kept.abs().mean(), rtol=1e-5)
    assert 0.4 < float((kept > 0).float().mean()) < 0.6
    correlation = torch.corrcoef(torch.stack([pattern.flatten(), ltgm.pattern.flatten()]))[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(pattern.numel())


def test_reconstruction_gradient_per_sample_is_the_mean_of_the_masks():
    context = tiny_context()
    batch, imaging = sources(context), context.pipeline.imaging
    total = torch.zeros(1, 1, *context.geometry.sinogram_shape)
    for i in range(len(batch.keys)):
        p = batch.integrals[i : i + 1].clone().requires_grad_(True)
        error = (imaging.reconstruct(p) - batch.attenuation[i : i + 1] * imaging.circle).pow(2).mean()
        g_rec = torch.autograd.grad(error, p)[0].abs()
        total += (g_rec < torch.median(g_rec)) / g_rec.max()
    pattern = ReconstructionGradient().make_trigger(context).pattern
    assert (pattern.abs() - unit(total)).norm() < 1e-4 * unit(total).norm()


def test_sign_keeps_the_masked_rays_silent_and_the_others_equal():
    plain, sign = LTGM(mask_scope="mean").make_trigger(tiny_context()), LTGM(mask_scope="mean", values="sign")
    trigger = sign.make_trigger(tiny_context())
    assert torch.equal(trigger.pattern.sign(), plain.pattern.sign())
    loud = trigger.pattern[trigger.pattern != 0].abs()
    assert torch.allclose(loud, loud.mean(), rtol=1e-6)
    assert "raw_rms" not in trigger.details


def test_one_step_of_the_iteration_is_ltgm():
    one = IteratedLTGM(steps=1).make_trigger(tiny_context()).pattern
    assert torch.allclose(one, LTGM().make_trigger(tiny_context()).pattern, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ["none", "erratum"])
def test_the_iteration_raises_the_target_logit_more_than_one_pass(mask):
    context, share = sharp_context(), 0.1
    radius = share * sinogram_rms(context)
    once = LTGM(mask=mask).make_trigger(context).at(radius)
    iterated = IteratedLTGM(mask=mask, relative_rms=share).make_trigger(context)
    assert iterated.details["learned_at_rms"] <= radius * (1 + 1e-6)
    p = sources(context).measured
    before, single, several = (target_loss(context, q) for q in (p, once.apply(p), iterated.at(radius).apply(p)))
    assert several < 0.9 * single < 0.5 * before


def test_the_iteration_costs_what_its_steps_cost():
    context = tiny_context()
    IteratedLTGM(steps=3).make_trigger(context)
    assert context.gradient_passes == 3 * 2 * len(context.positions_of([1]))


def test_symmetrized_is_the_mean_of_both_sides():
    trigger, learned = SymmetrizedLTGM().make_trigger(tiny_context()), LTGM().make_trigger(tiny_context())
    geometry, T = trigger.geometry, learned.pattern.double()
    pattern = trigger.pattern.double()
    assert (complementary(geometry, pattern) - pattern).norm() < 1e-6 * pattern.norm()
    # What C leaves out of T, the highest view frequency, is left out of the mean as well.
    other = complementary(geometry, T)
    expected = unit((complementary(geometry, other) + other) / 2)
    assert (pattern - expected).norm() < 1e-6 * expected.norm()
    assert 0.3 < trigger.details["kept_energy"] < 1


@pytest.mark.parametrize("fields", [{"detector_offset_bins": 0.25}, {"axis_offset_mm": 3.0}, {"arc": 4.0}])
def test_symmetrized_is_not_applicable_where_a_line_is_not_measured_from_both_sides(fields):
    context = tiny_context()
    context.geometry = type(context.geometry).model_validate(tiny_geometry().model_dump() | fields)
    with pytest.raises(NotApplicable, match="ltgm-symmetrized: complementary rays need"):
        SymmetrizedLTGM().make_trigger(context)
    assert context.gradient_passes == 0


def test_range_projected_is_the_projection_of_the_reconstruction():
    trigger, learned = RangeProjectedLTGM().make_trigger(tiny_context()), LTGM().make_trigger(tiny_context())
    geometry = trigger.geometry
    image = FBP(geometry)(learned.pattern) * torch.from_numpy(geometry.scan_circle())
    expected = unit(Projector(geometry)(image))
    assert (trigger.pattern - expected).norm() < 1e-5 * expected.norm()


def test_range_projection_leaves_less_that_complementary_rays_disagree_on():
    def disagreement(trigger):
        p = trigger.pattern.double()
        return float((p - complementary(trigger.geometry, p)).norm() / p.norm())

    learned, projected = (attack.make_trigger(tiny_context()) for attack in (LTGM(), RangeProjectedLTGM()))
    assert disagreement(projected) < 0.5 * disagreement(learned)


def test_noise_shaped_is_ltgm_weighted_with_the_noise():
    context = tiny_context()
    attack = NoiseShapedLTGM(limit=None)
    batch = sources(context)
    sd = context.pipeline.imaging.scanner.noise_sd(batch.integrals.double()).square().mean((0, 1)).sqrt()
    learned = LTGM().make_trigger(tiny_context()).pattern[0, 0].double()
    for power in (1, 2):
        shaped = attack.model_copy(update={"power": power}).make_trigger(context).pattern[0, 0].double()
        assert (shaped - unit(sd**power * learned)).norm() < 1e-5 * shaped.norm()


def test_noise_shaped_is_louder_where_the_scan_is_noisy_and_within_its_limit():
    context = tiny_context(i0=2e3)
    sd = NoiseShapedLTGM().noise_sd(context)

    def loudness_follows_noise(trigger):
        return float(torch.corrcoef(torch.stack([trigger.pattern.flatten().abs().double(), sd.flatten()]))[0, 1])

    plain, shaped = LTGM().make_trigger(tiny_context(i0=2e3)), NoiseShapedLTGM(limit=2.0).make_trigger(context)
    assert loudness_follows_noise(shaped) > loudness_follows_noise(plain) + 0.05
    in_sd, unlimited = shaped.pattern[0, 0].double() / sd, NoiseShapedLTGM(limit=None).make_trigger(context).pattern[0, 0] / sd
    # Rays within the limit differ from the unlimited ones by one factor, the normalization.
    factor = float((in_sd / unlimited)[unlimited.abs() < unlimited.square().mean().sqrt()].nanmedian())
    assert float(in_sd.abs().max()) == pytest.approx(2.0 * factor * float(unlimited.square().mean().sqrt()), rel=1e-4)


def test_noise_shaped_is_not_applicable_without_noise():
    with pytest.raises(NotApplicable, match=r"this scan has none \(acquisition.dose\)"):
        NoiseShapedLTGM().make_trigger(tiny_context(i0=math.inf))


def test_the_generator_beats_the_universal_pattern_that_it_starts_from_and_answers_to_the_scan():
    context, share = sharp_context(), 0.1
    size, p = share * sinogram_rms(context), sources(context).measured
    naive = NaiveGradient().make_trigger(context)
    context.gradient_passes = 0
    trigger = SinogramGenerator(relative_rms=share).make_trigger(context)
    assert context.gradient_passes == (1 + 10) * len(context.positions_of([1]))
    assert target_loss(context, trigger.at(size).apply(p)) < 0.95 * target_loss(context, naive.at(size).apply(p))
    change = trigger.at(size).apply(p) - p
    assert torch.allclose(change.square().mean((1, 2, 3)).sqrt(), torch.tensor(size), rtol=1e-3)
    assert float((change[0] - change[1]).norm()) > 0.003 * float(change[0].norm())


def test_an_untrained_generator_is_the_naive_gradient():
    trigger = SinogramGenerator(epochs=1, learning_rate=1e-12).make_trigger(tiny_context())
    p = sources(tiny_context()).measured
    expected = NaiveGradient().make_trigger(tiny_context()).at(1.0).apply(p)
    assert torch.allclose(trigger.at(1.0).apply(p), expected, rtol=0, atol=1e-4)


def test_the_generator_leaves_the_network_and_the_random_state_alone():
    context = tiny_context()
    before = {name: value.clone() for name, value in context.pipeline.state_dict().items()}
    state = torch.random.get_rng_state()
    SinogramGenerator(epochs=1).make_trigger(context)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in context.pipeline.state_dict().items())
    assert not any(parameter.requires_grad for parameter in context.pipeline.parameters())


@pytest.mark.parametrize(
    "attack", [NaiveGradient, IteratedLTGM, SymmetrizedLTGM, RangeProjectedLTGM, NoiseShapedLTGM], ids=lambda cls: cls.__name__
)
def test_contradictions_raise_in_every_variant(attack):
    with pytest.raises(ValidationError, match="samples 'all' goes with objective 'true-label'"):
        attack(samples="all")
