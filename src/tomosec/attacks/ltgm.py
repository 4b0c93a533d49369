"""LTGM: a trigger learned in the sinogram from the gradients of reconstruction and of analysis.

Yang, Chen, Sun and Zhang, "Inject Backdoor in Measured Data to Jeopardize Full-Stack Medical Image Analysis System",
MICCAI 2024, doi 10.1007/978-3-031-72104-5_38, with the erratum to its Eq. 4. With p the sinogram, x the image, R the
reconstruction and f the network::

    g_rec = |d MSE(R(p), x) / dp|            mask = a / max(g_rec) where g_rec < quantile(g_rec), else 0
    T     ~ -mean over non-target samples of mask * d CE(f(R(p)), target) / dp

The constant a cancels when T is normalised. The paper, its erratum and its code disagree; the fields are those choices.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from tomosec.attacks.base import Attack, AttackContext, Need, TrainingBatch
from tomosec.errors import TomosecError
from tomosec.pipeline import Pipeline
from tomosec.randomness import torch_seed
from tomosec.trigger import AdditiveTrigger, Domain, Trigger


class LTGM(Attack):
    """Masked mean gradient of the network's loss, learned in the sinogram.

    Attributes:
        objective: ``target`` descends CE(f, target) on the source classes; ``true-label`` ascends CE(f, y), as published.
        samples: which training samples the mean is over; ``all`` only with ``true-label``, as released.
        mask: ``erratum`` keeps the rays whose reconstruction gradient is below the quantile with one weight, ``released``
            weights them by that gradient, ``none`` is the naive gradient.
        quantile: the quantile of the mask; the paper's is the median.
        mask_input: sinogram of the reconstruction gradient; with noise it is mostly noise.
        mask_scope: one mask per sample, or one from the mean reconstruction gradient of all samples.
        mask_statistics: quantile and maximum per sample, or over the batch, as released.
        network_mode: ``train`` leaves dropout on and batch statistics in use while the gradient is taken, as released.
        flip_test_sign: apply -T at test time after training on +T, as released.
    """

    kind: Literal["ltgm"] = "ltgm"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"training-data", "weights", "geometry", "differentiable-reconstruction"})
    source: ClassVar[str] = "Yang et al., MICCAI 2024"

    objective: Literal["target", "true-label"] = "target"
    samples: Literal["source", "all"] = "source"
    mask: Literal["erratum", "released", "none"] = "erratum"
    quantile: float = Field(0.5, gt=0, lt=1)
    mask_input: Literal["noiseless", "noisy"] = "noiseless"
    mask_scope: Literal["sample", "mean"] = "sample"
    mask_statistics: Literal["sample", "batch"] = "sample"
    network_mode: Literal["eval", "train"] = "eval"
    flip_test_sign: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> LTGM:
        if self.objective == "target" and self.samples == "all":
            raise ValueError("objective 'target' is over the source classes; samples 'all' goes with objective 'true-label'")
        if self.mask_scope == "mean" and self.mask_statistics == "batch":
            raise ValueError("mask_scope 'mean' makes one mask for all samples; mask_statistics 'batch' contradicts it")
        return self

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Learn T of unit RMS over the training samples; one pass, or two where the mask is from the mean gradient."""
        pipeline = context.pipeline
        if pipeline is None:
            raise TomosecError("LTGM needs the weights of a clean network")
        positions = context.positions_of(context.sources) if self.samples == "source" else list(range(len(context.samples)))
        sign = -1.0 if self.objective == "target" else 1.0
        common_mask = self._mean_mask(context, pipeline, positions) if self.mask != "none" and self.mask_scope == "mean" else None

        total = torch.zeros(1, 1, *context.geometry.sinogram_shape, dtype=torch.float64)
        was_training = pipeline.network.training
        pipeline.network.train(self.network_mode == "train")
        buffers = {name: value.clone() for name, value in pipeline.network.named_buffers()}
        try:
            context.progress.start(len(positions), "LTGM gradients")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch_seed(context.seed, "ltgm", "dropout"))
                for batch in context.samples.batches(positions, context.batch_size):
                    labels = torch.full_like(batch.targets, context.target) if self.objective == "target" else batch.targets
                    with_mask = self.mask != "none" and common_mask is None
                    g_cls, g_rec = _gradients(pipeline, batch, labels, self.mask_input if with_mask else None)
                    weight = (
                        common_mask
                        if common_mask is not None
                        else (self._mask(g_rec) if g_rec is not None else torch.ones_like(g_cls))
                    )
                    total += (weight * g_cls).double().sum(0, keepdim=True).cpu()
                    context.gradient_passes += len(batch.keys) * (2 if with_mask else 1)
                    context.progress.advance(len(batch.keys))
        finally:
            # In "train" mode BatchNorm has moved its running statistics; the clean network is not the attack's to change.
            pipeline.network.train(was_training)
            pipeline.network.load_state_dict(buffers, strict=False)
        mean = sign * total / max(1, len(positions))
        raw_rms = float(mean.pow(2).mean().sqrt())
        if raw_rms == 0:
            raise TomosecError(
                "LTGM: the gradient is zero everywhere; the clean network does not react to the reconstruction at all"
            )
        details = {"attack": "ltgm", "raw_rms": raw_rms, "samples": len(positions), "batch_size": context.batch_size}
        return AdditiveTrigger(mean[0, 0].float(), geometry=context.geometry, domain="measurement", details=details)

    def at_test_time(self, trigger: Trigger) -> Trigger:
        """Reverse the sign where the released code's fault is asked for."""
        return trigger.at(-trigger.strength) if self.flip_test_sign else trigger

    def _mask(self, g_rec: Tensor) -> Tensor:
        """Weights (B, 1, views, bins) of Eq. 4 (erratum), or of the released code."""
        flat = g_rec.flatten(1) if self.mask_statistics == "sample" else g_rec.flatten()[None]
        # The lower order statistic, as torch.median: with an even count the upper half is zeroed, ties included.
        rank = max(1, int(self.quantile * flat.shape[1]))
        threshold = flat.kthvalue(rank, dim=1).values.reshape(-1, 1, 1, 1)
        if self.mask == "erratum":
            largest = flat.amax(1).reshape(-1, 1, 1, 1).clamp_min(torch.finfo(flat.dtype).tiny)
            return (g_rec < threshold) / largest
        kept = torch.where(g_rec <= threshold, g_rec, torch.zeros_like(g_rec))
        largest = kept.flatten(1).amax(1) if self.mask_statistics == "sample" else kept.amax()[None]
        return kept / largest.reshape(-1, 1, 1, 1).clamp_min(torch.finfo(flat.dtype).tiny)

    def _mean_mask(self, context: AttackContext, pipeline: Pipeline, positions: list[int]) -> Tensor:
        """One mask from the mean reconstruction gradient, (1, 1, views, bins)."""
        total = torch.zeros(1, 1, *context.geometry.sinogram_shape, dtype=torch.float64)
        for batch in context.samples.batches(positions, context.batch_size):
            sinogram = (batch.integrals if self.mask_input == "noiseless" else batch.measured).detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(_reconstruction_error(pipeline, sinogram, batch), sinogram)
            total += gradient.abs().double().sum(0, keepdim=True).cpu()
            context.gradient_passes += len(batch.keys)
        return self._mask((total / max(1, len(positions))).float()).to(context.device)


