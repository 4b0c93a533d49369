"""The four operators as torch custom operators, and which implementation serves a call.

``torch.ops.tomosec.project`` and its three siblings take a tensor and the geometry as canonical JSON: torch wants plain,
hashable arguments. Each one's backward is its partner, so gradients are exact, of any order, and cost what the operators cost.
They hold no state, so any number of threads may call them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tomosec.component import parse_component
from tomosec.errors import InputError
from tomosec.geometry import Geometry
from tomosec.operators import cpu_fan, cpu_general, reference

Name = Literal["project", "project_t", "backproject", "backproject_t"]

_PARTNER: dict[Name, Name] = {
    "project": "project_t",
    "project_t": "project",
    "backproject": "backproject_t",
    "backproject_t": "backproject",
}
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


@lru_cache(maxsize=256)
def implementation(key: str, device: str) -> Any:
    """Return the module whose four functions serve this geometry (canonical JSON) on this type of device."""
    geometry = _geometry(key)
    if device == "cuda" and find_spec("triton"):
        from tomosec.operators import gpu  # loads triton; without triton the reference serves the GPU

        return gpu
    if device != "cpu":
        return reference
    return cpu_fan if cpu_fan.unmet_precondition(geometry) is None else cpu_general


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
        out: Tensor = getattr(implementation(geometry, x.device.type), name)(x, _geometry(geometry))
        return out

    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.geometry = inputs[1]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _operators[_PARTNER[name]](gradient, ctx.geometry), None

    operator = torch.library.custom_op(f"tomosec::{name}", run, mutates_args=(), schema="(Tensor x, str geometry) -> Tensor")
    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=setup_context)
    return operator


for _name in _PARTNER:
    _operators[_name] = _define(_name)


def check_image(x: Tensor, geometry: Geometry, who: str) -> None:
    """Raise InputError in the name of ``who`` unless ``x`` is (B, 1, H, W) of this geometry, float32 or float64."""
    _check(x, who, "image", "H, W", geometry.shape)


def check_sinogram(x: Tensor, geometry: Geometry, who: str) -> None:
    """Raise InputError in the name of ``who`` unless ``x`` is (B, 1, views, bins) of this geometry, float32 or float64."""
    _check(x, who, "sinogram", "views, bins", geometry.sinogram_shape)


def _check(x: Tensor, who: str, what: str, axes: str, expected: tuple[int, int]) -> None:
    if x.ndim != 4 or tuple(x.shape[1:]) != (1, *expected):
        raise InputError(
            f"{who}: the {what} has shape {tuple(x.shape)}; "
            f"this geometry wants (B, 1, {axes}) = (B, 1, {expected[0]}, {expected[1]})"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError(f"{who}: the {what} is {str(x.dtype).removeprefix('torch.')}; float32 or float64 is allowed")


def _apply(name: Name, x: Tensor, geometry: Geometry, key: str) -> Tensor:
    (check_image if name in _FROM_IMAGE else check_sinogram)(x, geometry, name)
    return _operators[name](x, key)


def project(image: Tensor, geometry: Geometry) -> Tensor:
    """Project images: the line integrals P x.

    Distance-driven (De Man and Basu, Phys. Med. Biol. 49:2463, 2004), with the weights of CTLIB's ``projection``. Parts of the
    image outside the fan are not seen; that is no error.

    Args:
        image: (B, 1, H, W), linear attenuation in 1/mm, float32 or float64, any device.
        geometry: Where source, detector and pixels are.

    Returns:
        (B, 1, views, bins), line integrals without unit, same type and device; twice and more differentiable.

    Raises:
        InputError: wrong shape or type.
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
        InputError: wrong shape or type.
    """
    return _apply("backproject", sinogram, geometry, geometry_key(geometry))


def backproject_t(image: Tensor, geometry: Geometry) -> Tensor:
    """Apply the exact transpose Bᵀ of :func:`backproject`: (B, 1, H, W) → (B, 1, views, bins); errors and types as there."""
    return _apply("backproject_t", image, geometry, geometry_key(geometry))


class LinearOperator(nn.Module):
    """One of the four operators on a fixed geometry; ``operator.T`` is its exact transpose and ``operator.T.T`` itself."""

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
            InputError: wrong shape or type; the message names what is wanted.
        """
        return _apply(self.name, x, self.geometry, self._key)

    def extra_repr(self) -> str:
        """Show what the operator is made of."""
        return f"{self.name}, {self.geometry!r}"


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
