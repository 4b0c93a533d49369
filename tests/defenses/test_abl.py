"""Anti-backdoor learning: the poison is isolated, and its trigger unlearned."""

from __future__ import annotations

import pytest
import torch
from defense_toys import SHAPE, Task, accuracy, asr, network_on, poisoned

from tomosec.analysis.plan import Training
from tomosec.defenses._samples import gather
from tomosec.defenses.abl import AntiBackdoorLearning
from tomosec.defenses.base import TrainingContext
from tomosec.testing.defenses import tiny_classifier, tiny_training

#: The premise of the method: the trigger is learned before the task.
TASK = Task(contrast=0.2, corner=3.0)
SETTINGS = AntiBackdoorLearning(isolation_epochs=4, isolated=0.1, unlearning_rate=0.01)


@pytest.fixture(scope="module")
def delivered():
    samples, bad = poisoned(160, seed=10, task=TASK)
    given_weights: list[torch.Tensor] = []

    def fit(network, slices, weights):
        given_weights.append(weights)
        return tiny_training(network, slices, weights, epochs=12, rate=1e-2)

    context = TrainingContext(
        samples=samples,
        training=Training(epochs=8, batch_size=16, learning_rate=1e-2),
        new_network=lambda: tiny_classifier(shape=SHAPE).train().requires_grad_(True),
        fit=fit,
        classes=("well", "ill"),
        network=network_on(samples, epochs=12),
    )
    return context, bad, given_weights


def test_what_is_learned_first_is_the_poison(delivered):
    context, bad, _ = delivered
    network = SETTINGS._suspicious(gather(context.samples, context.device), context, "abl")
    isolated = SETTINGS.isolate(network, gather(context.samples, context.device))
    assert len(isolated) == 16
    assert bad[isolated].float().mean() > 0.9


def test_the_backdoor_is_unlearned_and_the_task_is_not(delivered):
    context, _, given_weights = delivered
    network = SETTINGS.train(context)
    assert asr(context.network, TASK) > 0.9
    assert asr(network, TASK) < 0.5 * asr(context.network, TASK)
    assert accuracy(network, TASK) > accuracy(context.network, TASK) - 0.1
    weights = given_weights[-1]
    assert (weights == 0).sum() == 16, "the isolated slices are trained on"
    assert ((weights == 0) | (weights == 1)).all()
