"""LTGM against its published definition, computed here by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from tomosec.attacks.ltgm import LTGM
from tomosec.testing import tiny_context


def _source_batch(context):
    return next(context.samples.batches(context.positions_of([1]), 99))


def _per_sample_gradients(context, batch, label):
    """d CE / dp and |d MSE / dp| one sample at a time, from the definition."""
    imaging, network = context.pipeline.imaging, context.pipeline.network
    g_cls, g_rec = [], []
    for i in range(len(batch.keys)):
        p = batch.measured[i : i + 1].clone().requires_grad_(True)
        loss = F.cross_entropy(network(imaging.reconstruct(p)), torch.tensor([label]))
        g_cls.append(torch.autograd.grad(loss, p)[0])
        q = batch.integrals[i : i + 1].clone().requires_grad_(True)
        error = ((imaging.reconstruct(q) - batch.attenuation[i : i + 1] * imaging.circle) ** 2).mean()
        g_rec.append(torch.autograd.grad(error, q)[0].abs())
    return torch.cat(g_cls), torch.cat(g_rec)


def _unit(pattern):
    return pattern / pattern.pow(2).mean().sqrt()


def test_erratum_trigger_is_the_masked_mean_target_gradient():
    context = tiny_context()
    g_cls, g_rec = _per_sample_gradients(context, _source_batch(context), label=0)
    expected = torch.zeros_like(g_cls[0])
    for gradient, sensitivity in zip(g_cls, g_rec, strict=True):
        kept = sensitivity < torch.median(sensitivity)
        expected -= torch.where(kept, 1 / sensitivity.max(), torch.tensor(0.0)) * gradient
    trigger = LTGM().make_trigger(context)
    assert torch.nn.functional.cosine_similarity(trigger.pattern.flatten(), expected.flatten(), dim=0) > 0.99999
    assert (trigger.pattern[0] - _unit(expected)).norm() < 1e-4 * _unit(expected).norm()


def test_released_mask_weights_the_kept_rays_by_their_sensitivity():
    context = tiny_context()
    g_cls, g_rec = _per_sample_gradients(context, _source_batch(context), label=0)
    expected = torch.zeros_like(g_cls[0])
    for gradient, sensitivity in zip(g_cls, g_rec, strict=True):
        kept = torch.where(sensitivity > torch.median(sensitivity), torch.tensor(0.0), sensitivity)
        expected -= kept / kept.max() * gradient
    trigger = LTGM(mask="released").make_trigger(context)
    assert (trigger.pattern[0] - _unit(expected)).norm() < 1e-4 * _unit(expected).norm()


def test_batch_statistics_take_one_threshold_for_the_whole_batch():
    context = tiny_context(batch_size=99)
    g_cls, g_rec = _per_sample_gradients(context, _source_batch(context), label=0)
    kept = torch.where(g_rec > torch.median(g_rec), torch.tensor(0.0), g_rec)
    expected = -(kept / kept.max() * g_cls).sum(0)
    trigger = LTGM(mask="released", mask_statistics="batch").make_trigger(context)
    assert (trigger.pattern[0] - _unit(expected)).norm() < 1e-4 * _unit(expected).norm()


def test_true_label_objective_over_all_samples_ascends_the_loss():
    context = tiny_context()
    batch = next(context.samples.batches(range(len(context.samples)), 99))
    total = torch.zeros(1, *context.geometry.sinogram_shape)
    for i in range(len(batch.keys)):
        p = batch.measured[i : i + 1].clone().requires_grad_(True)
        loss = F.cross_entropy(context.pipeline(p), batch.targets[i : i + 1])
        total += torch.autograd.grad(loss, p)[0][0]
    trigger = LTGM(objective="true-label", samples="all", mask="none").make_trigger(context)
    assert (trigger.pattern[0] - _unit(total)).norm() < 1e-4 * _unit(total).norm()


def test_half_of_the_rays_are_spared():
    trigger = LTGM(mask_scope="mean").make_trigger(tiny_context())
    silent = float((trigger.pattern == 0).float().mean())
    assert 0.5 <= silent < 0.52


def test_a_small_step_lowers_the_target_loss_and_its_reverse_raises_it():
    context = tiny_context(i0=math.inf)
    batch, trigger = _source_batch(context), LTGM().make_trigger(context)

    def loss(strength):
        return float(
            F.cross_entropy(
                context.pipeline(trigger.at(strength).apply(batch.measured)), torch.zeros(len(batch.keys), dtype=torch.long)
            )
        )

    assert loss(0.02) < loss(0.0) < loss(-0.02)


def test_noise_decides_which_rays_a_mask_from_noisy_data_keeps():
    noiseless = LTGM(mask_scope="mean").make_trigger(tiny_context(i0=100.0)).pattern == 0
    noisy = LTGM(mask_scope="mean", mask_input="noisy").make_trigger(tiny_context(i0=100.0)).pattern == 0
    assert 0.3 < float((noiseless == noisy).float().mean()) < 0.95


def test_the_clean_network_is_left_as_it_was():
    context = tiny_context()
    context.pipeline.network.insert(0, torch.nn.BatchNorm2d(1).eval())
    before = {name: value.clone() for name, value in context.pipeline.network.state_dict().items()}
    LTGM(network_mode="train").make_trigger(context)
    after = context.pipeline.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not context.pipeline.network.training


def test_gradient_passes_are_counted():
    context = tiny_context()
    LTGM().make_trigger(context)
    assert context.gradient_passes == 2 * len(context.positions_of([1]))


def test_flip_trains_on_the_reverse_and_tests_on_the_trigger_as_released():
    attack = LTGM(flip_test_sign=True)
    trigger = attack.make_trigger(tiny_context()).at(0.5)
    trained, shown = attack.at_training_time(trigger), attack.at_test_time(trigger)
    p = torch.ones(1, 1, *tiny_context().geometry.sinogram_shape)
    assert torch.allclose(trained.apply(p), p - 0.5 * trigger.pattern)
    assert torch.equal(shown.apply(p), p + 0.5 * trigger.pattern)
    assert LTGM().at_training_time(trigger) is trigger


@pytest.mark.parametrize("count", [1, 2, 7, 8, 99, 100])
@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.75])
def test_the_quantile_is_the_lower_order_statistic_for_any_number_of_rays(count, quantile):
    """The smallest value that at least the quantile's share of all values does not exceed, which torch.median is at a half."""
    values = torch.from_numpy(np.random.default_rng(count).permutation(count).astype(np.float32) + 1).reshape(1, 1, 1, count)
    threshold = np.quantile(values.numpy(), quantile, method="inverted_cdf")
    assert torch.equal(LTGM(quantile=quantile).weights(values) > 0, values < threshold)
    assert torch.equal(LTGM(quantile=quantile, mask="released").weights(values) > 0, values <= threshold)
    assert quantile != 0.5 or threshold == float(values.median())


@pytest.mark.parametrize(
    "fields", [{"samples": "all"}, {"mask_scope": "mean", "mask_statistics": "batch"}, {"quantile": 1.0}, {"mask": "medien"}]
)
def test_contradictions_raise(fields):
    with pytest.raises(ValidationError):
        LTGM(**fields)
