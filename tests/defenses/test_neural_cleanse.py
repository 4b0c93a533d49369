"""Neural Cleanse: a planted patch is recovered, and a network without one is not suspected."""

from __future__ import annotations

import pytest
import torch
from defense_toys import SHAPE, context, hand_made, slices, tensors
from torch import nn

from tomosec.defenses.base import ModelContext
from tomosec.defenses.neural_cleanse import NeuralCleanse, ReversedTrigger, _mad_index
from tomosec.errors import NotApplicable
from tomosec.hounsfield import MU_WATER
from tomosec.testing.defenses import ImageList


def patch_reader(strength: float, classes: int = 2) -> nn.Module:
    """Class k by the mean of the slice; and the last class wherever the corner of 4 x 4 pixels is dense."""
    size = SHAPE[0] * SHAPE[1]
    linear = nn.Linear(size, classes)
    linear.weight.data.zero_()
    linear.bias.data.zero_()
    linear.weight.data[1] = 200.0 / size
    linear.bias.data[1] = -200.0 * 0.524
    corner = torch.zeros(SHAPE)
    corner[:4, :4] = strength
    linear.weight.data[0] += corner.flatten()
    linear.bias.data[0] -= 16 * 0.5 * strength
    return nn.Sequential(nn.Flatten(), linear)


def test_a_planted_patch_is_recovered_and_its_class_named():
    found = NeuralCleanse(steps=300)
    network = hand_made(patch_reader(3.0))
    triggers = found.reverse(context(network))
    mask = triggers[0].mask
    assert triggers[0].success >= 0.99
    assert float(mask[:4, :4].sum() / mask.sum()) > 0.8, "the patch is elsewhere"
    assert float((triggers[0].pattern[:4, :4] * mask[:4, :4]).sum() / mask[:4, :4].sum()) > 0.6 * MU_WATER
    assert triggers[0].norm <= 16
    inspection = found.inspect(context(network))
    assert inspection.by_class[0] > 1 > inspection.by_class[1]
    assert inspection.score > 2
    assert "mad_index" not in inspection.details, "the index says nothing of two classes"


def test_the_cost_finds_its_level_from_either_side():
    """Too low, the patch stays large; too high, there is none: rises and falls mend both."""
    given, whole = context(hand_made(patch_reader(3.0))), SHAPE[0] * SHAPE[1]
    only = ModelContext(given.network, given.clean, ("well",))

    def norm(cost: float, patience: int) -> float:
        return NeuralCleanse(steps=200, initial_cost=cost, patience=patience).reverse(only)[0].norm

    assert norm(1e-6, 5) < 0.5 * norm(1e-6, 1000)
    assert norm(10.0, 5) < 0.1 * whole
    assert norm(10.0, 1000) == whole


def test_slices_of_the_class_itself_are_not_looked_at():
    images, targets = tensors(slices(20, 0))
    images[targets == 0] = torch.nan
    given = ModelContext(hand_made(patch_reader(3.0)), ImageList(images, targets.tolist()), ("well",))
    (found,) = NeuralCleanse(steps=60).reverse(given)
    assert found.norm < SHAPE[0] * SHAPE[1], "no patch is found"
    assert bool(torch.isfinite(found.mask).all())
    assert found.success >= 0.99


def test_the_score_is_the_ratio(backdoored, honest):
    settings = NeuralCleanse(steps=60)
    bad, good = settings.inspect(context(backdoored)), settings.inspect(context(honest))
    norms = sorted(bad.details["norms"])
    assert bad.score == pytest.approx(norms[1] / norms[0])
    assert bad.by_class[0] == pytest.approx(1 / bad.by_class[1])
    assert bad.by_class[0] / bad.by_class[1] > good.by_class[0] / good.by_class[1]


def test_of_several_classes_the_second_smallest_norm_counts(monkeypatch, honest):
    """A class that is hard to reach makes no backdoor of the others."""
    norms = [900.0, 20.0, 60.0, 80.0]
    found = [ReversedTrigger(torch.ones(SHAPE), torch.ones(SHAPE), norm, 1.0) for norm in norms]
    monkeypatch.setattr(NeuralCleanse, "reverse", lambda self, given: found)
    inspection = NeuralCleanse().inspect(context(honest))
    assert inspection.score == pytest.approx(60 / 20)
    assert inspection.by_class == pytest.approx((60 / 900, 80 / 20, 80 / 60, 60 / 80))
    assert "mad_index" not in inspection.details
    found.append(ReversedTrigger(torch.ones(SHAPE), torch.ones(SHAPE), 100.0, 1.0))
    assert NeuralCleanse().inspect(context(honest)).details["mad_index"] == pytest.approx(60 / (1.4826 * 20))


def test_a_class_that_nothing_leads_to_has_the_norm_of_the_whole_image():
    linear = nn.Linear(SHAPE[0] * SHAPE[1], 2)
    linear.weight.data.zero_()
    linear.bias.data = torch.tensor([10.0, 0.0])
    network = hand_made(nn.Sequential(nn.Flatten(), linear))
    triggers = NeuralCleanse(steps=20).reverse(context(network))
    assert triggers[1].norm == SHAPE[0] * SHAPE[1]
    assert triggers[1].success == 0
    assert 0 < triggers[0].norm < triggers[1].norm


def test_the_pattern_is_attenuation_that_ct_stores():
    from tomosec.defenses.neural_cleanse import _attenuation

    values = _attenuation(torch.tensor([-100.0, 0.0, 100.0])) / MU_WATER
    assert values.tolist() == pytest.approx([0.0, 1.018, 4.071], abs=1e-3)


def test_the_mad_index_of_two_is_a_constant_and_that_of_five_is_not():
    assert _mad_index([3.0, 80.0]) == pytest.approx(_mad_index([70.0, 80.0])) == pytest.approx(1 / 1.4826)
    assert _mad_index([3.0, 80.0, 82.0, 85.0, 78.0]) > 2 > _mad_index([76.0, 80.0, 82.0, 85.0, 78.0])
    assert _mad_index([3.0, 80.0, 80.0, 80.0, 78.0]) is None, "half of the norms are equal, and no distance can be measured"


def test_one_class_of_slices_is_not_enough(backdoored):
    images, targets = tensors(slices(20, 0))
    ill = ModelContext(backdoored, ImageList(images[targets == 1], [1] * 10), ("well", "ill"))
    with pytest.raises(NotApplicable, match="two classes"):
        NeuralCleanse(steps=1).inspect(ill)
