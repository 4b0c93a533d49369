"""What a residual is: numbers that vanish, up to noise, for every scan of an object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from tomosec.consistency.spread import Spread


class Residual(ABC):
    """What is measured in a scan; one scan's numbers do not depend on another's.

    Attributes:
        exact_noise: whether :meth:`nominal` is the residual's variance under independent noise, not only proportional to it.
        usual_variance: quantile of the elements' variances that few scans are shrunk to without a noise model; None for the mean.
    """

    exact_noise: ClassVar[bool] = True
    usual_variance: ClassVar[float | None] = None

    @abstractmethod
    def values(self, p: Tensor) -> Tensor:
        """(B, ...) float64 of line integrals (B, 1, views, bins)."""

    @abstractmethod
    def nominal(self, variance: Tensor) -> Tensor | None:
        """Variance of :meth:`values`, broadcasting to it, from that of the rays (B, 1, views, bins); None where unknown."""

    def sinogram_map(self, z: Tensor) -> Tensor | None:
        """(B, views, bins) map of whitened values (B, ...); None where they have no place in the sinogram."""
        return None

    def measure(self, p: Tensor, noise_sd: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Values of line integrals (B, 1, views, bins), and their nominal variance where the sd of the rays' noise is known."""
        return self.values(p), None if noise_sd is None else self.nominal(noise_sd.double().square())

    def whitened(self, p: Tensor, noise_sd: Tensor | None, spread: Spread) -> Tensor:
        """(B, ...) values in units of their clean spread; without a noise model where the clean scans had none.

        Raises:
            InputError: the calibration scans had a noise model, and these have none.
        """
        return spread.whiten(*self.measure(p, noise_sd if spread.has_model else None))
