"""Randomized smoothing of measured data, with what its certificate says and does not say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.special import betaincinv, ndtri
from torch import Tensor

from tomosec.defenses._voting import chain_of, checked, disagreement, vote, why_no_chain
from tomosec.defenses.base import ModelContext, Need, Prediction, PredictionWrapper, ScanContext, Scans, TrainingContext
from tomosec.errors import NotApplicable
from tomosec.randomness import generator

#: Noisy copies that are reconstructed at once.
_COPIES = 16


@dataclass(frozen=True, slots=True)
class Certificate:
    """What smoothing guarantees of B scans.

    With probability 1 − alpha over the noise that was drawn, the smoothed prediction of this network is ``labels`` for every
    sinogram within the L2 distance ``radius`` of the one that was judged. It is a statement about changes of *test* sinograms, of
    a network as it is: a network with a backdoor is certified with its backdoor. It is no statement about poisoned training, and
    none about a triggered scan, which is certified to be read as its trigger wants.

    Attributes:
        labels: (B,) class; −1 where the noise decides and nothing is certified.
        lower: (B,) lower confidence bound of the class's probability under noise (Clopper and Pearson).
        radius: (B,) L2 norm, in line integrals over all rays; 0 where nothing is certified.
    """

    labels: Tensor
    lower: Tensor
    radius: Tensor


class SmoothedPrediction(Prediction):
    """Predictions under noise."""

    def __init__(self, wrapper: RandomizedSmoothing, context: ModelContext) -> None:
        self._imaging, self._network = chain_of(context, "randomized-smoothing")
        self._wrapper, self._seed = wrapper, context.seed

    @torch.no_grad()
    def _predictions(self, scans: Scans, purpose: str, count: int) -> Tensor:
        p = checked(scans, self._imaging, "randomized-smoothing")
        rows = []
        for row, key in enumerate(scans.keys):
            found = []
            for first in range(0, count, _COPIES):
                draws = range(first, min(count, first + _COPIES))
                noise = np.stack(
                    [
                        generator(self._seed, "randomized-smoothing", purpose, key, draw).standard_normal(
                            p.shape[1:], dtype=np.float32
                        )
                        for draw in draws
                    ]
                )
                noisy = p[row] + self._wrapper.noise_sd * torch.from_numpy(noise).to(p.device)
                found.append(self._network.predict(self._imaging.reconstruct(noisy))[1])
            rows.append(torch.cat(found))
        return torch.stack(rows, dim=1) if rows else p.new_zeros(count, 0, self._network.classes)

    def predict(self, scans: Scans) -> tuple[Tensor, Tensor]:
        """The majority under noise, and the shares of the votes."""
        return vote(self._predictions(scans, "predict", self._wrapper.samples))

    def suspicion(self, scans: Scans) -> Tensor:
        """How much the noisy copies disagree."""
        return disagreement(self._predictions(scans, "predict", self._wrapper.samples))

    def certify(self, scans: Scans) -> Certificate:
        """Certify each scan: the class is chosen on some copies, its probability bounded on others."""
        labels = vote(self._predictions(scans, "predict", self._wrapper.samples))[0]
        votes = self._predictions(scans, "certify", self._wrapper.certify_samples).argmax(-1)
        agree = (votes == labels[None]).sum(0).cpu().numpy()
        count = self._wrapper.certify_samples
        # Clopper and Pearson (Biometrika 26, 1934), one-sided.
        lower = np.where(agree > 0, betaincinv(np.maximum(agree, 1), count - agree + 1, self._wrapper.alpha), 0.0)
        radius = np.where(lower > 0.5, self._wrapper.noise_sd * ndtri(np.maximum(lower, 0.5)), 0.0)
        certain = torch.from_numpy(lower > 0.5)
        return Certificate(torch.where(certain, labels.cpu(), -1), torch.from_numpy(lower), torch.from_numpy(radius))


class RandomizedSmoothing(PredictionWrapper):
    """Randomized smoothing: predicts from noisy copies of the sinogram and takes the vote, with a certified radius.

    Noise is Normal(0, s²) on every ray. If the winner's probability is p_A at least, no change of the sinogram of L2 norm below
    s Φ⁻¹(p_A) changes the smoothed prediction. See :class:`Certificate` for what that is a certificate of: changes of test
    sinograms of a fixed network, which may be backdoored; not of training. Noise is a function of the scan's key and the seed.

    Attributes:
        noise_sd: s, line integrals.
        samples: copies that predict.
        certify_samples: copies that bound the probability.
        alpha: chance that a certificate is wrong.
    """

    kind: Literal["randomized-smoothing"] = "randomized-smoothing"
    version: Literal[1] = 1
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram", "geometry", "reconstruction"})
    source: ClassVar[str] = "Cohen, Rosenfeld and Kolter, ICML 2019; here on sinograms"

    noise_sd: float = Field(0.02, gt=0)
    samples: Annotated[int, Field(ge=1)] = 32
    certify_samples: Annotated[int, Field(ge=1)] = 100
    alpha: float = Field(0.001, gt=0, lt=0.5)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """Why there is nothing to reconstruct."""
        return why_no_chain(context)

    def fit(self, context: ModelContext) -> SmoothedPrediction:
        """Prepare; nothing is fitted.

        Raises:
            NotApplicable: no chain.
        """
        if reason := self.why_not(context):
            raise NotApplicable(f"randomized-smoothing: {reason}")
        return SmoothedPrediction(self, context)
