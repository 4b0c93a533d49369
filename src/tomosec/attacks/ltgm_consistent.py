"""LTGM optimized against all tests of a scan together: an adaptive attack on the combined consistency score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.attacks.base import AttackContext
from tomosec.attacks.gradients import MaskedGradient, pipeline_of
from tomosec.attacks.ltgm_body_confined import inside_bodies
from tomosec.consistency.rise import ScoreRise
from tomosec.errors import NotApplicable
from tomosec.hounsfield import HU_PER_MU
from tomosec.operators import Projector
from tomosec.randomness import generator
from tomosec.reconstruction.fbp import FBP
from tomosec.trigger import AdditiveTrigger, Trigger

Form = Callable[[Tensor], Tensor]


class ConsistentLTGM(MaskedGradient):
    """The pattern that does to the body what LTGM's T0 does and raises the detectors' scores least.

    T minimizes |m R(T - T0)|² / |m R(T0)|² + weight * sum over the detectors of d(s T), with m the region inside nearly all
    bodies, R filtered backprojection (ram-lak), and d the rise of a detector's score in its clean sd
    (:class:`tomosec.consistency.rise.ScoreRise`): complementary rays, Fourier wedge, forbidden moments, pairs of views,
    reprojection, air rays, half scans, and the variance of the noise, those that apply to the scan. The spreads are those of
    training scans, which are clean scans of the same scanner; of the detectors it takes what is public, their residuals. s is the
    strength at which R(T0) changes the body by ``at_hu``. All terms are squares of linear maps, so conjugate gradients solve it,
    from A(m R(T0)), preconditioned by the rays' noise.

    Attributes:
        weight: relative change of the image effect, squared, that a rise of one score by one clean sd is worth.
        at_hu: RMSE inside the body, HU, at which the scores are compared with that; above it the trigger may be seen.
        steps: of conjugate gradients.
        scans: training scans that the clean spreads are from, at most, evenly chosen.
        share: of the training samples that have their body at a pixel of m.
        objective, samples, network_mode: the loss, see LTGM.
        mask, quantile, mask_input, mask_scope, mask_statistics: the mask of rays, see LTGM.
    """

    kind: Literal["ltgm-consistent"] = "ltgm-consistent"
    version: Literal[2] = 2
    source: ClassVar[str] = "adaptive variant of Yang et al., MICCAI 2024"

    weight: float = Field(0.01, gt=0)
    at_hu: float = Field(20.0, gt=0)
    steps: int = Field(30, ge=1, le=1000)
    scans: int = Field(64, ge=2)
    share: float = Field(0.95, gt=0, le=1)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Learn LTGM's trigger, and solve for the pattern that replaces it.

        Raises:
            NotApplicable: no pixel is in the body often enough, LTGM's trigger reaches none, or there is one training sample.
        """
        geometry, device = context.geometry, context.device
        inside = inside_bodies(context, self.share, "ltgm-consistent").to(device)
        with torch.no_grad():
            rise = ScoreRise(geometry, lambda: self._clean(context))
        learned = self.unit_trigger(context).pattern.to(device).double()
        fbp, project = FBP(geometry).to(device), Projector(geometry).to(device)

        def image(pattern: Tensor) -> Tensor:
            found: Tensor = fbp(pattern) * inside
            return found

        wanted = image(learned)
        energy = float(wanted.square().sum())
        if energy == 0:
            raise NotApplicable("ltgm-consistent: LTGM's trigger does not reach the inside of the body")
        scale = self.at_hu / (HU_PER_MU * math.sqrt(energy / float(inside.sum())))

        def effect(pattern: Tensor) -> Tensor:
            return image(pattern).square().sum() / energy

        def penalty(pattern: Tensor) -> Tensor:
            return self.weight * torch.stack(list(rise(scale * pattern).values())).sum()

        with torch.no_grad():
            start = project(wanted)
        conditioner = self._preconditioner(context, rise, effect, penalty, learned)
        target = half_gradient(effect, learned)
        context.progress.start(self.steps, "ltgm-consistent steps")
        pattern = minimize(lambda v: effect(v) + penalty(v), target, start, conditioner, self.steps, context.progress.advance)
        with torch.no_grad():
            kept = image(pattern)
            details = {
                "attack": "ltgm-consistent",
                "cosine_inside": float((kept * wanted).sum() / (kept.norm() * wanted.norm())),
                "rise_before": float(penalty(learned)) / self.weight,
                "rise_after": float(penalty(pattern)) / self.weight,
            }
        return AdditiveTrigger(pattern.float().cpu(), geometry=geometry, domain="measurement", details=details)

    def _clean(self, context: AttackContext) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Training scans and the sd of their noise by the scanner's model."""
        scanner, total = pipeline_of(context, self).imaging.scanner, len(context.samples)
        count = min(self.scans, total)
        positions = [number * total // count for number in range(count)]
        for batch in context.samples.batches(positions, context.batch_size):
            noise = scanner.noise_sd(batch.measured.clamp_min(0)) if scanner.is_noisy else None
            yield batch.measured.detach(), noise

    def _preconditioner(self, context: AttackContext, rise: ScoreRise, effect: Form, penalty: Form, like: Tensor) -> Tensor:
        """About one over the diagonal of the form: constant for the effect, like one over the noise for the penalty."""
        probe = torch.from_numpy(generator(context.seed, "ltgm-consistent", "probe").standard_normal(tuple(like.shape))).to(like)
        constant, rays = (probe * half_gradient(form, probe) for form in (effect, penalty))
        if rise.ray_variance is None:
            return 1 / (constant.mean() + rays.mean()).expand_as(like)
        return 1 / (constant.mean() + (rays * rise.ray_variance).mean() / rise.ray_variance)


def half_gradient(form: Form, at: Tensor) -> Tensor:
    """H v of a quadratic form vᵀ H v at v."""
    leaf = at.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(form(leaf), leaf)
    return gradient / 2


def minimize(
    form: Form, target: Tensor, start: Tensor, conditioner: Tensor, steps: int, advance: Callable[[int], None] = lambda _: None
) -> Tensor:
    """Minimize the quadratic form vᵀ H v − 2 targetᵀ v by preconditioned conjugate gradients (Hestenes and Stiefel, 1952).

    Args:
        form: v ↦ vᵀ H v, differentiable.
        target: the right-hand side of H v = target.
        start: where to begin.
        conditioner: elementwise, about one over the diagonal of H.
        steps: how many, fewer where the solution is reached.
        advance: told of every step.
    """
    v, residual = start, target - half_gradient(form, start)
    conditioned = conditioner * residual
    direction, square = conditioned, float((residual * conditioned).sum())
    first = square
    for _ in range(steps):
        advance(1)
        if square <= 1e-20 * first:  # rounding from here on
            continue
        ahead = half_gradient(form, direction)
        length = square / float((direction * ahead).sum())
        v, residual = v + length * direction, residual - length * ahead
        conditioned = conditioner * residual
        before, square = square, float((residual * conditioned).sum())
        direction = conditioned + square / before * direction
    return v
