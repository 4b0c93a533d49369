"""Measured data: the line integrals of one scan, with the geometry that they were measured in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam

if TYPE_CHECKING:
    from torch import Tensor


def require_finite(values: NDArray[Any], where: str) -> None:
    """Raise for the first NaN or infinity in an array whose last axis is the bin.

    Args:
        values: (bins,) or (views, bins).
        where: names the array in the message.

    Raises:
        InputError: a value is not finite; the message gives its place and how many there are.
    """
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        place = ", ".join(f"{axis} {index}" for axis, index in zip(("view", "bin")[-values.ndim :], bad[0], strict=True))
        raise InputError(
            f"{where}: {values[tuple(bad[0])]} at {place} (counted from 0; {len(bad)} such of {values.size}); line integrals are "
            "finite numbers"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """One measured scan, ready for reconstruction: what every reader of measured data returns.

    >>> scan = ParallelBeam(views=2, bins=3, bin_mm=1.0, shape=(3, 3), pixel_mm=1.0)
    >>> Measurement(np.zeros((2, 3), dtype=np.float32), scan, "water").sinogram().shape
    torch.Size([1, 1, 2, 3])

    Attributes:
        line_integrals: (views, bins) float32 line integrals, without unit, after every correction of the source and the log.
        geometry: where each of them was measured, and the image grid that is asked for.
        key: names the scan, unique within what was read together.
        attributes: header facts under the source's own names, and what the reader did to the data.
        repeats: second measurements of a view, (bins,) float32 by the index of the view. They are not part of
            ``line_integrals``; the difference of the two, divided by √2, is a sample of the noise.

    Raises:
        InputError: arrays of another shape than the geometry's or of another type than float32, a value that is not finite, or
            a repeat of a view that is not there.
    """

    line_integrals: NDArray[np.float32]
    geometry: FanBeam | ParallelBeam
    key: str
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    repeats: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        views, bins = self.geometry.sinogram_shape
        self._check(self.line_integrals, (views, bins), "line_integrals")
        for view, row in self.repeats.items():
            if not 0 <= view < views:
                raise InputError(f"{self.key}: repeats has a view {view}, and the scan has views 0 to {views - 1}")
            self._check(row, (bins,), f"repeats[{view}]")

    def _check(self, values: NDArray[np.float32], shape: tuple[int, ...], name: str) -> None:
        if not isinstance(values, np.ndarray) or values.dtype != np.float32:
            found = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
            raise InputError(f"{self.key}: {name} is {found}; a numpy array of float32 is needed")
        if values.shape != shape:
            raise InputError(f"{self.key}: {name} has shape {values.shape} and the geometry {shape}")
        require_finite(values, f"{self.key}: {name}")

    def sinogram(self) -> Tensor:
        """Return a copy of the line integrals as operators and networks take them: (1, 1, views, bins) float32, on the CPU."""
        import torch  # here, because reading and checking data needs none

        return torch.tensor(self.line_integrals)[None, None]
