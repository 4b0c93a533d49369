"""Where in the sinogram a scan is inconsistent, and whose map of it to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

#: Ends the names of detectors that look at the largest residuals.
TOP = "-top"


@dataclass(frozen=True, slots=True, eq=False)
class InconsistencyMap:
    """Where a scan is inconsistent.

    Attributes:
        detector: whose map it is.
        values: (views, bins) float32, in standard deviations of clean scans.
    """

    detector: str
    values: NDArray[np.float32]

    @property
    def peak(self) -> tuple[int, int]:
        """View and bin, counted from 0, of the value that is farthest from 0; the first of several."""
        view, bin_ = np.unravel_index(int(np.abs(self.values).argmax()), self.values.shape)
        return int(view), int(bin_)

    @property
    def height(self) -> float:
        """The value at the peak."""
        return float(self.values[self.peak])

    @property
    def views(self) -> tuple[int, int]:
        """First and last view around the peak of the same value: what the map does not tell apart."""
        view, bin_ = self.peak
        return _alike(self.values[:, bin_], view)

    @property
    def bins(self) -> tuple[int, int]:
        """First and last bin around the peak of the same value; all of them where a detector sees whole views."""
        view, bin_ = self.peak
        return _alike(self.values[view], bin_)

    @property
    def mirrored(self) -> bool:
        """Whether a change shows at either of two rays, because both are on one line: the map does not say which."""
        return self.detector.removesuffix(TOP) == "complementary-rays"

    @property
    def rays(self) -> int:
        """How many rays share the place that the peak is at."""
        (first, last), (left, right) = self.views, self.bins
        return (last - first + 1) * (right - left + 1) * (2 if self.mirrored else 1)

    @property
    def place(self) -> str:
        """Where the peak is, in words, no finer than the map can say."""
        whole = self.bins == (0, self.values.shape[1] - 1)
        return _span("view", self.views) + ("" if whole else f", {_span('bin', self.bins)}")


def _alike(values: NDArray[np.float32], place: int) -> tuple[int, int]:
    """First and last of the equal values around a place."""
    other = np.flatnonzero(values != values[place])
    before, after = other[other < place], other[other > place]
    return (int(before[-1]) + 1 if len(before) else 0), (int(after[0]) - 1 if len(after) else len(values) - 1)


def _span(what: str, ends: tuple[int, int]) -> str:
    return f"{what} {ends[0]}" if ends[0] == ends[1] else f"{what}s {ends[0]} to {ends[1]}"


def suspicion_order(p_values: Mapping[str, float | None], beyond: Mapping[str, float]) -> tuple[str, ...]:
    """Detectors by how suspicious they find a scan, the most suspicious first.

    Args:
        p_values: of the scan by each detector; None without enough clean scans.
        beyond: how far its score is above the median of clean ones, in spreads; decides between equal ones.
    """
    return tuple(sorted(p_values, key=lambda name: (p_values[name] or 0.0, -beyond[name])))


def spreads_beyond(score: float, clean: Tensor) -> float:
    """How far a score is above the median of clean ones (n,), in their median absolute deviations."""
    middle = clean.median()
    return float((score - middle) / (clean - middle).abs().median().clamp_min(1e-300))


def telling_map(
    order: Sequence[str], p_values: Mapping[str, float | None], map_of: Callable[[str], Tensor | None]
) -> InconsistencyMap | None:
    """The map that says best where: of those that say most and equally much, the finest at its peak, then the highest.

    Args:
        order: detectors, the most suspicious first.
        p_values: of each; None without enough clean scans.
        map_of: (views, bins) map of a detector, or None where it has none.
    """
    best: InconsistencyMap | None = None
    for name in order:
        if best is not None and (p_values[name] is None or p_values[name] != p_values[best.detector]):
            break
        values = map_of(name)
        if values is None:
            continue
        candidate = InconsistencyMap(name, values.float().cpu().numpy())
        if best is None or (-candidate.rays, abs(candidate.height)) > (-best.rays, abs(best.height)):
            best = candidate
    return best
