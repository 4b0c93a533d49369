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
from dataclasses import dataclass, replace

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
#: Scans that the noise model, or the mean over all rays, is worth beside the scans that a ray's own variance is from.
PRIOR_SCANS = 8.0
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
    """

    fit: tuple[int, ...]
    held_out: tuple[int, ...]
    weights: Tensor


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
    return Halves(tuple(sorted(fit)), tuple(held), weights)


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


class Moments:
    """Running mean and variance, elementwise, float64 (Welford 1962; batches as in Chan, Golub and LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self._squares: Tensor = torch.zeros(())

    def update(self, values: Tensor) -> None:
        """Add (B, ...) values."""
        values = values.double()
        if len(values) == 0:
            return
        mean = values.mean(0)
        squares = (values - mean).square().sum(0)
        if self.count == 0:
            self.count, self.mean, self._squares = len(values), mean, squares
            return
        total, difference = self.count + len(values), mean - self.mean
        self.mean = self.mean + difference * (len(values) / total)
        self._squares = self._squares + squares + difference.square() * (self.count * len(values) / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Unbiased; of two values or more."""
        return self._squares / max(1, self.count - 1)


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
        scores = scores.detach().double().cpu()
        above = (self.scores[None, :] >= scores[:, None]).double() @ self.weights
        return ((1 + above) / (self.patients + 1)).clamp(max=1.0)

    def tensors(self) -> dict[str, Tensor]:
        """For a profile."""
        return {"held_out_scores": self.scores, "held_out_weights": self.weights}


class SpreadFit:
    """Mean and spread of a residual over clean scans, while they stream by.

    The variance of a residual of scan i is modeled as that of the scan's own noise plus what the noise model does not explain,
    g v_i + e, elementwise, because patients differ in size and so in noise, while the misfit of a discretization or a
    calibration does not follow the dose. Without a noise model v = 0. Where scans are few, an element's variance is shrunk to
    that of the noise model, at the level that fits best over all elements; without one, to the mean over all elements.
    """

    def __init__(self, *, exact: bool) -> None:
        """Start; ``exact``: whether v is the residual's variance itself (g = 1), not only proportional to it."""
        self._exact = exact
        self._values, self._nominal = Moments(), Moments()

    def update(self, values: Tensor, nominal: Tensor | None) -> None:
        """Add residuals (B, ...) and their nominal variances, which broadcast to them; None where no noise model is at hand."""
        if self._values.count and (nominal is None) != (self._nominal.count == 0):
            raise InputError("calibration scans: some have a noise model (noise_sd) and some do not")
        self._values.update(values)
        if nominal is not None:
            self._nominal.update(nominal)

    def finish(self) -> Spread:
        """The fitted spread."""
        found, count = self._values.variance, self._values.count
        has_model = self._nominal.count > 0
        nominal = self._nominal.mean.expand_as(found) if has_model else torch.zeros_like(found)
        level, gain = float(found.mean()), 1.0
        if float(nominal.sum()) > 0:
            shape = nominal * (float(found.sum()) / float(nominal.sum()))
            if not self._exact:
                lit = nominal > 0
                gain = float((found[lit] / nominal[lit]).median())
        else:
            shape = torch.full_like(found, level)
        shrunk = ((count - 1) * found + PRIOR_SCANS * shape) / (count - 1 + PRIOR_SCANS)
        excess = (shrunk - gain * nominal).clamp_min(0)
        floor = 1e-9 * level + 1e-30  # elements that never vary, such as air without noise, must not divide by 0
        return Spread(self._values.mean, excess, gain if has_model else 0.0, floor, has_model)


@dataclass(frozen=True, slots=True)
class Spread:
    """What :class:`SpreadFit` found.

    Attributes:
        mean: of the residual.
        excess: variance that the noise model does not explain.
        gain: g, the factor of the nominal variance.
        floor: smallest variance that is divided by.
        has_model: whether the clean scans came with a noise model.
    """

    mean: Tensor
    excess: Tensor
    gain: float
    floor: float
    has_model: bool

    def whiten(self, values: Tensor, nominal: Tensor | None) -> Tensor:
        """Residuals (B, ...) in units of their clean spread.

        Raises:
            InputError: the calibration scans had a noise model, and these have none.
        """
        variance = self.excess.to(values)
        if self.has_model:
            if nominal is None:
                raise InputError(
                    "these scans have no noise model (noise_sd), but the calibration scans had one; give both or neither"
                )
            variance = variance + self.gain * nominal.to(values)
        return (values - self.mean.to(values)) / variance.clamp_min(self.floor).sqrt()

    def to(self, device: torch.device | str) -> Spread:
        """The same on another device."""
        return replace(self, mean=self.mean.to(device), excess=self.excess.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """For a profile."""
        numbers = torch.tensor([self.gain, self.floor, float(self.has_model)], dtype=torch.float64)
        return {"mean": self.mean.cpu(), "excess": self.excess.cpu(), "spread": numbers}

    @classmethod
    def restored(cls, mean: Tensor, excess: Tensor, numbers: Tensor) -> Spread:
        """Inverse of :meth:`tensors`."""
        gain, floor, has_model = numbers.tolist()
        return cls(mean, excess, gain, floor, bool(has_model))
