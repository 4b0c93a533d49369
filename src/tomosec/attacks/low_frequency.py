"""Low-frequency: one smooth change for all images, learned under a low-pass filter."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tomosec.attacks._generators import clean_pipeline, learning_images
from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.errors import TomosecError
from tomosec.hounsfield import MU_WATER
from tomosec.randomness import generator
from tomosec.trigger import AdditiveTrigger, Domain, Trigger


class LowFrequency(Attack):
    """One smooth change for all images, that moves the clean network to the target.

    After Zeng et al. (ICCV 2021). Projected gradient descent on CE(f(x + v), target): after each step v is filtered by an ideal
    low pass and scaled to ``training_hu``. The paper's search (a decision-based, unconstrained optimization with a Gaussian
    filter) is replaced by gradients of the white-box network; that the trigger leaves no trace at high frequencies is kept.

    Attributes:
        cutoff: highest frequency kept, as a fraction of the Nyquist frequency.
        training_hu: RMS of v while it is learned, in HU.
        steps: gradient steps.
        batch_size: images per step.
        samples: training images it learns from, at most.
    """

    kind: Literal["low-frequency"] = "low-frequency"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "image"
    needs: ClassVar[frozenset[Need]] = frozenset({"training-data", "weights"})
    source: ClassVar[str] = "Zeng et al., ICCV 2021"

    cutoff: float = Field(0.25, gt=0, le=1)
    training_hu: float = Field(20.0, gt=0)
    steps: int = Field(40, ge=1)
    batch_size: int = Field(16, ge=1)
    samples: int = Field(256, ge=1)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Learn v against the frozen clean network."""
        images, _ = learning_images(context, self.samples, self.kind)
        pipeline, shape = clean_pipeline(context), context.geometry.shape
        radius, rng = self.training_hu * MU_WATER / 1000, generator(context.seed, self.kind, "order")
        v = torch.zeros(1, 1, *shape, device=images.device)
        context.progress.start(self.steps, "low-frequency steps")
        for _ in range(self.steps):
            x = images[rng.integers(len(images), size=self.batch_size)]
            added = v.clone().requires_grad_(True)
            logits = pipeline.network(x + added * pipeline.imaging.circle)
            loss = F.cross_entropy(logits, torch.full((len(x),), context.target, device=x.device))
            (gradient,) = torch.autograd.grad(loss, added)
            step = low_pass(gradient, self.cutoff)
            size = float(step.pow(2).mean().sqrt())
            if size == 0:
                raise TomosecError("low-frequency: the clean network does not react to smooth changes at all")
            v = low_pass(v - 0.25 * radius / size * step, self.cutoff)
            v = v * (radius / v.pow(2).mean().sqrt())
            context.gradient_passes += len(x)
            context.progress.advance(1)
        details = {"attack": self.kind}
        return AdditiveTrigger(v[0, 0].cpu(), geometry=context.geometry, domain="image", details=details)


def low_pass(image: Tensor, cutoff: float) -> Tensor:
    """Images (..., H, W) without frequencies above ``cutoff`` times the Nyquist frequency."""
    rows, columns = image.shape[-2:]
    u, v = torch.fft.fftfreq(rows, device=image.device), torch.fft.rfftfreq(columns, device=image.device)
    kept = torch.hypot(u[:, None], v[None, :]) <= cutoff / 2
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(image) * kept, s=(rows, columns))
    return filtered
