"""`tomosec screen`: files in, lines and a page out, and the exit codes that a script can rely on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from screening_fixtures import FAN, planted, scan, write

from tomosec.cli import main
from tomosec.screening import Profile, calibrate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
from pages import Page

QUICK = ["complementary-rays", "fourier-wedge", "air-rays"]
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrate([scan(seed) for seed in range(60)], detectors=QUICK).save(tmp_path_factory.mktemp("kept") / "profile")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def run(*args: object) -> tuple[int, str, str]:
        code = main(["screen", *map(str, args)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three scans, the second of which is planted."""
    return write(tmp_path / "scans", [scan(901), planted(scan(902)), scan(903)])


# --- calibrate ----------------------------------------------------------------------------------------------------------


def test_calibrate_then_screen(say: Say, scans: Path, tmp_path: Path) -> None:
    clean, kept = write(tmp_path / "clean", [scan(seed) for seed in range(44)]), tmp_path / "profile"
    code, out, _ = say("calibrate", clean, "-o", kept, "--detectors", ",".join(QUICK))
    assert code == 0
    assert "n = 22 held-out patients" in out
    assert "1/(n + 1) = 0.0435" in out
    assert Profile.load(kept).held_out == 22
    page, lines = tmp_path / "page.html", tmp_path / "lines.jsonl"
    code, out, _ = say(scans, "--profile", kept, "-o", page, "--json", lines, "--alpha", "0.05")
    assert code == 3
    said = out.splitlines()
    assert said[0].startswith("scans/p0901.npz: clean, p ")
    assert said[1].startswith("scans/p0902.npz: suspicious, p 0.0435; ")
    assert "1 suspicious, 2 clean" in out
    assert "0.15 alarms" in out  # 3 scans times 0.05
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [item["verdict"] for item in found] == ["clean", "suspicious", "clean"]
    assert 18 <= found[1]["peak"]["view"] <= 27 or found[1]["peak"]["detector"] == "complementary-rays"
    shown = Page(page.read_text())
    assert "1 suspicious scan" in shown.text
    assert "never below 0.0435" in shown.text
    assert "sd at view" in shown.text
    assert "waves around its place" in shown.text  # the wedge's map has to be read as such
    assert len([image for image in shown.all("img") if "over view and detector bin" in (image["alt"] or "")]) == 3


def test_clean_scans_exit_with_0(say: Say, profile: Path, tmp_path: Path) -> None:
    code, out, err = say(write(tmp_path / "scans", [scan(901), scan(903)]), "--profile", profile, "--alpha", "0.04")
    assert (code, err) == (0, "")
    assert "0 suspicious, 2 clean" in out


def test_few_patients_are_said_and_give_no_verdict(say: Say, scans: Path, tmp_path: Path) -> None:
    clean = write(tmp_path / "clean", [scan(seed) for seed in range(10)])
    code, out, _ = say("calibrate", clean, "-o", tmp_path / "profile", "--detectors", "fourier-wedge")
    assert code == 0
    assert "fewer than 19" in out
    code, out, _ = say(scans, "--profile", tmp_path / "profile", "-o", tmp_path / "page.html")
    assert code == 0
    assert out.count("no verdict; 5 held-out patients") == 3
    assert "No verdicts: the profile has 5" in Page((tmp_path / "page.html").read_text()).text


def test_files_without_a_geometry_take_the_stated_one(say: Say, tmp_path: Path) -> None:
    clean = write(tmp_path / "clean", [scan(seed) for seed in range(6)], geometry=False)
    code, _, err = say("calibrate", clean, "-o", tmp_path / "profile", "--detectors", "fourier-wedge")
    assert code == 2
    assert "no array 'geometry'" in err
    assert "6 cannot be used" in err
    stated = tmp_path / "geometry.json"
    stated.write_text(FAN.model_dump_json())
    code, _, _ = say("calibrate", clean, "-o", tmp_path / "profile", "--detectors", "fourier-wedge", "--geometry", stated)
    assert code == 0
    assert Profile.load(tmp_path / "profile").geometry == FAN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{kind: fan-beam", "cannot be read as YAML or JSON"),
        ("kind: fan-bem", "did you mean 'fan-beam'"),
        ("[1]", "a geometry is an object"),
        (FAN.model_copy(update={"bin_mm": 7.0}).model_dump_json(), "bin_mm is 8, not 7"),
    ],
)
def test_a_geometry_that_is_none_or_disagrees(say: Say, tmp_path: Path, text: str, message: str) -> None:
    clean = write(tmp_path / "clean", [scan(seed) for seed in range(3)])
    (tmp_path / "geometry.yaml").write_text(text)
    code, _, err = say("calibrate", clean, "-o", tmp_path / "profile", "--geometry", tmp_path / "geometry.yaml")
    assert code == 2
    assert message in err
    assert not (tmp_path / "profile").exists()


