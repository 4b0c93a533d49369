"""Total variation: the least-squares image with few edges, by the primal-dual algorithm of Chambolle and Pock.

The objective, for one scan p with ray weights w, is

    F(x) = 1/(2a) Σ_i w_i (A x − p)_i² + λ Σ_j |(∇x)_j|,    a = mean of (AᵀA)_jj over the pixels j in the scan circle,

with forward differences and the Euclidean norm of both components (isotropic). The scale a is the curvature that a single
pixel has in the data term, so that λ, an attenuation, means the same as in denoising an image: noise and detail of about that
contrast are removed. It does not change with views, bins or pixel size, as it would without a.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.geometry import Geometry
from tomosec.hounsfield import HU_PER_MU
from tomosec.operators.dispatch import Projector, check_sinogram
from tomosec.reconstruction.base import Reconstruction, Reconstructor
from tomosec.reconstruction.fbp import FBP

_PROBES = 32  # pixels, spread over the scan circle, that the mean curvature is taken over
#: Sums of weights below this part of the largest are rounding, of rays and pixels that do not meet.
UNSEEN = 1e-9


def differences(image: Tensor) -> Tensor:
    """Forward differences along rows and columns, 0 at the last: (B, 1, H, W) → (B, 2, H, W)."""
    down, right = torch.diff(image, dim=2), torch.diff(image, dim=3)
    pad = torch.nn.functional.pad
    return torch.cat([pad(down, (0, 0, 0, 1)), pad(right, (0, 1))], dim=1)


def differences_t(field: Tensor) -> Tensor:
    """Exact transpose of :func:`differences`: (B, 2, H, W) → (B, 1, H, W)."""
    pad = torch.nn.functional.pad
    down, right = field[:, :1, :-1], field[:, 1:, :, :-1]
    return pad(down, (0, 0, 1, 0)) - pad(down, (0, 0, 0, 1)) + pad(right, (1, 0)) - pad(right, (0, 1))


def total_variation(image: Tensor) -> Tensor:
    """Isotropic total variation of (B, 1, H, W): the sum over pixels of the length of the gradient, shape (B,)."""
    return differences(image).square().sum(1).sqrt().sum((1, 2))


def shorten(field: Tensor, length: float) -> Tensor:
    """Bring the vectors (B, 2, H, W) that are longer than ``length`` to that length: the dual's projection."""
    # The clamp comes before the root, whose slope at 0 would make gradients infinite.
    return field / (field.square().sum(1, keepdim=True) / length**2).clamp(min=1).sqrt()


def tv_denoise(image: Tensor, strength: float, *, iterations: int = 100) -> Tensor:
    """Minimize ½|x − image|² + ``strength`` TV(x) by accelerated gradients on the dual.

    Beck and Teboulle, IEEE Trans. Image Process. 18:2419, 2009.

    Args:
        image: (B, 1, H, W), any unit.
        strength: In the unit of the image, above 0.
        iterations: Number of steps; differentiable, unrolled.

    Returns:
        (B, 1, H, W). A step between two flat parts keeps its place and each part moves by strength times its border over
        its area.
    """
    dual = point = torch.zeros_like(differences(image))
    momentum = 1.0
    for _ in range(iterations):
        ahead = shorten(point + differences(image - differences_t(point)) / 8, strength)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        point = ahead + (momentum - 1) / following * (ahead - dual)
        dual, momentum = ahead, following
    return image - differences_t(dual)


