"""The room that all detectors of measured data share: clean scans in two halves, their spread, and p-values.

The patients of the clean scans are dealt into two halves. One fits what is fitted: the mean and the spread of a detector's
residual. The other is scored by the finished detector, so that its scores are as a new clean patient's, and gives

    p = (1 + #{held-out score >= s}) / (n + 1),

which is super-uniform, P(p <= a) <= a, for a clean scan that is exchangeable with the held-out ones (Vovk, Gammerman and Shafer,
Algorithmic Learning in a Random World, 2005). The unit is the patient: where one has m held-out scans, each counts 1/m and
n is the number of patients (Lee, Barber and Willett, arXiv 2306.06342). Everything streams; memory does not grow with the scans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tomosec.defenses.base import ScanContext, Scans
from tomosec.errors import InputError, NotApplicable
from tomosec.geometry import Geometry
from tomosec.operators.dispatch import check_sinogram
from tomosec.randomness import generator

#: Held-out patients below which a detector gives scores and no verdict: p cannot be 0.05 or less.
MIN_HELD_OUT = 19
#: Fitted patients below which nothing has a spread.
MIN_FITTED = 2
#: Scans that are read at once.
BATCH = 8


def check_scans(scans: Scans, geometry: Geometry, who: str) -> None:
    """Raise InputError in the name of ``who`` unless line integrals and noise are (B, 1, views, bins), finite, of B keys."""
    check_sinogram(scans.line_integrals, geometry, who)
    if len(scans.keys) != len(scans.line_integrals):
        raise InputError(f"{who}: {len(scans.keys)} keys for {len(scans.line_integrals)} sinograms")
    if scans.noise_sd is None:
        return
    check_sinogram(scans.noise_sd, geometry, f"{who}: noise_sd")
    if scans.noise_sd.shape != scans.line_integrals.shape:
        raise InputError(f"{who}: noise_sd is of {len(scans.noise_sd)} scans, line_integrals of {len(scans.line_integrals)}")
    if bool((scans.noise_sd < 0).any()):
        raise InputError(f"{who}: noise_sd holds {float(scans.noise_sd.min()):g}; a standard deviation is 0 or more")


def select(scans: Scans, rows: Sequence[int], device: torch.device | None = None) -> Scans:
    """Some of the scans, on a device (None: where they are)."""
    index = list(rows)
    p = scans.line_integrals[index]
    noise = None if scans.noise_sd is None else scans.noise_sd[index].to(device=device or scans.noise_sd.device)
    return Scans(p.to(device=device or p.device), tuple(scans.keys[i] for i in index), noise)


@dataclass(frozen=True, slots=True)
class Halves:
    """Positions of the clean scans by what they are for.

    Attributes:
        fit: of the scans that means and spreads are fitted to, ascending.
        held_out: of the others, ascending.
        weights: (len(held_out),) one over the number of held-out scans of the same patient; their sum is the number of patients.
        one_each: which of ``held_out`` are one scan of each of its patients, drawn at random, ascending; for tests that compare
            scans with one another, where several of one patient would not be worth as much.
    """

    fit: tuple[int, ...]
    held_out: tuple[int, ...]
    weights: Tensor
    one_each: tuple[int, ...]


def halves(patients: Sequence[str], seed: int, who: str) -> Halves:
    """Deal the patients into two halves of about equally many scans; a function of their names and the seed alone.

    Args:
        patients: patient of each clean scan.
        seed: of the experiment.
        who: kind of the defense, for the message.

    Raises:
        NotApplicable: too few patients to fit a spread and hold one out.
    """
    scans: dict[str, list[int]] = {}
    for position, name in enumerate(patients):
        scans.setdefault(name, []).append(position)
    if len(scans) < MIN_FITTED + 1:
        raise NotApplicable(
            f"{who}: needs calibration scans of {MIN_FITTED + 1} patients at least; there are {len(patients)} scan(s) of "
            f"{len(scans)} patient(s)"
        )
    names = sorted(scans)
    fit: list[int] = []
    held: list[int] = []
    fitted = 0
    for index in generator(seed, "calibration-halves").permutation(len(names)):
        own = scans[names[int(index)]]
        # The first two are fitted, then the smaller half grows.
        if fitted < MIN_FITTED or (held and len(fit) <= len(held)):
            fit += own
            fitted += 1
        else:
            held += own
    held.sort()
    weights = torch.tensor([1 / len(scans[patients[i]]) for i in held], dtype=torch.float64)
    one_each = one_of_each([patients[i] for i in held], seed)
    return Halves(tuple(sorted(fit)), tuple(held), weights, one_each)


def one_of_each(patients: Sequence[str], seed: int) -> tuple[int, ...]:
    """Positions of one scan of each patient, ascending; which one is drawn at random, by the patient's name and the seed."""
    scans: dict[str, list[int]] = {}
    for position, name in enumerate(patients):
        scans.setdefault(name, []).append(position)
    drawn = (own[int(generator(seed, "one-scan-of", name).integers(len(own)))] for name, own in scans.items())
    return tuple(sorted(drawn))


def clean_scans(context: ScanContext, positions: Sequence[int], who: str, batch: int = BATCH) -> Iterator[Scans]:
    """The clean scans at ``positions`` (ascending), checked, a batch at a time, on the context's device."""
    wanted, first = set(positions), 0
    for scans in context.clean.batches(batch):
        rows = [row for row in range(len(scans.keys)) if first + row in wanted]
        first += len(scans.keys)
        if rows:
            chosen = select(scans, rows, context.device)
            check_scans(chosen, context.geometry, f"{who}: calibration scan {chosen.keys[0]!r}")
            yield chosen


def rank_p_values(scores: Tensor, held_out: Tensor, weights: Tensor | None = None) -> Tensor:
    """(B,) float64 p-values of scores (B,): one more than the clean scores at least as high, over one more than all of them.

    Args:
        scores: (B,).
        held_out: (n,) scores of clean samples that nothing was fitted to.
        weights: (n,) one over the number of samples of the same patient; each counts for itself if not given.
    """
    scores, held_out = (values.detach().double().cpu().flatten() for values in (scores, held_out))
    weights = torch.ones_like(held_out) if weights is None else weights
    above = (held_out[None, :] >= scores[:, None]).double() @ weights
    return ((1 + above) / (round(float(weights.sum())) + 1)).clamp(max=1.0)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores of the held-out clean scans.

    Attributes:
        scores: (n,) float64.
        weights: (n,) float64, see :class:`Halves`.
    """

    scores: Tensor
    weights: Tensor

    @property
    def patients(self) -> int:
        """How many patients they are of."""
        return round(float(self.weights.sum()))

    def p_values(self, scores: Tensor) -> Tensor | None:
        """(B,) p-values of scores (B,); None with fewer than :data:`MIN_HELD_OUT` patients."""
        if self.patients < MIN_HELD_OUT:
            return None
        return rank_p_values(scores, self.scores, self.weights)

    def tensors(self) -> dict[str, Tensor]:
        """For a profile."""
        return {"held_out_scores": self.scores, "held_out_weights": self.weights}
