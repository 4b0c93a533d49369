"""What LTGM and its relatives share: the mean gradient of the network's loss in the sinogram, and the mask of its rays.

With p the sinogram, x the image, R the reconstruction and f the network::

    g_cls = d CE(f(R(p + d)), label) / dp              d: what has been added to the scan so far; 0 in a single pass
    g_rec = |d MSE(R(p), x) / dp|                      of the scan as it is
    G     = +-mean over training samples of mask(g_rec) * g_cls

The classes hold the settings and are no attacks by themselves; an attack inherits those that it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from tomosec.attacks.base import Attack, AttackContext, Need, TrainingBatch
from tomosec.errors import TomosecError
from tomosec.pipeline import Pipeline
from tomosec.randomness import torch_seed
from tomosec.trigger import AdditiveTrigger, Domain

#: What a gradient through the whole chain takes, and the sinogram that its trigger is added to.
GRADIENT_NEEDS: frozenset[Need] = frozenset(
    {"training-data", "weights", "geometry", "raw-sinogram", "differentiable-reconstruction"}
)


class LossGradient(Attack):
    """Which loss an attack follows, and over which samples.

    Attributes:
        objective: ``target`` descends CE(f, target) on the source classes; ``true-label`` ascends CE(f, y), as LTGM published.
        samples: which training samples the mean is over; ``all`` only with ``true-label``, as released.
        network_mode: ``train`` leaves dropout on and batch statistics in use while the gradient is taken, as released.
    """

    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = GRADIENT_NEEDS

    objective: Literal["target", "true-label"] = "target"
    samples: Literal["source", "all"] = "source"
    network_mode: Literal["eval", "train"] = "eval"

    @model_validator(mode="after")
    def _loss_is_consistent(self) -> LossGradient:
        if self.objective == "target" and self.samples == "all":
            raise ValueError("objective 'target' is over the source classes; samples 'all' goes with objective 'true-label'")
        return self


class RayMask(Attack):
    """Which rays a trigger may use: those on which the reconstruction depends least.

    Attributes:
        mask: ``erratum`` keeps the rays whose reconstruction gradient is below the quantile with one weight, ``released``
            weights them by that gradient, ``none`` keeps all.
        quantile: the quantile of the mask; the paper's is the median.
        mask_input: sinogram of the reconstruction gradient; with noise it is mostly noise.
        mask_scope: one mask per sample, or one from the mean reconstruction gradient of all samples.
        mask_statistics: quantile and maximum per sample, or over the batch, as released.
    """

    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = GRADIENT_NEEDS

    mask: Literal["erratum", "released", "none"] = "erratum"
    quantile: float = Field(0.5, gt=0, lt=1)
    mask_input: Literal["noiseless", "noisy"] = "noiseless"
    mask_scope: Literal["sample", "mean"] = "sample"
    mask_statistics: Literal["sample", "batch"] = "sample"

    @model_validator(mode="after")
    def _mask_is_consistent(self) -> RayMask:
        if self.mask_scope == "mean" and self.mask_statistics == "batch":
            raise ValueError("mask_scope 'mean' makes one mask for all samples; mask_statistics 'batch' contradicts it")
        return self

    def weights(self, g_rec: Tensor) -> Tensor:
        """Weights (B, 1, views, bins) of LTGM's Eq. 4 (erratum), or of its released code, from |d MSE / dp| of that shape."""
        if self.mask == "none":
            return torch.ones_like(g_rec)
        flat = g_rec.flatten(1) if self.mask_statistics == "sample" else g_rec.flatten()[None]
        # The lower order statistic, as torch.median: with an even count the upper half is zeroed, ties included.
        rank = math.ceil(self.quantile * flat.shape[1])
        threshold = flat.kthvalue(rank, dim=1).values.reshape(-1, 1, 1, 1)
        if self.mask == "erratum":
            largest = flat.amax(1).reshape(-1, 1, 1, 1).clamp_min(torch.finfo(flat.dtype).tiny)
            return (g_rec < threshold) / largest
        kept = torch.where(g_rec <= threshold, g_rec, torch.zeros_like(g_rec))
        largest = kept.flatten(1).amax(1) if self.mask_statistics == "sample" else kept.amax()[None]
        return kept / largest.reshape(-1, 1, 1, 1).clamp_min(torch.finfo(flat.dtype).tiny)

    def mean_weights(self, context: AttackContext, positions: list[int]) -> Tensor:
        """The mean over samples of their masks, or the mask of their mean gradient, by ``mask_scope``: (1, 1, views, bins)."""
        if self.mask == "none":
            return torch.ones(1, 1, *context.geometry.sinogram_shape, device=context.device)
        pipeline = pipeline_of(context, self)
        total = torch.zeros(1, 1, *context.geometry.sinogram_shape, dtype=torch.float64)
        for batch in context.samples.batches(positions, context.batch_size):
            sinogram = (batch.integrals if self.mask_input == "noiseless" else batch.measured).detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(reconstruction_error(pipeline, sinogram, batch), sinogram)
            rays = gradient.abs() if self.mask_scope == "mean" else self.weights(gradient.abs())
            total += rays.double().sum(0, keepdim=True).cpu()
            context.gradient_passes += len(batch.keys)
        mean = (total / max(1, len(positions))).float()
        return (self.weights(mean) if self.mask_scope == "mean" else mean).to(context.device)


