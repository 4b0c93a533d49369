"""The contract of reconstructions."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tomosec.acquisition import Scanner
from tomosec.errors import InputError, TomosecWarning
from tomosec.geometry import Geometry, ParallelBeam
from tomosec.pipeline import ImagingChain
from tomosec.randomness import generator
from tomosec.reconstruction.base import FitContext, Reconstruction, Reconstructor
from tomosec.reconstruction.fbp import FBP
from tomosec.reconstruction.saved import load_reconstruction, save_reconstruction
from tomosec.testing.components import TinySamples, check_component, tiny_geometry


class TinyPairs:
    """Noisy scans of :class:`TinySamples`, with their images, for learned reconstructions."""

    def __init__(self, geometry: Geometry, count: int = 12, seed: int = 0) -> None:
        scanner = Scanner(geometry, i0=1e5, electronic_noise=3.3)
        self._scanner, self._seed = scanner, seed
        self._images = TinySamples(ImagingChain(scanner, FBP(geometry)), count, seed).images

    def __len__(self) -> int:
        return len(self._images)

    def pair(self, positions: Sequence[int], draw: int) -> tuple[Tensor, Tensor]:
        """Measured line integrals and attenuation."""
        images = self._images[list(positions)]
        keys = [f"tiny-{i}" for i in positions]
        return self._scanner.measure(self._scanner(images), keys, seed=self._seed, draw=draw), images


def check_reconstruction(reconstruction: Reconstruction) -> None:
    """The contract of reconstructions.

    Shapes, types, what it declares about linearity and gradients, in both directions; no dependence on the batch, the same
    bits after saving, finite images of empty scans, errors for what is no scan of its geometry, and either an image or a
    reason for scans of few angles and rectangular grids. A learned one is trained on tiny scans first.
    """
    check_component(reconstruction)
    geometry = tiny_geometry()
    state = reconstruction.fit(FitContext(geometry, TinyPairs(geometry))).state
    runtime = reconstruction.build(geometry, state=state)
    assert runtime.geometry == geometry
    p = TinyPairs(geometry, 3, seed=1).pair(range(3), 0)[0]
    before = p.clone()
    image = runtime(p)
    assert torch.equal(p, before), "the sinogram is changed"
    assert image.shape == (3, 1, *geometry.shape)
    assert image.dtype == torch.float32, f"float32 becomes {image.dtype}"
    assert runtime(p[:1].double()).dtype == torch.float64, "float64 does not stay float64"
    assert bool(torch.isfinite(image).all())
    assert float((runtime(p[1:2]) - image[1:2]).norm()) <= 1e-5 * float(image[1:2].norm()), (
        "a sample's image depends on its batch"
    )
    assert runtime(p[:0]).shape == (0, 1, *geometry.shape), "an empty batch has no empty image"
    assert bool(torch.isfinite(runtime(torch.zeros_like(p))).all()), "the image of an empty scan is not finite"
    _check_linearity(runtime, p)
    if runtime.is_differentiable:
        _check_gradient(runtime, p[:1], matched="reference" not in reconstruction.model_dump().values())
    for wrong in (p[..., :-1], p[:, 0], torch.where(p == p.max(), float("nan"), p)):
        try:
            runtime(wrong)
        except InputError:
            continue
        raise AssertionError("what is no scan of the geometry is accepted")
    with tempfile.TemporaryDirectory() as folder:
        path = save_reconstruction(Path(folder) / "reconstruction.safetensors", reconstruction, geometry, state)
        again, its_geometry, its_state, _ = load_reconstruction(path)
    assert torch.equal(again.build(its_geometry, state=its_state)(p), image), "saved and reloaded it does something else"
    _check_other_scans(reconstruction)


def _check_linearity(runtime: Reconstructor, p: Tensor) -> None:
    """Superposition with factors of both signs, which cutting off negative values does not survive."""
    image = runtime(p)
    combined, expected = runtime(2 * p[:1] - 3 * p[1:2] + p[2:]), 2 * image[:1] - 3 * image[1:2] + image[2:]
    error = float((combined - expected).norm() / expected.norm())
    if runtime.is_linear:
        assert error <= 1e-4, f"is_linear, but superposition fails by {error:.1e}"
    else:
        assert error > 1e-4, f"not is_linear, but superposition holds to {error:.1e}: say so, linear chains cost less"


def _check_gradient(runtime: Reconstructor, p: Tensor, *, matched: bool) -> None:
    """The gradient is finite, also of an empty scan, arrives, and is that of finite differences in float64 where it claims so."""
    for start in (p, torch.zeros_like(p)):
        q = start.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(runtime(q).square().sum() + runtime(q).sum(), q)
        assert bool(torch.isfinite(gradient).all()), "is_differentiable, but the gradient is not finite"
        if start is p:
            assert float(gradient.norm()) > 0, "is_differentiable, but no gradient arrives"
    if not matched:  # the unmatched gradient of the published code is a setting
        return
    exact, rng = copy.deepcopy(runtime).double(), generator("check-gradient", 0)
    q = p.double().requires_grad_(True)
    weights = torch.from_numpy(rng.standard_normal((1, 1, *runtime.geometry.shape)))
    direction = torch.from_numpy(rng.standard_normal(tuple(p.shape)))
    (gradient,) = torch.autograd.grad((exact(q) * weights).sum(), q)
    slope, scale = float((gradient * direction).sum()), float(gradient.norm() * direction.norm()) / p.numel() ** 0.5
    # Long steps cross the kinks of clamps and ReLUs, short ones drown in rounding where an iteration amplifies it.
    with torch.no_grad():
        found = [
            float(((exact(q + step * direction) - exact(q - step * direction)) * weights).sum()) / (2 * step)
            for step in (1e-4, 1e-5, 1e-6)
        ]
    best = min(found, key=lambda value: abs(value - slope))
    assert abs(best - slope) <= 1e-4 * scale, f"the gradient says {slope:.6g}, finite differences say {best:.6g}"


def _check_other_scans(reconstruction: Reconstruction) -> None:
    """A limited arc on a rectangular grid, and few parallel views."""
    limited = tiny_geometry().model_copy(update={"views": 9, "arc": 1.5, "shape": (16, 20)})
    few = ParallelBeam(views=5, bins=25, bin_mm=20.0, shape=(18, 16), pixel_mm=24.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TomosecWarning)
        for geometry in (limited, few):
            pairs = TinyPairs(geometry, 4)
            try:
                runtime = reconstruction.build(geometry, state=reconstruction.fit(FitContext(geometry, pairs)).state)
            except InputError:  # whose message is the reason
                continue
            image = runtime(pairs.pair([0, 1], 0)[0])
            assert image.shape == (2, 1, *geometry.shape)
            assert bool(torch.isfinite(image).all()), f"the image is not finite for {geometry!r}"
