"""All consistency tests that apply, with one verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from tomosec.defenses.air_rays import AirRays
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
from tomosec.defenses.calibration import halves
from tomosec.defenses.combination import combine
from tomosec.defenses.complementary_rays import ComplementaryRays
from tomosec.defenses.fourier_wedge import FourierWedge
from tomosec.defenses.half_scan_disagreement import HalfScanDisagreement
from tomosec.defenses.helgason_ludwig import HelgasonLudwig
from tomosec.defenses.maps import spreads_beyond, suspicion_order, telling_map
from tomosec.defenses.noise_statistics import NoiseStatistics
from tomosec.defenses.pairwise_consistency import PairwiseConsistency
from tomosec.defenses.reprojection_residual import ReprojectionResidual
from tomosec.defenses.residuals import ResidualDetection, ResidualDetector, calibrate_together, scored_together
from tomosec.errors import InputError, NotApplicable
from tomosec.geometry import Geometry

Member = Literal[
    "complementary-rays",
    "complementary-rays-top",
    "helgason-ludwig",
    "fourier-wedge",
    "fourier-wedge-top",
    "pairwise-consistency",
    "reprojection-residual",
    "reprojection-residual-top",
    "air-rays",
    "noise-statistics",
    "half-scan-disagreement",
]

#: The detectors by the name of a member; ``-top`` looks at the largest residuals, the others at all.
MEMBERS: dict[str, ResidualDetector] = {
    "complementary-rays": ComplementaryRays(),
    "complementary-rays-top": ComplementaryRays(statistic="top"),
    "helgason-ludwig": HelgasonLudwig(),
    "fourier-wedge": FourierWedge(),
    "fourier-wedge-top": FourierWedge(statistic="top"),
    "pairwise-consistency": PairwiseConsistency(),
    "reprojection-residual": ReprojectionResidual(),
    "reprojection-residual-top": ReprojectionResidual(statistic="top"),
    "air-rays": AirRays(),
    "noise-statistics": NoiseStatistics(),
    "half-scan-disagreement": HalfScanDisagreement(),
}


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything that is found in B scans, looked at once.

    Attributes:
        verdicts: of all members together.
        reasons: each member's own.
        where: (B, views, bins) map of each scan's most suspicious member that has one, the finest of those that are equally
            suspicious; None where no member has.
    """

    verdicts: ScanVerdicts
    reasons: dict[str, ScanVerdicts]
    where: Tensor | None


class ConsistencyDetection(ScanDetection):
    """Detections of the members, calibrated on the same halves.

    Args:
        members: by name.
        one_each: (n,) which of the held-out scans are one of each patient; the combination is ranked among these.
    """

    def __init__(self, members: Mapping[str, ResidualDetection], one_each: Tensor) -> None:
        self.members = dict(members)
        self._weights, self._one_each = next(iter(self.members.values())).calibration.weights, one_each
        self._table = torch.stack([member.calibration.scores[one_each] for member in self.members.values()], dim=1)

    @property
    def held_out(self) -> int:
        """Patients behind the p-values."""
        return next(iter(self.members.values())).held_out

    def examine(self, scans: Scans) -> Examination:
        """Verdicts, reasons and maps, each residual measured once."""
        scores, whitened = scored_together(self.members, scans)
        reasons = {name: ScanVerdicts(s, self.members[name].calibration.p_values(s)) for name, s in scores.items()}
        return Examination(self._verdicts(scores), reasons, self._where(whitened, reasons))

    def reasons(self, scans: Scans) -> dict[str, ScanVerdicts]:
        """Each member's own verdicts."""
        return self.examine(scans).reasons

    def judge(self, scans: Scans) -> ScanVerdicts:
        """The members' scores, combined."""
        return self._verdicts(scored_together(self.members, scans)[0])

    def where(self, scans: Scans) -> Tensor | None:
        """(B, views, bins) map of each scan's most suspicious member that has one; None where no member has."""
        return self.examine(scans).where

    def _verdicts(self, scores: Mapping[str, Tensor]) -> ScanVerdicts:
        return ScanVerdicts(*combine(torch.stack(list(scores.values()), dim=1), self._table))

    def _where(self, whitened: Mapping[str, Tensor], reasons: Mapping[str, ScanVerdicts]) -> Tensor | None:
        maps = {name: found for name, member in self.members.items() if (found := member.map_of(whitened[name])) is not None}
        if not maps:
            return None
        chosen, clean = [], dict(zip(self.members, self._table.T, strict=True))
        for row in range(len(next(iter(maps.values())))):
            p_values = {n: None if r.p_value is None else float(r.p_value[row]) for n, r in reasons.items()}
            order = suspicion_order(p_values, {n: spreads_beyond(float(r.score[row]), clean[n]) for n, r in reasons.items()})
            told = telling_map(order, p_values, {name: found[row] for name, found in maps.items()}.get)
            assert told is not None
            chosen.append(maps[told.detector][row])
        return torch.stack(chosen) if chosen else next(iter(maps.values()))

    def tensors(self) -> dict[str, Tensor]:
        """The members' tensors under their names; what members share is kept once."""
        out = {"held_out_weights": self._weights, "one_each": self._one_each}
        kept: set[str] = set()
        for name, member in self.members.items():
            own = {"held_out_scores": member.calibration.scores}
            if member.detector.residual_key not in kept:
                own |= member.spread.tensors()
                kept.add(member.detector.residual_key)
            out |= {f"{name}/{key}": value for key, value in own.items()}
        return out


