"""Fine-tuning: train on, on clean slices, and let the backdoor be forgotten."""

from __future__ import annotations

from typing import ClassVar, Literal

from tomosec.analysis.networks import Classifier
from tomosec.defenses._finetuning import FineTuningRepair
from tomosec.defenses._layers import copied, finished
from tomosec.defenses._samples import gather, insist
from tomosec.defenses.base import ModelContext, Need


class FineTuning(FineTuningRepair):
    """Training on clean slices with SGD, momentum 0.9 and a falling rate: the baseline of all repairs.

    Attributes:
        epochs: passes over the clean slices.
        batch_size: slices per step.
        learning_rate: of the first step; it falls to 0 as a cosine.
    """

    kind: Literal["fine-tuning"] = "fine-tuning"
    version: Literal[1] = 1
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "gradients", "clean-samples"})
    source: ClassVar[str] = "Liu et al., RAID 2018"

    def repair(self, context: ModelContext) -> Classifier:
        """Fine-tune a copy."""
        kind = insist(self, context)
        network = copied(context.network, context.device)
        self.finetune(network, gather(context.clean, context.device), context, kind)
        return finished(network)
