"""What screening says of a scan, in numbers and in words, and of many scans together."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy.stats import betabinom

from tomosec.component import components
from tomosec.defenses.maps import TOP, InconsistencyMap

Verdict = Literal["clean", "suspicious", "no verdict"]

#: What it means that a detector stands out.
_MEANING = {
    "complementary-rays": "lines that are measured from both sides read differently",
    "helgason-ludwig": "the moments of the views do not fit together",
    "fourier-wedge": "there is energy at frequencies that no object inside the scan circle has",
    "pairwise-consistency": "pairs of views contradict each other",
    "reprojection-residual": "no image explains the data",
    "air-rays": "rays that miss the object do not read as air",
    "noise-statistics": "the noise is stronger, weaker or more alike between neighbors than in clean scans",
    "half-scan-disagreement": "even and odd views give different images",
}


def meaning(detector: str) -> str:
    """Say in words what it means that a detector stands out."""
    base = detector.removesuffix(TOP)
    if base in _MEANING:
        return _MEANING[base] + (", most of all in few places" if detector != base else "")
    cls = components("defense").get(base)
    return ((inspect.getdoc(cls) or "") if cls is not None else "").partition("\n")[0].rstrip(".") or f"{detector} stands out"


@dataclass(frozen=True, slots=True)
class Reading:
    """What one detector says.

    Attributes:
        detector: its name.
        score: higher is more suspicious.
        p_value: by the held-out clean scans; None with too few of them.
        beyond: how far the score is above the median of clean ones, in their median absolute deviations.
    """

    detector: str
    score: float
    p_value: float | None
    beyond: float


def signed_number(value: float) -> str:
    """A number of standard deviations with its sign, short however large it is."""
    return f"{value:+.1f}" if abs(value) < 1000 else f"{value:+.3g}"


@dataclass(frozen=True, slots=True, eq=False)
class ScreenResult:
    """What screening says of one scan.

    Attributes:
        key: names the scan.
        patient: whose it is, or the key.
        verdict: ``suspicious`` where p ≤ alpha, ``clean`` where nothing was found, ``no verdict`` where none is possible.
        score: −log10 of the combined p-value before it is ranked; it goes on rising beyond all clean scans. NaN where the scan
            was not judged.
        p_value: chance of a clean scan of this scanner to look at least as suspicious; None without a verdict.
        reason: in words.
        readings: of every detector, the most suspicious first.
        where: map of the most suspicious detector that has one, the finest where several are equally suspicious.
    """

    key: str
    patient: str
    verdict: Verdict
    score: float
    p_value: float | None
    reason: str
    readings: tuple[Reading, ...] = ()
    where: InconsistencyMap | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data, for a line of JSON: all but the map, of which the place of its peak is told."""
        out: dict[str, Any] = {
            "key": self.key,
            "verdict": self.verdict,
            "p": self.p_value,
            "score": None if math.isnan(self.score) else self.score,
            "reason": self.reason,
            "detectors": {r.detector: {"score": r.score, "p": r.p_value} for r in self.readings},
        }
        if self.where is not None:
            view, bin_ = self.where.peak
            out["peak"] = {
                "detector": self.where.detector,
                "view": view,
                "bin": bin_,
                "views": self.where.views,
                "bins": self.where.bins,
                "sd": self.where.height,
            }
        return out


@dataclass(slots=True)
class Tally:
    """Counts over many scans, and what they mean together.

    Attributes:
        alpha: at or below which a p-value flags a scan.
        held_out: patients behind the p-values.
        verdicts: how many scans got which.
        unreadable: how many could not be read or compared.
        patients: names of those that were judged.
    """

    alpha: float
    held_out: int
    verdicts: dict[Verdict, int] = field(default_factory=lambda: {"clean": 0, "suspicious": 0, "no verdict": 0})
    unreadable: int = 0
    patients: set[str] = field(default_factory=set)

    def add(self, result: ScreenResult) -> None:
        """Count one."""
        self.verdicts[result.verdict] += 1
        if result.verdict != "no verdict":
            self.patients.add(result.patient)

    @property
    def judged(self) -> int:
        """Scans with a verdict."""
        return self.verdicts["clean"] + self.verdicts["suspicious"]

    @property
    def flagged(self) -> int:
        """Suspicious scans."""
        return self.verdicts["suspicious"]

    @property
    def expected(self) -> float:
        """False alarms to expect at most if all scans are clean: judged scans times alpha."""
        return self.judged * self.alpha

    @property
    def by_chance(self) -> float | None:
        """Chance of at least as many alarms if all scans are clean; None where a patient has several scans.

        All p-values share the held-out scans. With l = ⌊alpha (n + 1)⌋ the share of clean scans that is flagged is itself
        random, Beta(l, n + 1 − l), so the number of alarms is beta-binomial (Vovk, ACML 2012; Bates et al., Ann. Stat. 51, 2023).
        That is exact for ranks of a score that is fixed before; the combined score ranks every scan among the held-out ones
        anew, so here it is an approximation.
        """
        if not self.judged or len(self.patients) != self.judged:
            return None
        rank = math.floor(self.alpha * (self.held_out + 1) * (1 + 1e-12))
        if not 1 <= rank <= self.held_out:
            return None
        return float(betabinom.sf(self.flagged - 1, self.judged, rank, self.held_out + 1 - rank))

    def lines(self) -> list[str]:
        """The summary, a sentence a line."""
        total = self.judged + self.verdicts["no verdict"]
        out = [
            f"{_scans(total)} screened: {self.flagged} suspicious, {self.verdicts['clean']} clean, "
            f"{self.verdicts['no verdict']} without a verdict; {self.unreadable} could not be read or compared."
        ]
        if self.judged:
            out.append(
                f"alpha is {self.alpha:g} for each scan: {self.expected:.3g} alarms are expected by chance if all are clean."
            )
            if self.flagged and (chance := self.by_chance) is not None:
                out.append(f"{self.flagged} or more happen with probability of about {chance:.2g} if all are clean.")
            elif self.flagged:
                out.append("Scans of one patient raise alarms together, so no probability is given for their number.")
        return out


def _scans(count: int) -> str:
    return "1 scan" if count == 1 else f"{count} scans"


def reason_of(readings: tuple[Reading, ...], where: InconsistencyMap | None, verdict: Verdict) -> str:
    """Say why, naming the detector that says most."""
    first = readings[0]
    stands = f"p {first.p_value:.3g}" if first.p_value is not None else f"{first.beyond:.1f} clean spreads above the median"
    if verdict != "suspicious":
        return f"nothing stands out; {first.detector} says most, {stands} by itself"
    place = ""
    if where is not None:
        whose = "" if where.detector == first.detector else f" by {where.detector}"
        or_there = ", or the opposite at the ray from the other side" if where.mirrored else ""
        place = f"; {signed_number(where.height)} sd at {where.place}{or_there}{whose}"
    return f"{meaning(first.detector)} ({first.detector}, {stands} by itself{place})"
