"""Neural attention distillation: a fine-tuned teacher shows the network where to look."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tomosec.analysis.networks import Classifier
from tomosec.defenses._finetuning import FineTuningRepair
from tomosec.defenses._layers import copied, feature_maps, finished, has_feature_maps
from tomosec.defenses._samples import gather, insist
from tomosec.defenses.base import ModelContext, Need, ScanContext, TrainingContext


class NeuralAttentionDistillation(FineTuningRepair):
    """Fine-tuning whose attention maps follow those of a network that was fine-tuned before.

    Attention at a resolution is the sum over channels of |features|^p, of L2 norm 1 over the image. The loss adds, with the
    weights beta, the mean squared difference to the teacher's at the last three resolutions of the network.

    Attributes:
        power: p.
        betas: weights of the last three resolutions, fine to coarse; a network with fewer uses the last of them.
        teacher_epochs: of the teacher's fine-tuning.
        epochs, batch_size, learning_rate: of the distillation; the teacher's batches and rate are the same.
    """

    kind: Literal["nad"] = "nad"
    version: Literal[1] = 1
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "gradients", "clean-samples", "feature-maps"})
    source: ClassVar[str] = "Li et al., ICLR 2021"

    power: float = Field(2.0, ge=1)
    betas: tuple[float, float, float] = (500.0, 1000.0, 1000.0)
    teacher_epochs: int = Field(10, ge=1)
    epochs: int = Field(20, ge=1)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """It needs feature maps, and clean slices of every class."""
        if not isinstance(context, ModelContext):
            return ""
        return super().why_not(context) if has_feature_maps(context.network) else "needs feature maps, and the network has none"

    def repair(self, context: ModelContext) -> Classifier:
        """Fine-tune a teacher, and distill it into a copy of the given network."""
        kind = insist(self, context)
        clean = gather(context.clean, context.device)
        teacher, student = (copied(context.network, context.device) for _ in range(2))
        self.finetune(teacher, clean, context, f"{kind}-teacher", epochs=self.teacher_epochs)
        finished(teacher)

        def objective(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            images, targets = batch
            outputs, maps = feature_maps(student, images)
            with torch.no_grad():
                _, wanted = feature_maps(teacher, images)
            return sum(self._distances(maps, wanted), F.cross_entropy(outputs, targets))

        self.finetune(student, clean, context, kind, objective=objective)
        return finished(student)

    def _distances(self, maps: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
        """Weighted mean squared difference of attention at each of the last resolutions."""
        used = min(len(maps), len(self.betas))
        pairs = zip(self.betas[-used:], maps[-used:], wanted[-used:], strict=True)
        return [beta * (self._attention(a) - self._attention(b)).square().mean() for beta, a, b in pairs]

    def _attention(self, maps: Tensor) -> Tensor:
        """(B, h * w) of features (B, C, h, w)."""
        return F.normalize(maps.abs().pow(self.power).sum(1).flatten(1), dim=1, eps=1e-6)
