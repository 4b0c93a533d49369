"""Neural Cleanse: a class that a small patch leads to from everywhere is the target of a backdoor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tomosec.analysis.networks import Classifier
from tomosec.defenses._layers import copied, finished, logits
from tomosec.defenses._samples import CHUNK, LabeledImages, gather, insist
from tomosec.defenses.base import Inspection, Inspector, ModelContext, Need, ScanContext, TrainingContext
from tomosec.hounsfield import HU_RANGE, hu_to_mu
from tomosec.randomness import generator

#: From this number of classes on, the median absolute deviation of their norms says something.
_CLASSES_FOR_MAD = 5
#: Pixels. A network that reads everything as one class needs no patch at all, and a norm of 0 has no ratio.
_LEAST_NORM = 0.01


@dataclass(frozen=True, slots=True)
class ReversedTrigger:
    """The smallest patch found that leads to one class.

    Attributes:
        mask: (H, W) from 0 to 1.
        pattern: (H, W) in 1/mm.
        norm: sum of the mask, in pixels; that of the whole image where nothing led to the class.
        success: share of the clean slices of other classes that it leads there.
    """

    mask: Tensor
    pattern: Tensor
    norm: float
    success: float


class NeuralCleanse(Inspector):
    """Reverses a patch for each class, and compares how small the patches are.

    For each class, x' = (1 - m) x + m d is optimized for CE(f(x'), class) + cost |m|_1 over clean slices of the other classes,
    with d within the HU that CT stores. The cost rises while the patch leads to the class often enough, and falls while it does
    not. A step is one batch, and patience counts batches: the authors' code counts passes over a thousand images, more than
    there are clean slices here. Its cost is 0 until a patch is found; here it starts at ``initial_cost``.

    The score is the second smallest norm over the smallest. The published index, a distance in median absolute deviations, is
    the same number for any two classes, so it is given for five classes or more, among the details, and never decides. What
    ratio is high depends on the task: a study ranks it among clean networks of the same making.

    Attributes:
        steps: of Adam (rate ``learning_rate``, betas 0.5 and 0.9) per class.
        batch_size: slices per step.
        learning_rate: of Adam on the logits of mask and pattern.
        initial_cost: of the mask, relative to the mean of its pixels at 32 x 32: the sum over more pixels weighs the same.
        success: share of slices that a patch has to lead to the class.
        patience: steps in a row before the cost changes.
        multiplier: of the cost when it rises; it falls by the power 1.5 of it.
    """

    kind: Literal["neural-cleanse"] = "neural-cleanse"
    version: Literal[1] = 1
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "gradients", "clean-samples"})
    source: ClassVar[str] = "Wang et al., S&P 2019"

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(0.1, gt=0)
    initial_cost: float = Field(1e-3, gt=0)
    success: float = Field(0.99, gt=0, le=1)
    patience: int = Field(5, ge=1)
    multiplier: float = Field(2.0, gt=1)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """Each class needs slices that are not of it."""
        if isinstance(context, ModelContext) and len(set(context.clean.targets)) < 2:
            return "needs clean slices of two classes at least, so that each class has slices that are not of it"
        return ""

    def inspect(self, context: ModelContext) -> Inspection:
        """Reverse a patch for each class."""
        found = self.reverse(context)
        norms = [trigger.norm for trigger in found]
        ordered = sorted(norms)
        details: dict[str, object] = {"norms": norms, "success": [trigger.success for trigger in found]}
        if len(norms) >= _CLASSES_FOR_MAD and (index := _mad_index(norms)) is not None:
            details["mad_index"] = index
        by_class = tuple(float(np.median([*norms[:k], *norms[k + 1 :]])) / norms[k] for k in range(len(norms)))
        return Inspection(score=ordered[1] / ordered[0], by_class=by_class, details=details)

    def reverse(self, context: ModelContext) -> list[ReversedTrigger]:
        """The smallest patch of each class, in the order of the classes."""
        kind = insist(self, context)
        clean, network = gather(context.clean, context.device), finished(copied(context.network, context.device))
        context.progress.start(self.steps * len(context.classes), "Neural Cleanse")
        return [self._reverse(network, clean, target, context, kind) for target in range(len(context.classes))]

    def _reverse(
        self, network: Classifier, clean: LabeledImages, target: int, context: ModelContext, kind: str
    ) -> ReversedTrigger:
        others = clean.only(torch.nonzero(clean.targets != target).flatten().tolist())
        rng, (height, width) = generator(context.seed, kind, target), network.shape
        start = rng.standard_normal((2, height, width)).astype(np.float32)
        # Half-open everywhere, as published, so that gradients reach every pixel.
        mask_logit, pattern_logit = (torch.from_numpy(values).to(clean.device).requires_grad_(True) for values in start)
        optimizer = torch.optim.Adam([mask_logit, pattern_logit], lr=self.learning_rate, betas=(0.5, 0.9))
        cost, scale = self.initial_cost, 32 * 32 / (height * width)
        rises = falls = 0
        best: tuple[Tensor, Tensor] | None = None
        best_norm = math.inf
        for _ in range(self.steps):
            images, _ = others.batch(rng.integers(len(others), size=min(self.batch_size, len(others))).tolist(), 0)
            mask, pattern = mask_logit.sigmoid(), _attenuation(pattern_logit)
            outputs = logits(network, (1 - mask) * images + mask * pattern)
            loss = F.cross_entropy(outputs, torch.full((len(images),), target, device=clean.device))
            optimizer.zero_grad()
            (loss + cost * scale * mask.sum()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            context.progress.advance(1)
            reached = float((outputs.argmax(1) == target).double().mean()) >= self.success
            found, norm = (mask.detach(), pattern.detach()), max(float(mask.detach().sum()), _LEAST_NORM)
            # A batch is not all slices; to look at all of them for each small gain would take longer than the search.
            if reached and norm < 0.97 * best_norm and _success(network, others, *found, target) >= self.success:
                best, best_norm = found, norm
            rises, falls = (rises + 1, 0) if reached else (0, falls + 1)
            if rises >= self.patience:
                cost, rises = cost * self.multiplier, 0
            elif falls >= self.patience:
                cost, falls = cost / self.multiplier**1.5, 0
        if best is None:
            whole = torch.ones(height, width), _attenuation(pattern_logit).detach().cpu()
            return ReversedTrigger(*whole, float(height * width), _success(network, others, *whole, target))
        success = _success(network, others, *best, target)
        return ReversedTrigger(best[0].cpu(), best[1].cpu(), best_norm, success)


def _attenuation(logit: Tensor) -> Tensor:
    """Attenuation in 1/mm within what CT stores; a logit of 0 is 18 HU, close to water."""
    low, high = (float(hu_to_mu(hu)) for hu in HU_RANGE)
    return low + (high - low) * (logit - math.log(3)).sigmoid()


@torch.no_grad()
def _success(network: Classifier, others: LabeledImages, mask: Tensor, pattern: Tensor, target: int) -> float:
    mask, pattern = mask.to(others.device), pattern.to(others.device)
    hits = sum(
        int((logits(network, (1 - mask) * images + mask * pattern).argmax(1) == target).sum())
        for images, _ in others.chunks(CHUNK)
    )
    return hits / len(others)


def _mad_index(norms: list[float]) -> float | None:
    """Distance of the smallest norm below the median, in 1.4826 median absolute deviations; None where most norms are equal."""
    median = float(np.median(norms))
    spread = 1.4826 * float(np.median(np.abs(np.array(norms) - median)))
    return (median - min(norms)) / spread if spread else None