def test_calibrate_names_every_scan_that_cannot_be_read(say: Say, tmp_path: Path) -> None:
    clean = write(tmp_path / "clean", [scan(seed) for seed in range(4)])
    for name in ("bad.npz", "worse.npz"):
        (clean / name).write_bytes(b"PK")
    code, _, err = say("calibrate", clean, "-o", tmp_path / "profile")
    assert code == 2
    assert "bad.npz" in err
    assert "worse.npz" in err
    assert list(tmp_path.iterdir()) == [clean]


def test_calibrate_overwrites_nothing_and_says_so_before_it_reads(say: Say, profile: Path, tmp_path: Path) -> None:
    code, _, err = say("calibrate", tmp_path / "absent", "-o", profile)
    assert code == 2
    assert "nothing is overwritten" in err


# --- screen -------------------------------------------------------------------------------------------------------------


def test_an_unreadable_scan_is_named_and_the_others_go_on(say: Say, profile: Path, tmp_path: Path) -> None:
    scans = write(tmp_path / "scans", [scan(901), scan(903)])
    (scans / "p0902.npz").write_bytes(b"PK")
    write(scans, [scan(904, FAN.model_copy(update={"bin_mm": 7.0}))])
    (scans / "notes.txt").write_text("")
    page, lines = tmp_path / "page.html", tmp_path / "lines.jsonl"
    code, out, err = say(scans, "--profile", profile, "--alpha", "0.04", "-o", page, "--json", lines)
    assert code == 1
    assert "p0902.npz: not judged: " in err
    assert "p0904.npz: not judged: " in err
    assert "bin_mm is 7, not 8" in err
    assert "2 clean" in out
    assert "2 could not be read or compared" in out
    assert "notes.txt" in out
    assert [json.loads(line)["verdict"] for line in lines.read_text().splitlines()] == ["clean", None, "clean", None]
    assert "bin_mm is 7, not 8" in Page(page.read_text()).text


@pytest.mark.parametrize(("attributes", "said"), [({}, "no number of photons"), ({"photons": 9e4}, "9e+04 photons a bin")])
def test_a_scan_without_a_verdict_does_not_pass_for_clean(
    say: Say, profile: Path, tmp_path: Path, attributes: dict[str, float], said: str
) -> None:
    """Else a file that states other photons would get a planted patch past a script that asks for the exit code."""
    odd = replace(planted(scan(902)), attributes=attributes)
    code, out, _ = say(write(tmp_path / "scans", [scan(901), odd]), "--profile", profile, "--alpha", "0.04")
    assert code == 1
    assert f"p0902.npz: no verdict; {said}" in out or f"p0902.npz: no verdict; it tells {said}" in out


def test_a_finding_goes_before_an_unreadable_scan(say: Say, profile: Path, scans: Path) -> None:
    (scans / "p0000.npz").write_bytes(b"")
    code, _, _ = say(scans, "--profile", profile, "--alpha", "0.04")
    assert code == 3


