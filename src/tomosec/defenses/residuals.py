"""Detectors that look at a residual: numbers that vanish, up to noise, for every scan of an object.

A detector of this family is a :class:`Residual` and a statistic of it. Everything else is shared: the residual is whitened by
clean scans (:mod:`tomosec.defenses.calibration`), z = (r - mean) / sd, and the score is one number of z:

    chi2  the mean of z²,
    top   the mean of the largest z², a given fraction of all: for what is concentrated in few rays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.consistency.residual import Residual
from tomosec.consistency.spread import Spread, SpreadFit
from tomosec.defenses.base import (
    ModelContext,
    Need,
    ScanContext,
    ScanDetection,
    ScanDetector,
    Scans,
    ScanVerdicts,
    TrainingContext,
)
from tomosec.defenses.calibration import Halves, HeldOut, check_scans, clean_scans, halves
from tomosec.errors import NotApplicable
from tomosec.geometry import Geometry

Statistic = Literal["chi2", "top"]


class ResidualDetection(ScanDetection):
    """A residual, its clean spread, and the held-out scores."""

    def __init__(
        self, detector: ResidualDetector, geometry: Geometry, residual: Residual, spread: Spread, held_out: HeldOut
    ) -> None:
        self.detector, self.geometry, self.residual = detector, geometry, residual
        self.spread, self.calibration = spread, held_out

    @property
    def held_out(self) -> int:
        """Patients behind the p-values."""
        return self.calibration.patients

    @torch.no_grad()
    def whitened(self, scans: Scans) -> Tensor:
        """(B, ...) residuals in units of their clean spread."""
        check_scans(scans, self.geometry, self.detector.model_dump()["kind"])
        return self.residual.whitened(scans.line_integrals, scans.noise_sd, self.spread)

    def score(self, scans: Scans) -> Tensor:
        """(B,) float64 on the CPU."""
        return self.score_of(self.whitened(scans))

    def score_of(self, z: Tensor) -> Tensor:
        """(B,) scores, float64 on the CPU, of residuals in units of their clean spread."""
        return self.detector.statistic_of(z, self.spread).double().cpu()

    def map_of(self, z: Tensor) -> Tensor | None:
        """(B, views, bins) map of residuals in units of their clean spread; None where they have no place in the sinogram."""
        return self.detector.map_of(self.residual, z, self.spread)

    def judge(self, scans: Scans) -> ScanVerdicts:
        """Scores and their p-values."""
        score = self.score(scans)
        return ScanVerdicts(score, self.calibration.p_values(score))

    def where(self, scans: Scans) -> Tensor | None:
        """(B, views, bins) map in units of the clean spread; None where the residual has no place in the sinogram."""
        return self.map_of(self.whitened(scans))

    def tensors(self) -> dict[str, Tensor]:
        """Spread and held-out scores."""
        return self.spread.tensors() | self.calibration.tensors()


class ResidualDetector(ScanDetector):
    """Base of the detectors of one residual.

    Attributes:
        statistic: ``chi2``: mean square of the whitened residual; ``top``: mean of its largest squares.
        top_fraction: fraction of the residual that ``top`` is the mean of; one value at least.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram", "geometry", "calibration-scans"})

    statistic: Statistic = "chi2"
    top_fraction: float = Field(0.001, gt=0, le=1)

    def residual(self, geometry: Geometry) -> Residual:
        """What is looked at; asked only for scans to which the detector applies."""
        raise NotImplementedError

    @property
    def residual_key(self) -> str:
        """The same for detectors that look at the same residual and differ in their statistic alone."""
        return self.model_dump_json(exclude={"statistic", "top_fraction"})

    def why_not_scan(self, geometry: Geometry) -> str:
        """Why it does not apply to scans of this geometry; empty where it does."""
        return ""

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """Why it does not apply; empty where it does."""
        return self.why_not_scan(context.geometry) if isinstance(context, ScanContext) else "needs measured data"

    def statistic_of(self, z: Tensor, spread: Spread) -> Tensor:
        """(B,) scores of whitened residuals (B, ...)."""
        return self.mean_of(z.flatten(1).square())

    def mean_of(self, squares: Tensor) -> Tensor:
        """(B,) means of all squares (B, n), or of the largest, as ``statistic`` says."""
        if self.statistic == "chi2":
            return squares.mean(1)
        return squares.topk(max(1, math.ceil(self.top_fraction * squares.shape[1])), dim=1).values.mean(1)

    def map_of(self, residual: Residual, z: Tensor, spread: Spread) -> Tensor | None:
        """(B, views, bins) of whitened residuals (B, ...)."""
        return residual.sinogram_map(z)

    def check_spread(self, spread: Spread) -> None:
        """Raise NotApplicable where the calibration scans show that it cannot work."""

    def calibrate(self, context: ScanContext) -> ResidualDetection:
        """Fit the spread on one half of the clean scans and score the other.

        Raises:
            NotApplicable: the scan, or the calibration scans, do not have what it needs.
        """
        (detection,) = calibrate_together([self], context)
        assert detection is not None
        return detection

    def restore(self, tensors: Mapping[str, Tensor], geometry: Geometry) -> ResidualDetection:
        """Inverse of :meth:`ResidualDetection.tensors`."""
        spread = Spread.restored(tensors["mean"], tensors["excess"], tensors["spread"])
        held_out = HeldOut(tensors["held_out_scores"], tensors["held_out_weights"])
        return ResidualDetection(self, geometry, self.residual(geometry), spread, held_out)


