"""Second differences of neighboring views: the noise, and what is as fine as the noise."""

from __future__ import annotations

from torch import Tensor

from tomosec.consistency.residual import Residual


class SecondDifferences(Residual):
    """p(β − Δ) − 2 p(β) + p(β + Δ), (B, views − 2, bins); of an object it vanishes as far as the views sample it finely."""

    def values(self, p: Tensor) -> Tensor:
        """The differences."""
        p = p[:, 0].double()
        return p[:, 2:] - 2 * p[:, 1:-1] + p[:, :-2]

    def nominal(self, variance: Tensor) -> Tensor:
        """Of independent rays."""
        v = variance[:, 0]
        return v[:, 2:] + 4 * v[:, 1:-1] + v[:, :-2]