def test_a_scan_that_is_named_twice_is_screened_once(say: Say, profile: Path, scans: Path) -> None:
    code, out, _ = say(scans, scans / "p0901.npz", scans, "--profile", profile, "--alpha", "0.04")
    assert code == 3
    assert out.count("p0901.npz") == 1
    assert "3 scans screened" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["absent"], "absent: no such file or folder"),
        (["empty"], "empty: no measured data in it"),
        (["a.txt"], "a.txt: a file of a kind that is not read"),
        ([], "no scans are named"),
        (["scans", "--alpha", "0.01"], "99 are needed"),
        (["scans", "--alpha", "2"], "between 0 and 1"),
        (["scans", "-o", "empty"], "--output"),
        (["scans", "--json", "empty"], "--json"),
        (["scans", "--slices", "0"], "slices is 0"),
        (["scans", "-o", "scans/p0902.npz"], "measured data, which are not written over"),
        (["scans", "--json", "scans/../scans/p0902.npz"], "measured data, which are not written over"),
        (["scans", "-o", "a.html", "--json", "./a.html"], "name two files"),
    ],
)
def test_bad_input_is_2(
    say: Say, profile: Path, scans: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(scans.parent)
    Path("empty").mkdir()
    Path("a.txt").write_text("")
    before = {path: path.read_bytes() for path in scans.iterdir()}
    code, _, err = say(*args, "--profile", profile, *([] if "--alpha" in args else ["--alpha", "0.04"]))
    assert code == 2
    assert message in err
    assert {path: path.read_bytes() for path in scans.iterdir()} == before


@pytest.mark.parametrize("option", ["-o", "--json"])
def test_nothing_is_written_into_the_profile(say: Say, profile: Path, scans: Path, option: str) -> None:
    code, _, err = say(scans, "--profile", profile, "--alpha", "0.04", option, profile / "profile.json")
    assert code == 2
    assert "in the profile" in err
    Profile.load(profile)


def test_no_profile_is_2(say: Say, scans: Path) -> None:
    code, _, err = say(scans, "--profile", scans)
    assert code == 2
    assert "no profile.json in it" in err


def test_what_is_judged_is_kept_when_interrupted(
    say: Say, profile: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, screen = [], Profile.screen

    def interrupted(self: Profile, one: object, **options: object) -> object:
        if judged:
            raise KeyboardInterrupt
        judged.append(one)
        return screen(self, one, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Profile, "screen", interrupted)
    page, lines = tmp_path / "page.html", tmp_path / "lines.jsonl"
    code, out, err = say(scans, "--profile", profile, "--alpha", "0.04", "-o", page, "--json", lines)
    assert code == 130
    assert "p0901.npz: clean" in out
    assert "Interrupted." in err
    assert len(lines.read_text().splitlines()) == 1
    assert "Interrupted: 1 scan was screened" in Page(page.read_text()).text


def test_what_is_judged_is_kept_when_something_fails(
    say: Say, profile: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a reader of stdout that has left."""
    judged, screen = [], Profile.screen

    def broken(self: Profile, one: object, **options: object) -> object:
        if judged:
            raise BrokenPipeError
        judged.append(one)
        return screen(self, one, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Profile, "screen", broken)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    page = tmp_path / "page.html"
    code, _, _ = say(scans, "--profile", profile, "--alpha", "0.04", "-o", page)
    assert code == 141
    assert "Interrupted: 1 scan was screened" in Page(page.read_text()).text


def test_names_never_become_markup(say: Say, profile: Path, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>&[bold]{{7*7}}"
    scans = write(tmp_path / "scans", [planted(scan(901, key=evil)), scan(902)])
    (scans / "<script>alert(2)<.npz").write_bytes(b"PK")
    code, out, _ = say(scans, "--profile", profile, "--alpha", "0.04", "-o", tmp_path / "page.html")
    assert code == 3
    assert evil in out
    html = (tmp_path / "page.html").read_text()
    page = Page(html)
    assert "<img src=x" not in html
    assert "<script>alert" not in html
    assert page.text.count(evil) >= 2
    assert len(page.all("script")) == 1
    assert page.open == []
    for tag, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs), tag
        for name in ("src", "href"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, value)


def test_maps_are_bounded(say: Say, profile: Path, tmp_path: Path) -> None:
    """The highest scores are shown; a page of many findings stays small."""
    bad = [planted(scan(900 + k), 0.1 * (k + 1)) for k in range(5)]
    page = tmp_path / "page.html"
    code, _, _ = say(write(tmp_path / "scans", bad), "--profile", profile, "--alpha", "0.04", "-o", page, "--maps", "2")
    assert code == 3
    shown = Page(page.read_text())
    alts = [image["alt"] or "" for image in shown.all("img")]
    assert [alt.split()[2] for alt in alts if alt.startswith("Inconsistency")] == ["scans/p0904.npz", "scans/p0903.npz"]
    assert "3 more suspicious scans" in shown.text


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["screen", "calibrate", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: tomosec screen calibrate")
    assert "--geometry" in out


def test_a_folder_of_clean_arrays_is_read_in_a_fixed_order(tmp_path: Path) -> None:
    """The same folder gives the same profile, bit for bit."""
    from tomosec.data.scans import ScanFiles

    folder = write(tmp_path / "clean", [scan(seed) for seed in range(8)])
    one, other = (calibrate(ScanFiles([folder]), detectors=["fourier-wedge"]) for _ in range(2))
    assert np.array_equal(one.panel.scores, other.panel.scores)
