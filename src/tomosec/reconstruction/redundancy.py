"""What each measured ray counts for in filtered backprojection: the angle its view stands for, and how often it was seen.

A full circle of a fan beam sees every ray twice, a short scan sees some rays twice and some once, and views need not be
equal steps. The weights here make every ray count once.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np

from tomosec.errors import InputError, LimitedAngleWarning
from tomosec.geometry import FanBeam, Floats, Geometry

_SAME = 1e-9  # rad; views closer than this look in one direction
_HOLE = 4.0  # a gap this many times the typical one is no step between views
_LARGE = math.pi / 12  # holes inside the arc below this are a matter of sampling, not of a limited angle


class Coverage(NamedTuple):
    """What the views cover.

    Attributes:
        positions: Angle of each view from the low end of the arc, rad, shape (views,).
        shares: Angle that each view stands for, rad, shape (views,); their sum is ``arc``.
        arc: Angle from the low end to the high end, rad. Parallel views a half turn apart are one view, so at most π there.
        closed: Whether the arc has no ends: a full circle, or half a turn of parallel views.
        holes: Angle inside the arc where views are missing, rad.
    """

    positions: Floats
    shares: Floats
    arc: float
    closed: bool
    holes: float = 0.0


def coverage(geometry: Geometry) -> Coverage:
    """Return what the views of a scan cover.

    Equal steps stand for one step each. Explicit angles come in any order and each stands for half the distance to its two
    neighbors; the first and the last stand for as much outside the arc as inside. The arc ends at the largest gap, and is closed
    where no gap is more than four times the median one. Parallel views are folded onto half a turn first: the view at t + π
    is the one at t mirrored.

    Raises:
        InputError: fewer than two directions.
    """
    period = 2 * math.pi if isinstance(geometry, FanBeam) else math.pi
    angles = geometry.view_angles
    order = np.argsort(np.mod(angles, period), kind="stable")
    ordered = np.mod(angles, period)[order]
    gaps = np.diff(ordered, append=ordered[0] + period)
    steps = np.sort(gaps[gaps > _SAME])
    if len(steps) < 2:
        turns = "half turns" if period == math.pi else "turns"
        raise InputError(
            f"fbp: the {geometry.views} view(s) look in one direction (up to whole {turns}); that covers no arc, and FBP needs "
            "views all around"
        )
    if geometry.angles is None and abs(geometry.arc) < period * (1 - _SAME):
        step = abs(geometry.arc) / geometry.views
        positions = np.asarray((np.arange(geometry.views) + 0.5) * step, dtype=np.float64)
        shares = np.full(geometry.views, step)
        return Coverage(positions if geometry.arc > 0 else positions[::-1], shares, abs(geometry.arc), closed=False)

    positions, shares = np.empty(geometry.views), np.empty(geometry.views)
    is_hole = gaps > _HOLE * steps[(len(steps) - 1) // 2]
    if geometry.angles is None or not is_hole.any():
        shares[order] = (gaps + np.roll(gaps, 1)) / 2
        positions[order] = ordered - ordered[0]
        return Coverage(positions, shares, period, closed=True)
    first = int(np.argmax(gaps)) + 1
    order, inner, is_hole = np.roll(order, -first), np.roll(gaps, -first)[:-1], np.roll(is_hole, -first)[:-1]
    real = inner[inner > _SAME]
    halves = np.concatenate([real[:1], inner, real[-1:]]) / 2
    shares[order] = halves[:-1] + halves[1:]
    positions[order] = halves[0] + np.concatenate([[0.0], np.cumsum(inner)])
    holes = float(inner[is_hole & (inner > _LARGE)].sum())
    return Coverage(positions, shares, float(halves[0] + halves[-1] + inner.sum()), closed=False, holes=holes)


def needed_arc(geometry: Geometry) -> float:
    """Return the arc, rad, that measures every ray through the scan circle: π, and for a fan the fan that holds the circle more.

    The circle of the image counts, not the whole detector: a detector wider than the image's circle asks for no longer arc.
    """
    if not isinstance(geometry, FanBeam):
        return math.pi
    source_radius = math.hypot(geometry.source_to_isocenter_mm, geometry.axis_offset_mm)
    return math.pi + 2 * math.asin(geometry.scan_radius_mm / source_radius)


def is_limited(geometry: Geometry) -> bool:
    """Whether the views leave rays through the scan circle unmeasured; raises InputError as :func:`coverage` does."""
    found = coverage(geometry)
    return found.holes > 0 or (not found.closed and found.arc < needed_arc(geometry) * (1 - _SAME))


def parker_weights(positions: Floats, angles: Floats, arc: float) -> Floats:
    """Return the share in its ray of each measurement in an open arc of a fan beam; a ray's measurements sum to 1.

    The ray at β with the fan angle α is also the ray at β + π + 2α with −α. One whose two views both lie in the arc is
    shared between them by sin² and cos², which rise from 0 at both ends of the arc; a ray that is seen once counts whole. For an
    arc of π + 2 α_max these are the weights of Parker (Med. Phys. 9:254, 1982), for longer ones those of Silver (Med. Phys.
    27:773, 2000), and for shorter ones what remains of them.

    Args:
        positions: β, the angle of the view from the low end of the arc, counter-clockwise, rad.
        angles: α, the angle from the ray through the isocenter, rad, positive towards growing bins.
        arc: Angle of the arc, rad, less than 2π.

    Returns:
        The broadcast shape of ``positions`` and ``angles``, 0..1.
    """
    beta, alpha = np.broadcast_arrays(np.asarray(positions, dtype=np.float64), np.asarray(angles, dtype=np.float64))
    weights = np.ones(beta.shape)
    # Seen again later; seen before. The two never meet in less than a turn.
    for distance, zone in ((beta, arc - math.pi - 2 * alpha), (arc - beta, arc - math.pi + 2 * alpha)):
        inside = distance < zone
        weights[inside] = np.sin(math.pi / 2 * distance[inside] / zone[inside]) ** 2
    return weights


def measure_weights(geometry: Geometry) -> Floats:
    """Return the angle that each measurement stands for, so that the sum over all measurements counts every ray once, rad.

    Args:
        geometry: The scan. LimitedAngleWarning is given where it does not measure every ray through the scan circle.

    Returns:
        Shape (views, bins), or with a 1 for an axis along which the weights are equal.

    Raises:
        InputError: fewer than two directions, or a detector that misses the isocenter.
    """
    if geometry.fan_radius_mm == 0:
        raise InputError(
            "fbp: the detector misses the isocenter (check bins, detector_offset_bins and axis_offset_mm), so no pixel is seen "
            "in every view"
        )
    found = coverage(geometry)
    if is_limited(geometry):
        warnings.warn(
            f"the views cover {math.degrees(found.arc - found.holes):.1f}°, but to measure every ray through the scan circle "
            f"takes {math.degrees(needed_arc(geometry)):.1f}° without a gap: edges along the rays that are missing stay "
            "invisible, with streaks and wrong values around them, and no filter can put that right",
            LimitedAngleWarning,
            stacklevel=3,
        )
    shares = found.shares[:, None]
    if isinstance(geometry, FanBeam):
        if not found.closed:
            # An axis off the central ray is a centered fan whose ray through the isocenter has another number.
            center = math.atan2(geometry.axis_offset_mm, geometry.source_to_isocenter_mm)
            return shares * parker_weights(found.positions[:, None], geometry.fan_angles - center, found.arc)
        shares = shares / 2  # a full circle sees every ray twice
    return shares.mean(keepdims=True) if np.allclose(shares, shares.mean(), rtol=1e-6, atol=0) else shares
