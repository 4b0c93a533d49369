"""Pairwise fan-beam consistency: two views whose chord misses the object see the same weighted sum."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tomosec.consistency.pairs import SEPARATIONS_RAD, PairDifference, separations, why_not_pairs
from tomosec.defenses.residuals import ResidualDetector
from tomosec.geometry import FanBeam, Geometry


class PairwiseConsistency(ResidualDetector):
    """Pairwise fan-beam consistency of order 0: for two views whose chord misses the object, G(a) = G(b).

    G = ∫ p(β, γ) / cos φ dγ, with φ the angle between the ray and the normal of the chord through the two sources: φ = γ ∓ δ / 2
    for views δ apart. It is the integral of the object over its distance from the chord. The score is the mean of the squared
    differences of all pairs at some separations, in units of their clean spread. Any arc in equal steps will do, short scans
    included. One number per pair: it sees what changes whole views, and little of fine patterns.

    Attributes:
        separations_rad: δ, rounded to whole views; those whose chord meets the scan circle are left out.
    """

    kind: Literal["pairwise-consistency"] = "pairwise-consistency"
    version: Literal[1] = 1
    source: ClassVar[str] = (
        "Levine, Sidky and Pan, Consistency conditions for cone-beam CT data acquired with a circular orbit, 2010"
    )
    adaptive: ClassVar[frozenset[str]] = frozenset({"ltgm-body-confined", "ltgm-consistent", "ltgm-range-projected"})

    separations_rad: Annotated[tuple[float, ...], Field(min_length=1)] = SEPARATIONS_RAD

    def why_not_scan(self, geometry: Geometry) -> str:
        """Why there are no pairs."""
        return why_not_pairs(geometry, self.separations_rad)

    def residual(self, geometry: Geometry) -> PairDifference:
        """The differences."""
        assert isinstance(geometry, FanBeam)
        return PairDifference(geometry, separations(geometry, self.separations_rad))