def scored_together(detections: Mapping[str, ScanDetection], scans: Scans) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Judge scans by several detectors; a residual that several look at is measured once.

    Returns:
        (B,) float64 scores by name; and the whitened residuals (B, ...) of the detectors that look at one, by name.
    """
    measured: dict[str, Tensor] = {}
    scores, whitened = {}, {}
    for name, detection in detections.items():
        if not isinstance(detection, ResidualDetection):
            scores[name] = detection.judge(scans).score.double().cpu()
            continue
        key = detection.detector.residual_key
        if key not in measured:
            measured[key] = detection.whitened(scans)
        whitened[name] = measured[key]
        scores[name] = detection.score_of(whitened[name])
    return scores, whitened


def fit_spreads(residuals: Sequence[Residual], context: ScanContext, parts: Halves, who: str) -> list[Spread]:
    """The spreads of residuals over the first half of the clean scans, which are read once."""
    fits = [SpreadFit(exact=residual.exact_noise, usual=residual.usual_variance) for residual in residuals]
    for scans in clean_scans(context, parts.fit, who):
        for residual, fit in zip(residuals, fits, strict=True):
            fit.update(*residual.measure(scans.line_integrals, scans.noise_sd))
        context.progress.advance(len(scans.keys))
    return [fit.finish() for fit in fits]


@torch.no_grad()
def calibrate_together(
    detectors: Sequence[ResidualDetector], context: ScanContext, *, missing_ok: bool = False
) -> list[ResidualDetection | None]:
    """Calibrate detectors on the same halves; the clean scans are read twice, and a residual that two share is measured once.

    Args:
        detectors: any number.
        context: with the clean scans.
        missing_ok: give None for a detector that does not apply, instead of raising.

    Raises:
        NotApplicable: a detector does not apply, or the clean scans are too few for any.
    """
    names = [detector.model_dump()["kind"] for detector in detectors]
    who = ", ".join(dict.fromkeys(names))
    parts = halves(context.clean.patients, context.seed, who)
    # Variants of one detector look at the same residual.
    groups: dict[str, list[int]] = {}
    for i, detector in enumerate(detectors):
        if reason := detector.why_not(context):
            if not missing_ok:
                raise NotApplicable(f"{names[i]}: {reason}")
            continue
        groups.setdefault(detector.residual_key, []).append(i)
    context.progress.start(len(context.clean), f"calibrate {who}")
    residuals = [detectors[members[0]].residual(context.geometry) for members in groups.values()]
    spreads = fit_spreads(residuals, context, parts, who)
    apply: list[int] = []
    for members, spread in zip(groups.values(), spreads, strict=True):
        for i in members:
            try:
                detectors[i].check_spread(spread)
            except NotApplicable:
                if not missing_ok:
                    raise
            else:
                apply.append(i)
    scores: list[list[Tensor]] = [[] for _ in detectors]
    for scans in clean_scans(context, parts.held_out, who):
        for members, residual, spread in zip(groups.values(), residuals, spreads, strict=True):
            z = residual.whitened(scans.line_integrals, scans.noise_sd, spread)
            for i in members:
                scores[i].append(detectors[i].statistic_of(z, spread).double().cpu())
        context.progress.advance(len(scans.keys))
    found: list[ResidualDetection | None] = [None] * len(detectors)
    for members, residual, spread in zip(groups.values(), residuals, spreads, strict=True):
        for i in members:
            if i in apply:
                held_out = HeldOut(torch.cat(scores[i]), parts.weights)
                found[i] = ResidualDetection(detectors[i], context.geometry, residual, spread.to("cpu"), held_out)
    return found
