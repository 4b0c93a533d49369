"""Pairs of fan-beam views whose chord misses the object see the same weighted sum."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tomosec.consistency.residual import Residual
from tomosec.geometry import FanBeam, Floats, Geometry

#: How far the views of a pair are apart, rad, if nothing is said.
SEPARATIONS_RAD = (0.05, 0.15, 0.4, 0.8, 1.2)


def separations(geometry: FanBeam, wanted_rad: tuple[float, ...]) -> tuple[int, ...]:
    """Return in how many views the pairs are apart: those wanted whose chord misses the scan circle and whose views exist."""
    step = abs(float(np.diff(geometry.view_angles[:2])[0]))
    source = math.hypot(geometry.source_to_isocenter_mm, geometry.axis_offset_mm)
    limit = geometry.views // 2 if geometry.is_full_circle else geometry.views - 1
    found = {max(1, round(angle / step)) for angle in wanted_rad}
    return tuple(sorted(n for n in found if n <= limit and source * math.cos(n * step / 2) > geometry.scan_radius_mm))


class PairDifference(Residual):
    """G(a) − G(b) of the pairs of views that are 1, 2, ... separations apart, (B, separations, views); 0 without a partner."""

    def __init__(self, geometry: FanBeam, apart: tuple[int, ...]) -> None:
        step = float(np.diff(geometry.view_angles[:2])[0])
        ratio = geometry.bin_edges_mm / geometry.source_to_detector_mm
        width = np.diff(np.arctan(ratio) if geometry.detector == "flat" else ratio)
        alpha = geometry.fan_angles - math.atan2(geometry.axis_offset_mm, geometry.source_to_isocenter_mm)

        def weights(angle: float) -> Floats:
            return np.asarray(width / np.cos(alpha + angle))

        self._first = torch.from_numpy(np.stack([weights(-n * step / 2) for n in apart]))
        self._second = torch.from_numpy(np.stack([weights(n * step / 2) for n in apart]))
        self._apart, self._views, self._closed = apart, geometry.views, geometry.is_full_circle
        self._bins = geometry.bins

    def _pairs(self, first: Tensor, second: Tensor, sign: float) -> Tensor:
        """First of each view, and ``sign`` times second of its partner, (B, separations, views)."""
        rows = []
        for row, n in enumerate(self._apart):
            total = first[:, row] + sign * second[:, row].roll(-n, dims=-1)
            if not self._closed:
                total[:, self._views - n :] = 0
            rows.append(total)
        return torch.stack(rows, dim=1)

    def values(self, p: Tensor) -> Tensor:
        """The differences."""
        lines = p[:, 0].double().transpose(1, 2)
        return self._pairs(self._first.to(p.device) @ lines, self._second.to(p.device) @ lines, -1.0)

    def nominal(self, variance: Tensor) -> Tensor:
        """Σ v w² of both views."""
        lines = variance[:, 0].transpose(1, 2)
        first, second = self._first.square().to(variance.device), self._second.square().to(variance.device)
        return self._pairs(first @ lines, second @ lines, 1.0)

    def sinogram_map(self, z: Tensor) -> Tensor:
        """The root mean square over its pairs of each view, the same for all its bins: a pair does not say where in the view."""
        squares = z.square()
        both = torch.stack([squares[:, row] + squares[:, row].roll(n, dims=-1) for row, n in enumerate(self._apart)]).mean(0) / 2
        return both.sqrt()[:, :, None].expand(-1, -1, self._bins)


def why_not_pairs(geometry: Geometry, wanted_rad: tuple[float, ...] = SEPARATIONS_RAD) -> str:
    """Return why a scan has no pairs so far apart; an empty string where it has."""
    if not isinstance(geometry, FanBeam):
        return "needs a fan beam; for parallel rays helgason-ludwig holds the same condition (n = 0)"
    steps = np.diff(geometry.view_angles)
    if geometry.views < 3 or not np.allclose(steps, steps[0], rtol=1e-6, atol=0):
        return "needs three views or more, in equal steps and in the order of the rotation"
    if not separations(geometry, wanted_rad):
        return f"no two views {wanted_rad} rad apart have a chord that misses the scan circle"
    return ""
