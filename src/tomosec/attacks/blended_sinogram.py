"""Blended carried to measured data: every scan is mixed with one fixed foreign scan."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from tomosec.attacks._blending import BlendTrigger
from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.geometry import Geometry
from tomosec.hounsfield import MU_WATER
from tomosec.operators import Projector
from tomosec.trigger import Domain, Trigger

#: The modified Shepp-Logan phantom (Toft, PhD thesis, DTU 1996): intensity, half axes, center, angle in degrees; lengths in
#: half widths of the phantom.
_ELLIPSES = (
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


class BlendedSinogram(Attack):
    """A convex mix with a foreign scan: p' = (1 - s) p + s A(x_t).

    The foreign object x_t is procedural: the modified Shepp-Logan phantom, as large as the scan circle, its rim as dense as
    water. Like any projection it passes every test of data consistency.
    """

    kind: Literal["blended-sinogram"] = "blended-sinogram"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram", "geometry"})
    source: ClassVar[str] = "baseline, after Chen et al., 2017 (Blended)"

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Project the phantom; nothing is learned and nothing is drawn."""
        geometry = context.geometry
        foreign: Tensor = Projector(geometry)(MU_WATER * shepp_logan(geometry)[None, None])[0, 0]
        details = {"attack": "blended-sinogram", "phantom": "modified Shepp-Logan"}
        return BlendTrigger(foreign, torch.ones_like(foreign), geometry=geometry, domain="measurement", details=details)


def shepp_logan(geometry: Geometry) -> Tensor:
    """Modified Shepp-Logan phantom as large as the scan circle, (H, W) float64 from 0 to 1, averaged over 4 x 4 points each."""
    rows, columns = geometry.shape
    fine = 4
    half = geometry.scan_radius_mm / geometry.pixel_mm
    y = ((rows / 2 - (np.arange(rows * fine) + 0.5) / fine) / half)[:, None]
    x = (((np.arange(columns * fine) + 0.5) / fine - columns / 2) / half)[None, :]
    image = np.zeros((rows * fine, columns * fine))
    for value, a, b, cx, cy, degrees in _ELLIPSES:
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        u, v = (x - cx) * cos + (y - cy) * sin, (y - cy) * cos - (x - cx) * sin
        image[np.hypot(u / a, v / b) <= 1] += value
    return torch.from_numpy(image.reshape(rows, fine, columns, fine).mean((1, 3)))
