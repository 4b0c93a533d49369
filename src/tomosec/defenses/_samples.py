"""Slices in memory, and what the defenses of networks ask of them before they start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from tomosec.defenses.base import Defense, ImageSource, ModelContext, TrainingContext
from tomosec.errors import NotApplicable

#: Slices that are read, or judged, at once where no gradients are kept.
CHUNK = 32


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """Slices and labels in memory, as ``analysis.training.train`` reads them.

    Attributes:
        images: (N, 1, H, W) in 1/mm, on the CPU.
        targets: (N,) class indices, on the CPU.
        device: where batches go.
    """

    images: Tensor
    targets: Tensor
    device: torch.device

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Images and labels; the same in every epoch."""
        chosen = list(indices)
        return self.images[chosen].to(self.device), self.targets[chosen].to(self.device)

    def only(self, positions: Iterable[int]) -> LabeledImages:
        """The slices at ``positions``."""
        chosen = list(positions)
        return LabeledImages(self.images[chosen], self.targets[chosen], self.device)

    def chunks(self, size: int = CHUNK) -> Iterable[tuple[Tensor, Tensor]]:
        """All slices in order."""
        for start in range(0, len(self), size):
            yield self.batch(range(start, min(start + size, len(self))), 0)


def gather(source: ImageSource, device: torch.device) -> LabeledImages:
    """Read all of a source into memory.

    Raises:
        NotApplicable: there is none.
    """
    batches = list(source.batches(CHUNK))
    if not batches:
        raise NotApplicable("needs slices, and there are none")
    images = torch.cat([batch.images.cpu() for batch in batches])
    return LabeledImages(images, torch.cat([batch.targets.cpu() for batch in batches]).long(), device)


def missing_classes(context: ModelContext) -> str:
    """Why clean slices of every class are not at hand; empty where they are.

    Training on the classes that are left would make the network forget the others, which is no repair.
    """
    present = set(context.clean.targets)
    missing = [name for index, name in enumerate(context.classes) if index not in present]
    return f"needs clean slices of every class; there are none of {', '.join(missing)}" if missing else ""


def too_few(context: ModelContext, least: int = 1) -> str:
    """Why there are too few clean slices; empty where there are enough."""
    found = len(context.clean)
    return f"needs at least {least} clean slices, got {found}" if found < least else ""


def insist(defense: Defense, context: ModelContext | TrainingContext) -> str:
    """Return the defense's kind, which names its random numbers.

    Raises:
        NotApplicable: it does not apply here, with the reason.
    """
    kind, reason = str(cast(Any, defense).kind), defense.why_not(context)
    if reason:
        raise NotApplicable(f"{kind} is not applicable: {reason}")
    return kind
