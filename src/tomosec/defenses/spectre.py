"""SPECTRE: spectral signatures after whitening by robust statistics."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.stats import chi2
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
from tomosec.defenses.base import ModelContext, Need, SampleFilter, ScanContext, TrainingContext


class Spectre(SampleFilter):
    """Quantum entropy score of representations that are whitened by a robust mean and covariance.

    In k principal axes, robust estimates whiten the class, Q = exp(alpha (S - 1) / (|S| - 1)) of the covariance S of the
    whitened class weighs its directions, and h' Q h / tr Q is the score; k is the one of 1, 2, 4, ... with the largest mean
    score. The robust estimates are those of the share 1 - 1.5 ``poison_rate`` of the slices that are closest by Mahalanobis
    distance, iterated from medians (concentration steps of the minimum covariance determinant, Rousseeuw and Van Driessen
    1999), in place of the paper's filter.

    Attributes:
        poison_rate: largest share of a class that may be poison; what the defender believes, not what is.
        alpha: sharpness of the entropy.
        dimensions: most principal axes.
    """

    kind: Literal["spectre"] = "spectre"
    version: Literal[1] = 1
    needs: ClassVar[frozenset[Need]] = frozenset({"training-samples", "weights"})
    source: ClassVar[str] = "Hayase et al., ICML 2021"

    poison_rate: float = Field(0.1, gt=0, le=0.3)
    alpha: float = Field(4.0, gt=0)
    dimensions: int = Field(64, ge=1)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """It looks at what the last layer reads."""
        return why_no_representation(context)

    def suspicion(self, context: TrainingContext) -> Tensor:
        """Score each class."""
        insist(self, context)
        features, labels = representations(context)
        return by_class(labels, lambda positions: self._judge(features[positions]))

    def _judge(self, features: Array) -> Array:
        # A covariance of k axes needs several times k slices.
        points = principal(features, min(self.dimensions, max(1, len(features) // 4)))
        best, k = np.zeros(len(points)), 1
        while k <= points.shape[1]:
            scores = self._scores(points[:, :k])
            best = scores if scores.mean() > best.mean() else best
            k *= 2
        return best

    def _scores(self, points: Array) -> Array:
        whitened = _robustly_whitened(points, 1 - 1.5 * self.poison_rate)
        values, axes = np.linalg.eigh(np.cov(whitened, rowvar=False).reshape(points.shape[1], -1))
        excess = values - 1
        weights = np.exp(self.alpha * (excess / max(float(excess.max()), 1e-12)).clip(-1, 1))
        scores: Array = ((whitened @ axes) ** 2 @ weights) / weights.sum()
        return scores


def _robustly_whitened(points: Array, share: float) -> Array:
    """Points (n, k) with the mean and covariance of their innermost ``share`` taken out."""
    kept = max(points.shape[1] + 1, int(np.ceil(share * len(points))))
    center = np.median(points, axis=0)
    spread = np.median(np.abs(points - center), axis=0)
    distance = (((points - center) / np.maximum(spread, 1e-9 * np.abs(points).max(axis=0))) ** 2).sum(axis=1)
    inner = np.sort(np.argsort(distance, kind="stable")[:kept])
    for _ in range(100):
        mean, covariance = _moments(points[inner], points)
        distance = ((points - mean) * np.linalg.solve(covariance, (points - mean).T).T).sum(axis=1)
        closest = np.sort(np.argsort(distance, kind="stable")[:kept])
        if np.array_equal(closest, inner):
            break
        inner = closest
    mean, covariance = _moments(points[inner], points)
    # The innermost share of a Gaussian has less than its covariance: the median distance of all says how much.
    white = np.linalg.solve(np.linalg.cholesky(covariance), (points - mean).T).T
    whitened: Array = white / np.sqrt(_median_scale(white))
    return whitened


def _moments(inner: Array, points: Array) -> tuple[Array, Array]:
    """Mean and covariance of the innermost of the points."""
    return inner.mean(axis=0), invertible(np.cov(inner, rowvar=False).reshape(inner.shape[1], -1), points)


def _median_scale(whitened: Array) -> float:
    return max(float(np.median((whitened**2).sum(axis=1)) / chi2.median(whitened.shape[1])), 1e-12)
