"""Fine-tuning: train on, on clean slices, and let the backdoor be forgotten."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tomosec.analysis.networks import Classifier
from tomosec.defenses._finetuning import finetune
from tomosec.defenses._layers import copied, finished
from tomosec.defenses._samples import gather, insist, missing_classes
from tomosec.defenses.base import ModelContext, Need, Repair, ScanContext, TrainingContext


class FineTuning(Repair):
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

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(0.01, gt=0)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """A class without clean slices would be forgotten."""
        return missing_classes(context) if isinstance(context, ModelContext) else ""

    def repair(self, context: ModelContext) -> Classifier:
        """Fine-tune a copy."""
        kind = insist(self, context)
        network = copied(context.network, context.device)
        finetune(
            network, gather(context.clean, context.device), context, kind,
            epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate,
        )  # fmt: skip
        return finished(network)
