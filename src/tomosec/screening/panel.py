"""Several detectors of measured data that were calibrated on the same halves of the same clean scans, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from tomosec.component import components
from tomosec.defenses.base import ScanContext, ScanDetection, ScanDetector, Scans
from tomosec.defenses.calibration import clean_scans, halves, rank_p_values
from tomosec.defenses.combination import combine
from tomosec.defenses.consistency import MEMBERS
from tomosec.defenses.maps import InconsistencyMap, spreads_beyond, suspicion_order, telling_map
from tomosec.defenses.residuals import ResidualDetection, ResidualDetector, calibrate_together, scored_together
from tomosec.errors import InputError, NotApplicable, nearest
from tomosec.geometry import FanBeam, ParallelBeam

#: Stands for all detectors of the package.
ALL = "consistency"
_WHO = "screen"


def catalog() -> tuple[dict[str, ScanDetector], dict[str, str]]:
    """Every scan detector by name, those of other distributions included, with default fields; and why some are left out."""
    found: dict[str, ScanDetector] = dict(MEMBERS)
    left_out: dict[str, str] = {}
    taken = {member.model_dump()["kind"] for member in MEMBERS.values()} | {ALL}
    for kind, cls in components("defense").items():
        if issubclass(cls, ScanDetector) and kind not in taken:
            try:
                found[kind] = cls()
            except ValidationError:
                left_out[kind] = "has fields without a default"
    return found, left_out


def choose(names: Sequence[str] | None) -> tuple[dict[str, ScanDetector], dict[str, str]]:
    """The detectors of those names; all without names.

    Raises:
        InputError: an unknown name, or none.
    """
    known, left_out = catalog()
    if names is None:
        return known, left_out
    wanted = [name for given in names for name in (MEMBERS if given == ALL else [given])]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise InputError(
            f"detectors: {f'no detector {unknown[0]!r}{nearest(unknown[0], known)}' if unknown else 'none is named'}; there are "
            f"{ALL} (all of tomosec's), {', '.join(known)}"
        )
    return {name: known[name] for name in wanted}, {}


@dataclass(frozen=True, slots=True)
class Judgment:
    """What a panel says about one scan.

    Attributes:
        score: −log10 of the half-Cauchy combination.
        p_value: rank of the score among the held-out clean scans; None with too few of them.
        scores: of each detector, by name.
        p_values: of each, None as above.
        beyond: of each, how far its score is above the median of the clean ones, in their median absolute deviations.
        order: names, the most suspicious first.
        where: of the detectors that are as suspicious as the first that has a map, the one that says where most finely; None
            where no detector has one.
    """

    score: float
    p_value: float | None
    scores: dict[str, float]
    p_values: dict[str, float | None]
    beyond: dict[str, float]
    order: tuple[str, ...]
    where: InconsistencyMap | None


class Panel:
    """Calibrated detectors.

    Attributes:
        components: the detectors by name.
        parts: their detections, in the same order.
        scores: (n, K) of held-out clean scans of n patients, one of each, by the K parts.
        not_applicable: reasons by name.
    """

    def __init__(
        self,
        detectors: Mapping[str, ScanDetector],
        parts: Mapping[str, ScanDetection],
        scores: Tensor,
        not_applicable: Mapping[str, str],
    ) -> None:
        self.components, self.parts = dict(detectors), dict(parts)
        self.scores, self.not_applicable = scores, dict(not_applicable)

    @property
    def held_out(self) -> int:
        """Patients behind the p-values."""
        return len(self.scores)

    @classmethod
    @torch.no_grad()
    def calibrated(cls, context: ScanContext, names: Sequence[str] | None = None) -> Panel:
        """Calibrate every detector that applies; the clean scans are read twice, and once more for detectors of others.

        Raises:
            InputError: an unknown detector, too few clean scans for any, or none that applies.
        """
        chosen, skipped = choose(names)
        for name, detector in chosen.items():
            if reason := detector.why_not(context):
                skipped[name] = reason
        chosen = {name: detector for name, detector in chosen.items() if name not in skipped}
        residual = {name: detector for name, detector in chosen.items() if isinstance(detector, ResidualDetector)}
        parts: dict[str, ScanDetection] = {}
        try:
            split = halves(context.clean.patients, context.seed, _WHO)
            found = calibrate_together(list(residual.values()), context, missing_ok=True) if residual else []
        except NotApplicable as error:
            raise InputError(str(error)) from error
        together = dict(zip(residual, found, strict=True))
        for name, detector in chosen.items():
            detection = together.get(name)
            try:
                # By itself, a detector says why the clean scans do not do.
                parts[name] = detection if detection is not None else detector.calibrate(context)
            except NotApplicable as error:
                skipped[name] = str(error)
        if not parts:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise InputError(f"no detector applies to these scans: {reasons}")
        columns = {name: part.calibration.scores for name, part in parts.items() if isinstance(part, ResidualDetection)}
        others = {name: part for name, part in parts.items() if name not in columns}
        if others:
            rows: dict[str, list[Tensor]] = {name: [] for name in others}
            context.progress.start(len(split.held_out), f"calibrate {', '.join(others)}")
            for scans in clean_scans(context, split.held_out, _WHO):
                for name, part in others.items():
                    rows[name].append(part.judge(scans).score.double().cpu())
                context.progress.advance(len(scans.keys))
            columns |= {name: torch.cat(row) for name, row in rows.items()}
        table = torch.stack([columns[name] for name in parts], dim=1)[list(split.one_each)]
        return cls({name: chosen[name] for name in parts}, parts, table, skipped)

    @torch.no_grad()
    def judge(self, scans: Scans, *, want_map: bool = True) -> Judgment:
        """Judge one scan; a residual that several detectors share is measured once."""
        found, whitened = scored_together(self.parts, scans)
        scores = {name: float(score[0]) for name, score in found.items()}
        row = torch.tensor([list(scores.values())], dtype=torch.float64)
        score, p_value = combine(row, self.scores)
        p_values: dict[str, float | None] = {}
        beyond: dict[str, float] = {}
        for place, (name, column) in enumerate(zip(self.parts, self.scores.T, strict=True)):
            p_values[name] = None if p_value is None else float(rank_p_values(row[:, place], column)[0])
            beyond[name] = spreads_beyond(scores[name], column)
        order = suspicion_order(p_values, beyond)

        def map_of(name: str) -> Tensor | None:
            part = self.parts[name]
            own = part.map_of(whitened[name]) if isinstance(part, ResidualDetection) else part.where(scans)
            return None if own is None else own[0]

        where = telling_map(order, p_values, map_of) if want_map else None
        return Judgment(float(score[0]), None if p_value is None else float(p_value[0]), scores, p_values, beyond, order, where)

    def tensors(self) -> dict[str, Tensor]:
        """What a profile keeps: each detector's own under its name, and the scores of the held-out clean scans."""
        own = {f"{name}/{key}": value for name, part in self.parts.items() for key, value in part.tensors().items()}
        return own | {"held-out/scores": self.scores}

    @classmethod
    def restored(
        cls,
        detectors: Mapping[str, ScanDetector],
        tensors: Mapping[str, Tensor],
        geometry: FanBeam | ParallelBeam,
        not_applicable: Mapping[str, str],
    ) -> Panel:
        """Inverse of :meth:`tensors`.

        Raises:
            InputError: a tensor is missing, or there are held-out scores of other detectors.
        """
        own: dict[str, dict[str, Tensor]] = {name: {} for name in detectors}
        for key, value in tensors.items():
            name, _, rest = key.partition("/")
            if name in own:
                own[name][rest] = value
        try:
            scores = tensors["held-out/scores"]
            parts = {name: detector.restore(own[name], geometry) for name, detector in detectors.items()}
        except KeyError as error:
            raise InputError(f"the tensor {error} is missing") from error
        if scores.ndim != 2 or not len(scores) or scores.shape[1] != len(detectors):
            raise InputError(f"held-out scores of shape {tuple(scores.shape)} for {len(detectors)} detectors")
        return cls(detectors, parts, scores, not_applicable)
