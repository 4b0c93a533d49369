"""The naive gradient: the mean gradient of the network's loss in the sinogram, every ray alike."""

from __future__ import annotations

from typing import ClassVar, Literal

from tomosec.attacks.base import AttackContext
from tomosec.attacks.gradients import LossGradient, additive, mean_gradient
from tomosec.trigger import Trigger


class NaiveGradient(LossGradient):
    """Mean gradient of the network's loss in the sinogram, without LTGM's mask (its ablation).

    T = -mean d CE(f(R(p)), target) / dp. As the transpose of FBP applied to an image, it is nearly a valid sinogram.

    Attributes:
        objective: ``target`` descends CE(f, target) on the source classes; ``true-label`` ascends CE(f, y).
        samples: which training samples the mean is over; ``all`` only with ``true-label``.
        network_mode: ``train`` leaves dropout on and batch statistics in use while the gradient is taken.
    """

    kind: Literal["naive-gradient"] = "naive-gradient"
    version: Literal[1] = 1
    source: ClassVar[str] = "ablation of Yang et al., MICCAI 2024"

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Learn T of unit RMS in one pass over the training samples."""
        return additive(self, context, mean_gradient(context, self))
