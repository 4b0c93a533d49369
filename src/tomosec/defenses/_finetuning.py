"""The training that repairs share: SGD on a few clean slices, as the papers have it."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tomosec.analysis.networks import Classifier
from tomosec.analysis.plan import Training
from tomosec.analysis.training import Objective, TrainingSource, train
from tomosec.defenses._layers import logits
from tomosec.defenses.base import ModelContext, TrainingContext
from tomosec.randomness import torch_seed


def cross_entropy(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch."""
    return F.cross_entropy(logits(network, batch[0]), batch[1])


def finetune(
    network: Classifier,
    samples: TrainingSource,
    context: ModelContext | TrainingContext,
    purpose: str,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    objective: Objective = cross_entropy,
    weight_decay: float = 5e-4,
    schedule: Literal["cosine", "constant"] = "cosine",
) -> None:
    """Train in place with momentum 0.9; ``purpose`` names the order of the slices."""
    plan = Training(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer="sgd",
        momentum=0.9,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup_epochs=0,
    )
    run_plan(network, plan, samples, context, purpose, objective)


def run_plan(
    network: nn.Module,
    plan: Training,
    samples: TrainingSource,
    context: ModelContext | TrainingContext,
    purpose: str,
    objective: Objective,
) -> None:
    """Train in place by a plan."""
    seed = torch_seed(context.seed, purpose)
    train(network, plan, samples, objective=objective, seed=seed, device=context.device, progress=context.progress)


def epochs_for(steps: int, slices: int, batch_size: int) -> int:
    """Epochs that hold at least ``steps`` optimizer steps."""
    per_epoch = -(-slices // batch_size)
    return max(1, -(-steps // per_epoch))
