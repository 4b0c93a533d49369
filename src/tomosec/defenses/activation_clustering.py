"""Activation clustering: poisoned slices of a class form a second, smaller cluster."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.cluster.vq import kmeans2
from torch import Tensor

from tomosec.defenses._representations import Array, by_class, principal, representations, why_no_representation
from tomosec.defenses._samples import insist
from tomosec.defenses.base import ModelContext, Need, SampleFilter, ScanContext, TrainingContext


class ActivationClustering(SampleFilter):
    """Two clusters of the representations of each class; the smaller one is suspicious where it is small and well apart.

    Representations are reduced to their first principal axes (the paper takes independent components, which have unit variance:
    that divides out what poison adds) and split by 2-means. A class is suspected where the smaller cluster has at most the share
    ``largest`` of it. The score of a slice is the class's mean silhouette, by distances to the two centers, times the place of
    the slice between the centers, from 0 at that of the larger cluster to 1 at that of the smaller one. Slices of other classes
    score 0.

    Attributes:
        dimensions: principal axes.
        largest: share of its class above which a cluster is not suspected.
    """

    kind: Literal["activation-clustering"] = "activation-clustering"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"training-samples", "weights"})
    source: ClassVar[str] = "Chen et al., SafeAI 2019"

    dimensions: int = Field(10, ge=1)
    largest: float = Field(0.35, gt=0, le=0.5)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """It looks at what the last layer reads."""
        return why_no_representation(context)

    def suspicion(self, context: TrainingContext) -> Tensor:
        """Cluster each class."""
        insist(self, context)
        features, labels = representations(context)
        return by_class(labels, lambda positions: self._judge(features[positions]))

    def _judge(self, features: Array) -> Array:
        points = principal(features, self.dimensions)
        smaller = two_means(points)
        if not 0 < smaller.sum() <= self.largest * len(points):
            return np.zeros(len(points))
        to_large, to_small = (np.linalg.norm(points - points[members].mean(axis=0), axis=1) for members in (~smaller, smaller))
        margin = (to_large - to_small) / np.maximum(np.maximum(to_large, to_small), 1e-300)
        silhouette = float(np.where(smaller, margin, -margin).mean())
        scores: Array = max(silhouette, 0.0) * 0.5 * (1 + margin)
        return scores


def two_means(points: Array) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(n,) members of the smaller of two clusters; all False where the points do not split.

    Lloyd's iteration from the best of a few starts along the first axis, which need no random numbers.
    """
    best, least = np.zeros(len(points), dtype=bool), np.inf
    if points.shape[1] == 0:
        return best
    first = points[:, 0]
    # The middle as well: where most points are equal, the quantiles do not split them, or only those of one side.
    for threshold in (*np.quantile(first, (0.1, 0.5, 0.9)), (first.min() + first.max()) / 2):
        above = first > threshold
        if not 0 < above.sum() < len(points):
            continue
        centers, members = kmeans2(
            points, np.stack([points[~above].mean(axis=0), points[above].mean(axis=0)]), iter=100, minit="matrix"
        )
        spread = float(((points - centers[members]) ** 2).sum())
        if 0 < members.sum() < len(points) and spread < least:
            small = int(members.sum() <= len(points) / 2)
            best, least = members == small, spread
    return best
