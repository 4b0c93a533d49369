"""What many scans have in common: a universal trigger adds up, noise does not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.consistency.residual import Residual
from tomosec.consistency.spread import Spread
from tomosec.defenses.base import (
    ModelContext,
    Need,
    ScanContext,
    ScanSetDetection,
    ScanSetDetector,
    ScanSource,
    SetVerdict,
    TrainingContext,
)
from tomosec.defenses.calibration import BATCH, MIN_HELD_OUT, check_scans, clean_scans, halves, one_of_each, select
from tomosec.defenses.complementary_rays import ComplementaryRays
from tomosec.defenses.reprojection_residual import ReprojectionResidual
from tomosec.defenses.residuals import fit_spreads
from tomosec.errors import InputError, NotApplicable
from tomosec.geometry import Geometry
from tomosec.randomness import generator

#: Scans below which there is no verdict: with 5, one of 16 choices of signs is the set as it is, and p cannot be 0.05.
MIN_SCANS = 6


class CrossScanDetection(ScanSetDetection):
    """The clean spread of a residual, and sums of it over blocks of held-out clean scans."""

    def __init__(
        self,
        detector: CrossScanResidual,
        geometry: Geometry,
        spread: Spread,
        blocks: Tensor,
        block: int,
        held_out: int,
        seed: int,
    ) -> None:
        self.detector, self.geometry, self.spread = detector, geometry, spread
        self.blocks, self.block, self.held_out, self.seed = blocks, block, held_out, seed
        self._residual = detector.residual(geometry)

    @torch.no_grad()
    def judge(self, scans: ScanSource) -> SetVerdict:
        """Read the scans once; memory is that of twice ``permutations`` sinograms, however many scans there are."""
        if len(scans) == 0:
            raise InputError("cross-scan-residual: the set of scans is empty")
        used = one_of_each(scans.patients, self.seed)
        total = len(used)
        count, reason = self._used(total)
        clean, flat = len(self.blocks), self.blocks.flatten(1)
        chosen, signs = self._subsets(clean, count), self._signs(total)
        # Row 0 is the set as it is. The others are as many blocks, drawn from the clean ones and these together, ...
        mixed = chosen[:, :clean] @ flat
        # ... and the same scans with random signs.
        signed = torch.zeros(len(signs), flat.shape[1])
        block, number = torch.zeros_like(flat[0]), 0
        for z in self._whitened(scans, set(used)):
            signed += signs[:, number : number + len(z)] @ z
            for own in z:
                block += own
                number += 1
                if number % self.block == 0:
                    if number <= count * self.block:
                        mixed += chosen[:, clean + number // self.block - 1, None] * block
                    block.zero_()
        z_set = signed[:1] / math.sqrt(total)
        where = self._residual.sinogram_map(z_set.reshape(1, *self.blocks.shape[1:]))
        place = None if where is None else where[0].double()
        score = float(self._score(z_set)[0])
        if reason:
            return SetVerdict(score, None, total, place, reason)
        return SetVerdict(score, max(self._p_value(mixed), self._p_value(signed)), total, place)

    def _whitened(self, scans: ScanSource, used: set[int]) -> Iterator[Tensor]:
        """(B, ...) flat residuals of the used scans in units of their clean spread, float32 on the CPU, in batches."""
        first = 0
        for batch in scans.batches(BATCH):
            check_scans(batch, self.geometry, "cross-scan-residual")
            rows = [row for row in range(len(batch.keys)) if first + row in used]
            first += len(batch.keys)
            if rows:
                some = select(batch, rows)
                yield self._residual.whitened(some.line_integrals, some.noise_sd, self.spread).flatten(1).float().cpu()

    def _used(self, total: int) -> tuple[int, str]:
        """How many blocks of the set are compared, and why none are."""
        count = total // self.block
        if self.held_out < MIN_HELD_OUT:
            return count, f"no verdict: {self.held_out} held-out clean scans, {MIN_HELD_OUT} needed"
        if count == 0:
            return count, f"no verdict: {total} scan(s); clean ones were summed by {self.block}, so {self.block} are needed"
        ways = math.comb(len(self.blocks) + count, count)
        if ways <= self.detector.permutations:
            return count, f"no verdict: {total} scans can be mixed with the clean ones in {ways} ways only"
        if total < MIN_SCANS:
            return count, f"no verdict: {total} scans of different patients, {MIN_SCANS} needed"
        return count, ""

    def _subsets(self, clean: int, count: int) -> Tensor:
        """(1 + permutations, clean + count) 0 or 1: which blocks are in each set."""
        chosen = torch.zeros(1 + self.detector.permutations, clean + count)
        chosen[0, clean:] = 1
        for row in range(1, len(chosen)):
            order = generator(self.seed, "cross-scan-residual", count, row).permutation(clean + count)
            chosen[row, torch.from_numpy(order[:count])] = 1
        return chosen

    def _signs(self, total: int) -> Tensor:
        """(1 + permutations, total) 1 or −1; all 1 in row 0."""
        signs = torch.ones(1 + self.detector.permutations, total)
        for row in range(1, len(signs)):
            drawn = generator(self.seed, "cross-scan-residual", "signs", total, row).integers(2, size=total)
            signs[row] = torch.from_numpy(2.0 * drawn - 1)
        return signs

    def _p_value(self, sums: Tensor) -> float:
        """Rank of the first row's score among all rows'; equal ones count, whatever the order that they were summed in."""
        found = self._score(sums)
        return (1 + int((found[1:] >= (1 - 1e-5) * found[0]).sum())) / len(found)

    def _score(self, z: Tensor) -> Tensor:
        size = z.abs()
        if self.detector.statistic == "max":
            return size.amax(1).double()
        return size.topk(max(1, math.ceil(self.detector.top_fraction * size.shape[1])), dim=1).values.double().mean(1)

    def tensors(self) -> dict[str, Tensor]:
        """Spread, sums of blocks, and the numbers that go with them."""
        numbers = torch.tensor([self.block, self.held_out, self.seed], dtype=torch.int64)
        return self.spread.tensors() | {"blocks": self.blocks, "numbers": numbers}


class CrossScanResidual(ScanSetDetector):
    """Cross-scan mean residual: what N scans have in common, Z = √N mean of z, in units of what clean scans have.

    z is the whitened residual of complementary rays, or of reprojection where no line is measured twice. Noise and anatomy of
    different patients average out and a universal trigger does not, so that √N more of it is seen. The score is the largest |Z|
    of all rays. Its p-value is the larger one of two permutation tests with that score, so that both must say so:

    * against random sets of the same size, drawn from held-out clean scans and the judged ones together: exact for clean sets of
      the same scanner, whatever residual all its scans share;
    * against the judged scans with random signs, which have the same noise and nothing in common: so noisier scans, whose largest
      ray is larger, do not pass for a pattern.

    Scans of one patient share their anatomy, so one scan of each patient is used. Whatever else the judged scans have in common
    that the calibration scans have not, such as a new tube, is found as well.

    Attributes:
        residual_of: whose residual; ``auto`` prefers complementary rays.
        statistic: ``max``: the largest |Z|; ``top``: mean of the largest.
        top_fraction: fraction of the rays that ``top`` is the mean of.
        permutations: random sets, and random signs; 1 / (permutations + 1) is the smallest p-value.
        blocks: sums of held-out scans that are kept; with more scans than blocks, neighbors are summed and stay together.
    """

    kind: Literal["cross-scan-residual"] = "cross-scan-residual"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram", "geometry", "calibration-scans"})
    source: ClassVar[str] = "test of this project"
    adaptive: ClassVar[frozenset[str]] = frozenset(
        {"ltgm-body-confined", "ltgm-consistent", "ltgm-range-projected", "ltgm-symmetrized"}
    )

    residual_of: Literal["auto", "complementary-rays", "reprojection-residual"] = "auto"
    statistic: Literal["max", "top"] = "max"
    top_fraction: float = Field(0.001, gt=0, le=1)
    permutations: int = Field(99, ge=19, le=999)
    blocks: int = Field(32, ge=4, le=512)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """Why complementary rays were asked for and do not apply."""
        if not isinstance(context, ScanContext):
            return "needs measured data"
        return ComplementaryRays().why_not_scan(context.geometry) if self.residual_of == "complementary-rays" else ""

    def residual(self, geometry: Geometry) -> Residual:
        """What is averaged over the scans."""
        rays = ComplementaryRays()
        if self.residual_of != "reprojection-residual" and not rays.why_not_scan(geometry):
            return rays.residual(geometry)
        return ReprojectionResidual().residual(geometry)

    @torch.no_grad()
    def calibrate(self, context: ScanContext) -> CrossScanDetection:
        """Fit the spread on one half of the clean scans, and sum the other in blocks."""
        if reason := self.why_not(context):
            raise NotApplicable(f"cross-scan-residual: {reason}")
        parts = halves(context.clean.patients, context.seed, "cross-scan-residual")
        held = [parts.held_out[i] for i in parts.one_each]
        residual = self.residual(context.geometry)
        context.progress.start(len(context.clean), "calibrate cross-scan-residual")
        (spread,) = fit_spreads([residual], context, parts, "cross-scan-residual")
        block = math.ceil(len(held) / self.blocks)
        whole = len(held) // block
        sums: Tensor | None = None
        number = 0
        for scans in clean_scans(context, held[: whole * block], "cross-scan-residual"):
            z = residual.whitened(scans.line_integrals, scans.noise_sd, spread).float().cpu()
            sums = torch.zeros(whole, *z.shape[1:]) if sums is None else sums
            for own in z:
                sums[number // block] += own
                number += 1
            context.progress.advance(len(scans.keys))
        assert sums is not None
        return CrossScanDetection(self, context.geometry, spread.to("cpu"), sums, block, whole * block, context.seed)

    def restore(self, tensors: Mapping[str, Tensor], geometry: Geometry) -> CrossScanDetection:
        """Inverse of :meth:`CrossScanDetection.tensors`."""
        spread = Spread.restored(tensors["mean"], tensors["excess"], tensors["spread"])
        block, held_out, seed = (int(number) for number in tensors["numbers"])
        return CrossScanDetection(self, geometry, spread, tensors["blocks"], block, held_out, seed)
