"""Several predictions of one scan, and what they say together."""

from __future__ import annotations

import torch
from torch import Tensor

from tomosec.analysis.networks import Classifier
from tomosec.defenses.base import ModelContext, Readings, ScanContext, Scans, TrainingContext
from tomosec.defenses.calibration import check_scans
from tomosec.errors import NotApplicable
from tomosec.pipeline import ImagingChain


def why_no_chain(context: ScanContext | ModelContext | TrainingContext) -> str:
    """Return why there is nothing to reconstruct and predict with, or an empty string."""
    if not isinstance(context, ModelContext):
        return "needs the analysis network"
    return "" if context.imaging is not None else "needs measured data and their reconstruction; only images are at hand"


def chain_of(context: ModelContext, kind: str) -> tuple[ImagingChain, Classifier]:
    """The chain and the network; NotApplicable without a chain."""
    if context.imaging is None:
        raise NotApplicable(f"{kind}: {why_no_chain(context)}")
    return context.imaging, context.network


def checked(scans: Scans, imaging: ImagingChain, kind: str) -> Tensor:
    """The line integrals, checked, in the type that networks read."""
    check_scans(scans, imaging.geometry, kind)
    return scans.line_integrals.float()


def vote(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (B,) by majority, and the shares of the votes (B, classes), of predictions (M, B, classes).

    The mean probabilities count as one more vote, which settles ties and nothing else.
    """
    count, _, classes = probabilities.shape
    votes = torch.nn.functional.one_hot(probabilities.argmax(-1), classes).to(probabilities).sum(0)
    shares = (votes + probabilities.mean(0)) / (count + 1)
    return shares.argmax(-1), shares


def readings(probabilities: Tensor, radius: Tensor | None = None) -> Readings:
    """What predictions (M, B, classes) say together: their vote, and how much they disagree."""
    labels, shares = vote(probabilities)
    return Readings(labels, shares, disagreement(probabilities), radius)


def disagreement(probabilities: Tensor) -> Tensor:
    """(B,) float64 Jensen-Shannon divergence, in nats, of predictions (M, B, classes): 0 where all are the same."""
    p = probabilities.double()
    mean = p.mean(0)
    entropies = -torch.special.xlogy(p, p).sum(-1).mean(0)
    found: Tensor = (-torch.special.xlogy(mean, mean).sum(-1) - entropies).clamp_min(0)
    return found.cpu()
