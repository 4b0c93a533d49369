"""Reprojection: what is left of a scan when the image that explains it best is projected and subtracted."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tomosec.consistency.reprojection import STEPS, Unexplained
from tomosec.consistency.residual import Residual
from tomosec.defenses.residuals import ResidualDetector
from tomosec.geometry import Geometry


class ReprojectionResidual(ResidualDetector):
    """Reprojection residual: χ² per ray of p − A x, with x the least-squares image after a few steps of CGLS.

    r = p − A x, and the score is the mean of r² in units of its clean spread (χ²/dof of the scanner's own clean scans, not of an
    ideal one), or that of its largest values. It applies to every geometry. Few steps leave edges of the object in r, many
    steps fit the noise; both are in the clean spread. Data that are consistent pass, however they were changed (Gandikota et al.
    2024 find adversarial low-dose reconstructions that are).

    Attributes:
        steps: of CGLS from zero.
    """

    kind: Literal["reprojection-residual"] = "reprojection-residual"
    version: Literal[1] = 1
    source: ClassVar[str] = "standard; steps by Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49:409, 1952"
    adaptive: ClassVar[frozenset[str]] = frozenset({"ltgm-body-confined", "ltgm-consistent", "ltgm-range-projected"})

    steps: Annotated[int, Field(ge=1, le=200)] = STEPS

    def residual(self, geometry: Geometry) -> Residual:
        """What the image does not explain."""
        return Unexplained(geometry, self.steps)
