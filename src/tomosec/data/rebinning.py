"""Rays of a multi-row scanner, sorted into the rays of one fan beam: single-slice rebinning.

Each ray of a helical or axial scan crosses the wanted slice at one place only. Single-slice rebinning (Noo, Defrise and
Clackdoyle, Phys. Med. Biol. 44:561, 1999) takes, for each ray of the slice's fan, the measured ray above or below it that crosses
the slice where it is nearest to the axis, and shortens its line integral by the cosine of its tilt. The fan of the result is
centered on the detector's focal center; rays from a focal spot beside it (a flying focal spot) are sorted to where they belong in
that fan.

Lengths in mm, angles in rad, in the scanner's frame: the focal center of the view at t is R(−sin t, cos t), the columns of the
detector follow (cos t, sin t), and row 1 has the largest z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector with its focal center.

    Attributes:
        columns: number of columns, the bins of the fan.
        rows: number of rows.
        column_mm: pitch of the columns, along the arc of a curved detector.
        row_mm: pitch of the rows.
        central_column: where the line through focal center and isocenter hits the detector, counted from 1 at the first column.
        central_row: the same for rows.
        radius_mm: distance R of the focal center from the isocenter.
        distance_mm: distance of the focal center from the central element.
        curved: on an arc around the focal center, else flat.
    """

    columns: int
    rows: int
    column_mm: float
    row_mm: float
    central_column: float
    central_row: float
    radius_mm: float
    distance_mm: float
    curved: bool

    @property
    def places_mm(self) -> Floats:
        """Place of each column along the detector, 0 on the line through the isocenter, shape (columns,)."""
        return np.asarray((np.arange(1, self.columns + 1) - self.central_column) * self.column_mm, dtype=np.float64)

    @property
    def fan_angles(self) -> Floats:
        """Fan angle of each column, shape (columns,)."""
        ratio = self.places_mm / self.distance_mm
        return ratio if self.curved else np.arctan(ratio)


class FocalSpot:
    """Where the rays from one focal spot to the columns of the detector belong in the fan of the focal center.

    Attributes:
        is_centered: the spot is the focal center, so that nothing moves in the plane.
        places_mm: where each ray would hit a detector around the focal center, shape (columns,).
        turns: by how much the view angle of that fan exceeds the view's own, shape (columns,).
        to_axis_mm: distance along each ray, in the plane, from the spot to where it is nearest to the axis, shape (columns,).
        to_detector_mm: the same to the detector, shape (columns,).
    """

    def __init__(self, detector: Detector, angle_shift: float, radial_shift: float) -> None:
        # In the frame of the view: (along the detector, from the isocenter to the focal center).
        radius = detector.radius_mm + radial_shift
        spot = np.array([-radius * np.sin(angle_shift), radius * np.cos(angle_shift)])
        gamma = detector.fan_angles
        reach = detector.distance_mm / (1.0 if detector.curved else np.cos(gamma))
        element = np.stack([reach * np.sin(gamma), detector.radius_mm - reach * np.cos(gamma)], axis=-1)
        ray = element - spot
        self.to_detector_mm = np.hypot(ray[:, 0], ray[:, 1])
        direction = ray / self.to_detector_mm[:, None]
        self.to_axis_mm = -(direction @ spot)
        true_gamma = np.arctan2(direction[:, 0], -direction[:, 1])
        signed_distance = spot[0] * np.cos(true_gamma) + spot[1] * np.sin(true_gamma)
        fan_gamma = np.arcsin(signed_distance / detector.radius_mm)
        self.turns = true_gamma - fan_gamma
        self.places_mm = detector.distance_mm * (fan_gamma if detector.curved else np.tan(fan_gamma))
        self.is_centered = angle_shift == 0 and radial_shift == 0


