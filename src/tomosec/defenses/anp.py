"""Adversarial neuron pruning: neurons whose disturbance opens the backdoor are cut."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tomosec.analysis.networks import Classifier
from tomosec.analysis.plan import Training
from tomosec.defenses._finetuning import epochs_for, run_plan
from tomosec.defenses._layers import (
    ROUNDING,
    accuracy,
    channels,
    copied,
    finished,
    has_feature_maps,
    logits,
    neuron_layers,
    scaled,
)
from tomosec.defenses._samples import LabeledImages, gather, insist, missing_classes
from tomosec.defenses.base import ModelContext, Need, Repair, ScanContext, TrainingContext
from tomosec.randomness import generator


class AdversarialNeuronPruning(Repair):
    """Masks of the neurons that keep clean slices right under the worst disturbance of each; neurons with low masks are cut.

    min over m in [0, 1] of alpha L(m w, b) + (1 - alpha) max over |d|, |x| <= eps of L((m + d) w, (1 + x) b), per channel. The
    published code disturbs the factors and offsets of BatchNorm; so does this one wherever a convolution is followed by a
    normalization that has them (BatchNorm, GroupNorm). Where it is not, the convolution's own weights and biases are disturbed,
    which is the paper's equation. The network stays in evaluation mode, so that ten slices do.

    Attributes:
        eps: largest relative disturbance.
        alpha: weight of the undisturbed loss.
        steps: of SGD on the masks.
        batch_size: slices per step.
        learning_rate: of SGD with momentum 0.9.
        threshold: neurons with a lower mask are cut, lowest first.
        tolerance: accuracy on the clean slices that may be lost.
    """

    kind: Literal["anp"] = "anp"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "gradients", "clean-samples", "feature-maps"})
    source: ClassVar[str] = "Wu and Wang, NeurIPS 2021"

    eps: float = Field(0.4, gt=0)
    alpha: float = Field(0.2, ge=0, le=1)
    steps: int = Field(2000, ge=1)
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(0.2, gt=0)
    threshold: float = Field(0.2, ge=0, le=1)
    tolerance: float = Field(0.1, ge=0, lt=1)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """It needs a convolution, and clean slices of every class."""
        if not isinstance(context, ModelContext):
            return ""
        return missing_classes(context) if has_feature_maps(context.network) else "needs a convolution, and the network has none"

    def repair(self, context: ModelContext) -> Classifier:
        """Learn the masks and prune a copy."""
        kind = insist(self, context)
        network, clean = copied(context.network, context.device).requires_grad_(False), gather(context.clean, context.device)
        masks = _Masks(network)
        step = 0

        def objective(_: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            nonlocal step
            rng = generator(context.seed, kind, "start", step)
            step += 1
            masks.clamp()
            start = [self._start(rng, mask) for mask in masks.masks], [self._start(rng, mask) for mask in masks.masks]
            worst = self._worst(network, masks, batch, *start)
            natural = F.cross_entropy(logits(network, batch[0], masks.weights()), batch[1])
            robust = F.cross_entropy(logits(network, batch[0], masks.weights(*worst)), batch[1])
            return self.alpha * natural + (1 - self.alpha) * robust

        plan = Training(
            epochs=epochs_for(self.steps, len(clean), self.batch_size),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer="sgd",
            momentum=0.9,
            weight_decay=0,
            schedule="constant",
            warmup_epochs=0,
        )
        run_plan(masks, plan, clean, context, kind, objective)
        masks.clamp()
        self._prune(network, masks, clean)
        return finished(network)

    @torch.no_grad()
    def _prune(self, network: Classifier, masks: _Masks, clean: LabeledImages) -> None:
        """Cut neurons in the order of their masks."""
        least = accuracy(network, clean) - self.tolerance - ROUNDING
        low = [
            (float(value), index, neuron)
            for index, mask in enumerate(masks.masks)
            for neuron, value in enumerate(mask.tolist())
            if value < self.threshold
        ]
        for _, index, neuron in sorted(low):
            weight = network.get_parameter(f"{masks.layers[index]}.weight")
            before = weight[neuron].clone()
            weight[neuron] = 0
            if accuracy(network, clean) < least:
                weight[neuron] = before

    def _start(self, rng: np.random.Generator, mask: Tensor) -> Tensor:
        return torch.from_numpy(rng.uniform(-self.eps, self.eps, len(mask)).astype(np.float32)).to(mask.device)

    def _worst(
        self, network: Classifier, masks: _Masks, batch: tuple[Tensor, Tensor], weights: list[Tensor], biases: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One signed step of size eps from a random start, back into the box."""
        noise = [item.requires_grad_(True) for item in (*weights, *biases)]
        count = len(weights)
        with torch.enable_grad():
            loss = F.cross_entropy(logits(network, batch[0], masks.weights(noise[:count], noise[count:], fixed=True)), batch[1])
            gradients = torch.autograd.grad(loss, noise, allow_unused=True)
        moved = [
            item.detach() if slope is None else (item.detach() + self.eps * slope.sign()).clamp(-self.eps, self.eps)
            for item, slope in zip(noise, gradients, strict=True)
        ]
        return moved[:count], moved[count:]


class _Masks(nn.Module):
    """A factor for each neuron of a frozen network, which is no part of this module and keeps its mode."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self._network = [network]
        self.layers = list(dict.fromkeys(neuron_layers(network)))
        device = network.mean.device
        self.masks = nn.ParameterList([nn.Parameter(torch.ones(channels(network, name), device=device)) for name in self.layers])

    @torch.no_grad()
    def clamp(self) -> None:
        """Back into [0, 1] after a step."""
        for mask in self.masks:
            mask.clamp_(0, 1)

    def weights(
        self, noise: list[Tensor] | None = None, bias_noise: list[Tensor] | None = None, *, fixed: bool = False
    ) -> dict[str, Tensor]:
        """The network's weights under the masks, disturbed where noise is given; ``fixed`` masks get no gradient."""
        out: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            mask = self.masks[index].detach() if fixed else self.masks[index]
            factors = mask if noise is None else mask + noise[index]
            out |= scaled(self._network[0], layer, factors, None if bias_noise is None else 1 + bias_noise[index])
        return out
