"""Triggers on another scan: a pattern over the rays of one geometry, read at the rays of another.

A ray has a direction θ and a signed distance s from the isocenter. The ray of a fan beam in the view at t with the fan angle γ
has θ = t + γ and s = R sin γ − τ cos γ (Kak and Slaney 1988, eq. 3.4.2, with the axis offset τ); a parallel ray has θ = t and its
detector coordinate for s. Through (θ, s) any of these scans finds its own view and detector coordinate of a ray of any other.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tomosec.errors import InputError, NotApplicable
from tomosec.geometry import FanBeam, Floats, Geometry, ParallelBeam
from tomosec.trigger import AdditiveTrigger, Trigger

#: Rounding of an angle, rad, and of a place along the detector, in bins, that takes no ray out of a scan.
_ROUNDING = 1e-9


def at_geometry(trigger: Trigger, geometry: Geometry) -> Trigger:
    """Return a trigger as it is applied to scans of ``geometry``.

    An image-domain trigger, and any trigger on its own geometry, stays as it is. One additive pattern of measured data is a
    function of the ray, with the amplitude that it has: :func:`resample_rays` reads it at the rays of ``geometry``, and the
    strength becomes the RMS of what it then adds. The details keep how much that changed.

    Args:
        trigger: with its strength.
        geometry: the scan it goes to; its image grid is that of the trigger's.

    Raises:
        InputError: ``geometry`` has another image grid.
        NotApplicable: the geometry is another, and the trigger is not one pattern of rays, or changes none that it measures.
    """
    own = trigger.geometry
    if (own.shape, own.pixel_mm) != (geometry.shape, geometry.pixel_mm):
        raise InputError(
            f"a trigger for images of {own.shape[0]} x {own.shape[1]} pixels of {own.pixel_mm:g} mm cannot go to a scan with "
            f"{geometry.shape[0]} x {geometry.shape[1]} pixels of {geometry.pixel_mm:g} mm; the grids have to be the same"
        )
    if trigger.domain == "image" or own == geometry:
        return trigger
    if not (isinstance(trigger, AdditiveTrigger) and trigger.universal):
        raise NotApplicable(
            f"a {trigger.kind} trigger is not one additive pattern of rays, so it cannot be read at those of another geometry"
        )
    if reason := why_not_resampled(own, geometry):
        raise NotApplicable(reason)
    unit = resample_rays(trigger.pattern[0, 0], own, geometry)
    rms = float(unit.double().pow(2).mean().sqrt())
    if rms == 0:
        raise NotApplicable("the trigger changes none of the rays that this geometry measures")
    details = {**trigger.details, "resampled_from": repr(own), "resampled_rms": rms}
    common = {"geometry": geometry, "domain": trigger.domain, "site": trigger.site, "details": details}
    return AdditiveTrigger(unit.double() / rms, strength=trigger.strength * rms, **common)


def why_not_resampled(source: Geometry, target: Geometry) -> str:
    """Return why rays of ``source`` cannot be found among those of ``target``, or an empty string where they can."""
    for geometry in (source, target):
        if not isinstance(geometry, (FanBeam, ParallelBeam)):
            return f"where the rays of a geometry of kind {geometry.model_dump().get('kind')!r} lie is not known"
    return ""


def resample_rays(pattern: Tensor, source: Geometry, target: Geometry) -> Tensor:
    """Read a pattern over the rays of one scan at the rays of another, by linear interpolation in view and detector.

    The views are periodic where they are equal steps around a full circle, or half a turn of parallel rays, whose second half is
    the first one mirrored. A view reaches half a step beyond the first and the last one, a bin to its edges; other rays are 0.
    A fan beam measures each line from both sides, and these are two rays. Nothing is smoothed where ``target`` is coarser.

    Args:
        pattern: (views, bins) of ``source``.
        source: the scan of the pattern.
        target: the scan whose rays are wanted.

    Returns:
        (views, bins) of ``target``, of the type and device of ``pattern``; the pattern itself where the geometries are equal.

    Raises:
        InputError: the pattern has another shape, or a geometry is neither a fan nor a parallel beam.
    """
    if tuple(pattern.shape) != source.sinogram_shape:
        raise InputError(
            f"a pattern of shape {tuple(pattern.shape)} is none of {source.sinogram_shape[0]} views x {source.bins} bins"
        )
    if reason := why_not_resampled(source, target):
        raise InputError(reason)
    if source == target:
        return pattern
    values = pattern.detach().cpu().double().numpy()
    view, place = _located(source, *_rays(target))
    angles, rows, mirrored = _views(source)
    half_first, half_last = (0.0, 0.0) if len(angles) < 2 else (np.diff(angles)[0] / 2, np.diff(angles)[-1] / 2)
    closed = math.isclose(angles[-1] - angles[0], 2 * math.pi, rel_tol=_ROUNDING)
    lowest = angles[0] if closed else angles[0] - half_first - _ROUNDING
    view = lowest + np.mod(view - lowest, 2 * math.pi)
    covered = np.isfinite(place)
    if not closed:
        covered &= view <= angles[-1] + half_last + _ROUNDING
    low, weight = _between(angles, view)
    high = np.minimum(low + 1, len(angles) - 1)
    out = (1 - weight) * _read(values, source, rows[low], np.where(mirrored[low], -place, place)) + weight * _read(
        values, source, rows[high], np.where(mirrored[high], -place, place)
    )
    return torch.from_numpy(np.where(covered, out, 0.0)).to(dtype=pattern.dtype, device=pattern.device)


def _rays(geometry: Geometry) -> tuple[Floats, Floats]:
    """Direction θ in rad and distance s in mm of every ray, (views, bins) each."""
    angles = geometry.view_angles[:, None]
    if not isinstance(geometry, FanBeam):
        shape = geometry.sinogram_shape
        return np.broadcast_to(angles, shape), np.broadcast_to(geometry.bin_centers_mm, shape)
    fan = geometry.fan_angles
    distance = geometry.source_to_isocenter_mm * np.sin(fan) - geometry.axis_offset_mm * np.cos(fan)
    return angles + fan, np.broadcast_to(distance, geometry.sinogram_shape)


def _located(geometry: Geometry, direction: Floats, distance: Floats) -> tuple[Floats, Floats]:
    """View angle in rad and place along the detector in mm at which a scan sees rays; NaN for a place where it sees none."""
    if not isinstance(geometry, FanBeam):
        return direction, distance
    radius, offset = geometry.source_to_isocenter_mm, geometry.axis_offset_mm
    # R sin γ - τ cos γ is a sine of the amplitude hypot(R, τ).
    sine = distance / math.hypot(radius, offset)
    fan = np.arcsin(np.where(np.abs(sine) < 1, sine, np.nan)) + math.atan2(offset, radius)
    along = geometry.source_to_detector_mm * (np.tan(fan) if geometry.detector == "flat" else fan)
    view = direction - np.where(np.isfinite(fan), fan, 0.0)
    return view, np.where(np.abs(fan) < math.pi / 2, along, np.nan)


def _views(geometry: Geometry) -> tuple[Floats, np.ndarray, np.ndarray]:
    """Growing view angles, the row of each, and whether its detector is mirrored; a closed scan ends where it began."""
    angles = geometry.view_angles
    rows = np.arange(len(angles))
    period = 2 * math.pi if geometry.is_full_circle else None
    mirrored = np.zeros(len(angles), dtype=bool)
    if isinstance(geometry, ParallelBeam) and geometry.is_half_circle:
        period = 2 * math.pi
        angles, rows, mirrored = (
            np.concatenate([angles, angles + math.pi]),
            np.concatenate([rows, rows]),
            np.concatenate([mirrored, ~mirrored]),
        )
    if period is not None:
        angles = np.mod(angles, period)
    order = np.argsort(angles, kind="stable")
    angles, rows, mirrored = angles[order], rows[order], mirrored[order]
    keep = np.append(True, np.diff(angles) > _ROUNDING)  # of views at one angle the first
    angles, rows, mirrored = angles[keep], rows[keep], mirrored[keep]
    if period is not None:
        angles, rows, mirrored = np.append(angles, angles[0] + period), np.append(rows, rows[0]), np.append(mirrored, mirrored[0])
    return angles, rows, mirrored


def _between(nodes: Floats, at: Floats) -> tuple[np.ndarray, Floats]:
    """Number of the node below and the weight of the one above, from 0 to 1; beyond the ends the outermost node counts."""
    if len(nodes) < 2:
        return np.zeros(at.shape, dtype=np.intp), np.zeros(at.shape)
    low = np.clip(np.searchsorted(nodes, at, side="right") - 1, 0, len(nodes) - 2)
    return low, np.clip((at - nodes[low]) / (nodes[low + 1] - nodes[low]), 0.0, 1.0)


def _read(values: Floats, geometry: Geometry, rows: np.ndarray, place: Floats) -> Floats:
    """Values of some rows at places along the detector in mm; 0 beyond the edges of the outermost bins."""
    edges, slack = geometry.bin_edges_mm, _ROUNDING * geometry.bin_mm
    inside = (place >= edges[0] - slack) & (place <= edges[-1] + slack)
    low, weight = _between(geometry.bin_centers_mm, np.where(inside, place, 0.0))
    high = np.minimum(low + 1, geometry.bins - 1)
    return np.where(inside, (1 - weight) * values[rows, low] + weight * values[rows, high], 0.0)