def rebin_view(
    detector: Detector, spot: FocalSpot, values: NDArray[np.floating], focal_z: float, spot_z: float, slice_z: float
) -> Floats:
    """Return the fan of a slice as one view sees it; NaN where the rows of the detector do not reach.

    Args:
        detector: the detector.
        spot: the view's focal spot.
        values: line integrals, (rows, columns).
        focal_z: z of the detector's focal center.
        spot_z: z of the focal spot.
        slice_z: z of the slice.

    Returns:
        Shape (columns,), at ``detector.places_mm``; the columns beyond the outermost measured ray repeat it.
    """
    # Where the ray through (slice_z, nearest to the axis) hits the detector, above or below the spot.
    rise = (slice_z - spot_z) * spot.to_detector_mm / spot.to_axis_mm
    row = detector.central_row - 1 - (spot_z + rise - focal_z) / detector.row_mm
    outside = (row < -0.5) | (row > detector.rows - 0.5)
    row = np.clip(row, 0, detector.rows - 1)
    lower = np.minimum(row.astype(np.int64), max(detector.rows - 2, 0))
    upper = np.minimum(lower + 1, detector.rows - 1)
    column = np.arange(detector.columns)
    part = row - lower
    found = (1 - part) * values[lower, column] + part * values[upper, column]
    found = found * spot.to_detector_mm / np.hypot(spot.to_detector_mm, rise)
    found[outside] = np.nan
    if spot.is_centered:
        return np.asarray(found, dtype=np.float64)
    return np.asarray(np.interp(detector.places_mm, spot.places_mm, found), dtype=np.float64)


def turn_views(detector: Detector, fan: Floats, spots: Sequence[FocalSpot], step: float) -> Floats:
    """Give every ray of a full circle the view angle of its row, where focal spots moved it.

    Args:
        detector: the detector.
        fan: (views, columns) in equal steps around a full circle; view i is of the focal spot i modulo their number.
        spots: the focal spots, in the order in which they take turns.
        step: signed angle between neighboring views.

    Returns:
        Shape (views, columns): linear interpolation between views of the same focal spot.
    """
    out = fan.copy()
    period = len(spots)
    for first, spot in enumerate(spots):
        if spot.is_centered:
            continue
        own = fan[first::period]
        shift = -np.interp(detector.places_mm, spot.places_mm, spot.turns) / (period * step)
        whole = np.floor(shift).astype(np.int64)
        part = shift - whole
        index = np.arange(len(own))[:, None] + whole[None, :]
        lower = np.take_along_axis(own, index % len(own), axis=0)
        upper = np.take_along_axis(own, (index + 1) % len(own), axis=0)
        out[first::period] = (1 - part) * lower + part * upper
    return out


def fill_from_complements(detector: Detector, fan: Floats, step: float) -> tuple[Floats, int]:
    """Put p(β + π + 2γ, −γ), the same line seen from its other end, where a ray of a full circle was not measured.

    Args:
        detector: the detector.
        fan: (views, columns) in equal steps around a full circle, NaN where not measured.
        step: signed angle between neighboring views.

    Returns:
        The fan, bilinear in view and column where it was filled and still NaN where neither end was measured, and how many
        rays were filled. The few columns that a detector off its middle has on one side only take the outermost one's.
    """
    view, column = np.nonzero(np.isnan(fan))
    if not len(view):
        return fan, 0
    count = len(fan)
    row = view + (np.pi + 2 * detector.fan_angles[column]) / step
    place = np.clip(2 * (detector.central_column - 1) - column, 0, detector.columns - 1)
    lower_row, lower_place = np.floor(row).astype(np.int64), np.minimum(np.floor(place).astype(np.int64), detector.columns - 2)
    b, a = row - lower_row, place - lower_place
    found = np.zeros(len(view))
    for dr, wr in ((0, 1 - b), (1, b)):
        for dc, wc in ((0, 1 - a), (1, a)):
            weight = wr * wc
            # A weight of 0 must not let the NaN of its neighbor through.
            found += np.where(weight > 0, weight * fan[(lower_row + dr) % count, lower_place + dc], 0.0)
    out = fan.copy()
    out[view, column] = found
    return out, int(np.isfinite(found).sum())
