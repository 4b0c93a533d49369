"""The Fourier wedge: the sinogram of an object inside a circle has next to no energy at most of its 2-D frequencies."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tomosec.consistency.fourier_wedge import OutsideWedge, Wedge, why_not_outside
from tomosec.defenses.residuals import ResidualDetector
from tomosec.geometry import Geometry


class FourierWedge(ResidualDetector):
    """Fourier wedge: an object inside a circle has no energy at the frequencies that only a faster track could have.

    Of a fan with the source at L and an object of radius R, the 2-D Fourier transform over view k and fan angle q is nearly 0
    unless −R / (L + R) <= −k / q <= R / (L − R); of parallel rays, unless |k / q| <= R. The rest, back in the sinogram, is the
    residual, and the score its mean square in units of its clean spread, or that of its largest values. Needs a whole turn
    (parallel rays: half a turn) in equal steps. A symmetrized trigger does not pass it.

    Attributes:
        radius_mm: R; None takes the scan circle. A smaller one sees more, if every object is smaller.
    """

    kind: Literal["fourier-wedge"] = "fourier-wedge"
    version: Literal[2] = 2
    source: ClassVar[str] = (
        "parallel: Edholm, Lewitt and Lindholm, Proc. SPIE 671, 1986; fan: Mazin and Pelc, Med. Phys. 37, 2010"
    )
    adaptive: ClassVar[frozenset[str]] = frozenset({"ltgm-body-confined", "ltgm-consistent", "ltgm-range-projected"})

    radius_mm: Annotated[float, Field(gt=0)] | None = None

    def why_not_scan(self, geometry: Geometry) -> str:
        """Why there is no wedge, or nothing outside it."""
        return why_not_outside(geometry, self.radius_mm)

    def residual(self, geometry: Geometry) -> OutsideWedge:
        """The part outside."""
        return OutsideWedge(Wedge(geometry, radius_mm=self.radius_mm))
