"""Learned primal-dual: an unrolled iteration between image and sinogram whose update steps are small networks."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tomosec.geometry import Geometry
from tomosec.operators.dispatch import Projector, check_sinogram
from tomosec.reconstruction.fbp import FBP
from tomosec.reconstruction.learned import LearnedReconstruction, LearnedReconstructor

Start = Literal["fbp", "zeros"]


class PrimalDualNetwork(LearnedReconstructor):
    """The iteration of the paper's algorithm 3.

    From FBP the primal variables start as copies of its image, and the last layer of each primal update at 0, so that training
    starts from FBP. The published start, zeros, has to learn to invert the scan as well, which takes far longer.

    Images are scaled by the standard deviation of the ground truth, sinograms by the RMS of the measured ones, and A.T by
    1/|A|², so that all that the networks see is of order one. Differentiable in the sinogram: the gradient costs as many
    applications of A and A.T as the image and keeps every feature map: about 4 width + memory + 2 maps of sinogram and image for
    each iteration.

    Args:
        geometry: The scan.
        iterations: Pairs of a dual and a primal update, each with weights of its own.
        memory: Channels of primal and dual variables.
        width: Channels within an update.
        start: ``fbp`` or ``zeros``.
    """

    def __init__(self, geometry: Geometry, *, iterations: int, memory: int, width: int, start: Start) -> None:
        super().__init__(geometry)
        self.memory = memory
        self._fbp = FBP(geometry) if start == "fbp" else None
        self._projector = Projector(geometry)
        self._norm_square = self._projector.norm(tolerance=1e-3) ** 2
        self.dual = nn.ModuleList(_update(memory + 2, width, memory) for _ in range(iterations))
        self.primal = nn.ModuleList(_update(memory + 1, width, memory) for _ in range(iterations))
        if start == "fbp":
            for step in self.primal:
                assert isinstance(step, nn.Sequential)
                assert isinstance(step[-1], nn.Conv2d)
                nn.init.zeros_(step[-1].weight)

    def forward(self, sinogram: Tensor) -> Tensor:
        """Reconstruct (B, 1, views, bins) → (B, 1, H, W) in 1/mm; wrong shape or type raises InputError."""
        check_sinogram(sinogram, self.geometry, "learned-primal-dual")
        A, count = self._projector, sinogram.shape[0]
        scale = self.std / self.sinogram_rms
        measured = sinogram.to(self.std.dtype) / self.sinogram_rms
        if self._fbp is None:
            primal = measured.new_zeros((count, self.memory, *self.geometry.shape))
        else:
            first = (self._fbp(sinogram) * self.circle).to(self.std.dtype) / self.std
            primal = first.expand(-1, self.memory, -1, -1)
        dual = measured.new_zeros((count, self.memory, *self.geometry.sinogram_shape))
        for dual_step, primal_step in zip(self.dual, self.primal, strict=True):
            projected = scale * A.unchecked(primal[:, 1:2].contiguous())  # the paper's second channel
            dual = dual + dual_step(torch.cat([dual, projected, measured], 1))
            back = A.T.unchecked(dual[:, :1].contiguous()) / (scale * self._norm_square)
            primal = primal + primal_step(torch.cat([primal, back], 1))
        return (primal[:, :1] * self.std * self.circle).to(sinogram.dtype)


def _update(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Three convolutions of 3 x 3 with PReLU between them, Xavier's weights and biases of 0, as published."""
    layers = nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1),
        nn.PReLU(num_parameters=width),
        nn.Conv2d(width, width, 3, padding=1),
        nn.PReLU(num_parameters=width),
        nn.Conv2d(width, outputs, 3, padding=1),
    )
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return layers


class LearnedPrimalDual(LearnedReconstruction):
    """Unrolled iteration with learned steps. Learned. Not linear; its gradient costs what the image does, and much memory.

    Trained on scans with known ground truth. An image costs ``iterations`` projections and as many transposed ones, and the
    networks, most of whose work is in the sinogram; its gradient takes as many operations again.

    Attributes:
        iterations: unrolled steps. The paper has 10.
        memory: channels of primal and dual variables, 2 at least. The paper has 5.
        width: channels within an update. The paper has 32.
        start: ``fbp``, or ``zeros`` as in the paper, for long trainings.
    """

    source: ClassVar[str] = "Adler and Öktem, IEEE Trans. Med. Imaging 37:1322, 2018"
    kind: Literal["learned-primal-dual"] = "learned-primal-dual"
    version: Literal[1] = 1
    iterations: Annotated[int, Field(ge=1, le=100)] = 5
    memory: Annotated[int, Field(ge=2, le=32)] = 4
    width: Annotated[int, Field(ge=4, le=256)] = 12
    start: Start = "fbp"
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 8
    batch_size: Annotated[int, Field(ge=2)] = 4

    def network(self, geometry: Geometry) -> PrimalDualNetwork:
        """The unrolled iteration with fresh weights."""
        return PrimalDualNetwork(geometry, iterations=self.iterations, memory=self.memory, width=self.width, start=self.start)
