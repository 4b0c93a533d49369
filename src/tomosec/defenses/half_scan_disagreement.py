"""Even and odd views make two images of the same object."""

from __future__ import annotations

from typing import ClassVar, Literal

from tomosec.consistency.half_scans import HalfDifference, why_not_halves
from tomosec.consistency.residual import Residual
from tomosec.defenses.residuals import ResidualDetector
from tomosec.geometry import Geometry


class HalfScanDisagreement(ResidualDetector):
    """Half-scan disagreement: images from even and from odd views must differ by noise alone.

    The score is the mean square of R(even) − R(odd), filtered backprojection inside the scan circle, in units of its clean
    spread. It sees what changes from view to view. What is the same in neighboring views, such as a streak of one bin, it misses,
    and coarse sampling adds the object's own edges to both.
    """

    kind: Literal["half-scan-disagreement"] = "half-scan-disagreement"
    version: Literal[1] = 1
    source: ClassVar[str] = "interleaved views as in noise estimation; test of this project"
    adaptive: ClassVar[frozenset[str]] = frozenset({"ltgm-body-confined", "ltgm-consistent", "ltgm-range-projected"})

    def why_not_scan(self, geometry: Geometry) -> str:
        """Why there are no two images."""
        return why_not_halves(geometry)

    def residual(self, geometry: Geometry) -> Residual:
        """The difference of the two images."""
        return HalfDifference(geometry)
