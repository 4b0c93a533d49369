"""The four operators as torch custom operators, and which implementation serves a call.

``torch.ops.tomosec.project`` and its three siblings take a tensor and the geometry as canonical JSON: torch wants plain,
hashable arguments. Each one's backward is its partner, so gradients are exact, of any order, and cost what the operators cost.
They hold no state, so any number of threads may call them.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor  # torch.func has no public way to ask

from tomosec.component import parse_component
from tomosec.errors import InputError, TruncationWarning
from tomosec.geometry import Geometry
from tomosec.operators import cpu, reference

Name = Literal["project", "project_t", "backproject", "backproject_t"]

_PARTNER: dict[Name, Name] = {
    "project": "project_t",
    "project_t": "project",
    "backproject": "backproject_t",
    "backproject_t": "backproject",
}
#: Fraction of an image's absolute values outside the fan from which on projecting it warns.
TRUNCATED = 1e-3

_FROM_IMAGE: tuple[Name, ...] = ("project", "backproject_t")
_operators: dict[Name, Callable[[Tensor, str], Tensor]] = {}


@lru_cache(maxsize=256)
def geometry_key(geometry: Geometry) -> str:
    """Return the canonical JSON of a geometry, the form in which the custom operators take it."""
    return json.dumps(geometry.model_dump(mode="json"), sort_keys=True)


@lru_cache(maxsize=256)
def _geometry(key: str) -> Geometry:
    geometry: Geometry = parse_component("geometry", json.loads(key))
    reference.check_supported(geometry)
    return geometry


@lru_cache(maxsize=8)
def implementation(device: str) -> Any:
    """Return the module whose four functions serve every geometry on this type of device."""
    if device == "cpu":
        return cpu
    if device == "cuda" and find_spec("triton"):
        from tomosec.operators import gpu  # loads triton; without triton the reference serves the GPU

        return gpu
    return reference


def _shape(name: Name, geometry: Geometry, images: int | torch.SymInt) -> tuple[Any, ...]:
    rows, columns = geometry.shape if name in _FROM_IMAGE else geometry.sinogram_shape
    return images, 1, rows, columns


def _define(name: Name) -> Callable[[Tensor, str], Tensor]:
    """Register one operator with its shapes and its gradient."""

    def fake(x: Tensor, geometry: str) -> Tensor:
        return x.new_empty(_shape(_PARTNER[name], _geometry(geometry), x.shape[0]))

    def run(x: Tensor, geometry: str) -> Tensor:
        if x.shape[0] == 0:
            return fake(x, geometry)
        out: Tensor = getattr(implementation(x.device.type), name)(x, _geometry(geometry))
        return out

    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.geometry = inputs[1]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _operators[_PARTNER[name]](gradient, ctx.geometry), None

    def vmap(info: Any, in_dims: tuple[int | None, None], x: Tensor, geometry: str) -> tuple[Tensor, int]:
        mapped = x.movedim(in_dims[0] or 0, 0)
        out = _operators[name](mapped.flatten(0, 1), geometry)
        return out.reshape(*mapped.shape[:2], *out.shape[1:]), 0

    operator = torch.library.custom_op(f"tomosec::{name}", run, mutates_args=(), schema="(Tensor x, str geometry) -> Tensor")
    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=setup_context)
    operator.register_vmap(vmap)
    return operator


for _name in _PARTNER:
    _operators[_name] = _define(_name)


def check_image(x: Tensor, geometry: Geometry, who: str) -> None:
    """Raise InputError in the name of ``who`` unless ``x`` is (B, 1, H, W) of this geometry, float32 or float64, and finite."""
    _check(x, who, "image", ("row", "column"), "H, W", geometry.shape)


def check_sinogram(x: Tensor, geometry: Geometry, who: str) -> None:
    """Raise InputError in the name of ``who`` unless ``x`` is (B, 1, views, bins) of this geometry, float32 or 64, and finite."""
    _check(x, who, "sinogram", ("view", "bin"), "views, bins", geometry.sinogram_shape)


def _check(x: Tensor, who: str, what: str, axes: tuple[str, str], shape: str, expected: tuple[int, int]) -> None:
    if x.ndim != 4 or tuple(x.shape[1:]) != (1, *expected):
        raise InputError(
            f"{who}: the {what} has shape {tuple(x.shape)}; "
            f"this geometry wants (B, 1, {shape}) = (B, 1, {expected[0]}, {expected[1]})"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{who}: the {what} is {str(x.dtype).removeprefix('torch.')}; float32 or float64 is allowed "
            "(half precision is converted inside torch.autocast only)"
        )
    if not has_values(x) or math.isfinite(_sum(x)):
        return
    bad = (~torch.isfinite(x)).nonzero()
    if len(bad):  # else the sum overflowed
        image, _, first, second = bad[0].tolist()
        raise InputError(
            f"{who}: the {what} is {x[image, 0, first, second].item()} at image {image}, {axes[0]} {first}, {axes[1]} {second} "
            f"(counted from 0; {len(bad)} such of {x.numel()}); finite numbers are needed"
        )


def _sum(x: Tensor) -> float:
    # On the CPU not by torch, whose OpenMP threads would go on spinning beside those of the kernels.
    if x.device.type != "cpu":
        return float(x.sum())
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sum(x.detach().numpy()))


def has_values(x: Tensor) -> bool:
    """Whether the numbers in ``x`` can be looked at: not while a program is traced, nor inside a transform of ``torch.func``."""
    if torch.compiler.is_compiling() or is_functorch_wrapped_tensor(x) or x.device.type == "meta":
        return False
    return not (x.device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def _apply(name: Name, x: Tensor, geometry: Geometry, key: str) -> Tensor:
    if x.dtype in (torch.float16, torch.bfloat16) and torch.is_autocast_enabled(x.device.type):
        x = x.float()
    (check_image if name in _FROM_IMAGE else check_sinogram)(x, geometry, name)
    if name == "project" and has_values(x):
        _warn_of_truncation(x, geometry)
    return _operators[name](x, key)


@lru_cache(maxsize=64)
def _outside(key: str) -> Tensor | None:
    """Return which pixels some view does not see, (H, W); None where every view sees all."""
    geometry = _geometry(key)
    outside = geometry.pixel_radii_mm() > geometry.fan_radius_mm + geometry.pixel_mm
    return torch.from_numpy(outside) if outside.any() else None


def _warn_of_truncation(image: Tensor, geometry: Geometry) -> None:
    outside = _outside(geometry_key(geometry))
    if outside is None or not len(image):
        return
    values = image.detach()[:, 0].abs()
    fraction, where = (values[:, outside.to(image.device)].sum(1) / values.sum((1, 2)).clamp(min=1e-30)).max(0)
    if fraction > TRUNCATED:
        warnings.warn(
            f"project: {float(fraction):.1%} of image {int(where)} lies outside the disc of radius {geometry.fan_radius_mm:.4g} "
            "mm that every view sees whole: the detector is narrower than the object, and its reconstruction will be wrong",
            TruncationWarning,
            stacklevel=4,
        )


def project(image: Tensor, geometry: Geometry) -> Tensor:
    """Project images: the line integrals P x.

    Distance-driven (De Man and Basu, Phys. Med. Biol. 49:2463, 2004), with the weights of CTLIB's ``projection``. Parts of the
    image outside the fan are not seen.

    Args:
        image: (B, 1, H, W), linear attenuation in 1/mm, float32 or float64, any device.
        geometry: Where source, detector and pixels are.

    Returns:
        (B, 1, views, bins), line integrals without unit, same type and device; twice and more differentiable.

    Raises:
        InputError: wrong shape or type, or a value that is not finite; the message names the first.

    Warns:
        TruncationWarning: more than 0.1 % of an image lies where not every view sees it.
    """
    return _apply("project", image, geometry, geometry_key(geometry))


def project_t(sinogram: Tensor, geometry: Geometry) -> Tensor:
    """Apply the exact transpose Pᵀ of :func:`project`: (B, 1, views, bins) → (B, 1, H, W); errors and types as there."""
    return _apply("project_t", sinogram, geometry, geometry_key(geometry))


def backproject(sinogram: Tensor, geometry: Geometry) -> Tensor:
    """Backproject as FBP does: the sum over views of the mean over each pixel's shadow, times a distance weight.

    The weight is 1/U² = R² over the squared depth of the pixel from the source for a flat detector, R² over the squared
    distance for a curved one, and 1 for parallel rays. This is not the transpose of :func:`project`.

    Args:
        sinogram: (B, 1, views, bins), float32 or float64, any device.
        geometry: Where source, detector and pixels are.

    Returns:
        (B, 1, H, W), same unit, type and device; twice and more differentiable.

    Raises:
        InputError: wrong shape or type, or a value that is not finite; the message names the first.
    """
    return _apply("backproject", sinogram, geometry, geometry_key(geometry))


def backproject_t(image: Tensor, geometry: Geometry) -> Tensor:
    """Apply the exact transpose Bᵀ of :func:`backproject`: (B, 1, H, W) → (B, 1, views, bins); errors and types as there."""
    return _apply("backproject_t", image, geometry, geometry_key(geometry))


_EXPRESSION: dict[Name, str] = {
    "project": "Projector({!r})",
    "project_t": "Projector({!r}).T",
    "backproject": "Backprojector({!r})",
    "backproject_t": "Backprojector({!r}).T",
}


class LinearOperator(nn.Module):
    """One of the four operators on a fixed geometry; ``operator.T`` is its exact transpose and ``operator.T.T`` itself.

    It has no state, so it works on every device that its input is on; it can be compiled (``torch.compile(fullgraph=True)``),
    mapped (``torch.func.vmap``) and differentiated any number of times by ``torch.autograd`` (not by ``torch.func.grad``, which
    takes no custom operators).
    """

    def __init__(self, name: Name, geometry: Geometry) -> None:
        super().__init__()
        self.name: Name = name
        self.geometry = geometry
        self._key = geometry_key(geometry)

    @property
    def T(self) -> LinearOperator:  # noqa: N802 - the field's symbol
        """The exact transpose."""
        known = self.__dict__.get("_transpose")
        if known is None:
            known = LinearOperator(_PARTNER[self.name], self.geometry)
            # Past nn.Module's registration: two modules that contain each other could not be listed.
            known.__dict__["_transpose"] = self
            self.__dict__["_transpose"] = known
        transpose: LinearOperator = known
        return transpose

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator to (B, 1, H, W) or (B, 1, views, bins), whichever is its input.

        Raises:
            InputError: wrong shape or type, or a value that is not finite; the message names what is wanted, or the value.
        """
        return _apply(self.name, x, self.geometry, self._key)

    def unchecked(self, x: Tensor) -> Tensor:
        """Apply the operator without looking at the numbers: for weights and search directions, which are no scans.

        What does not fit the operator in shape and type is not refused but undefined.
        """
        return _operators[self.name](x, self._key)

    def norm(self, *, tolerance: float = 1e-4, iterations: int = 200, device: torch.device | str = "cpu") -> float:
        """Return the largest singular value ‖A‖₂, by power iteration on AᵀA in float64 (Golub and Van Loan, section 8.2).

        The weights are not negative, so the iteration starts from a constant, which is never orthogonal to what it looks for.
        Step sizes up to 1/‖A‖² are safe for gradient methods on ½‖Ax − p‖².

        Args:
            tolerance: Relative change of the estimate at which it stops; the estimate grows towards the norm.
            iterations: Most of them, each two applications.
            device: Where to compute.

        Returns:
            In mm for the projection.

        Raises:
            InputError: no convergence within ``iterations``.
        """
        shape = self.geometry.shape if self.name in _FROM_IMAGE else self.geometry.sinogram_shape
        x = torch.ones((1, 1, *shape), dtype=torch.float64, device=device)
        before = 0.0
        for _ in range(iterations):
            y = self.unchecked(x / x.norm())
            estimate = float(y.norm())
            if estimate == 0 or abs(estimate - before) <= tolerance * estimate:
                return estimate
            before, x = estimate, self.T.unchecked(y)
        raise InputError(
            f"{self.name}: the norm, now {before:.6g}, has not settled to {tolerance:g} in {iterations} iterations; allow more"
        )

    def __repr__(self) -> str:
        """Return an expression that builds the operator anew."""
        return _EXPRESSION[self.name].format(self.geometry)


class Projector(LinearOperator):
    """The projection: ``A(x)`` maps images (B, 1, H, W) in 1/mm to line integrals (B, 1, views, bins); ``A.T(p)`` back.

    See :func:`project` for weights, types and errors.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__("project", geometry)


class Backprojector(LinearOperator):
    """FBP's backprojection: ``B(p)`` maps (B, 1, views, bins) to (B, 1, H, W); ``B.T(x)`` back. See :func:`backproject`."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__("backproject", geometry)