class Consistency(ScanDetector):
    """Consistency: the half-Cauchy combination of every test of a scan that applies to its geometry.

    T = mean over the members of cot(p π / 2), with each member's p-value on the held-out clean scans; the score is −log10 of
    half-Cauchy's tail at T, and the p-value its rank among the held-out scans' own, one scan of each patient. A member that finds
    a scan calmer than the clean ones adds nothing and takes nothing away. Members that do not apply are left out.

    Attributes:
        members: which tests; ``-top`` variants look at the largest residuals.
    """

    kind: Literal["consistency"] = "consistency"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram", "geometry", "calibration-scans"})
    source: ClassVar[str] = "combination: after Liu and Xie, J. Am. Stat. Assoc. 115, 2020; members see their own"
    adaptive: ClassVar[frozenset[str]] = frozenset({"ltgm-body-confined", "ltgm-consistent", "ltgm-range-projected"})

    members: Annotated[tuple[Member, ...], Field(min_length=1)] = get_args(Member)

    def applicable(self, geometry: Geometry) -> dict[str, ResidualDetector]:
        """The members that apply to a geometry."""
        return {name: MEMBERS[name] for name in dict.fromkeys(self.members) if not MEMBERS[name].why_not_scan(geometry)}

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """Why no member applies."""
        if not isinstance(context, ScanContext):
            return "needs measured data"
        if self.applicable(context.geometry):
            return ""
        return "; ".join(f"{name}: {MEMBERS[name].why_not_scan(context.geometry)}" for name in self.members)

    def calibrate(self, context: ScanContext) -> ConsistencyDetection:
        """Calibrate the members on the same halves; the clean scans are read twice."""
        if reason := self.why_not(context):
            raise NotApplicable(f"consistency: {reason}")
        members = self.applicable(context.geometry)
        found = calibrate_together(list(members.values()), context, missing_ok=True)
        detections = {name: one for name, one in zip(members, found, strict=True) if one is not None}
        if not detections:
            raise NotApplicable("consistency: no member applies to these calibration scans")
        one_each = halves(context.clean.patients, context.seed, "consistency").one_each
        return ConsistencyDetection(detections, torch.tensor(one_each))

    def restore(self, tensors: Mapping[str, Tensor], geometry: Geometry) -> ConsistencyDetection:
        """Inverse of :meth:`ConsistencyDetection.tensors`."""
        own: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, slash, field = key.partition("/")
            if slash:
                own.setdefault(name, {})[field] = value
        unknown = [name for name in own if name not in self.members]
        if unknown or not own or not {"held_out_weights", "one_each"} <= set(tensors):
            raise InputError(
                f"consistency: the profile holds {', '.join(unknown) or 'no member'}; its members are {', '.join(self.members)}"
            )
        spreads = {MEMBERS[name].residual_key: fields for name, fields in own.items() if "mean" in fields}
        weights = {"held_out_weights": tensors["held_out_weights"]}
        # A file does not keep the order of its tensors.
        names: list[str] = [name for name in dict.fromkeys(self.members) if name in own]
        restored = {
            name: MEMBERS[name].restore(spreads[MEMBERS[name].residual_key] | own[name] | weights, geometry) for name in names
        }
        return ConsistencyDetection(restored, tensors["one_each"])
