"""Anti-backdoor learning: what is learned first is isolated, and unlearned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tomosec.analysis.networks import Classifier
from tomosec.defenses._finetuning import finetune, run_plan
from tomosec.defenses._layers import finished, logits
from tomosec.defenses._samples import LabeledImages, gather, insist
from tomosec.defenses.base import ModelContext, Need, ScanContext, TrainingContext, TrainingDefense


class AntiBackdoorLearning(TrainingDefense):
    """Isolates the slices that are learned first, trains on the others, and unlearns the isolated ones.

    First the loss sign(l - gamma) l of each slice holds clean slices at gamma while poisoned ones fall below it (local gradient
    ascent); the share ``isolated`` with the lowest losses is set apart. The network then trains on the others by the given
    plan, and at last descends on them while it ascends on the isolated ones, with equal weights. The paper's gamma of 0.5 is
    for ten classes; it is scaled by the loss of guessing, ln(classes) / ln 10. An isolated slice whose loss is twice that of
    guessing is left alone: the ascent has no other end. All training slices are held in memory.

    Attributes:
        gamma: at ten classes.
        isolation_epochs: of the first training, which is otherwise as planned, at a constant rate.
        isolated: share of the slices that is isolated.
        unlearning_epochs, unlearning_rate: of the ascent, by SGD with momentum 0.9.
    """

    kind: Literal["abl"] = "abl"
    version: Literal[1] = 1
    needs: ClassVar[frozenset[Need]] = frozenset({"training-samples", "weights", "gradients"})
    source: ClassVar[str] = "Li et al., NeurIPS 2021"

    gamma: float = Field(0.5, gt=0)
    isolation_epochs: int = Field(20, ge=1)
    isolated: float = Field(0.01, gt=0, lt=0.5)
    unlearning_epochs: int = Field(20, ge=1)
    unlearning_rate: float = Field(5e-4, gt=0)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """Something has to be left to train on."""
        if isinstance(context, TrainingContext) and len(context.samples) < 4:
            return f"needs at least 4 training slices, got {len(context.samples)}"
        return ""

    def train(self, context: TrainingContext) -> Classifier:
        """Isolate, train, unlearn."""
        kind = insist(self, context)
        samples = gather(context.samples, context.device)
        network = self._suspicious(samples, context, kind)
        apart = self.isolate(network, samples)
        weights = torch.ones(len(samples))
        weights[apart] = 0
        network = context.fit(network.requires_grad_(True), context.samples, weights)
        self._unlearn(network.requires_grad_(True), samples, apart, context, kind)
        return finished(network)

    def _suspicious(self, samples: LabeledImages, context: TrainingContext, kind: str) -> Classifier:
        """A network that has learned little but what is easy."""
        network = context.new_network()
        network.set_input_statistics(float(context.network.mean), float(context.network.std))
        network.requires_grad_(True)
        gamma = self.gamma * math.log(len(context.classes)) / math.log(10)

        def objective(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            losses = F.cross_entropy(logits(module, batch[0]), batch[1], reduction="none")
            return (torch.sign(losses.detach() - gamma) * losses).mean()

        changes = {"epochs": self.isolation_epochs, "patience": None, "schedule": "constant"}
        run_plan(network, context.training.model_copy(update=changes), samples, context, f"{kind}-isolation", objective)
        return network

    @torch.no_grad()
    def isolate(self, network: Classifier, samples: LabeledImages) -> list[int]:
        """Positions of the slices with the lowest losses."""
        losses = [
            F.cross_entropy(logits(network, images), targets, reduction="none").double().cpu()
            for images, targets in samples.chunks()
        ]
        count = max(1, round(self.isolated * len(samples)))
        return sorted(torch.cat(losses).argsort(stable=True)[:count].tolist())

    def _unlearn(
        self, network: Classifier, samples: LabeledImages, apart: list[int], context: TrainingContext, kind: str
    ) -> None:
        ceiling = 2 * math.log(len(context.classes))

        def objective(module: nn.Module, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
            images, targets, isolated, labels = batch
            outputs = logits(module, torch.cat([images, isolated]))
            climbed = F.cross_entropy(outputs[len(images) :], labels, reduction="none").clamp_max(ceiling)
            return F.cross_entropy(outputs[: len(images)], targets) - climbed.mean()

        others = sorted(set(range(len(samples))) - set(apart))
        source = _Both(samples.only(others), samples.only(apart))
        size = max(2, context.training.batch_size)
        finetune(
            network, source, context, kind, objective=objective, schedule="constant",
            epochs=self.unlearning_epochs, batch_size=size, learning_rate=self.unlearning_rate,
        )  # fmt: skip


class _Both:
    """Slices to keep, each batch with as many isolated ones, or all of those if they are fewer."""

    def __init__(self, kept: LabeledImages, isolated: LabeledImages) -> None:
        self._kept, self._isolated = kept, isolated
        self.device = kept.device

    def __len__(self) -> int:
        return len(self._kept)

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images and labels to descend on, then those to ascend on."""
        count = min(len(indices), len(self._isolated))
        # In turns: the order of the kept slices is shuffled, so this is too.
        chosen = [(indices[0] + i) % len(self._isolated) for i in range(count)]
        return *self._kept.batch(indices, epoch), *self._isolated.batch(chosen, epoch)
