"""Inspection of what a prediction looks at: does that region decide elsewhere too?"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from numpy.polynomial import Polynomial
from pydantic import Field
from torch import Tensor

from tomosec.analysis.networks import Classifier
from tomosec.defenses._layers import copied, feature_maps, finished, has_feature_maps, logits
from tomosec.defenses._samples import CHUNK, LabeledImages, gather, insist, too_few
from tomosec.defenses.base import InputDetection, InputDetector, ModelContext, Need, ScanContext, TrainingContext
from tomosec.errors import NotApplicable
from tomosec.randomness import generator


class GradCam(InputDetector):
    """How often the region that Grad-CAM finds, pasted on clean slices of other labels, gives them its label (as SentiNet does).

    Large regions of clean slices do so too, but then the slices that carry noise there are read with less confidence. So the
    score is the share of fooled slices above what clean slices with the same confidence under noise reach; that line, a
    parabola, is fitted to the clean slices by least squares (the paper takes their upper envelope). Grad-CAM (Selvaraju et al.,
    ICCV 2017) is taken at the last resolution at which a convolution works.

    Attributes:
        carriers: clean slices to paste on, at most.
        threshold: of the map, as a share of its maximum, above which a pixel belongs to the region. The paper has 0.15 and takes
            the maps of other classes out; its reimplementations have no other maps and 0.85.
    """

    kind: Literal["grad-cam"] = "grad-cam"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "gradients", "feature-maps", "clean-samples"})
    source: ClassVar[str] = "Chou et al., SPW 2020 (SentiNet)"

    carriers: int = Field(32, ge=2)
    threshold: float = Field(0.85, gt=0, lt=1)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """It looks at feature maps."""
        if not isinstance(context, ModelContext):
            return ""
        if not has_feature_maps(context.network):
            return "needs feature maps, and the network has none"
        return too_few(context, 4)

    def fit(self, context: ModelContext) -> GradCamDetection:
        """Choose the carriers and fit the line.

        Raises:
            NotApplicable: the network reads all clean slices as one class, so that nothing can be fooled.
        """
        kind = insist(self, context)
        clean, network = gather(context.clean, context.device), finished(copied(context.network, context.device))
        with torch.no_grad():
            labels = torch.cat([logits(network, images).argmax(1) for images, _ in clean.chunks()]).cpu()
        if len(set(labels.tolist())) < 2:
            name = context.classes[int(labels[0])]
            raise NotApplicable(
                f"{kind} is not applicable: needs clean slices that are read as two classes; all are read as {name}"
            )
        order = generator(context.seed, kind, "carriers").permutation(len(clean)).tolist()
        chosen = _balanced(order, labels, self.carriers)
        noise = generator(context.seed, kind, "noise").standard_normal((1, *network.shape))
        inert = network.mean + network.std * torch.from_numpy(noise).float().to(context.device)
        detection = GradCamDetection(network, clean.only(chosen), labels[chosen], inert, self.threshold)
        detection.fit_line(clean.images)
        return detection


def _balanced(order: list[int], labels: Tensor, most: int) -> list[int]:
    """Positions in turns of the predicted classes, so that each has carriers of another class."""
    by_class = [[i for i in order if labels[i] == label] for label in sorted(set(labels.tolist()))]
    ranked = sorted((rank, which, i) for which, members in enumerate(by_class) for rank, i in enumerate(members))
    return [i for _, _, i in ranked][:most]


class GradCamDetection(InputDetection):
    """A network, slices to paste on, and the line of clean slices."""

    def __init__(self, network: Classifier, carriers: LabeledImages, labels: Tensor, inert: Tensor, threshold: float) -> None:
        self._network, self._carriers, self._labels, self._inert, self._threshold = network, carriers, labels, inert, threshold
        self._line, self._range = Polynomial([0.0]), (0.0, 1.0)

    def fit_line(self, images: Tensor) -> None:
        """Fit the share of fooled slices against the confidence under noise, over clean slices."""
        fooled, confidence = self.measure(images)
        # A parabola through few points, or through those of a network that is always sure, would be one through noise.
        degree = min(2, len(images) // 10, len(set(confidence.numpy().round(3).tolist())) - 1)
        self._range = (float(confidence.min()), float(confidence.max()))
        self._line = Polynomial.fit(confidence.numpy(), fooled.numpy(), degree)

    def regions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Region (B, 1, H, W) of zeros and ones that decides the label (B,)."""
        with torch.enable_grad():
            # The input asks for gradients, since the weights do not.
            outputs, maps = feature_maps(self._network, images.detach().clone().requires_grad_(True))
            labels = outputs.argmax(1)
            (slope,) = torch.autograd.grad(outputs.gather(1, labels[:, None]).sum(), maps[-1])
        cam = (slope.mean(dim=(2, 3), keepdim=True) * maps[-1].detach()).sum(1, keepdim=True).clamp_min(0)
        cam = F.interpolate(cam, size=images.shape[-2:], mode="bilinear", align_corners=False)
        peak = cam.amax(dim=(2, 3), keepdim=True)
        return ((cam >= self._threshold * peak) & (peak > 0)).to(images.dtype), labels

    @torch.no_grad()
    def measure(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Share (B,) of carriers of other labels that are fooled, and their mean confidence (B,) with noise in the region."""
        fooled, confidence = [], []
        for start in range(0, len(images), CHUNK):
            part = images[start : start + CHUNK].to(self._network.mean.device)
            for image, region, label in zip(part, *self.regions(part), strict=True):
                others = torch.nonzero(self._labels != int(label)).flatten().tolist()
                carriers, _ = self._carriers.batch(others, 0)
                pasted = logits(self._network, carriers * (1 - region) + image * region).argmax(1)
                noisy = logits(self._network, carriers * (1 - region) + self._inert * region).double().softmax(1)
                fooled.append((pasted == label).double().mean())
                confidence.append(noisy.amax(1).mean())
        if not fooled:
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        return torch.stack(fooled).cpu(), torch.stack(confidence).cpu()

    def score(self, images: Tensor) -> Tensor:
        """Share of fooled slices above the line."""
        fooled, confidence = self.measure(images)
        return fooled - torch.from_numpy(self._line(confidence.clamp(*self._range).numpy()))
