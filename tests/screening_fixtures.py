"""Scans of discs in discs with photon noise, by exact line integrals: clean ones of a scanner that need no operator of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tomosec.data.measured import Measurement
from tomosec.geometry import FanBeam, ParallelBeam

FAN = FanBeam(
    views=48, bins=40, bin_mm=8.0, shape=(32, 32), pixel_mm=5.0, source_to_isocenter_mm=535.0, source_to_detector_mm=940.0
)  # fmt: skip
PARALLEL = ParallelBeam(views=40, bins=40, bin_mm=4.0, shape=(32, 32), pixel_mm=5.0)
PHOTONS = 2e4


def rays(geometry: FanBeam | ParallelBeam) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals (views, bins, 2) and distances from the isocenter (views, bins); a ray is where normal·x = distance."""
    t = geometry.view_angles[:, None]
    if isinstance(geometry, ParallelBeam):
        angle, distance = t + 0 * geometry.bin_centers_mm, geometry.bin_centers_mm + 0 * t
    else:
        # A ray at fan angle γ of the view at t is that of a parallel beam at t + γ, R sin γ off the isocenter.
        angle, distance = t + geometry.fan_angles, geometry.source_to_isocenter_mm * np.sin(geometry.fan_angles) + 0 * t
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1), distance


def chords(geometry: FanBeam | ParallelBeam, discs: list[tuple[float, float, float, float]]) -> np.ndarray:
    """Line integrals (views, bins) of discs (1/mm, radius, x, y in mm), added up."""
    normal, distance = rays(geometry)
    out = np.zeros(geometry.sinogram_shape)
    for value, radius, x, y in discs:
        off = distance - normal @ np.array([x, y])
        out += value * 2 * np.sqrt(np.clip(radius**2 - off**2, 0, None))
    return out


def body(seed: int, radius: float) -> list[tuple[float, float, float, float]]:
    """A body of water of about that radius in mm, with three organs of other attenuation."""
    rng = np.random.default_rng(seed)
    size = radius * rng.uniform(0.8, 1.0)
    parts = [(0.0192, size, *rng.uniform(-0.05, 0.05, 2) * radius)]
    return parts + [
        (rng.uniform(-0.01, 0.01), rng.uniform(0.1, 0.25) * radius, *rng.uniform(-0.4, 0.4, 2) * radius) for _ in range(3)
    ]


def counted(line_integrals: np.ndarray, photons: float, seed: int) -> np.ndarray:
    """With photon noise."""
    rng = np.random.default_rng((seed, 1))
    return -np.log(rng.poisson(photons * np.exp(-line_integrals)).clip(1) / photons)


def scan(
    seed: int, geometry: FanBeam | ParallelBeam = FAN, *, key: str = "", photons: float = PHOTONS, **attributes: Any
) -> Measurement:
    """A clean scan of one patient."""
    exact = chords(geometry, body(seed, 0.72 * geometry.scan_radius_mm))
    values = counted(exact, photons, seed).astype(np.float32)
    return Measurement(values, geometry, key or f"p{seed:04d}", {"photons": photons, **attributes})


def planted(clean: Measurement, strength: float = 0.15) -> Measurement:
    """With a patch that no object makes: views 20 to 25, bins 15 to 20."""
    values = clean.line_integrals.copy()
    values[20:26, 15:21] += np.float32(strength)
    return Measurement(values, clean.geometry, clean.key, clean.attributes)


PATCH = (slice(20, 26), slice(15, 21))


def write(folder: Path, scans: list[Measurement], *, geometry: bool = True) -> Path:
    """Files of the neutral form."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in scans:
        content: dict[str, Any] = {"line_integrals": one.line_integrals, "attributes": json.dumps(dict(one.attributes))}
        if geometry:
            content["geometry"] = one.geometry.model_dump_json()
        np.savez(folder / f"{one.key}.npz", **content)
    return folder
