"""The verb ``screen``: is incoming measured data consistent, compared with clean scans of the same scanner?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TextIO

from tyro.conf import Positional, arg

from tomosec.cli.console import errors, say, show_table
from tomosec.cli.running import Verb
from tomosec.errors import InputError

if TYPE_CHECKING:
    from tomosec.data.scans import ScanFiles
    from tomosec.geometry import FanBeam, ParallelBeam
    from tomosec.progress import Progress
    from tomosec.screening import Profile
    from tomosec.screening.page import ScreenPage

FLAGGED = 3
UNJUDGED = 1


@dataclass(frozen=True, kw_only=True)
class Calibrate(Verb):
    """Learn what clean scans of one scanner look like. They are read three times; about half of them give the p-values."""

    when_interrupted: ClassVar[str] = "Nothing was written."

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="CLEAN")]
    """Files or folders of clean scans: HTC 2022 (.mat), NPZ or HDF5 with geometry, folders of DICOM-CT-PD or 2DeteCT."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="PROFILE")]
    """The folder to write; it must not exist."""
    geometry: Annotated[Path | None, arg(metavar="FILE")] = None
    """A geometry component in YAML or JSON, for files that state none; others must agree with it."""
    detectors: Annotated[str, arg(metavar="A,B")] = ""
    """Only these detectors, separated by commas; all that apply when not given."""
    noise: Literal["auto", "photons", "clean-scans"] = "auto"
    """Whiten by each scan's own photon noise (photons), where all state them or measured a view twice, or by the spread of
    clean scans alone; auto takes the first where it can."""
    slices: Annotated[int, arg(metavar="N")] = 8
    """How many evenly spaced slices of a helical scan."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Deals the patients into the half that is fitted and the half that gives p-values."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> int:
        """Calibrate, write the profile, and say what it can tell."""
        from tomosec.files import require_new

        require_new(self.output)
        scans = _found(self.paths, _geometry(self.geometry), self.slices)
        from tomosec.run.runner import choose_device
        from tomosec.screening import calibrate

        names = [name.strip() for name in self.detectors.split(",")] if self.detectors else None
        device = choose_device(self.device)
        with _progress() as progress:
            profile = calibrate(scans, detectors=names, noise=self.noise, seed=self.seed, device=device, progress=progress)
        profile.save(self.output)
        _tell(profile)
        say(f"Profile: {self.output}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Screen(Verb):
    """Judge incoming scans by a profile of clean ones; exit code 3 when one is suspicious, 1 when one could not be judged.

    The profile is made once, from clean scans of the same scanner: tomosec screen calibrate CLEAN -o PROFILE.
    """

    when_interrupted: ClassVar[str] = "The scans above were judged; the page and the JSON lines, where asked for, hold them."

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="SCANS")]
    """Files or folders of scans, as for calibrate; or the word calibrate, see tomosec screen calibrate --help."""
    profile: Annotated[Path, arg(metavar="PROFILE")]
    """Folder that `tomosec screen calibrate` wrote."""
    output: Annotated[Path | None, arg(aliases=("-o",), metavar="FILE")] = None
    """Also write an HTML page with maps of where scans are inconsistent."""
    alpha: Annotated[float, arg(metavar="A")] = 0.01
    """A scan is suspicious where p <= alpha: of N clean scans, N times alpha are flagged by chance."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Also write a line of JSON for each scan."""
    maps: Annotated[int, arg(metavar="N")] = 24
    """At most so many maps of suspicious scans on the page."""
    slices: Annotated[int, arg(metavar="N")] = 8
    """How many evenly spaced slices of a helical scan."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda or cuda:N."""

    def run(self) -> int:
        """Screen one scan after another."""
        for name, path in (("output", self.output), ("json", self.json)):
            if path is not None and path.is_dir():
                raise InputError(f"--{name} {path}: a folder; give the name of a file")
        if self.output is not None and self.json is not None and self.output.resolve() == self.json.resolve():
            raise InputError(f"--output and --json are both {self.output}; name two files")
        if self.maps < 0:
            raise InputError(f"--maps {self.maps}: 0 or more")
        from tomosec.defenses.calibration import MIN_HELD_OUT
        from tomosec.run.runner import choose_device
        from tomosec.screening import Profile
        from tomosec.screening.page import ScreenPage

        profile = Profile.load(self.profile, device=choose_device(self.device))
        profile.require_alpha(self.alpha)
        scans = _found(self.paths, profile.geometry, self.slices)
        self._spare(scans)
        page = ScreenPage(profile, self.alpha, self.maps)
        if not profile.gives_verdicts:
            say(f"No verdicts: {profile.held_out} held-out patients; p-values need {MIN_HELD_OUT}.", "yellow")
        with ExitStack() as stack:
            lines = stack.enter_context(_opened(self.json)) if self.json is not None else None
            try:
                self._screen(scans, profile, page, lines)
            except BaseException:  # Ctrl-C, a full disk, a reader of stdout that has left: what was judged is kept
                if self.output is not None:
                    judged = page.tally.judged + page.tally.verdicts["no verdict"]
                    were = "scan was" if judged == 1 else "scans were"
                    page.write(self.output, interrupted=f"Interrupted: {judged} {were} screened, others not.")
                raise
        say("")
        for sentence in page.tally.lines():
            say(sentence)
        if self.output is not None:
            page.write(self.output)
            say(f"Page: {self.output}")
        # A finding goes before a scan that could not be judged, which is named above. One that gets no verdict, such as for the
        # photons that it states, must not pass for clean either; where the profile gives none to any, that was said before.
        unjudged = page.tally.unreadable or (profile.gives_verdicts and page.tally.verdicts["no verdict"])
        return FLAGGED if page.tally.flagged else UNJUDGED if unjudged else 0

    def _spare(self, scans: ScanFiles) -> None:
        """Never write over measured data or over the profile."""
        for name, path in (("output", self.output), ("json", self.json)):
            if path is None:
                continue
            place = path.resolve()
            if any(place == scan.resolve() or scan.resolve() in place.parents for scan in scans.paths):
                raise InputError(f"--{name} {path}: measured data, which are not written over; name another file")
            if self.profile.resolve() in place.parents:
                raise InputError(f"--{name} {path}: in the profile; name a file elsewhere")

    def _screen(self, scans: ScanFiles, profile: Profile, page: ScreenPage, lines: TextIO | None) -> None:
        from tomosec.data.scans import Unreadable

        for scan in scans.readings():
            if not isinstance(scan, Unreadable):
                try:
                    result = profile.screen(scan, alpha=self.alpha, want_map=True)
                except InputError as error:
                    scan = Unreadable(scan.key, str(error).removeprefix(f"{scan.key}: "))
            if isinstance(scan, Unreadable):
                page.add_unreadable(scan.key, scan.reason)
                errors().print(f"{scan.key}: not judged: {scan.reason}", style="red", markup=False, soft_wrap=True)
                _write(lines, {"key": scan.key, "verdict": None, "error": scan.reason})
                continue
            page.add(result)
            chance = f", p {result.p_value:.3g}" if result.p_value is not None else ""
            style = {"suspicious": "bold red", "no verdict": "yellow"}.get(result.verdict, "")
            say(f"{result.key}: {result.verdict}{chance}; {result.reason}", style)
            _write(lines, result.as_json())


