"""What filters of training slices look at: the representation of each slice, class by class."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tomosec.defenses._layers import copied, finished, last_linear
from tomosec.defenses._samples import CHUNK
from tomosec.defenses.base import ModelContext, ScanContext, TrainingContext

Array = NDArray[np.float64]

#: Fewer slices of a class than this have no clusters to speak of, and are not suspected.
LEAST = 4


def why_no_representation(context: ScanContext | ModelContext | TrainingContext) -> str:
    """Why there are no representations; empty where there are."""
    if not isinstance(context, TrainingContext):
        return ""
    if last_linear(context.network) is None:
        return "needs a linear layer at the end of the network, and there is none"
    counts = [list(context.samples.targets).count(label) for label in range(len(context.classes))]
    if max(counts, default=0) < LEAST:
        return f"needs a class of at least {LEAST} training slices; the largest has {max(counts, default=0)}"
    return ""


@torch.no_grad()
def representations(context: TrainingContext) -> tuple[Array, NDArray[np.int64]]:
    """Representation (N, F) and label (N,) of each training slice, in order; images are read in batches."""
    network = finished(copied(context.network, context.device))
    features, labels = [], []
    for batch in context.samples.batches(CHUNK):
        features.append(network.representation(batch.images.to(context.device)).flatten(1).double().cpu().numpy())
        labels.append(batch.targets.cpu().numpy())
    return np.concatenate(features), np.concatenate(labels).astype(np.int64)


def by_class(labels: NDArray[np.int64], judge: Callable[[NDArray[np.intp]], Array]) -> Tensor:
    """(N,) scores, from ``judge``, which scores the slices of one class at the given positions; 0 for classes too small."""
    scores = np.zeros(len(labels))
    for positions in _classes(labels):
        scores[positions] = judge(positions)
    return torch.from_numpy(scores)


def _classes(labels: NDArray[np.int64]) -> Iterator[NDArray[np.intp]]:
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        if len(positions) >= LEAST:
            yield positions


def principal(features: Array, dimensions: int) -> Array:
    """(n, k) coordinates of the centered features along their first k principal axes; k is at most the rank.

    Networks compute in single precision, so slices that are read alike may differ by rounding: that is no axis.
    """
    centered = features - features.mean(axis=0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    rank = int(np.sum(s > 1e-6 * float(np.linalg.norm(features))))
    kept = min(dimensions, rank)
    projected: Array = u[:, :kept] * s[:kept]
    return projected


def invertible(covariance: Array, points: Array) -> Array:
    """Covariance (k, k) of some of the points (n, k), with a millionth of its mean variance added to the diagonal.

    It is at least 1e-12 of that of all points: where most of them are equal, what is unlike them is far, but not infinitely.
    """
    ridge = max(1e-6 * float(np.trace(covariance)) / len(covariance), 1e-12 * float(points.var(axis=0).mean()))
    added: Array = covariance + ridge * np.eye(len(covariance))
    return added
