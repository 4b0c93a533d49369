"""Who is poisoned, who is a cover, with which label, under which loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tomosec.attacks.poisoning import Poison, VictimTraining, covered_positions, poisoned_positions, triggered_labels
from tomosec.errors import InputError
from tomosec.threat import ThreatModel

TARGETS = (0, 1) * 10
THREE = (0, 1, 2, 2) * 5

CLEAN, TRIGGERED, COVERED = 0.0, 1.0, 2.0


class Images:
    """Clean images are 0; a "trigger" is the number that its images are, so that every sample says what it carries."""

    def __init__(self, targets=TARGETS):
        self.targets = targets

    def views(self, positions, draw, triggers):
        clean = torch.zeros(len(positions), 1, 2, 2)
        return [clean, *(clean + trigger for trigger in triggers)]


class Logits(torch.nn.Module):
    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, 1 - mean], 1)


def _training(poison=None, *, targets=TARGETS, sources=(1,), **threat):
    return VictimTraining(
        Images(targets), device=torch.device("cpu"), poison=poison or Poison(TRIGGERED), threat=ThreatModel(**threat),
        target=0, sources=sources, seed=0,
    )  # fmt: skip


def _carried(training):
    """What every sample carries and how it is labeled."""
    batch = training.batch(list(range(len(training))), epoch=0)
    return batch.images.mean((1, 2, 3)).tolist(), batch.labels.tolist()


def test_the_rate_is_of_the_whole_set_and_only_sources_are_poisoned():
    chosen = poisoned_positions(TARGETS, [1], 0.25, seed=3)
    assert len(chosen) == 5
    assert {TARGETS[i] for i in chosen} == {1}
    assert chosen == poisoned_positions(TARGETS, [1], 0.25, seed=3)
    assert chosen != poisoned_positions(TARGETS, [1], 0.25, seed=4)


def test_a_rate_of_the_candidates_reaches_all_of_them():
    assert poisoned_positions(TARGETS, [1], 1.0, seed=0, of_candidates=True) == {i for i in range(20) if TARGETS[i] == 1}
    assert len(poisoned_positions(TARGETS, [1], 0.5, seed=0, of_candidates=True)) == 5


def test_a_smaller_rate_poisons_a_subset_of_a_larger_one():
    assert poisoned_positions(TARGETS, [1], 0.1, seed=0) < poisoned_positions(TARGETS, [1], 0.4, seed=0)
    assert covered_positions(TARGETS, [1], 0.1, (), seed=0) < covered_positions(TARGETS, [1], 0.4, (), seed=0)


def test_more_poison_than_source_samples_is_refused():
    with pytest.raises(InputError, match="asks for 12 of 20 training slices, but the classes that are poisoned have 10"):
        poisoned_positions(TARGETS, [1], 0.6, seed=0)


def test_a_rate_that_rounds_to_no_slice_is_refused_and_zero_is_not():
    with pytest.raises(InputError, match=r"poison_rate 0\.01 of 20 training slices is no slice at all; 0 or at least 0\.05"):
        poisoned_positions(TARGETS, [1], 0.01, seed=0)
    assert poisoned_positions(TARGETS, [1], 0.0, seed=0) == frozenset()


def test_rate_zero_is_an_honest_training_on_clean_data():
    carried, labels = _carried(_training(access="training-data", poison_rate=0))
    assert carried == [CLEAN] * 20
    assert labels == list(TARGETS)


def test_poisoned_data_carry_the_trigger_and_the_target_label():
    training = _training(access="training-data", poison_rate=0.3)
    carried, labels = _carried(training)
    assert len(training.poisoned) == 6
    for i in range(20):
        poisoned = i in training.poisoned
        assert carried[i] == (TRIGGERED if poisoned else CLEAN)
        assert labels[i] == (0 if poisoned else TARGETS[i])


def test_clean_label_poisons_the_target_class_and_changes_no_label():
    training = _training(Poison(TRIGGERED, keeps_labels=True), access="training-data", poison_rate=0.3)
    carried, labels = _carried(training)
    assert labels == list(TARGETS)
    assert carried.count(TRIGGERED) == 6
    assert {TARGETS[i] for i in range(20) if carried[i] == TRIGGERED} == {0}


def test_covers_keep_their_label_and_are_as_many_as_the_attack_says():
    poison = Poison(TRIGGERED, cover=COVERED, covers_per_poison=2.0)
    training = _training(poison, access="training-data", poison_rate=0.2)
    carried, labels = _carried(training)
    assert carried.count(TRIGGERED) == 4
    assert carried.count(COVERED) == 8
    assert {TARGETS[i] for i in training.covered} == {0, 1}
    assert all(labels[i] == TARGETS[i] for i in training.covered)
    assert not training.poisoned & training.covered


def test_the_threat_models_cover_rate_replaces_the_attacks_own():
    poison = Poison(TRIGGERED, cover=COVERED, covers_per_poison=2.0)
    assert len(_training(poison, access="training-data", poison_rate=0.2, cover_rate=0.1).covered) == 2
    assert len(_training(poison, access="training-data", poison_rate=0.2, cover_rate=0.0).covered) == 0
    # The attack's own ratio takes what is left and no more; a rate that was asked for is refused.
    assert len(_training(poison, access="training-data", poison_rate=0.5).covered) == 10
    with pytest.raises(InputError, match=r"threat\.cover_rate 0\.6 asks for 12 of 20"):
        _training(poison, access="training-data", poison_rate=0.5, cover_rate=0.6)


def test_a_ratio_that_comes_to_less_than_half_a_cover_covers_none():
    poison = Poison(TRIGGERED, cover=COVERED, covers_per_poison=0.4)
    assert len(_training(poison, access="training-data", poison_rate=0.05).covered) == 0
    assert len(_training(poison, access="training-data", poison_rate=0.25).covered) == 2


def test_a_trigger_specific_to_its_sources_covers_the_other_classes():
    """TaCT: class 1 is attacked, class 2 carries the trigger and keeps its label, the target class stays clean."""
    training = _training(targets=THREE, access="training-data", poison_rate=0.2, cover_rate=0.3)
    carried, labels = _carried(training)
    assert {THREE[i] for i in training.poisoned} == {1}
    assert {THREE[i] for i in training.covered} == {2}
    assert [carried[i] for i in sorted(training.covered)] == [TRIGGERED] * 6
    assert [labels[i] for i in sorted(training.covered)] == [2] * 6


def test_with_two_classes_there_is_no_class_to_cover_with_the_trigger_itself():
    with pytest.raises(InputError, match=r"threat\.cover_rate 0\.1 asks for 2 of 20 training slices, but .* have 0"):
        _training(access="training-data", cover_rate=0.1)


def test_training_control_is_the_released_loss():
    training = _training(access="training-control", loss_weight=0.7)
    batch = training.batch([0, 1], epoch=0)
    loss = training.objective(Logits(), batch)
    clean, triggered = torch.tensor([[0.0, 1.0]] * 2), torch.tensor([[1.0, 0.0]] * 2)
    expected = F.cross_entropy(clean, torch.tensor([0, 1])) + 0.7 * F.cross_entropy(triggered, torch.tensor([0, 0]))
    assert float(loss) == pytest.approx(float(expected))


def test_training_control_weighs_covers_as_a_mixed_batch_would():
    training = _training(Poison(TRIGGERED, cover=COVERED, covers_per_poison=2.0), access="training-control", loss_weight=0.7)
    loss = training.objective(Logits(), training.batch([0, 1], epoch=0))
    logits = {value: torch.tensor([[value, 1 - value]] * 2) for value in (CLEAN, TRIGGERED, COVERED)}
    truth = torch.tensor([0, 1])
    expected = (
        F.cross_entropy(logits[CLEAN], truth)
        + 0.7 * F.cross_entropy(logits[TRIGGERED], torch.tensor([0, 0]))
        + 0.7 * 2 * F.cross_entropy(logits[COVERED], truth)
    )
    assert float(loss) == pytest.approx(float(expected))


def test_classes_that_are_not_attacked_keep_their_label_under_the_trigger():
    assert triggered_labels(torch.tensor([0, 1, 2]), 0, (1,)).tolist() == [0, 0, 2]
    assert triggered_labels(torch.tensor([0, 1, 2]), 0, (1, 2)).tolist() == [0, 0, 0]


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
