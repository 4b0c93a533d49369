"""The page of a screening: verdicts, where scans are inconsistent, what they were compared with, and what this cannot see."""

from __future__ import annotations

import bisect
import math
from dataclasses import replace
from pathlib import Path

from tomosec import __version__
from tomosec.defenses.calibration import MIN_HELD_OUT
from tomosec.defenses.maps import TOP, InconsistencyMap
from tomosec.files import write_text
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.report import rasters, wording
from tomosec.report.examples import Plane
from tomosec.report.page import render
from tomosec.report.tables import Cell, Table, facts
from tomosec.screening.profile import Profile
from tomosec.screening.results import ScreenResult, Tally, meaning, signed_number

#: Maps of scans that are not flagged, for comparison.
OTHERS = 3
#: Clean standard deviations at the ends of the color bar; the same for all maps, so that they compare.
LIMIT_SD = 6.0

LIMITS = (
    "A change that some object could have caused. A pattern that is itself the projection of an image is consistent with every "
    "other ray, whoever put it there; an attacker who knows these tests can make one. Only its noise and the rays that miss the "
    "body could give it away.",
    "A change after reconstruction, in the image, and a change of the network that reads it. Neither leaves a trace in "
    "measured data.",
    "Anything that was there when the clean scans were taken: the profile calls it clean.",
    "A scanner, protocol or patient group that differs from the clean scans. The p-values hold for scans that are exchangeable "
    "with them; after service, another tube or another dose the profile has to be made anew, or its alarms mean only that.",
    "What is too weak for one scan. “Clean” says that nothing was found at this alpha, not that nothing is there.",
)


#: What has to be known to read a detector's map.
_HOW_TO_READ = {
    "complementary-rays": " Shown is the difference of the two measurements of a line, at both with opposite signs: the change "
    "is at one of them, and the map does not say at which.",
    "fourier-wedge": " Only what is at those frequencies is shown, so a change looks like waves around its place.",
    "air-rays": " Only rays that miss the body are looked at; the others are white.",
    "pairwise-consistency": " Whole views are compared, so a view has one value for all its bins, never below 0; views that are "
    "compared with a changed one stand out too.",
    "noise-statistics": " A value for each tile of the sinogram: how much stronger its noise is than in clean scans, or weaker.",
}


class ScreenPage:
    """Collects results, without their maps but for the few that are shown.

    Args:
        profile: what the scans are compared with.
        alpha: at or below which a p-value flags a scan.
        maps: at most so many maps of flagged scans, those of the highest scores; and of :data:`OTHERS` more.
    """

    def __init__(self, profile: Profile, alpha: float, maps: int = 24) -> None:
        self.tally = Tally(alpha, profile.held_out)
        self._profile, self._most = profile, maps
        self._results: list[ScreenResult] = []
        self._unreadable: list[tuple[str, str]] = []
        self._planes: dict[bool, list[tuple[float, int, Plane]]] = {True: [], False: []}

    def add(self, result: ScreenResult) -> None:
        """Take in one result."""
        self.tally.add(result)
        self._results.append(replace(result, where=None))
        if result.where is None or math.isnan(result.score):
            return
        shown, most = self._planes[result.verdict == "suspicious"], self._most
        if result.verdict != "suspicious":
            most = OTHERS
        rank = (-result.score, len(self._results))
        if len(shown) >= most and (not shown or rank >= shown[-1][:2]):
            return
        bisect.insort(shown, (*rank, _plane(result, result.where, self._profile.geometry)))
        del shown[most:]

    def add_unreadable(self, key: str, reason: str) -> None:
        """Take in what could not be judged."""
        self.tally.unreadable += 1
        self._unreadable.append((key, reason))

    def write(self, path: Path, *, interrupted: str = "") -> None:
        """Write the page, all or nothing.

        Args:
            path: the HTML file.
            interrupted: what is missing, where not all scans were screened.
        """
        tally, profile = self.tally, self._profile
        flagged = tally.flagged
        warnings = [interrupted] if interrupted else []
        if not profile.gives_verdicts:
            warnings.append(
                f"No verdicts: the profile has {profile.held_out} held-out patients, and p-values need {MIN_HELD_OUT}. "
                "Scores are shown."
            )
        title = f"{wording.plural(len(self._results), 'scan')} screened"
        if flagged:
            banner, style = wording.plural(flagged, "suspicious scan"), "level-high"
        elif tally.judged:
            banner, style = "Nothing suspicious found", "level-low"
        else:
            banner, style = "No verdict", ""
        planes = [plane for group in (True, False) for _, _, plane in self._planes[group]]
        text = render(
            "screen.html",
            title=title,
            banner=banner,
            banner_class=style,
            lines=tally.lines(),
            warnings=warnings,
            verdicts=self._verdicts(),
            unreadable=Table(
                "Not judged: files that could not be read or compared",
                ("File", "Why"),
                tuple((Cell(key), Cell(reason)) for key, reason in self._unreadable),
            )
            if self._unreadable
            else None,
            planes=planes,
            about_maps=self._about_maps(),
            profile=_profile_table(profile),
            detectors=_detectors_table(profile),
            not_applicable=facts(
                "Detectors that do not apply to these scans",
                list(profile.panel.not_applicable.items()),
                ("Detector", "Why"),
            )
            if profile.panel.not_applicable
            else None,
            limits=LIMITS,
            version=__version__,
        )
        write_text(path, text)

    def _about_maps(self) -> str:
        flagged, others = len(self._planes[True]), len(self._planes[False])
        left_out = self.tally.flagged - flagged
        first = [f"{wording.plural(flagged, 'suspicious scan')}, the highest scores first"] if flagged else []
        if others:
            first.append(f"{'then ' if flagged else ''}{others} of the others for comparison")
        text = (
            f"{', '.join(first)}. A map is that of the detector that says most; where several say equally much, of the one that "
            "says most precisely where. It shows what the detector measures at every ray, in standard deviations (sd) of clean "
            f"scans, white where it is as expected; beyond ±{LIMIT_SD:g} sd colors saturate. Views and bins are counted from 0. "
            "In a whole turn every line is measured from both sides: what changes one of the two measurements shows at the other "
            "as well, weaker or with the opposite sign."
        )
        return text + (f" {left_out} more suspicious scans have none here." if left_out > 0 else "")

    def _verdicts(self) -> Table:
        profile, verdicts = self._profile, self._profile.gives_verdicts
        order = sorted(self._results, key=lambda r: (r.p_value if r.p_value is not None else 2.0, -_number(r.score)))
        rows = []
        for result in order:
            first = result.readings[0] if result.readings else None
            rows.append(
                (
                    Cell(result.key),
                    Cell(result.verdict, strong=result.verdict == "suspicious"),
                    Cell(
                        "" if result.p_value is None else f"{result.p_value:.3g}",
                        sort=2.0 if result.p_value is None else result.p_value,
                    ),
                    Cell("" if math.isnan(result.score) else f"{result.score:.3g}", sort=_number(result.score)),
                    Cell("" if first is None else first.detector),
                    Cell(result.reason),
                )
            )
        return Table(
            "Every scan, the most suspicious first",
            ("Scan", "Verdict", "p", "Score", "Detector that says most", "Why"),
            tuple(rows),
            (
                "p: the chance that a clean scan of this scanner looks at least as suspicious to all detectors together"
                + (f"; by this profile never below {profile.smallest_p:.3g}, however large the finding" if verdicts else "")
                + ". Score: −log10 of their p-values' half-Cauchy combination, which goes on rising where clean scans are left "
                "behind.",
            ),
            sortable=True,
        )


