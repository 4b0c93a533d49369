"""Run the GPU kernels in Triton's interpreter and store what they return: ``python interpreted_kernels.py results.npz``.

A process of its own, because Triton decides whether to interpret when kernels are defined. Each result is stored as
``scan | function | what``.
"""

from __future__ import annotations

import math
import os
import sys

import numpy as np
import torch

from tomosec.geometry import FanBeam, Geometry, ParallelBeam

FUNCTIONS = ("project", "project_t", "backproject", "backproject_t")
_small = {"shape": (6, 7), "pixel_mm": 5.0}
_fan = {**_small, "bins": 9, "bin_mm": 9.0, "source_to_isocenter_mm": 70.0, "source_to_detector_mm": 120.0}
_parallel = {**_small, "bins": 9, "bin_mm": 5.0}
#: Kernels treat these differently: detector, order of the bins, rounds of taps, several programs, images beyond the fan.
TINY: dict[str, Geometry] = {
    "flat, shifted": FanBeam(views=5, detector_offset_bins=-1.25, **_fan),
    "flat, axis off the central ray, clockwise": FanBeam(views=5, axis_offset_mm=4.0, start=2.0, arc=-4.0, **_fan),
    "curved, everything off": FanBeam(
        views=5, detector="curved", axis_offset_mm=-6.0, detector_offset_bins=0.25, start=0.7, **_fan
    ),
    "diagonal views, image wider than the fan": FanBeam(views=4, start=math.pi / 4, **(_fan | {"bins": 4})),
    "views of one kind, explicit": FanBeam(angles=(0.1, -3.0, 6.0), **_fan),
    "parallel, high image, shifted": ParallelBeam(
        views=5, start=0.3, arc=-2 * math.pi, detector_offset_bins=0.5, **(_parallel | {"shape": (9, 5)})
    ),
    "bins wider than four pixels": FanBeam(views=3, **(_fan | {"bins": 4, "bin_mm": 40.0})),
    "pixels wider than four bins": FanBeam(views=3, detector="curved", **(_fan | {"bins": 37, "bin_mm": 1.9})),
    "blocks that divide nothing": ParallelBeam(
        views=3, bins=141, bin_mm=0.8, shape=(9, 19), pixel_mm=5.0, start=-1.0, arc=2.0
    ),
    "one pixel, one bin, one view": FanBeam(views=1, **(_fan | {"bins": 1, "shape": (1, 1)})),
}  # fmt: skip


def argument(function: str, geometry: Geometry, images: int = 3) -> torch.Tensor:
    """Return float64 input of a function: the same on every call."""
    shape = geometry.shape if function in ("project", "backproject_t") else geometry.sinogram_shape
    return torch.rand((images, 1, *shape), dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def unit(function: str, geometry: Geometry) -> torch.Tensor:
    """Return one float32 input for each of a function's columns."""
    shape = argument(function, geometry).shape[2:]
    return torch.eye(shape[0] * shape[1]).reshape(-1, 1, *shape)


def main(path: str) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    from tomosec.operators import gpu

    np.seterr(invalid="ignore")  # lanes without a bin divide 0 by 0, and nobody reads them
    results = {}
    for name, geometry in TINY.items():
        for function in FUNCTIONS:
            run = getattr(gpu, function)
            x = argument(function, geometry)
            results[f"{name} | {function} | float64"] = run(x, geometry)
            results[f"{name} | {function} | float32"] = run(x.float(), geometry)
    name = "curved, everything off"
    geometry = TINY[name]
    for function in FUNCTIONS:
        run = getattr(gpu, function)
        x = argument(function, geometry).float()
        results[f"{name} | {function} | again"] = run(x, geometry)
        results[f"{name} | {function} | strided"] = run(x.transpose(2, 3).contiguous().transpose(2, 3), geometry)
        results[f"{name} | {function} | alone"] = run(x[1:2], geometry)
        results[f"{name} | {function} | nobody"] = run(x[:0], geometry)
        results[f"{name} | {function} | matrix"] = run(unit(function, geometry), geometry)
        x[1, 0, 3, 4] = torch.nan
        results[f"{name} | {function} | not a number"] = run(x, geometry)
    np.savez(path, **{key: value.numpy() for key, value in results.items()})


if __name__ == "__main__":
    main(sys.argv[1])
