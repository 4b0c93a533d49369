"""FT-SAM: fine-tuning that looks for a flat minimum, which moves the large weights that carry a backdoor."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tomosec.analysis.networks import Classifier
from tomosec.defenses._finetuning import FineTuningRepair
from tomosec.defenses._layers import copied, finished, logits
from tomosec.defenses._samples import gather, insist
from tomosec.defenses.base import ModelContext, Need


class FineTuningSAM(FineTuningRepair):
    """Fine-tuning with adaptive sharpness-aware minimization.

    A step follows the gradient at w + e, where e = rho |w|² g / || |w| g || (elementwise |w|) is the worst change of relative
    size rho to first order, and g the gradient at w. BatchNorm's running statistics are of the pass at w alone.

    Attributes:
        rho: L2 norm of e / |w|.
        label_smoothing: of the cross-entropy.
        epochs, batch_size, learning_rate: of the fine-tuning.
    """

    kind: Literal["ft-sam"] = "ft-sam"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "gradients", "clean-samples"})
    source: ClassVar[str] = "Zhu et al., ICCV 2023"

    rho: float = Field(2.0, gt=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)

    def repair(self, context: ModelContext) -> Classifier:
        """Fine-tune a copy."""
        kind = insist(self, context)
        network = copied(context.network, context.device)
        self.finetune(network, gather(context.clean, context.device), context, kind, objective=self._objective)
        return finished(network)

    def _objective(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss at w + e, whose gradient by w is the one at w + e, since e is a constant of the step."""
        images, targets = batch
        parameters = dict(network.named_parameters())
        loss = F.cross_entropy(logits(network, images), targets, label_smoothing=self.label_smoothing)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        changes = {
            name: parameter.detach().abs() * gradient
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
            if gradient is not None
        }
        norm = torch.stack([change.square().sum() for change in changes.values()]).sum().sqrt().clamp_min(1e-12)
        worst = {
            name: parameters[name] + self.rho / norm * parameters[name].detach().abs() * change
            for name, change in changes.items()
        }
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        return F.cross_entropy(logits(network, images, worst | buffers), targets, label_smoothing=self.label_smoothing)