class MaskedGradient(RayMask, LossGradient):
    """The settings of LTGM: a loss and a mask of rays."""

    def unit_trigger(self, context: AttackContext) -> AdditiveTrigger:
        """LTGM's trigger: :func:`mean_gradient` in one pass, or two where the mask is from the mean gradient."""
        return additive(self, context, mean_gradient(context, self, self))


def mean_gradient(
    context: AttackContext, loss: LossGradient, mask: RayMask | None = None, *, offset: Tensor | None = None
) -> Tensor:
    """The direction in the sinogram that serves the attack's objective, (views, bins), float64 on the CPU, not normalized.

    Args:
        context: what the attacker holds; its ``gradient_passes`` are counted up.
        loss: objective, samples and network mode.
        mask: weights of the rays; None for all alike.
        offset: (1, 1, views, bins) line integrals that every scan already carries.

    Raises:
        TomosecError: no network is at hand, or it does not react to the reconstruction.
    """
    pipeline = pipeline_of(context, loss)
    positions = positions_of(context, loss.samples)
    masked = mask is not None and mask.mask != "none"
    common = mask.mean_weights(context, positions) if mask is not None and masked and mask.mask_scope == "mean" else None
    mask_input = mask.mask_input if mask is not None and masked and common is None else None
    total = torch.zeros(1, 1, *context.geometry.sinogram_shape, dtype=torch.float64)
    context.progress.start(len(positions), f"{loss.model_dump()['kind']} gradients")
    with _network_mode(pipeline.network, loss.network_mode, context.seed):
        for batch in context.samples.batches(positions, context.batch_size):
            labels = torch.full_like(batch.targets, context.target) if loss.objective == "target" else batch.targets
            g_cls, g_rec = _gradients(pipeline, batch, labels, mask_input, offset)
            weight = mask.weights(g_rec) if mask is not None and g_rec is not None else common
            total += (g_cls if weight is None else weight * g_cls).double().sum(0, keepdim=True).cpu()
            context.gradient_passes += len(batch.keys) * (1 if g_rec is None else 2)
            context.progress.advance(len(batch.keys))
    if not bool(total.any()):
        raise TomosecError(
            f"{loss.model_dump()['kind']}: the gradient is zero everywhere; the clean network does not react to the "
            "reconstruction at all"
        )
    sign = -1.0 if loss.objective == "target" else 1.0
    return sign * total[0, 0] / max(1, len(positions))


