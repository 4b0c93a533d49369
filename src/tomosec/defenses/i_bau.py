"""I-BAU: the worst universal disturbance is unlearned, with the gradient of how it answers to the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tomosec.analysis.networks import Classifier
from tomosec.analysis.plan import Training
from tomosec.defenses._finetuning import run_plan
from tomosec.defenses._layers import copied, finished, logits
from tomosec.defenses._samples import LabeledImages, gather, insist, missing_classes
from tomosec.defenses.base import ModelContext, Need, Repair, ScanContext, TrainingContext
from tomosec.randomness import generator


class ImplicitUnlearning(Repair):
    """Minimax unlearning of the worst universal disturbance, by implicit hypergradients.

    min over w of max over |d| <= radius of the mean loss at x + d. A round finds d by normalized gradient ascent on all clean
    slices, then takes a step of Adam per batch. The step's gradient includes how d follows w: v = J v + dL/dd is iterated K
    times from 0 for the map d - eta dh/dd with h = -loss + 0.001 |d|² in units of the input deviation, as published. A step's
    loss is the mean of that at x and that at x + d: the paper's is that at x + d alone, its code disturbs 1 % of a batch. The
    network stays in evaluation mode.

    Attributes:
        rounds: of ascent and unlearning.
        radius: RMS of d over the image, in standard deviations of the network's input. The published ball of L2 norm 10 for
            images of 32 x 32 x 3 is an RMS of 0.18.
        ascent_steps: of a round, each of a fifth of the radius.
        fixed_point_steps: K; without any, the gradient is that at a fixed d.
        eta: step of the map.
        batch_size: slices per step.
        learning_rate: of Adam.
    """

    kind: Literal["i-bau"] = "i-bau"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "gradients", "clean-samples"})
    source: ClassVar[str] = "Zeng et al., ICLR 2022"

    rounds: int = Field(5, ge=1)
    radius: float = Field(0.18, gt=0)
    ascent_steps: int = Field(10, ge=1)
    fixed_point_steps: int = Field(5, ge=0)
    eta: float = Field(0.1, gt=0)
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(1e-4, gt=0)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """A class without clean slices would be forgotten."""
        return missing_classes(context) if isinstance(context, ModelContext) else ""

    def repair(self, context: ModelContext) -> Classifier:
        """Unlearn in a copy."""
        kind = insist(self, context)
        network, clean = copied(context.network, context.device), gather(context.clean, context.device)
        source = _Rounds(clean)
        current, worst = -1, torch.zeros(0)

        def objective(module: nn.Module, batch: tuple[Tensor, Tensor, int]) -> Tensor:
            nonlocal current, worst
            module.eval()
            images, targets, epoch = batch
            if epoch != current:
                current, worst = epoch, self._ascent(network, clean, context.seed, kind, epoch)
            return self._unlearning(network, images, targets, worst)

        plan = Training(
            epochs=self.rounds,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=0,
            schedule="constant",
            warmup_epochs=0,
        )
        run_plan(network, plan, source, context, kind, objective)
        return finished(network)

    def _ascent(self, network: Classifier, clean: LabeledImages, seed: int, kind: str, epoch: int) -> Tensor:
        """The worst disturbance (1, 1, H, W) of the round, in 1/mm, inside the ball."""
        radius = self.radius * float(network.std) * (network.shape[0] * network.shape[1]) ** 0.5
        start = torch.from_numpy(generator(seed, kind, "start", epoch).standard_normal((1, 1, *network.shape))).float()
        worst = (0.1 * radius * start / start.norm()).to(clean.device)
        for _ in range(self.ascent_steps):
            slope = torch.zeros_like(worst)
            for images, targets in clean.chunks():
                point = worst.clone().requires_grad_(True)
                loss = F.cross_entropy(logits(network, images + point), targets, reduction="sum")
                slope += torch.autograd.grad(loss, point)[0]
            worst = worst + 0.2 * radius * slope / slope.norm().clamp_min(1e-30)
            worst = worst * (radius / worst.norm()).clamp_max(1)
        found: Tensor = worst.detach()
        return found

    def _unlearning(self, network: Classifier, images: Tensor, targets: Tensor, worst: Tensor) -> Tensor:
        """The mean of both losses, as a scalar whose gradient by the weights is the hypergradient."""
        std = network.std.detach()
        point = (worst / std).requires_grad_(True)
        there = F.cross_entropy(logits(network, images + std * point), targets)
        loss = 0.5 * (F.cross_entropy(logits(network, images), targets) + there)
        (by_point,) = torch.autograd.grad(loss, point, retain_graph=True)
        inner = -there + 0.001 * point.square().sum()
        (slope,) = torch.autograd.grad(inner, point, create_graph=True)
        mapped = point - self.eta * slope
        v = torch.zeros_like(by_point)
        for _ in range(self.fixed_point_steps):
            v = torch.autograd.grad(mapped, point, grad_outputs=v, retain_graph=True)[0] + by_point
        # The second term is 0 and has the implicit part of the gradient.
        return loss + ((mapped - mapped.detach()) * v.detach()).sum()


class _Rounds:
    """Clean slices, with the number of the round."""

    def __init__(self, clean: LabeledImages) -> None:
        self._clean = clean

    def __len__(self) -> int:
        return len(self._clean)

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor, int]:
        """Images, labels and the round."""
        return *self._clean.batch(indices, epoch), epoch
