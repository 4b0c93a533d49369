"""Spectral signatures: poison stands out along the first singular direction of its class."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from tomosec.defenses._representations import Array, by_class, principal, representations, why_no_representation
from tomosec.defenses._samples import insist
from tomosec.defenses.base import ModelContext, Need, SampleFilter, ScanContext, TrainingContext


class SpectralSignatures(SampleFilter):
    """Squared correlation with the first right singular vector of the centered representations of a class.

    Centered in both places, as published; released codes score features that are not centered. Scores keep their scale, so a
    class whose first direction is wide ranks high; the paper removes 1.5 times the expected share of poison from each class.
    """

    kind: Literal["spectral-signatures"] = "spectral-signatures"
    version: Literal[1] = 1
    needs: ClassVar[frozenset[Need]] = frozenset({"training-samples", "weights"})
    source: ClassVar[str] = "Tran et al., NeurIPS 2018"

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """It looks at what the last layer reads."""
        return why_no_representation(context)

    def suspicion(self, context: TrainingContext) -> Tensor:
        """Score each class."""
        insist(self, context)
        features, labels = representations(context)
        return by_class(labels, lambda positions: _judge(features[positions]))


def _judge(features: Array) -> Array:
    points = principal(features, 1)
    return points[:, 0] ** 2 if points.shape[1] else np.zeros(len(features))
