"""Helgason-Ludwig conditions: the moments of the views of an object are trigonometric polynomials of low degree."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tomosec.consistency.helgason_ludwig import FREQUENCIES, ORDERS, ForbiddenMoments, why_not_moments
from tomosec.defenses.residuals import ResidualDetector
from tomosec.geometry import Geometry


class HelgasonLudwig(ResidualDetector):
    """Helgason-Ludwig moments, of parallel rays or in fan coordinates: those that vanish for every object must vanish.

    With θ the direction and s the distance of a ray, and P_n Legendre's polynomials on the detector's width S,

        M(n, k) = Σ p P_n(s / S) exp(−i k θ) Δs Δθ = 0    where |k| > n or n − k is odd.

    In fan coordinates θ = β + γ, s = R sin γ and ds dθ = R cos γ dγ dβ, so nothing is rebinned. The score is the mean of the
    squared forbidden moments, each in units of its clean spread. Needs a whole turn (parallel rays: half a turn) in equal steps,
    and objects that are not truncated. Moments of low order see little of fine patterns in noise.

    Attributes:
        orders: largest n.
        frequencies: largest k, or a quarter of the views of a turn where that is less.
    """

    kind: Literal["helgason-ludwig"] = "helgason-ludwig"
    version: Literal[1] = 1
    source: ClassVar[str] = (
        "Helgason 1965; Ludwig 1966; in fan coordinates: Yu, Wei, Hsieh and Wang, IEEE Trans. Med. Imaging 25, 2006"
    )
    adaptive: ClassVar[frozenset[str]] = frozenset({"ltgm-body-confined", "ltgm-consistent", "ltgm-range-projected"})

    orders: int = Field(ORDERS, ge=0, le=20)
    frequencies: int = Field(FREQUENCIES, ge=1, le=400)

    def why_not_scan(self, geometry: Geometry) -> str:
        """Why the views do not go around."""
        return why_not_moments(geometry)

    def residual(self, geometry: Geometry) -> ForbiddenMoments:
        """The forbidden moments."""
        return ForbiddenMoments(geometry, self.orders, self.frequencies)
