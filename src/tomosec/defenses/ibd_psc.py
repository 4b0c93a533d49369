"""IBD-PSC: a triggered prediction survives amplified weights."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tomosec.analysis.networks import Classifier
from tomosec.defenses._layers import ROUNDING, accuracy, copied, finished, logits
from tomosec.defenses._samples import CHUNK, gather, insist, too_few
from tomosec.defenses.base import InputDetection, InputDetector, ModelContext, Need, ScanContext, TrainingContext
from tomosec.errors import NotApplicable


class ParameterScalingConsistency(InputDetector):
    """Mean confidence in the label over copies of the network whose last BatchNorm layers are amplified.

    The last k layers' factors and offsets are multiplied (equation 2). k starts where the error on clean slices exceeds a
    threshold (algorithm 1), and one more layer is added for each copy (equation 4). The paper's threshold of 0.6 is for ten
    classes and cannot be reached by two; here it is relative to the error 1 - 1/classes of guessing. With fewer layers left than
    copies wanted, there are fewer copies.

    Attributes:
        factor: of the amplification.
        models: copies.
        error: share of the error of guessing at which k starts.
    """

    kind: Literal["ibd-psc"] = "ibd-psc"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "clean-samples", "batchnorm"})
    source: ClassVar[str] = "Hou et al., ICML 2024"

    factor: float = Field(1.5, gt=1)
    models: int = Field(5, ge=1)
    error: float = Field(0.6, gt=0, lt=1)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """It amplifies BatchNorm."""
        if not isinstance(context, ModelContext):
            return ""
        return too_few(context) or ("" if _norms(context.network) else "needs BatchNorm, and the network has none")

    def fit(self, context: ModelContext) -> ParameterScalingDetection:
        """Find the first k and make the copies.

        Raises:
            NotApplicable: the error on clean slices stays below the threshold whatever is amplified.
        """
        kind = insist(self, context)
        clean = gather(context.clean, context.device)
        layers, threshold = len(_norms(context.network)), self.error * (1 - 1 / len(context.classes))
        for first in range(1, layers + 1):
            if 1 - accuracy(self._amplified(context, first), clean) > threshold + ROUNDING:
                last = min(first + self.models, layers + 1)
                copies = [self._amplified(context, k) for k in range(first, last)]
                return ParameterScalingDetection(finished(copied(context.network, context.device)), copies)
        raise NotApplicable(
            f"{kind} is not applicable: the error on {len(clean)} clean slices stays within {threshold:.2f} however many of the "
            f"{layers} BatchNorm layers are amplified by {self.factor:g}"
        )

    def _amplified(self, context: ModelContext, count: int) -> Classifier:
        network = finished(copied(context.network, context.device))
        with torch.no_grad():
            for norm in _norms(network)[-count:]:
                norm.weight.mul_(self.factor)
                norm.bias.mul_(self.factor)
        return network


class ParameterScalingDetection(InputDetection):
    """A network and its amplified copies."""

    def __init__(self, network: Classifier, copies: list[Classifier]) -> None:
        self._network, self._copies = network, copies

    @torch.no_grad()
    def score(self, images: Tensor) -> Tensor:
        """Mean confidence, from 0 to 1."""
        scores = [torch.zeros(0, dtype=torch.float64)]
        for start in range(0, len(images), CHUNK):
            part = images[start : start + CHUNK].to(self._network.mean.device)
            label = logits(self._network, part).argmax(1, keepdim=True)
            confidences = [logits(copy, part).double().softmax(1).gather(1, label)[:, 0] for copy in self._copies]
            scores.append(torch.stack(confidences).mean(0).cpu())
        return torch.cat(scores)


def _norms(network: Classifier) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
