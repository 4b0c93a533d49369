"""Do the operators work here, and how fast? Analytic answers, adjointness and time for one geometry, as plain rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tomosec.errors import InputError
from tomosec.geometry import FanBeam, Floats, Geometry, ParallelBeam
from tomosec.operators import reference
from tomosec.operators.dispatch import Backprojector, LinearOperator, Projector, implementation

#: Value, half axes, center and angle (degrees, counter-clockwise) of ellipses in a circle of radius 1: the modified
#: Shepp-Logan phantom (Toft, PhD thesis, DTU 1996).
SHEPP_LOGAN: tuple[tuple[float, ...], ...] = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)


Quantity = Literal["adjointness", "reference", "line integrals", "fbp", "time"]


class Check(NamedTuple):
    """One measurement.

    Attributes:
        quantity: Kind of measurement: a defect of adjointness; a difference from the reference; a relative error of line
            integrals; the PSNR of FBP in dB; or milliseconds.
        name: What was measured, and its unit.
        measured: The value.
        limit: What it may be at most, for ``fbp`` at least; infinite where there is no limit.
        ok: The verdict.
    """

    quantity: Quantity
    name: str
    measured: float
    limit: float
    ok: bool


def usual_scans() -> dict[str, Geometry]:
    """Return a scan of each kind that the operators have different code for, at the size of LTGM's, by name."""
    flat = FanBeam.ltgm()
    scanner = FanBeam.somatom_scope(shape=(256, 256))
    return {
        "fan, flat detector, full circle": flat,
        "fan, curved detector, full circle": scanner,
        "fan, curved, quarter offset": scanner.model_copy(update={"detector_offset_bins": 0.25}),
        "fan, flat, odd views": flat.scaled(views=1023),
        "fan, curved, short scan": scanner.model_copy(update={"arc": 4.2, "start": 0.3}),
        "parallel, half a turn": ParallelBeam(views=1024, bins=768, bin_mm=0.8, shape=(256, 256), pixel_mm=1.88),
    }


def ellipse_image(geometry: Geometry, *, ellipses: tuple[tuple[float, ...], ...] = SHEPP_LOGAN, samples: int = 8) -> Floats:
    """Return ellipses that fill the scan circle as an image in their own unit, each pixel the mean of samples² points.

    Returns:
        Shape (rows, columns).
    """
    rows, columns = geometry.shape
    radius = geometry.scan_radius_mm
    y = (rows / 2 - (np.arange(rows * samples) + 0.5) / samples) * geometry.pixel_mm / radius
    x = ((np.arange(columns * samples) + 0.5) / samples - columns / 2) * geometry.pixel_mm / radius
    image = np.zeros((rows * samples, columns * samples))
    for value, half_width, half_height, x0, y0, degrees in ellipses:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        dx, dy = x[None, :] - x0, y[:, None] - y0
        inside = ((dx * cos + dy * sin) / half_width) ** 2 + ((dy * cos - dx * sin) / half_height) ** 2 <= 1
        image += value * inside
    return np.asarray(image.reshape(rows, samples, columns, samples).mean((1, 3)), dtype=np.float64)


def ellipse_integrals(geometry: Geometry, *, ellipses: tuple[tuple[float, ...], ...] = SHEPP_LOGAN, rays: int = 1) -> Floats:
    """Return the exact line integrals of the ellipses of :func:`ellipse_image`, averaged over ``rays`` rays a bin.

    Returns:
        Shape (views, bins), in the ellipses' unit times mm.
    """
    radius = geometry.scan_radius_mm
    angles = geometry.view_angles[:, None]
    across, along = (np.cos(angles), np.sin(angles)), (-np.sin(angles), np.cos(angles))
    out = np.zeros(geometry.sinogram_shape)
    for ray in range(rays):
        offset = (geometry.bin_edges_mm[:-1] + (ray + 0.5) / rays * geometry.bin_mm)[None, :]
        if isinstance(geometry, FanBeam):
            ratio = offset / geometry.source_to_detector_mm
            gamma = np.arctan(ratio) if geometry.detector == "flat" else ratio
            start = [part[:, None] for part in geometry.source_positions_mm.T]
            direction = [np.sin(gamma) * a - np.cos(gamma) * b for a, b in zip(across, along, strict=True)]
        else:
            start = [offset * part for part in across]
            direction = [-part + 0 * offset for part in along]
        for value, half_width, half_height, x0, y0, degrees in ellipses:
            cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            sx, sy = start[0] - x0 * radius, start[1] - y0 * radius
            # In coordinates that make the ellipse a unit circle, the chord is a quadratic's two roots apart.
            px, py = (sx * cos + sy * sin) / (half_width * radius), (sy * cos - sx * sin) / (half_height * radius)
            dx = (direction[0] * cos + direction[1] * sin) / (half_width * radius)
            dy = (direction[1] * cos - direction[0] * sin) / (half_height * radius)
            square, middle = dx * dx + dy * dy, px * dx + py * dy
            discriminant = middle * middle - square * (px * px + py * py - 1)
            out += value * 2 * np.sqrt(np.maximum(discriminant, 0)) / square
    return np.asarray(out / rays, dtype=np.float64)


