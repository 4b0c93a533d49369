"""Purification by consistency: a scan is replaced by one that an object could have given."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.consistency.fourier_wedge import Wedge, why_not_wedge
from tomosec.defenses.base import ModelContext, Need, Purification, ScanContext, ScanPurifier, Scans, TrainingContext
from tomosec.defenses.calibration import check_scans
from tomosec.errors import NotApplicable
from tomosec.geometry import Geometry
from tomosec.operators import Projector
from tomosec.operators.complementary import symmetrize, why_not_complementary
from tomosec.reconstruction.fbp import FBP
from tomosec.reconstruction.iterative import cgls


class _Projection(Purification):
    def __init__(self, purifier: ConsistentProjection, geometry: Geometry) -> None:
        self._purifier, self._geometry = purifier, geometry
        self._wedge = Wedge(geometry, radius_mm=purifier.radius_mm) if purifier.method == "wedge" else None
        self._projector = Projector(geometry)
        self._fbp = FBP(geometry) if purifier.method == "cgls" else None

    @torch.no_grad()
    def purify(self, scans: Scans) -> Tensor:
        """(B, 1, views, bins), type of the scans."""
        check_scans(scans, self._geometry, "consistent-projection")
        p = scans.line_integrals
        if self._wedge is not None:
            return (p.double() - self._wedge.project_out(p)).to(p.dtype)
        if self._fbp is not None:
            start = self._fbp.to(p.device)(p)
            projected: Tensor = self._projector.unchecked(cgls(p, self._projector, steps=self._purifier.steps, x0=start))
            return projected
        return symmetrize(self._geometry, p.double()).to(p.dtype)


class ConsistentProjection(ScanPurifier):
    """Consistent projection: takes out of a scan what no object could have put in.

    ``complementary`` averages the two measurements of every line, (p + C p) / 2; ``wedge`` takes out the frequencies outside the
    Fourier wedge; ``cgls`` replaces p by A x with x from filtered backprojection and a few steps of CGLS. The image changes
    little: what is inconsistent hardly reaches it, so a trigger that is read from the image mostly stays. The resolution of
    ``cgls`` is that of the image grid.

    Attributes:
        method: how.
        steps: of CGLS, from filtered backprojection.
        radius_mm: of the wedge's circle; None takes the scan circle.
    """

    kind: Literal["consistent-projection"] = "consistent-projection"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram", "geometry"})
    source: ClassVar[str] = "standard model-based reconstruction; purifier of this project"
    adaptive: ClassVar[frozenset[str]] = frozenset(
        {"ltgm-body-confined", "ltgm-consistent", "ltgm-range-projected", "ltgm-symmetrized"}
    )

    method: Literal["complementary", "wedge", "cgls"] = "cgls"
    steps: Annotated[int, Field(ge=1, le=200)] = 4
    radius_mm: Annotated[float, Field(gt=0)] | None = None

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """Why the method has nothing to work on."""
        if not isinstance(context, ScanContext):
            return "needs measured data"
        if self.method == "complementary":
            return why_not_complementary(context.geometry)
        return why_not_wedge(context.geometry) if self.method == "wedge" else ""

    def fit(self, context: ScanContext) -> Purification:
        """Prepare; no clean scan is read.

        Raises:
            NotApplicable: the method has nothing to work on.
        """
        if reason := self.why_not(context):
            raise NotApplicable(f"consistent-projection ({self.method}): {reason}")
        return _Projection(self, context.geometry)
