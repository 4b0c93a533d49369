"""Complementary rays: the two measurements of one line must agree."""

from __future__ import annotations

from typing import ClassVar, Literal

from tomosec.consistency.complementary_rays import difference, why_not_twice
from tomosec.consistency.residual import Residual
from tomosec.defenses.residuals import ResidualDetector
from tomosec.geometry import Geometry


class ComplementaryRays(ResidualDetector):
    """Complementary rays: a line measured from both sides must read the same, p(β, γ) = p(β + π + 2γ, −γ).

    The residual is r = p − C p, and the score is the mean of r²/(v + C v + e), or of its largest values. A centered whole turn is
    shifted exactly, and every ray has its partner. A short scan is judged where it measures lines twice, a scan with an offset
    detector or axis by interpolation. Half a turn of parallel rays measures every line once: not applicable.

    It misses whatever is the same from both sides: a constant, an object that is not there, a symmetrized trigger.
    """

    kind: Literal["complementary-rays"] = "complementary-rays"
    version: Literal[1] = 1
    source: ClassVar[str] = "Parker, Med. Phys. 9:254, 1982 (complementary rays); test of this project"
    adaptive: ClassVar[frozenset[str]] = frozenset(
        {"ltgm-body-confined", "ltgm-consistent", "ltgm-range-projected", "ltgm-symmetrized"}
    )

    def why_not_scan(self, geometry: Geometry) -> str:
        """Why no line, or hardly any, is measured twice."""
        return why_not_twice(geometry)

    def residual(self, geometry: Geometry) -> Residual:
        """The exact difference where every ray has its partner, else the partial one."""
        return difference(geometry)
