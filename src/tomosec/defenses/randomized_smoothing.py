"""Randomized smoothing of measured data, with what its certificate says and does not say."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.special import betaincinv, ndtri
from torch import Tensor

from tomosec.defenses._voting import chain_of, checked, readings, why_no_chain
from tomosec.defenses.base import ModelContext, Need, Prediction, PredictionWrapper, Readings, ScanContext, Scans, TrainingContext
from tomosec.errors import NotApplicable
from tomosec.randomness import generator

#: Noisy copies that are reconstructed at once.
_COPIES = 16


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

    def predict(self, scans: Scans) -> Readings:
        """The vote of one set of copies, and the radius within which it is certified, bounded by votes of another set."""
        chosen = readings(self._predictions(scans, "predict", self._wrapper.samples))
        votes = self._predictions(scans, "certify", self._wrapper.certify_samples).argmax(-1)
        agree = (votes == chosen.labels).sum(0).cpu().numpy()
        count = self._wrapper.certify_samples
        # Clopper and Pearson (Biometrika 26, 1934), one-sided.
        lower = np.where(agree > 0, betaincinv(np.maximum(agree, 1), count - agree + 1, self._wrapper.alpha), 0.0)
        return replace(chosen, radius=torch.from_numpy(self._wrapper.noise_sd * ndtri(np.maximum(lower, 0.5))))


class RandomizedSmoothing(PredictionWrapper):
    """Randomized smoothing: predicts from noisy copies of the sinogram and takes the vote, with a certified radius.

    Noise is Normal(0, s²) on every ray, on top of the scan's own. The smoothed prediction is the class that most noisy copies
    are read as; if its probability is p_A > 1/2 at least, no change of the sinogram of L2 norm below s Φ⁻¹(p_A) over all rays
    changes it. ``samples`` copies vote for the class, ``certify_samples`` others bound its p_A by Clopper and Pearson, so the
    largest radius that n of them can give is s Φ⁻¹(alpha^(1/n)); where the bound is at most 1/2, nothing is certified.

    What that certifies: the smoothed prediction, of which the vote is an estimate, against changes of the *measured test data*
    of a network as it is, with probability 1 − alpha for each scan. A network with a backdoor is certified with its backdoor: a
    triggered scan is certified to be read as its trigger wants. It says nothing about poisoned training. Noise is a function of
    the scan's key and the seed.

    Attributes:
        noise_sd: s, line integrals.
        samples: copies that vote.
        certify_samples: copies that bound the probability.
        alpha: chance that a scan's certificate is wrong.
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
