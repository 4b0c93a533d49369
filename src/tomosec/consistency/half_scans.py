"""Even and odd views make two images of the same object."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from tomosec.consistency.residual import Residual
from tomosec.errors import InputError, LimitedAngleWarning
from tomosec.geometry import Geometry
from tomosec.reconstruction.fbp import FBP


class HalfDifference(Residual):
    """R(even views) − R(odd views) inside the scan circle, (B, pixels), in 1/mm."""

    exact_noise = False

    def __init__(self, geometry: Geometry) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LimitedAngleWarning)  # what both images lack, their difference lacks
            self._fbp = FBP(geometry)
        self._circle = torch.from_numpy(geometry.scan_circle())
        # FBP is linear, and half the views count double: 2 R(even) − 2 R(odd) is one reconstruction.
        self._sign = 2.0 * (-1.0) ** torch.arange(geometry.views)[:, None]

    def values(self, p: Tensor) -> Tensor:
        """The difference."""
        image: Tensor = self._fbp.to(p.device)(p * self._sign.to(p))
        return image[:, 0, self._circle.to(p.device)].double()

    def nominal(self, variance: Tensor) -> Tensor:
        """The mean of the rays', at a level that the calibration finds."""
        return variance.mean((1, 2, 3))[:, None]


def why_not_halves(geometry: Geometry) -> str:
    """Return why a scan does not make two images; an empty string where it does."""
    if geometry.views < 4:
        return f"needs 4 views or more; this scan has {geometry.views}"
    try:
        HalfDifference(geometry)
    except InputError as error:
        return str(error)
    return ""
