"""SCALE-UP: a triggered prediction survives amplification."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.analysis.networks import Classifier
from tomosec.defenses._layers import copied, finished, logits
from tomosec.defenses._samples import CHUNK, gather, insist, too_few
from tomosec.defenses.base import InputDetection, InputDetector, ModelContext, Need, ScanContext, TrainingContext
from tomosec.hounsfield import MU_WATER


class ScaleUp(InputDetector):
    """Share of amplified copies that keep the label, compared with clean slices of that label (scaled prediction consistency).

    The paper multiplies 8-bit images, which saturate at white. CT has no white: here the distance to the level of a display
    window is multiplied, and the result is cut to the window, so a copy is the slice with the window narrowed around its level
    by that factor. The score is (share - mean) / deviation over the clean slices that the network gives the same label; with
    fewer than two of those, over all clean slices.

    Attributes:
        factors: of the amplification.
        level_hu, width_hu: the window; by default that of lungs.
    """

    kind: Literal["scale-up"] = "scale-up"
    version: Literal[1] = 1
    needs: ClassVar[frozenset[Need]] = frozenset({"clean-samples"})
    source: ClassVar[str] = "Guo et al., ICLR 2023"

    factors: Annotated[tuple[Annotated[float, Field(gt=1)], ...], Field(min_length=1)] = (3.0, 5.0, 7.0, 9.0, 11.0)
    level_hu: float = -600.0
    width_hu: float = Field(1500.0, gt=0)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """A mean and a deviation need two slices."""
        return too_few(context, 2) if isinstance(context, ModelContext) else ""

    def fit(self, context: ModelContext) -> ScaleUpDetection:
        """Learn how consistent clean slices are, by predicted class."""
        insist(self, context)
        detection = ScaleUpDetection(finished(copied(context.network, context.device)), self, len(context.classes))
        detection.calibrate(gather(context.clean, context.device).images)
        return detection


class ScaleUpDetection(InputDetection):
    """A network, and mean and deviation of the consistency of clean slices by predicted class.

    Attributes:
        mean, deviation: (classes,) of the share of amplified copies that keep the label.
    """

    def __init__(self, network: Classifier, settings: ScaleUp, classes: int) -> None:
        self._network, self._settings = network, settings
        self.mean, self.deviation = torch.zeros(classes, dtype=torch.float64), torch.ones(classes, dtype=torch.float64)

    def calibrate(self, images: Tensor) -> None:
        """Set mean and deviation from clean slices."""
        share, labels = self.consistency(images)
        # No class is steadier than one copy in one slice more or less would show.
        least = 1 / (len(self._settings.factors) * max(len(images), 2) ** 0.5)
        for label in range(len(self.mean)):
            mine = share[labels == label]
            known = mine if len(mine) >= 2 else share
            self.mean[label], self.deviation[label] = known.mean(), max(float(known.std()), least)

    @torch.no_grad()
    def consistency(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Share (B,) of amplified copies that keep the label, and that label (B,)."""
        settings, device = self._settings, self._network.mean.device
        level, half = MU_WATER * (1 + settings.level_hu / 1000), MU_WATER * settings.width_hu / 2000
        shares, labels = [], []
        for start in range(0, len(images), CHUNK):
            part = images[start : start + CHUNK].to(device)
            label = logits(self._network, part).argmax(1)
            kept = torch.zeros(len(part), dtype=torch.float64, device=device)
            for factor in settings.factors:
                copies = (level + factor * (part - level)).clamp(level - half, level + half)
                kept += logits(self._network, copies).argmax(1) == label
            shares.append(kept / len(settings.factors))
            labels.append(label)
        if not shares:
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
        return torch.cat(shares).cpu(), torch.cat(labels).cpu()

    def score(self, images: Tensor) -> Tensor:
        """Standardized consistency."""
        share, labels = self.consistency(images)
        return (share - self.mean[labels]) / self.deviation[labels]
