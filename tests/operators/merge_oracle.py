"""An independent oracle: both operators as dense float64 matrices, each overlap of two shadows formed by itself.

Nothing here shares an idea with the operators but the definition: lines are intersected as lines, intervals as intervals.
"""

from __future__ import annotations

import math

import numpy as np

from tomosec.geometry import FanBeam, Geometry


def _meet(point, direction, axis):
    """Return where the line from ``point`` along ``direction`` meets the x axis (axis 0) or the y axis (axis 1)."""
    other = 1 - axis
    return point[axis] - point[other] * direction[axis] / direction[other]


def _rays(geometry: Geometry, t: float):
    """Return, for one view, a function point → ray direction there, the rays of the bin edges, and the source or None."""
    e, n = np.array([math.cos(t), math.sin(t)]), np.array([-math.sin(t), math.cos(t)])
    edges = [(d - geometry.bins / 2 + geometry.detector_offset_bins) * geometry.bin_mm for d in range(geometry.bins + 1)]
    if not isinstance(geometry, FanBeam):
        return (lambda point: n), [(u * e, n) for u in edges], None
    source = geometry.source_to_isocenter_mm * n - geometry.axis_offset_mm * e
    far = geometry.source_to_detector_mm
    rays = []
    for u in edges:
        if geometry.detector == "flat":
            rays.append((source, far * -n + u * e))
        else:
            rays.append((source, math.cos(u / far) * -n + math.sin(u / far) * e))
    return (lambda point: point - source), rays, source


def dense(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Return P, shape (views · bins, rows · columns), and B, shape (rows · columns, views · bins)."""
    rows, columns = geometry.shape
    h = geometry.pixel_mm
    P = np.zeros((geometry.views, geometry.bins, rows, columns))
    B = np.zeros((rows, columns, geometry.views, geometry.bins))
    for v, t in enumerate(geometry.view_angles):
        direction_at, rays, source = _rays(geometry, t)
        degrees = math.degrees(t) % 180
        # The tie rule: 45° and 225° by rows, 135° and 315° by columns.
        axis = 0 if degrees <= 45 + 1e-6 or degrees > 135 + 1e-6 else 1
        marks = [_meet(point, direction, axis) for point, direction in rays]
        cosines = [abs(direction[1 - axis]) / np.hypot(*direction) for _, direction in rays]
        for r in range(rows):
            for c in range(columns):
                x, y = (c - columns / 2 + 0.5) * h, (rows / 2 - r - 0.5) * h
                step = np.array([h / 2, 0.0]) if axis == 0 else np.array([0.0, h / 2])
                ends = [np.array([x, y]) - step, np.array([x, y]) + step]
                low, high = sorted(_meet(end, direction_at(end), axis) for end in ends)
                weight = 1.0
                if source is not None:
                    away = np.array([x, y]) - source
                    n = np.array([-math.sin(t), math.cos(t)])
                    depth = -np.dot(away, n) if geometry.detector == "flat" else np.hypot(*away)
                    weight = (geometry.source_to_isocenter_mm / depth) ** 2
                for d in range(geometry.bins):
                    left, right = sorted(marks[d : d + 2])
                    overlap = min(high, right) - max(low, left)
                    if overlap > 0:
                        P[v, d, r, c] = overlap / (right - left) * h / ((cosines[d] + cosines[d + 1]) / 2)
                        B[r, c, v, d] = overlap / (high - low) * weight
    pixels, samples = rows * columns, geometry.views * geometry.bins
    return P.reshape(samples, pixels), B.reshape(pixels, samples)