def additive(attack: LossGradient, context: AttackContext, gradient: Tensor) -> AdditiveTrigger:
    """A gradient (views, bins) as a trigger of unit RMS; its raw RMS is kept for budgets in ``reference-mu``."""
    details = {
        "attack": attack.model_dump()["kind"],
        "raw_rms": rms(gradient),
        "samples": len(positions_of(context, attack.samples)),
        "batch_size": context.batch_size,
    }
    return AdditiveTrigger(gradient.float(), geometry=context.geometry, domain="measurement", details=details)


def rms(pattern: Tensor) -> float:
    """Root mean square of all values."""
    return float(pattern.double().pow(2).mean().sqrt())


def positions_of(context: AttackContext, samples: Literal["source", "all"]) -> list[int]:
    """Positions of the training samples of the source classes, or of all."""
    return context.positions_of(context.sources) if samples == "source" else list(range(len(context.samples)))


def measured_statistics(context: AttackContext, positions: list[int], batch_size: int) -> tuple[float, float]:
    """Mean and sd of the measured line integrals of some training samples; their RMS is ``math.hypot`` of the two."""
    total, square, count = 0.0, 0.0, 0
    for batch in context.samples.batches(positions, batch_size):
        values = batch.measured.double()
        total, square, count = total + float(values.sum()), square + float(values.pow(2).sum()), count + values.numel()
    mean = total / max(1, count)
    return mean, math.sqrt(max(square / max(1, count) - mean**2, 0.0))


def pipeline_of(context: AttackContext, attack: Attack) -> Pipeline:
    """The chain with the clean network.

    Raises:
        TomosecError: the attacker has none.
    """
    if context.pipeline is None:
        raise TomosecError(f"{attack.model_dump()['kind']}: needs the weights of a clean network")
    return context.pipeline


def reconstruction_error(pipeline: Pipeline, sinogram: Tensor, batch: TrainingBatch, image: Tensor | None = None) -> Tensor:
    """Sum over samples of the per-sample MSE inside the scan circle; its gradient is per sample, free of the batch size."""
    image = pipeline.imaging.reconstruct(sinogram) if image is None else image
    difference = image - batch.attenuation * pipeline.imaging.circle
    return difference.pow(2).flatten(1).mean(1).sum()


@contextmanager
def _network_mode(network: nn.Module, mode: Literal["eval", "train"], seed: int) -> Iterator[None]:
    """Run in a mode, with dropout drawn from the seed; in ``train`` BatchNorm moves its statistics, which are put back."""
    was_training, buffers = network.training, {name: value.clone() for name, value in network.named_buffers()}
    network.train(mode == "train")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "ltgm", "dropout"))
            yield
    finally:
        network.train(was_training)
        network.load_state_dict(buffers, strict=False)


def _gradients(
    pipeline: Pipeline, batch: TrainingBatch, labels: Tensor, mask_input: str | None, offset: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Per-sample d CE / dp and |d MSE / dp| (B, 1, views, bins); one reconstruction serves both where their input is the same.

    Only the input's gradient is asked for, so the network's parameters stay frozen and cost nothing.
    """
    measured = (batch.measured if offset is None else batch.measured + offset.to(batch.measured)).detach().requires_grad_(True)
    image = pipeline.imaging.reconstruct(measured)
    loss = F.cross_entropy(pipeline.network(image), labels, reduction="sum")
    # Without noise the two sinograms are one tensor.
    same = mask_input == "noisy" or (mask_input is not None and batch.integrals is batch.measured)
    shared = same and offset is None
    (g_cls,) = torch.autograd.grad(loss, measured, retain_graph=shared)
    if mask_input is None:
        return g_cls, None
    if shared:
        (g_rec,) = torch.autograd.grad(reconstruction_error(pipeline, measured, batch, image), measured)
    else:
        clean = (batch.integrals if mask_input == "noiseless" else batch.measured).detach().requires_grad_(True)
        (g_rec,) = torch.autograd.grad(reconstruction_error(pipeline, clean, batch), clean)
    return g_cls, g_rec.abs()
