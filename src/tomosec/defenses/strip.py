"""STRIP: a trigger decides whatever is laid over the image."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tomosec.analysis.networks import Classifier
from tomosec.defenses._layers import copied, finished, logits
from tomosec.defenses._samples import CHUNK, gather, insist, too_few
from tomosec.defenses.base import InputDetection, InputDetector, ModelContext, Need, ScanContext, TrainingContext
from tomosec.randomness import generator


class Strip(InputDetector):
    """Entropy of the predictions for blends with clean slices; low entropy is suspicious.

    The blend (1 - opacity) x + opacity z of two slices is taken in attenuation, where it is a plausible slice, before any window.
    The entropy is that over the classes, in nats, averaged over the blends (equations 2 to 4, in bits there); the score is its
    negative, from -ln(classes) to 0.

    Attributes:
        overlays: clean slices to blend with, at most.
        opacity: of the clean slice.
    """

    kind: Literal["strip"] = "strip"
    version: Literal[1] = 1
    needs: ClassVar[frozenset[Need]] = frozenset({"clean-samples"})
    source: ClassVar[str] = "Gao et al., ACSAC 2019"

    overlays: int = Field(64, ge=1)
    opacity: float = Field(0.5, gt=0, lt=1)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """There must be something to blend with."""
        return too_few(context) if isinstance(context, ModelContext) else ""

    def fit(self, context: ModelContext) -> StripDetection:
        """Choose the clean slices."""
        kind = insist(self, context)
        clean = gather(context.clean, context.device)
        chosen = generator(context.seed, kind, "overlays").permutation(len(clean))[: self.overlays]
        overlays, _ = clean.batch(sorted(chosen.tolist()), 0)
        return StripDetection(finished(copied(context.network, context.device)), overlays, self.opacity)


class StripDetection(InputDetection):
    """A network and the slices that are laid over."""

    def __init__(self, network: Classifier, overlays: Tensor, opacity: float) -> None:
        self._network, self._overlays, self._opacity = network, overlays, opacity

    @torch.no_grad()
    def score(self, images: Tensor) -> Tensor:
        """Negative mean entropy."""
        scores = []
        for image in images.to(self._overlays.device):
            entropies = []
            for start in range(0, len(self._overlays), CHUNK):
                blends = (1 - self._opacity) * image + self._opacity * self._overlays[start : start + CHUNK]
                log_p = F.log_softmax(logits(self._network, blends).double(), dim=1)
                entropies.append(-(log_p.exp() * log_p).sum(1))
            scores.append(-torch.cat(entropies).mean())
        return torch.stack(scores).cpu() if scores else torch.zeros(0, dtype=torch.float64)