class TVReconstructor(Reconstructor):
    """A fixed number of primal-dual steps towards the minimum of the objective above, from the FBP image.

    Chambolle and Pock (J. Math. Imaging Vis. 40:120, 2011) with the diagonal step lengths of Pock and Chambolle (ICCV 2011),
    which need no operator norm. The gradient is that of the unrolled steps: it takes as many applications of A and A.T as the
    image did and keeps four images a step in memory; where weights follow from the data, five images and four sinograms.

    Args:
        geometry: The scan.
        strength_hu: λ in HU.
        iterations: Number of steps.
        nonnegative: Constrain attenuation to 0 and above.

    Raises:
        InputError: FBP, which gives the start, cannot serve the geometry.

    Warns:
        LimitedAngleWarning: the views do not measure every ray through the scan circle.
    """

    is_linear = False
    kind: ClassVar[str] = "tv"
    _rows: Tensor
    _circle: Tensor

    def __init__(self, geometry: Geometry, *, strength_hu: float, iterations: int, nonnegative: bool) -> None:
        super().__init__(geometry)
        self.strength, self.iterations, self.nonnegative = strength_hu / HU_PER_MU, iterations, nonnegative
        self._projector, self._fbp = Projector(geometry), FBP(geometry)
        circle = torch.from_numpy(geometry.scan_circle())
        self.register_buffer("_circle", circle, persistent=False)
        with torch.no_grad():
            ones = torch.ones((1, 1, *geometry.shape), dtype=torch.float64, device="cpu")
            self.register_buffer("_rows", self._projector.unchecked(ones), persistent=False)
            inside = circle.flatten().nonzero()[:, 0]
            chosen = inside[(torch.arange(_PROBES) * len(inside)) // _PROBES]
            probes = torch.zeros((_PROBES, 1, circle.numel()), dtype=torch.float64, device="cpu")
            probes[torch.arange(_PROBES), 0, chosen] = 1.0
            #: The scale a of the data term, mm².
            self.curvature = float(self._projector.unchecked(probes.view(-1, 1, *geometry.shape)).square().sum()) / _PROBES

    def ray_weights(self, sinogram: Tensor) -> Tensor:
        """Weights w of the rays, broadcastable to the sinogram: all 1."""
        return sinogram.new_ones((1, 1, *self.geometry.sinogram_shape))

    def objective(self, image: Tensor, sinogram: Tensor, weights: Tensor | None = None) -> Tensor:
        """The objective F of images (B, 1, H, W) and their sinograms, shape (B,); ``weights`` as in :meth:`iterate`."""
        weights = self.ray_weights(sinogram) if weights is None else weights
        misfit = (weights * (self._projector.unchecked(image) - sinogram).square()).sum((1, 2, 3))
        value: Tensor = misfit / (2 * self.curvature) + self.strength * total_variation(image)
        return value

    def forward(self, sinogram: Tensor) -> Tensor:
        """Reconstruct (B, 1, views, bins) → (B, 1, H, W) in 1/mm; wrong shape or type raises InputError."""
        return self.iterate(sinogram)

    def iterate(
        self, sinogram: Tensor, *, weights: Tensor | None = None, watch: Callable[[Tensor], object] | None = None
    ) -> Tensor:
        """As :meth:`forward`, with ray weights of one's own; ``watch`` is called with the image after each step."""
        check_sinogram(sinogram, self.geometry, self.kind)
        image: Tensor
        weights = self.ray_weights(sinogram) if weights is None else weights
        A, root = self._projector, (weights / self.curvature).sqrt()  # the data term is half the square of root (A x − p)
        rows, columns = root * self._rows.to(sinogram), A.T.unchecked(root.contiguous())
        seen = rows > UNSEEN * rows.amax((2, 3), keepdim=True)
        ray_step = torch.where(seen, 1 / torch.where(seen, rows, 1), 0)
        pixel_step = 1 / (columns + 4)  # 4: the entries of a column of the differences; a row has 2
        target, damping = root * sinogram, 1 + ray_step
        image = ahead = self._fbp(sinogram) * self._circle
        dual, edges = torch.zeros_like(sinogram), torch.zeros_like(differences(image))
        for _ in range(self.iterations):
            dual = (dual + ray_step * (root * A.unchecked(ahead) - target)) / damping
            edges = shorten(edges + differences(ahead) / 2, self.strength)
            before, image = image, image - pixel_step * (A.T.unchecked(root * dual) + differences_t(edges))
            if self.nonnegative:
                image = image.clamp(min=0)
            ahead = 2 * image - before
            if watch is not None:
                watch(image)
        return image


class TotalVariation(Reconstruction):
    """Least squares with a total-variation penalty. Not linear; its gradient costs what the image does, and memory a step.

    The objective is 1/(2a) |A x − p|² + λ TV(x), where a is the curvature of the data term in a single pixel (see the module).
    An image costs ``iterations`` times one projection and one transposed projection, one FBP and one more transposed
    projection; its gradient, which is unrolled, costs the same again. Neither linear nor affine in the sinogram.

    Attributes:
        strength_hu: λ, the contrast that is smoothed away, in HU.
        iterations: steps; 40 bring the objective to a few percent of its minimum, 100 to a few per mille.
        nonnegative: constrain attenuation to 0 and above.
    """

    source: ClassVar[str] = (
        "Sidky and Pan, Phys. Med. Biol. 53:4777, 2008; Chambolle and Pock, J. Math. Imaging Vis. 40:120, 2011"
    )
    kind: Literal["tv"] = "tv"
    version: Literal[1] = 1
    strength_hu: Annotated[float, Field(gt=0)] = 5.0
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 40
    nonnegative: bool = False

    def build(
        self, geometry: Geometry, *, device: torch.device | str = "cpu", state: Mapping[str, Tensor] | None = None
    ) -> TVReconstructor:
        """Return the module; nothing is learned, so ``state`` is not used."""
        return TVReconstructor(
            geometry, strength_hu=self.strength_hu, iterations=self.iterations, nonnegative=self.nonnegative
        ).to(device)
