"""Whether two scans were measured alike: the fields of their geometries that say where rays are, and where a circle begins."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tomosec.data.measured import Measurement
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam

#: Image grids are asked for, not measured.
_NOT_MEASURED = frozenset({"kind", "version", "shape", "pixel_mm"})
#: Relative; headers hold lengths in single precision.
_TOLERANCE = 1e-5


def geometry_differences(found: FanBeam | ParallelBeam, wanted: FanBeam | ParallelBeam) -> tuple[str, ...]:
    """Say in which measured fields two geometries differ, each as ``bins is 96, not 128``; the image grid is none of them.

    Where a whole turn begins is no difference either: see :func:`aligned`.
    """
    if found.kind != wanted.kind:
        return (f"kind is {found.kind}, not {wanted.kind}",)
    out = []
    one, other = found.model_dump(), wanted.model_dump()
    circles = _turns(found) and _turns(wanted)
    step = abs(wanted.arc) / wanted.views
    for name, value in one.items():
        target = other[name]
        if name in _NOT_MEASURED or (name == "start" and circles):
            continue
        if name == "angles":
            same = _same_angles(found, wanted, step)
            value, target = _listed(value), _listed(target)
        elif name == "start":
            same = abs(math.remainder(value - target, 2 * math.pi)) <= 1e-3 * step  # a turn further is the same place
        elif name in ("axis_offset_mm", "detector_offset_bins"):
            scale = wanted.bin_at_isocenter_mm if name == "axis_offset_mm" else 1.0
            same = math.isclose(value, target, rel_tol=_TOLERANCE, abs_tol=1e-3 * scale)
        elif isinstance(value, float):
            same = math.isclose(value, target, rel_tol=_TOLERANCE)
        else:
            same = value == target
        if not same:
            unit = " rad" if name in ("start", "arc") else ""
            out.append(f"{name} is {_shown(value)}{unit}, not {_shown(target)}{unit}")
    return tuple(out)


def aligned(scan: Measurement, geometry: FanBeam | ParallelBeam) -> Measurement:
    """Return the scan as one of ``geometry``, on that image grid.

    A whole turn in equal steps may begin at any view: its views are counted anew from the one nearest to the geometry's first.
    What is left, half a step at most, is the same as an object that lies a little turned.

    Raises:
        InputError: measured otherwise; the message names the fields.
    """
    found = scan.geometry
    differences = geometry_differences(found, geometry)
    if differences:
        raise InputError(f"{scan.key}: measured in another geometry: {'; '.join(differences)}")
    shift = round((geometry.start - found.start) / (geometry.arc / geometry.views)) % geometry.views if _turns(found) else 0
    if shift == 0:
        return replace(scan, geometry=geometry)
    return replace(
        scan,
        geometry=geometry,
        line_integrals=np.roll(scan.line_integrals, -shift, axis=0),
        repeats={(view - shift) % geometry.views: row for view, row in scan.repeats.items()},
        attributes={**scan.attributes, "firstView": float(shift)},
    )


def _turns(geometry: FanBeam | ParallelBeam) -> bool:
    return geometry.angles is None and geometry.is_full_circle


def _same_angles(found: FanBeam | ParallelBeam, wanted: FanBeam | ParallelBeam, step: float) -> bool:
    if found.angles is None or wanted.angles is None:
        return found.angles is wanted.angles
    return len(found.angles) == len(wanted.angles) and np.allclose(found.angles, wanted.angles, rtol=0, atol=1e-3 * step)


def _listed(angles: tuple[float, ...] | None) -> str:
    if angles is None:
        return "equal steps"
    return f"a list of {len(angles)} from {math.degrees(angles[0]):.4g}° to {math.degrees(angles[-1]):.4g}°"


def _shown(value: object) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)
