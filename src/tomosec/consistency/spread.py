"""The mean and spread of a residual over clean scans, fitted while they stream by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tomosec.errors import InputError

#: Scans that the noise model, or the mean over all rays, is worth beside the scans that a ray's own variance is from.
PRIOR_SCANS = 8.0


class Moments:
    """Running mean and variance, elementwise, float64 (Welford 1962; batches as in Chan, Golub and LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self._squares: Tensor = torch.zeros(())

    def update(self, values: Tensor) -> None:
        """Add (B, ...) values."""
        values = values.double()
        if len(values) == 0:
            return
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        if self.count == 0:
            self.count, self.mean, self._squares = len(values), mean, squares
            return
        total, difference = self.count + len(values), mean - self.mean
        self.mean = self.mean + difference * (len(values) / total)
        self._squares = self._squares + squares + difference.square() * (self.count * len(values) / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Unbiased; of two values or more."""
        return self._squares / max(1, self.count - 1)


class SpreadFit:
    """Mean and spread of a residual over clean scans, while they stream by.

    The variance of a residual of scan i is modeled as that of the scan's own noise plus what the noise model does not explain,
    g v_i + e, elementwise, because patients differ in size and so in noise, while the misfit of a discretization or a
    calibration does not follow the dose. Without a noise model v = 0. Where scans are few, an element's variance is shrunk to
    that of the noise model, without one to what is usual among the elements.

    Args:
        exact: whether v is the residual's variance itself (g = 1), not only proportional to it.
        usual: quantile of the elements' variances that is usual; None for their mean.
    """

    def __init__(self, *, exact: bool, usual: float | None = None) -> None:
        self._exact, self._usual = exact, usual
        self._values, self._nominal = Moments(), Moments()

    def update(self, values: Tensor, nominal: Tensor | None) -> None:
        """Add residuals (B, ...) and their nominal variances, which broadcast to them; None where no noise model is at hand."""
        if self._values.count and (nominal is None) != (self._nominal.count == 0):
            raise InputError("calibration scans: some have a noise model (noise_sd) and some do not")
        self._values.update(values)
        if nominal is not None:
            self._nominal.update(nominal)

    def finish(self) -> Spread:
        """The fitted spread."""
        found, count = self._values.variance, self._values.count
        has_model = self._nominal.count > 0
        nominal = self._nominal.mean.expand_as(found) if has_model else torch.zeros_like(found)
        level, gain = float(found.mean()), 1.0
        if float(nominal.sum()) > 0:
            if not self._exact:
                lit = nominal > 0
                gain = float((found[lit] / nominal[lit]).median())
            prior = gain * nominal
        else:
            usual = level if self._usual is None else float(np.quantile(found.cpu().numpy(), self._usual))
            prior = torch.full_like(found, usual)
        shrunk = ((count - 1) * found + PRIOR_SCANS * prior) / (count - 1 + PRIOR_SCANS)
        excess = (shrunk - gain * nominal).clamp_min(0)
        floor = 1e-9 * level + 1e-30  # elements that never vary, such as air without noise, must not divide by 0
        return Spread(self._values.mean, excess, gain if has_model else 0.0, floor, has_model)


@dataclass(frozen=True, slots=True)
class Spread:
    """What :class:`SpreadFit` found.

    Attributes:
        mean: of the residual.
        excess: variance that the noise model does not explain.
        gain: g, the factor of the nominal variance.
        floor: smallest variance that is divided by.
        has_model: whether the clean scans came with a noise model.
    """

    mean: Tensor
    excess: Tensor
    gain: float
    floor: float
    has_model: bool

    def whiten(self, values: Tensor, nominal: Tensor | None) -> Tensor:
        """Residuals (B, ...) in units of their clean spread.

        Raises:
            InputError: the calibration scans had a noise model, and these have none.
        """
        variance = self.excess.to(values)
        if self.has_model:
            if nominal is None:
                raise InputError(
                    "these scans have no noise model (noise_sd), but the calibration scans had one; give both or neither"
                )
            variance = variance + self.gain * nominal.to(values)
        return (values - self.mean.to(values)) / variance.clamp_min(self.floor).sqrt()

    def to(self, device: torch.device | str) -> Spread:
        """The same on another device."""
        return replace(self, mean=self.mean.to(device), excess=self.excess.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """For a profile."""
        numbers = torch.tensor([self.gain, self.floor, float(self.has_model)], dtype=torch.float64)
        return {"mean": self.mean.cpu(), "excess": self.excess.cpu(), "spread": numbers}

    @classmethod
    def restored(cls, mean: Tensor, excess: Tensor, numbers: Tensor) -> Spread:
        """Inverse of :meth:`tensors`."""
        gain, floor, has_model = numbers.tolist()
        return cls(mean, excess, gain, floor, bool(has_model))
