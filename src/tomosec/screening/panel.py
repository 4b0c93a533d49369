"""Several detectors of measured data that were calibrated on the same halves of the same clean scans, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from tomosec.component import components
from tomosec.defenses.base import ScanContext, ScanDetection, ScanDetector, Scans
from tomosec.defenses.calibration import HeldOut, clean_scans, halves
from tomosec.defenses.combination import combine
from tomosec.defenses.consistency import MEMBERS
from tomosec.defenses.residuals import ResidualDetection, ResidualDetector, calibrate_together
from tomosec.errors import InputError, NotApplicable, nearest
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.screening.results import InconsistencyMap

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
        map_of: whose map ``where`` is: of the detectors that are as suspicious as the first that has one, the one that says where
            most finely; empty where none has.
        where: (views, bins) float32, in clean standard deviations; None where no detector has one.
    """

    score: float
    p_value: float | None
    scores: dict[str, float]
    p_values: dict[str, float | None]
    beyond: dict[str, float]
    order: tuple[str, ...]
    map_of: str
    where: Tensor | None


class Panel:
    """Calibrated detectors.

    Attributes:
        components: the detectors by name.
        parts: their detections, in the same order.
        scores: (n, K) of held-out clean scans of n patients, one of each, by the K parts.
        weights: (n,) ones.
        not_applicable: reasons by name.
    """

    def __init__(
        self,
        detectors: Mapping[str, ScanDetector],
        parts: Mapping[str, ScanDetection],
        scores: Tensor,
        weights: Tensor,
        not_applicable: Mapping[str, str],
    ) -> None:
        self.components, self.parts = dict(detectors), dict(parts)
        self.scores, self.weights = scores, weights
        self.not_applicable = dict(not_applicable)

    @property
    def held_out(self) -> int:
        """Patients behind the p-values."""
        return HeldOut(self.scores[:, 0], self.weights).patients

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
        return cls({name: chosen[name] for name in parts}, parts, table, split.weights.new_ones(len(table)), skipped)

    @torch.no_grad()
    def judge(self, scans: Scans, *, want_map: bool = True) -> Judgment:
        """Judge one scan; a residual that several detectors share is measured once."""
        whitened: dict[str, Tensor] = {}
        scores: dict[str, float] = {}
        for name, part in self.parts.items():
            if isinstance(part, ResidualDetection):
                key = part.detector.residual_key
                if key not in whitened:
                    whitened[key] = part.whitened(scans)
                scores[name] = float(part.score_of(whitened[key])[0])
            else:
                scores[name] = float(part.judge(scans).score[0])
        row = torch.tensor([list(scores.values())], dtype=torch.float64)
        score, p_value = combine(row, self.scores)
        p_values: dict[str, float | None] = {}
        beyond: dict[str, float] = {}
        for place, (name, column) in enumerate(zip(self.parts, self.scores.T, strict=True)):
            own = HeldOut(column, self.weights).p_values(row[:, place])
            p_values[name] = None if own is None else float(own[0])
            middle = column.median()
            beyond[name] = float((scores[name] - middle) / (column - middle).abs().median().clamp_min(1e-300))
        order = tuple(sorted(scores, key=lambda name: (p_values[name] or 0.0, -beyond[name])))
        map_of, where = self._where(scans, order, p_values, whitened) if want_map else ("", None)
        return Judgment(
            float(score[0]), None if p_value is None else float(p_value[0]), scores, p_values, beyond, order, map_of, where
        )

    def _where(
        self, scans: Scans, order: Sequence[str], p_values: Mapping[str, float | None], whitened: Mapping[str, Tensor]
    ) -> tuple[str, Tensor | None]:
        """Whose map says best where: of those that say most and equally much, the finest at its peak, then the highest."""
        best, found, rank = "", None, (0, 0.0)
        for name in order:
            if found is not None and (p_values[name] is None or p_values[name] != p_values[best]):
                break
            part = self.parts[name]
            shared = part if isinstance(part, ResidualDetection) else None
            own = part.where(scans) if shared is None else shared.map_of(whitened[shared.detector.residual_key])
            if own is None:
                continue
            values = own[0].float().cpu()
            candidate = InconsistencyMap(name, values.numpy())
            own_rank = (-candidate.rays, abs(candidate.height))
            if found is None or own_rank > rank:
                best, found, rank = name, values, own_rank
        return best, found

    def tensors(self) -> dict[str, Tensor]:
        """What a profile keeps: each detector's own under its name, and the scores of the held-out clean scans."""
        own = {f"{name}/{key}": value for name, part in self.parts.items() for key, value in part.tensors().items()}
        return own | {"held-out/scores": self.scores, "held-out/weights": self.weights}

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
            scores, weights = tensors["held-out/scores"], tensors["held-out/weights"]
            parts = {name: detector.restore(own[name], geometry) for name, detector in detectors.items()}
        except KeyError as error:
            raise InputError(f"the tensor {error} is missing") from error
        if scores.shape != (len(weights), len(detectors)) or not len(weights):
            raise InputError(
                f"held-out scores of shape {tuple(scores.shape)} for {len(weights)} scans, {len(detectors)} detectors"
            )
        if bool((weights != 1).any()):
            raise InputError("held-out scores are of several scans of a patient, and one of each is needed: calibrate again")
        return cls(detectors, parts, scores, weights, not_applicable)
