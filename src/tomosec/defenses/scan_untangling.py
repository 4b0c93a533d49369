"""SCAn: a class whose representations are two groups, not one, was contaminated."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from tomosec.defenses._representations import (
    Array,
    by_class,
    invertible,
    principal,
    representations,
    why_no_representation,
)
from tomosec.defenses._samples import insist
from tomosec.defenses.activation_clustering import two_means
from tomosec.defenses.base import ModelContext, Need, SampleFilter, ScanContext, TrainingContext
from tomosec.randomness import generator


class ScanUntangling(SampleFilter):
    """Likelihood ratio of two groups against one in each class, with a covariance that all classes share (SCAn).

    The ratio J = sum |r - mean|² - sum |r - mean of its group|² is taken of representations r that are whitened by the
    covariance within classes; the groups are those with the largest J. The paper refers J to a chi-square with a number of
    parameters that does not grow with the slices, and then, against its own hypothesis, to the median over classes. Choosing the
    groups, though, gains 2n/pi on n slices of a single group, so that large clean classes would always be significant. The null
    here is what the same search finds in Gaussian classes of the same size and dimension and of the common covariance; a class
    whose J is not above all but ``level`` of them scores 0. Elsewhere a slice scores the standardized J times its membership in
    the smaller group, from 0 to 1.

    Attributes:
        dimensions: principal axes of all slices.
        draws: Gaussian classes; the smallest p-value is 1 / (draws + 1).
        level: of the test.
    """

    kind: Literal["scan-untangling"] = "scan-untangling"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"training-samples", "weights"})
    source: ClassVar[str] = "Tang et al., USENIX Security 2021 (SCAn)"

    dimensions: int = Field(16, ge=1)
    draws: int = Field(99, ge=19)
    level: float = Field(0.05, gt=0, lt=1)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """It looks at what the last layer reads."""
        return why_no_representation(context)

    def suspicion(self, context: TrainingContext) -> Tensor:
        """Whiten all, and test each class."""
        kind = insist(self, context)
        features, labels = representations(context)
        points = principal(features, min(self.dimensions, max(1, len(features) // 8)))
        if points.shape[1] == 0:
            return by_class(labels, lambda positions: np.zeros(len(positions)))
        whitened = _whitened_within(points, labels)

        def judge(positions: NDArray[np.intp]) -> Array:
            return self._judge(whitened[positions], context.seed, kind)

        return by_class(labels, judge)

    def _judge(self, points: Array, seed: int, kind: str) -> Array:
        ratio, smaller = untangle(points)
        rng = generator(seed, kind, "null", len(points))
        null = np.array([untangle(rng.standard_normal(points.shape))[0] for _ in range(self.draws)])
        if (1 + np.sum(null >= ratio)) / (self.draws + 1) > self.level:
            return np.zeros(len(points))
        large, small = points[~smaller].mean(axis=0), points[smaller].mean(axis=0)
        # Log likelihood ratio of the two groups, which share a covariance.
        evidence = 0.5 * (((points - large) ** 2).sum(axis=1) - ((points - small) ** 2).sum(axis=1))
        scores: Array = (ratio - null.mean()) / max(float(null.std()), 1e-12) / (1 + np.exp(-evidence.clip(-500, 500)))
        return scores


def untangle(points: Array) -> tuple[float, NDArray[np.bool_]]:
    """J of the best two groups of whitened points (n, k), and the members (n,) of the smaller one."""
    axes = principal(points, points.shape[1])
    smaller = two_means(axes)
    if not smaller.any():
        return 0.0, smaller
    share, apart = smaller.mean(), axes[smaller].mean(axis=0) - axes[~smaller].mean(axis=0)
    return float(len(points) * share * (1 - share) * (apart**2).sum()), smaller


def _whitened_within(points: Array, labels: NDArray[np.int64]) -> Array:
    """Points (n, k) times the inverse root of their covariance within classes."""
    residuals = points.copy()
    for label in np.unique(labels):
        residuals[labels == label] -= points[labels == label].mean(axis=0)
    covariance = residuals.T @ residuals / max(1, len(points) - len(np.unique(labels)))
    whitened: Array = np.linalg.solve(np.linalg.cholesky(invertible(covariance, points)), points.T).T
    return whitened