def _quick(geometry: Geometry, side: int = 128) -> Geometry:
    """Return the same scanner with an image of at most ``side`` pixels a side, bins and views in proportion."""
    factor = max(geometry.shape) / side
    if factor <= 1:
        return geometry
    shape = (round(geometry.shape[0] / factor), round(geometry.shape[1] / factor))
    if shape[0] * geometry.shape[1] != shape[1] * geometry.shape[0]:
        return geometry
    views = None
    if geometry.angles is None:
        step = next(step for step in (8, 4, 2, 1) if geometry.views % step == 0)  # the symmetry stays what it is
        views = step * max(1, round(geometry.views / factor / step))
        views += step == 1 and views % 2 == 0
    return geometry.scaled(views=views, bins=max(1, round(geometry.bins / factor)), shape=shape)


def _defect(operator: LinearOperator, x: Tensor, y: Tensor | None = None) -> float:
    """Return |⟨Ax, y⟩ − ⟨x, Aᵀy⟩| over the product of the norms of Ax and y; y is Ax itself where it is None."""
    image = operator.unchecked(x)
    y = image if y is None else y
    left = torch.sum(image.double() * y.double())
    right = torch.sum(x.double() * operator.T.unchecked(y).double())
    return float((left - right).abs() / (image.double().norm() * y.double().norm()))


def _milliseconds(run: Callable[[], Tensor], images: int, repeat: int) -> float:
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        if run().device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:])) * 1e3 / images


def check_operators(geometry: Geometry, *, quick: bool = True, device: torch.device | str = "cpu") -> list[Check]:
    """Measure the operators of a geometry.

    Limits of accuracy apply to geometries that sample the image well (bins no wider than a pixel, 1.5 views a column) and, for
    FBP, whose views measure every ray; others get the measurement without a limit.

    Args:
        geometry: The scan.
        quick: Measure the same scanner at no more than 128 pixels a side, instead of at full size.
        device: Where to compute.

    Returns:
        Adjointness of P and B, agreement with the reference, error against the exact line integrals of ellipses, PSNR of FBP,
        and milliseconds an image for one image and for eight.
    """
    from tomosec.reconstruction.fbp import FBP  # operators must be importable without reconstruction
    from tomosec.reconstruction.redundancy import is_limited

    if quick:
        geometry = _quick(geometry)
    draw = torch.Generator().manual_seed(0)
    projector, backprojector = Projector(geometry), Backprojector(geometry)
    fast = implementation(torch.device(device).type)
    image = torch.rand((1, 1, *geometry.shape), dtype=torch.float64, generator=draw).to(device)
    sinogram = torch.randn((1, 1, *geometry.sinogram_shape), dtype=torch.float64, generator=draw).to(device)
    rows: list[Check] = []

    def at_most(quantity: Quantity, name: str, measured: float, limit: float) -> None:
        rows.append(Check(quantity, name, measured, limit, measured <= limit))

    pairs: tuple[tuple[str, LinearOperator, Tensor, Tensor], ...] = (
        ("P", projector, image, sinogram),
        ("B", backprojector, sinogram, image),
    )
    for symbol, operator, x, y in pairs:
        at_most("adjointness", f"adjointness of {symbol}, float64, random y", _defect(operator, x, y), 1e-12)
        at_most("adjointness", f"adjointness of {symbol}, float32, y = {symbol} x", _defect(operator, x.float().abs()), 1e-5)
    if fast is not reference:  # nothing is compared with itself
        # Not white noise for B: float32 knows the place of a ray to 1e-5 of a bin, and noise changes that fast.
        for symbol, name, x in (("P", "project", image), ("B", "backproject", projector.unchecked(image))):
            expected = getattr(reference, name)(x, geometry)
            error = getattr(fast, name)(x.float(), geometry).double() - expected
            difference = float(error.norm() / expected.norm())
            at_most("reference", f"{symbol}, fast path against reference, float32", difference, 1e-5)

    well_sampled = geometry.bin_at_isocenter_mm <= geometry.pixel_mm and geometry.views >= 1.5 * max(geometry.shape)
    side = min(geometry.shape)
    phantom = torch.as_tensor(ellipse_image(geometry), device=device)[None, None]
    exact = torch.as_tensor(ellipse_integrals(geometry, rays=4), device=device)[None, None]
    error = projector(phantom) - exact
    # Most of this error is that the phantom has pixels, so the limit follows the pixel's size.
    limit = 0.015 * (256 / side) if well_sampled and side <= 256 else 0.015 if well_sampled else math.inf
    name = "P against exact line integrals of ellipses, relative RMS"
    at_most("line integrals", name, float(error.norm() / exact.norm()), limit)
    try:
        fbp = FBP(geometry).to(device)
    except InputError:
        pass  # this scan has no FBP here
    else:
        inside = torch.as_tensor(geometry.scan_circle(), device=device)
        psnr = -10 * math.log10(float((fbp(exact)[0, 0] - phantom[0, 0])[inside].square().mean()))
        enough = well_sampled and not is_limited(geometry)
        least = 40 - 20 * math.log10(max(1.0, 256 / side)) if enough else -math.inf
        rows.append(Check("fbp", "FBP of ellipses from exact data, PSNR in dB", psnr, least, psnr >= least))

    for images in (8, 1):
        stack, data = image.float().expand(images, -1, -1, -1), sinogram.float().expand(images, -1, -1, -1)
        for symbol, operator, x in (
            ("P", projector, stack),
            ("Pᵀ", projector.T, data),
            ("B", backprojector, data),
            ("Bᵀ", backprojector.T, stack),
        ):
            milliseconds = _milliseconds(partial(operator.unchecked, x), images, 3)
            at_most("time", f"time of {symbol}, ms an image, {images} at once", milliseconds, math.inf)
    return rows
