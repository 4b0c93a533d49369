"""What repairs that train share: SGD on a few clean slices, as the papers have it."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tomosec.analysis.networks import Classifier
from tomosec.analysis.plan import Training
from tomosec.analysis.training import Objective, TrainingSource, train
from tomosec.defenses._layers import logits
from tomosec.defenses._samples import LabeledImages, missing_classes
from tomosec.defenses.base import ModelContext, Repair, ScanContext, TrainingContext
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


class FineTuningRepair(Repair):
    """Base of the repairs that fine-tune on clean slices with SGD, momentum 0.9 and a rate that falls to 0 as a cosine.

    Attributes:
        epochs: passes over the clean slices.
        batch_size: slices per step.
        learning_rate: of the first step.
    """

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(0.01, gt=0)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """A class without clean slices would be forgotten."""
        return missing_classes(context) if isinstance(context, ModelContext) else ""

    def finetune(
        self,
        network: Classifier,
        clean: LabeledImages,
        context: ModelContext,
        purpose: str,
        *,
        objective: Objective = cross_entropy,
        epochs: int | None = None,
    ) -> None:
        """Train in place; ``epochs`` in place of the repair's own where given."""
        finetune(
            network, clean, context, purpose, objective=objective, epochs=self.epochs if epochs is None else epochs,
            batch_size=self.batch_size, learning_rate=self.learning_rate,
        )  # fmt: skip


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