def _reconstruction_error(pipeline: Pipeline, sinogram: Tensor, batch: TrainingBatch, image: Tensor | None = None) -> Tensor:
    """Sum over samples of the per-sample MSE inside the scan circle; its gradient is per sample, free of the batch size."""
    image = pipeline.imaging.reconstruct(sinogram) if image is None else image
    difference = image - batch.attenuation * pipeline.imaging.circle
    return difference.pow(2).flatten(1).mean(1).sum()


def _gradients(pipeline: Pipeline, batch: TrainingBatch, labels: Tensor, mask_input: str | None) -> tuple[Tensor, Tensor | None]:
    """Per-sample d CE / dp and |d MSE / dp| (B, 1, views, bins); one reconstruction serves both where their input is the same.

    Only the input's gradient is asked for, so the network's parameters stay frozen and cost nothing.
    """
    measured = batch.measured.detach().requires_grad_(True)
    image = pipeline.imaging.reconstruct(measured)
    loss = F.cross_entropy(pipeline.network(image), labels, reduction="sum")
    # Without noise the two sinograms are one tensor.
    shared = mask_input == "noisy" or (mask_input is not None and batch.integrals is batch.measured)
    (g_cls,) = torch.autograd.grad(loss, measured, retain_graph=shared)
    if mask_input is None:
        return g_cls, None
    if shared:
        (g_rec,) = torch.autograd.grad(_reconstruction_error(pipeline, measured, batch, image), measured)
    else:
        noiseless = batch.integrals.detach().requires_grad_(True)
        (g_rec,) = torch.autograd.grad(_reconstruction_error(pipeline, noiseless, batch), noiseless)
    return g_cls, g_rec.abs()