def _found(paths: tuple[Path, ...], geometry: FanBeam | ParallelBeam | None, slices: int) -> ScanFiles:
    from tomosec.data.scans import ScanFiles

    if not paths:
        raise InputError("no scans are named; give files or folders")
    scans = ScanFiles(paths, geometry=geometry, slices=slices)
    if scans.passed_over:
        more = f" and {len(scans.passed_over) - 1} more" if len(scans.passed_over) > 1 else ""
        say(f"Passed over, no measured data by name: {scans.passed_over[0]}{more}")
    return scans


def _geometry(path: Path | None) -> FanBeam | ParallelBeam | None:
    if path is None:
        return None
    import yaml

    from tomosec.data.measurement_file import parse_geometry

    try:
        # JSON is YAML, but for numbers such as 1e5, which a reader of YAML 1.1 takes for text; pydantic reads them all the same.
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--geometry {path}: cannot be read as YAML or JSON ({error})") from error
    return parse_geometry(value, f"--geometry {path}")


def _tell(profile: Profile) -> None:
    from tomosec.defenses.calibration import MIN_HELD_OUT

    panel = profile.panel
    rows = [
        [name, f"{float(panel.scores[:, k].median()):.3g}", f"{float(panel.scores[:, k].max()):.3g}"]
        for k, name in enumerate(panel.parts)
    ]
    show_table(["detector", "clean: median", "highest"], rows)
    if panel.not_applicable:
        show_table(["not applicable", "why"], [[name, why] for name, why in panel.not_applicable.items()])
    say("")
    by = "each scan's photon noise and the spread of clean scans" if profile.noise == "photons" else "the spread of clean scans"
    say(f"Residuals are in units of {by}.")
    say(
        f"{profile.scans} clean scans of {profile.patients} patients; n = {profile.held_out} held-out patients give the "
        f"p-values; the smallest that can be reached is 1/(n + 1) = {profile.smallest_p:.3g}."
    )
    if not profile.gives_verdicts:
        say(
            f"These are fewer than {MIN_HELD_OUT}, so this profile gives scores without a verdict; add clean scans of more "
            "patients.",
            "yellow",
        )


@contextmanager
def _progress() -> Iterator[Progress]:
    from tomosec.progress import RichProgress, for_terminal

    progress = for_terminal()
    try:
        yield progress
    finally:
        # A message about what went wrong must not end up in the line of a bar.
        if isinstance(progress, RichProgress):
            progress.close()


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise InputError(f"--json {path}: cannot be written ({error.strerror})") from error
    with file:
        yield file


def _write(lines: TextIO | None, content: dict[str, Any]) -> None:
    """A line at a time, so that what was judged is kept whatever comes."""
    if lines is not None:
        lines.write(json.dumps(content, allow_nan=False) + "\n")