def _number(score: float) -> float:
    return -1.0 if math.isnan(score) else score


def _plane(result: ScreenResult, where: InconsistencyMap, geometry: FanBeam | ParallelBeam) -> Plane:
    raster = rasters.signed(where.values, LIMIT_SD, 360, peaks=True)
    note = f"{meaning(where.detector)[:1].upper()}{meaning(where.detector)[1:]}. " if result.verdict == "suspicious" else ""
    angle = math.degrees(float(geometry.view_angles[where.peak[0]]))
    note += f"Farthest from 0: {signed_number(where.height)} sd at {where.place}; view {where.peak[0]} is at {angle:.4g}°."
    note += _HOW_TO_READ.get(where.detector.removesuffix(TOP), "")
    if raster.averaged != (1, 1):
        rows, columns = raster.averaged
        note += f" A pixel is the value farthest from 0 of {rows} × {columns} samples."
    p = "no p-value" if result.p_value is None else f"p {result.p_value:.3g}"
    return Plane(
        f"{result.key}: {result.verdict}, {p} ({where.detector})",
        f"Inconsistency of {result.key} by {where.detector} over view and detector bin, symmetric scale with zero in white",
        raster,
        "sd",
        True,
        ("detector bin", _ticks(where.values.shape[1])),
        ("view", _ticks(where.values.shape[0])),
        note,
    )


def _ticks(count: int) -> tuple[tuple[float, str], ...]:
    return tuple((place, str(round(place * (count - 1)))) for place in (0.0, 0.5, 1.0))


def _profile_table(profile: Profile) -> Table:
    geometry = profile.geometry
    views = "listed angles" if geometry.angles is not None else f"{math.degrees(geometry.arc):.4g}°"
    noise = "the spread of the clean scans"
    if profile.photons is not None:
        many = " to ".join(dict.fromkeys(f"{count:.3g}" for count in profile.photons))
        noise = f"photon noise of each scan, {many} photons a bin, and the spread of the clean scans"
    return facts(
        "The profile",
        [
            ("Clean scans", f"{profile.scans} of {wording.plural(profile.patients, 'patient')}"),
            ("Held out for p-values", wording.plural(profile.held_out, "patient")),
            ("Smallest p that can be reached", f"{profile.smallest_p:.3g}"),
            ("Geometry", f"{geometry.kind}, {geometry.views} views ({views}), {geometry.bins} bins of {geometry.bin_mm:g} mm"),
            ("Residuals in units of", noise),
            ("Made", profile.created.strftime("%Y-%m-%d %H:%M UTC")),
        ],
    )


def _detectors_table(profile: Profile) -> Table:
    scores = profile.panel.scores
    rows = tuple(
        (
            Cell(name),
            Cell(f"{float(scores[:, k].median()):.3g}"),
            Cell(f"{float(scores[:, k].max()):.3g}"),
            Cell(meaning(name)),
            Cell(", ".join(sorted(detector.adaptive)) or "not adaptively evaluated"),
        )
        for k, (name, detector) in enumerate(profile.panel.components.items())
    )
    return Table(
        "Detectors, with their scores of held-out clean scans",
        ("Detector", "Median", "Highest", "Stands out when", "Attacks made to pass it"),
        rows,
    )
