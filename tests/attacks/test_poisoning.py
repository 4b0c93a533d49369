"""Who is poisoned, with which label, under which loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tomosec.attacks.poisoning import VictimTraining, poisoned_positions
from tomosec.errors import InputError
from tomosec.threat import ThreatModel

TARGETS = (0, 1) * 10


class Images:
    """Clean images are 0 and triggered ones 1, so that every sample says what it is."""

    targets = TARGETS

    def pair(self, positions, draw, trigger):
        clean = torch.zeros(len(positions), 1, 2, 2)
        return clean, None if trigger is None else clean + 1


class Logits(torch.nn.Module):
    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, 1 - mean], 1)


def _training(**threat):
    return VictimTraining(
        Images(), device=torch.device("cpu"), trigger="a trigger", threat=ThreatModel(**threat), target=0, sources=(1,), seed=0
    )  # fmt: skip


def test_the_rate_is_of_the_whole_set_and_only_sources_are_poisoned():
    chosen = poisoned_positions(TARGETS, [1], 0.25, seed=3)
    assert len(chosen) == 5
    assert {TARGETS[i] for i in chosen} == {1}
    assert chosen == poisoned_positions(TARGETS, [1], 0.25, seed=3)
    assert chosen != poisoned_positions(TARGETS, [1], 0.25, seed=4)


def test_a_smaller_rate_poisons_a_subset_of_a_larger_one():
    assert poisoned_positions(TARGETS, [1], 0.1, seed=0) < poisoned_positions(TARGETS, [1], 0.4, seed=0)


def test_more_poison_than_source_samples_is_refused():
    with pytest.raises(InputError, match="asks for 12 of 20 training slices, but the source classes have 10"):
        poisoned_positions(TARGETS, [1], 0.6, seed=0)


def test_poisoned_data_carry_the_trigger_and_the_target_label():
    training = _training(access="training-data", poison_rate=0.3)
    batch = training.batch(list(range(20)), epoch=0)
    for i in range(20):
        poisoned = i in training.poisoned
        assert float(batch.images[i].mean()) == float(poisoned)
        assert int(batch.labels[i]) == (0 if poisoned else TARGETS[i])
    assert batch.triggered is None


def test_training_control_is_the_released_loss():
    training = _training(access="training-control", loss_weight=0.7)
    batch = training.batch([0, 1], epoch=0)
    loss = training.objective(Logits(), batch)
    clean, triggered = torch.tensor([[0.0, 1.0]] * 2), torch.tensor([[1.0, 0.0]] * 2)
    expected = F.cross_entropy(clean, torch.tensor([0, 1])) + 0.7 * F.cross_entropy(triggered, torch.tensor([0, 0]))
    assert float(loss) == pytest.approx(float(expected))


def test_a_clean_model_never_sees_a_trigger():
    training = VictimTraining(Images(), device=torch.device("cpu"))
    batch = training.batch(list(range(20)), epoch=2)
    assert float(batch.images.abs().max()) == 0
    assert batch.labels.tolist() == list(TARGETS)
    assert math.isclose(
        float(training.objective(Logits(), batch)),
        float(F.cross_entropy(torch.tensor([[0.0, 1.0]] * 20), torch.tensor(TARGETS))),
        rel_tol=1e-6,
    )
