"""What learned reconstructions share: how they are trained on scans with known ground truth, and how they standardize.

The loss is the mean squared error inside the scan circle between the reconstruction of a noisy scan and the ground truth, in
units of the variance of the ground truth; the noise is redrawn every epoch. What a network standardizes by is measured on the
training scans and stored with its weights, so that measured data and images keep their units outside of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from tomosec.analysis.plan import Training
from tomosec.analysis.training import train
from tomosec.errors import InputError
from tomosec.geometry import Geometry
from tomosec.randomness import torch_seed
from tomosec.reconstruction.base import FitContext, Fitted, PairedScans, Reconstruction, Reconstructor

#: Training slices that the statistics are taken over, and how many are scanned at once.
STATISTICS_SLICES = 128
_BATCH = 16
_VALIDATION_SLICES = 128


class LearnedReconstructor(Reconstructor):
    """Base of the learned modules.

    Attributes:
        mean, std: of the ground truth inside the scan circle, 1/mm; saved with the weights.
        sinogram_rms: of the measured line integrals; likewise.
        circle: (H, W) mask of the scan circle; outside it images are air.
    """

    is_linear = False
    mean: Tensor
    std: Tensor
    sinogram_rms: Tensor
    circle: Tensor

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        for name in ("mean", "std", "sinogram_rms"):
            self.register_buffer(name, torch.tensor(float(name != "mean")))
        self.register_buffer("circle", torch.from_numpy(geometry.scan_circle()), persistent=False)

    def set_statistics(self, mean: float, std: float, sinogram_rms: float) -> None:
        """Set what is standardized by.

        Raises:
            InputError: the training scans are all the same or empty, so that there is nothing to learn from.
        """
        if not (std > 0 and sinogram_rms > 0):
            raise InputError(
                f"learned reconstruction: the training images have the standard deviation {std:g} per mm and the scans the RMS "
                f"{sinogram_rms:g}; both have to be positive"
            )
        self.mean.fill_(mean)
        self.std.fill_(std)
        self.sinogram_rms.fill_(sinogram_rms)

    def loss(self, sinogram: Tensor, truth: Tensor) -> Tensor:
        """Mean squared error inside the scan circle, in units of the variance of the ground truth."""
        error: Tensor = (self(sinogram) - truth)[:, 0, self.circle] / self.std
        return error.square().mean()


class LearnedReconstruction(Reconstruction):
    """Base of the learned components. A subclass gives :meth:`network`.

    Attributes:
        epochs: passes over the training slices.
        batch_size: slices per step of AdamW, whose weight decay is 0.
        learning_rate: of the first step; it falls to 0 over a cosine.
        seed: names initial weights and order, and in an experiment the training noise. The reconstruction is part of the
            scanner, so it has a seed of its own, as the split has: it is the same for all seeds of an experiment.
    """

    is_learned: ClassVar[bool] = True
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 20
    batch_size: Annotated[int, Field(ge=2)] = 8
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    seed: Annotated[int, Field(ge=0)] = 0

    @abstractmethod
    def network(self, geometry: Geometry) -> LearnedReconstructor:
        """Return the module with fresh weights; torch's CPU generator is seeded.

        Raises:
            InputError: this reconstruction cannot serve this geometry, with the reason.
        """
        raise NotImplementedError

    def fit(self, context: FitContext) -> Fitted:
        """Train on the context's scans; an interrupted training continues from the checkpoint, bit for bit.

        Raises:
            InputError: no scans, scans that are all the same, or a geometry that cannot be served.
            TrainingDiverged: the loss is not finite; the message says what to lower.
        """
        module = self._fresh(context.geometry)
        module.set_statistics(*_statistics(context.scans, module.circle))
        held_out = context.validation if context.validation is not None and len(context.validation) else None
        plan = Training(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            warmup_epochs=min(1.0, self.epochs / 10),
        )
        context.progress.message(f"Training the reconstruction {self._name} on {len(context.scans)} slices")
        result = train(
            module,
            plan,
            _Batches(context.scans),
            objective=_objective,
            validate=_validate(held_out) if held_out is not None else None,
            seed=torch_seed(self.seed, "reconstruction"),
            device=context.device,
            checkpoint=context.checkpoint,
            progress=context.progress,
        )
        facts: dict[str, Any] = {
            "curves": result.curves,
            "seconds": result.seconds,
            "gradient_passes": result.gradient_passes,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "slices": len(context.scans),
        }
        return Fitted({name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}, facts)

    def build(
        self, geometry: Geometry, *, device: torch.device | str = "cpu", state: Mapping[str, Tensor] | None = None
    ) -> LearnedReconstructor:
        """Return the trained module in eval mode, its weights frozen; it is differentiable in the sinogram.

        Raises:
            InputError: no state, one of another network, or one with values that are not finite.
        """
        if state is None:
            raise InputError(f"reconstruction {self._name}: it has to be trained first; pass the state that its fit() gave")
        for name, tensor in state.items():
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"reconstruction {self._name}: {name} of the state is not finite")
        module = self._fresh(geometry)
        try:
            module.load_state_dict(dict(state))
        except RuntimeError as error:
            raise InputError(f"reconstruction {self._name}: the state does not fit this network: {error}") from error
        return module.to(device).eval().requires_grad_(False)

    @property
    def _name(self) -> str:
        return str(getattr(self, "kind", type(self).__name__))

    def _fresh(self, geometry: Geometry) -> LearnedReconstructor:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would also reseed every GPU, which fork_rng would have to restore.
            torch.default_generator.manual_seed(torch_seed(self.seed, "reconstruction-weights", self._name))
            return self.network(geometry)


class PostProcessor(LearnedReconstructor):
    """A network that corrects the FBP image: image + std · body((image − mean) / std), air outside the scan circle.

    Differentiable in the sinogram; the gradient costs a backward pass of the network and the transposed FBP.

    Args:
        geometry: The scan.
        fbp: Filtered backprojection of that scan.
        body: (B, 1, H, W) → same shape.
    """

    def __init__(self, geometry: Geometry, fbp: Reconstructor, body: nn.Module) -> None:
        super().__init__(geometry)
        self.fbp, self.body = fbp, body

    def forward(self, sinogram: Tensor) -> Tensor:
        """Reconstruct (B, 1, views, bins) → (B, 1, H, W) in 1/mm; wrong shape or type raises InputError."""
        image = self.fbp(sinogram) * self.circle
        # In the type of the weights, whatever that of the sinogram is.
        seen = ((image - self.mean) / self.std).to(self.mean.dtype)
        corrected: Tensor = image + self.std * self.body(seen).to(image.dtype)
        return corrected * self.circle


class _Batches:
    """Training scans as the trainer reads them; the noise of an epoch is draw 1 + epoch."""

    def __init__(self, scans: PairedScans) -> None:
        self._scans = scans

    def __len__(self) -> int:
        return len(self._scans)

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        return self._scans.pair(indices, 1 + epoch)


def _objective(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(network, LearnedReconstructor)
    return network.loss(*batch)


def _statistics(scans: PairedScans, circle: Tensor) -> tuple[float, float, float]:
    """Mean and standard deviation in 1/mm inside the circle of evenly spaced training images, and the RMS of their scans."""
    if not len(scans):
        raise InputError("learned reconstruction: there is no training slice; give the split a larger training part")
    chosen = list(range(0, len(scans), max(1, len(scans) // STATISTICS_SLICES)))
    total = square = energy = 0.0
    pixels = rays = 0
    for start in range(0, len(chosen), _BATCH):
        measured, truth = (values.double().cpu() for values in scans.pair(chosen[start : start + _BATCH], 0))
        truth = truth[:, 0, circle]
        total, square, pixels = total + float(truth.sum()), square + float(truth.square().sum()), pixels + truth.numel()
        energy, rays = energy + float(measured.square().sum()), rays + measured.numel()
    mean = total / pixels
    return mean, max(0.0, square / pixels - mean**2) ** 0.5, (energy / rays) ** 0.5


def _validate(scans: PairedScans) -> Callable[[nn.Module], dict[str, float]]:
    """The loss on evenly spaced held-out scans, draw 0."""
    chosen = list(range(0, len(scans), max(1, len(scans) // _VALIDATION_SLICES)))

    def validate(network: nn.Module) -> dict[str, float]:
        assert isinstance(network, LearnedReconstructor)
        total = 0.0
        for start in range(0, len(chosen), _BATCH):
            part = chosen[start : start + _BATCH]
            total += float(network.loss(*scans.pair(part, 0))) * len(part)
        return {"loss": total / len(chosen)}

    return validate
