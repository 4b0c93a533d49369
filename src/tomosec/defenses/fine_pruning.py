"""Fine-pruning: channels that sleep on clean slices may be those that wait for a trigger."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tomosec.analysis.networks import Classifier
from tomosec.defenses._finetuning import FineTuningRepair
from tomosec.defenses._layers import (
    ROUNDING,
    accuracy,
    channels,
    copied,
    finished,
    has_feature_maps,
    logits,
    mean_activation,
    neuron_layers,
    only_embeds_patches,
    scaled,
)
from tomosec.defenses._samples import LabeledImages, gather, insist
from tomosec.defenses.base import ModelContext, Need, ScanContext, TrainingContext


class FinePruning(FineTuningRepair):
    """Pruning of the last convolution's channels that are least active on clean slices, then fine-tuning.

    Channels go one step at a time, those with the lowest mean activation first, for as long as the accuracy on the clean slices
    stays within the tolerance. A pruned channel gives 0 and stays pruned while the rest is fine-tuned. Activation is that after a
    ReLU, before whatever a residual connection adds; its size, where the classifier reads the layer without a ReLU. Ranking and
    accuracy use the same clean slices, as in the paper. The last convolution of a DenseNet makes few of the channels that its
    head reads, and one that only embeds patches has no channels that could sleep: there it does not apply.

    Attributes:
        tolerance: accuracy on the clean slices that may be lost by pruning.
        step: share of the channels that is pruned at once.
        epochs, batch_size, learning_rate: of the fine-tuning.
    """

    kind: Literal["fine-pruning"] = "fine-pruning"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "gradients", "clean-samples", "feature-maps"})
    source: ClassVar[str] = "Liu et al., RAID 2018"

    tolerance: float = Field(0.1, ge=0, lt=1)
    step: float = Field(0.01, gt=0, le=1)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """It needs a convolution, and clean slices of every class."""
        if not isinstance(context, ModelContext):
            return ""
        if not has_feature_maps(context.network):
            return "needs a convolution, and the network has none"
        if only_embeds_patches(context.network):
            # Its channels are a code of the patch, read together by what follows; none of them sleeps.
            return "needs a convolution after the embedding of patches, and the network has none"
        return super().why_not(context)

    def repair(self, context: ModelContext) -> Classifier:
        """Prune and fine-tune a copy."""
        kind = insist(self, context)
        network, clean = copied(context.network, context.device), gather(context.clean, context.device)
        layer = neuron_layers(network)[-1]
        keep = self._pruned(network, layer, clean).to(context.device)

        def objective(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(logits(module, batch[0], scaled(network, layer, keep, keep)), batch[1])

        self.finetune(network, clean, context, kind, objective=objective)
        network.load_state_dict({**network.state_dict(), **scaled(network, layer, keep, keep)})
        return finished(network)

    def _pruned(self, network: Classifier, layer: str, clean: LabeledImages) -> Tensor:
        """(channels,) 1 for what stays and 0 for what goes."""
        order = mean_activation(network, layer, (images for images, _ in clean.chunks())).argsort(stable=True)
        count = channels(network, layer)
        step, best = max(1, round(self.step * count)), torch.ones(count)
        least = accuracy(network, clean) - self.tolerance - ROUNDING
        for gone in range(step, count, step):
            keep = torch.ones(count)
            keep[order[:gone]] = 0
            factors = keep.to(clean.device)
            if accuracy(network, clean, scaled(network, layer, factors, factors)) < least:
                break
            best = keep
        return best
