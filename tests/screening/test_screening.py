"""Screening through Python: rates, places, profiles on disk, and what is refused."""

from __future__ import annotations

import json
import logging
import math
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import screening_fixtures as made
import torch
from scipy.stats import betabinom
from screening_fixtures import FAN, PARALLEL, PATCH, planted, scan

from tomosec.data.measured import Measurement
from tomosec.defenses.air_rays import AirRays
from tomosec.defenses.base import ScanContext, ScanDetection, ScanDetector, Scans, ScanVerdicts
from tomosec.errors import InputError
from tomosec.screening import Profile, Tally, calibrate
from tomosec.screening import panel as panel_module
from tomosec.screening.measured import as_scans, patient_of, photons_of
from tomosec.screening.profile import DESCRIPTION, TENSORS

#: Quick to calibrate, and each sees something else.
QUICK = ["complementary-rays", "complementary-rays-top", "fourier-wedge", "air-rays"]


@pytest.fixture(scope="module")
def fan() -> Profile:
    """39 held-out patients: p goes down to 1/40."""
    return calibrate([scan(seed) for seed in range(78)], detectors=QUICK)


@pytest.fixture(scope="module")
def few() -> Profile:
    """Too few held-out patients for a verdict."""
    return calibrate([scan(seed) for seed in range(20)], detectors=QUICK)


@pytest.fixture
def saved(fan: Profile, tmp_path: Path) -> Path:
    return fan.save(tmp_path / "profile")


# --- verdicts -----------------------------------------------------------------------------------------------------------


def test_clean_scans_are_flagged_at_the_stated_rate(fan: Profile) -> None:
    """P(p ≤ alpha) ≤ alpha + 3 sd of the beta-binomial count, new patients, and p is no constant."""
    p = np.array([fan.screen(scan(5000 + seed), alpha=0.2, want_map=False).p_value for seed in range(60)])
    for alpha in (0.1, 0.2, 0.5):
        rank = math.floor(alpha * (fan.held_out + 1))
        spread = betabinom.std(len(p), rank, fan.held_out + 1 - rank)
        assert abs((p <= alpha).sum() - alpha * len(p)) <= 3 * spread
    assert len(set(p)) > 10


@pytest.mark.parametrize("geometry", [FAN, PARALLEL], ids=["fan", "parallel"])
def test_a_planted_patch_is_flagged_and_its_place_is_in_the_map(geometry: object) -> None:
    profile = calibrate([scan(seed, geometry) for seed in range(44)])
    result = profile.screen(planted(scan(900, geometry)), alpha=0.05)
    assert result.verdict == "suspicious"
    assert result.p_value == pytest.approx(profile.smallest_p)
    assert result.where is not None
    assert result.where.values.shape == geometry.sinogram_shape
    size = np.abs(result.where.values)
    assert size[PATCH].mean() > 2 * np.median(size)
    assert result.readings[0].p_value == pytest.approx(profile.smallest_p)
    view, bin_ = result.where.peak
    assert f"view {view}, bin {bin_}" in result.reason
    untouched = profile.screen(scan(900, geometry), alpha=0.05)
    assert untouched.score < result.score
    assert set(profile.panel.not_applicable) == (
        set() if geometry is FAN else {"complementary-rays", "complementary-rays-top", "pairwise-consistency"}
    )


def test_the_map_is_of_the_detector_that_says_where_most_finely(fan: Profile) -> None:
    """The pairs of lines peak as high at the other measurement of a line, where nobody changed anything."""
    result = fan.screen(planted(scan(900)), alpha=0.05)
    tied = {reading.detector for reading in result.readings if reading.p_value == fan.smallest_p}
    assert {"complementary-rays", "fourier-wedge"} <= tied
    assert result.where is not None
    assert result.where.detector == "fourier-wedge"
    view, bin_ = result.where.peak
    assert 18 <= view <= 27
    assert 13 <= bin_ <= 22


def test_the_first_reading_is_the_lowest_p_and_then_the_farthest_from_clean_scans(fan: Profile) -> None:
    readings = fan.screen(planted(scan(900), 0.08), alpha=0.05).readings
    assert [(r.p_value, -r.beyond) for r in readings] == sorted((r.p_value, -r.beyond) for r in readings)
    for reading in readings:
        clean = fan.panel.scores[:, QUICK.index(reading.detector)].numpy()
        middle = np.sort(clean)[(len(clean) - 1) // 2]
        spread = np.sort(np.abs(clean - middle))[(len(clean) - 1) // 2]
        assert reading.beyond == pytest.approx((reading.score - middle) / spread)


class Placed(ScanDetector):
    """Placed: says the mean, with a map of blocks of a given size, and a given height at its peak."""

    rows: int
    columns: int
    height: float

    def calibrate(self, context: ScanContext) -> ScanDetection:
        detector = self

        class Detection(ScanDetection):
            held_out = 1

            def judge(self, scans: Scans) -> ScanVerdicts:
                return ScanVerdicts(scans.line_integrals.double().mean((1, 2, 3)), None)

            def where(self, scans: Scans) -> torch.Tensor:
                rows, columns = detector.rows, detector.columns
                blocks = torch.arange(FAN.views // rows)[:, None] * 100.0 + torch.arange(FAN.bins // columns)
                blocks = -detector.height * blocks / blocks.max()
                return blocks.repeat_interleave(rows, 0).repeat_interleave(columns, 1).expand(len(scans.keys), -1, -1)

            def tensors(self) -> dict[str, torch.Tensor]:
                return {}

        return Detection()


@pytest.mark.parametrize(
    ("rest", "chosen", "place"),
    [
        ([], "views", "view 47"),
        ([(6, 5, 100.0)], "p6x5", "views 42 to 47, bins 35 to 39"),
        ([(1, 1, 4.0), (6, 5, 100.0)], "p1x1", "view 47, bin 39"),
        ([(1, 1, 4.0), (1, 2, 100.0)], "p1x1", "view 47, bin 39"),
    ],
)
def test_among_equally_suspicious_the_finest_map(
    monkeypatch: pytest.MonkeyPatch, rest: list[tuple[int, int, float]], chosen: str, place: str
) -> None:
    known = {"views": Placed(rows=1, columns=40, height=200.0)}
    known |= {f"p{rows}x{columns}": Placed(rows=rows, columns=columns, height=height) for rows, columns, height in rest}
    monkeypatch.setattr(panel_module, "catalog", lambda: (known, {}))
    profile = calibrate([scan(seed) for seed in range(44)])
    high = replace(scan(900), line_integrals=scan(900).line_integrals + np.float32(3))
    result = profile.screen(high, alpha=0.05)
    assert result.verdict == "suspicious"
    assert result.where is not None
    assert (result.where.detector, result.where.place) == (chosen, place)
    assert f"sd at {place}" in result.reason


def test_a_finer_map_of_a_less_suspicious_detector_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Minus(Placed):
        """Minus: the lower, the more suspicious."""

        def calibrate(self, context: ScanContext) -> ScanDetection:
            found = super().calibrate(context)
            said = found.judge
            found.judge = lambda scans: ScanVerdicts(-said(scans).score, None)  # type: ignore[method-assign]
            return found

    known = {"fine": Minus(rows=1, columns=1, height=9.0), "views": Placed(rows=1, columns=40, height=2.0)}
    monkeypatch.setattr(panel_module, "catalog", lambda: (known, {}))
    high = replace(scan(900), line_integrals=scan(900).line_integrals + np.float32(3))
    result = calibrate([scan(seed) for seed in range(44)]).screen(high, alpha=0.05)
    assert result.where is not None
    assert result.where.detector == "views"


def test_a_detector_that_says_the_same_of_all_scans_flags_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its p-value is 1: a score that is no number of float32 must not be rounded past its own equals."""

    class Constant(Placed):
        """Constant."""

        def calibrate(self, context: ScanContext) -> ScanDetection:
            found = super().calibrate(context)
            found.judge = lambda scans: ScanVerdicts(torch.full((len(scans.keys),), 0.1, dtype=torch.float64), None)  # type: ignore[method-assign]
            return found

    monkeypatch.setattr(panel_module, "catalog", lambda: ({"constant": Constant(rows=1, columns=1, height=1.0)}, {}))
    result = calibrate([scan(seed) for seed in range(44)]).screen(scan(900), alpha=0.05)
    assert [reading.p_value for reading in result.readings] == [1.0]
    assert (result.verdict, result.p_value) == ("clean", 1.0)


def test_the_score_rises_with_the_strength_beyond_all_clean_scans(fan: Profile) -> None:
    results = [fan.screen(planted(scan(901), strength), alpha=0.05) for strength in (0.1, 0.2, 0.4, 0.8)]
    scores = [result.score for result in results]
    assert scores == sorted(scores)
    assert len(set(scores)) == 4
    assert {result.p_value for result in results} == {fan.smallest_p}


def test_few_patients_give_scores_and_no_verdict(few: Profile) -> None:
    assert few.held_out == 10
    result = few.screen(planted(scan(900)))
    assert (result.verdict, result.p_value) == ("no verdict", None)
    assert "10 held-out patients" in result.reason
    assert "19" in result.reason
    assert result.score > few.screen(scan(900)).score
    assert result.as_json()["p"] is None


def test_a_scan_of_the_calibration_gets_no_verdict(fan: Profile) -> None:
    clean = scan(3)
    result = fan.screen(replace(clean, key="renamed"), alpha=0.05)
    assert result.verdict == "no verdict"
    assert "calibrated on" in result.reason
    assert math.isnan(result.score)
    assert json.loads(json.dumps(result.as_json(), allow_nan=False))["score"] is None


@pytest.mark.parametrize(("alpha", "message"), [(0.01, "99 are needed"), (0.0, "between 0 and 1"), (1.0, "between 0 and 1")])
def test_an_alpha_that_no_scan_can_reach(fan: Profile, alpha: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fan.screen(scan(900), alpha=alpha)


def test_a_p_of_exactly_alpha_is_flagged(fan: Profile) -> None:
    assert fan.screen(planted(scan(902)), alpha=1 / 40).verdict == "suspicious"


def test_a_circle_may_begin_at_any_view(fan: Profile) -> None:
    """The same rays from another first view on: the same scores, but for what depends on the patient's place in the room."""
    whole = scan(900)
    step = 2 * math.pi / FAN.views
    turned = replace(
        whole,
        geometry=FAN.model_copy(update={"start": 11 * step + 0.3 * step}),
        line_integrals=np.roll(whole.line_integrals, -11, axis=0),
    )
    one, other = fan.screen(whole, alpha=0.05), fan.screen(turned, alpha=0.05)
    assert other.score == pytest.approx(one.score, rel=1e-9)
    assert other.where is not None
    assert one.where is not None
    assert np.array_equal(one.where.values, other.where.values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bin_mm": 7.9}, "bin_mm is 7.9, not 8"),
        ({"source_to_isocenter_mm": 536.0}, "source_to_isocenter_mm is 536, not 535"),
        ({"arc": -2 * math.pi}, "arc is -6.283185 rad, not 6.283185 rad"),
        ({"detector": "curved"}, "detector is curved, not flat"),
        ({"detector_offset_bins": 0.25}, "detector_offset_bins is 0.25, not 0"),
    ],
)
def test_another_geometry_is_named_by_its_fields(fan: Profile, changes: dict[str, object], message: str) -> None:
    other = FAN.model_validate(FAN.model_dump() | changes)
    with pytest.raises(InputError, match=message) as error:
        fan.screen(scan(900, other), alpha=0.05)
    assert "p0900" in str(error.value)
    assert "pixel_mm" not in str(error.value)


def test_another_image_grid_is_no_other_geometry(fan: Profile) -> None:
    coarse = FAN.model_copy(update={"shape": (16, 16), "pixel_mm": 10.0})
    assert fan.screen(replace(scan(900), geometry=coarse), alpha=0.05).score == fan.screen(scan(900), alpha=0.05).score


# --- noise --------------------------------------------------------------------------------------------------------------


def test_photons_are_stated_or_estimated_from_a_repeated_view() -> None:
    wide = FAN.scaled(bins=4000)
    exact = made.chords(wide, made.body(0, 70.0))
    first, again = (made.counted(exact, 1e4, seed).astype(np.float32) for seed in (1, 2))
    drifted = Measurement(first, wide, "twice", {}, {5: again[5] + np.float32(0.01)})
    assert photons_of(drifted) == pytest.approx(1e4, rel=4 * math.sqrt(2 / 4000))
    assert photons_of(replace(drifted, attributes={"photons": 7.0})) == 7
    assert photons_of(replace(drifted, attributes={"PhotonStatistics": math.nan})) == photons_of(drifted)
    assert photons_of(replace(drifted, repeats={})) is None


def test_the_noise_of_a_ray_is_that_of_the_photons_that_are_left_of_it() -> None:
    """sd = sqrt(exp(p) / N), and never that of less than one photon."""
    one = scan(900)
    values = one.line_integrals.copy()
    values[0, :4] = 0.0, 2.0, -1.0, 50.0
    noise = as_scans([replace(one, line_integrals=values), scan(901, photons=1e4)], "photons").noise_sd
    assert noise is not None
    assert noise[0, 0, 0, :4].tolist() == pytest.approx([math.sqrt(math.exp(p) / 2e4) for p in (0, 2, -1)] + [1.0], rel=1e-6)
    assert float(noise[1, 0, 5, 7]) == pytest.approx(
        math.sqrt(math.exp(scan(901, photons=1e4).line_integrals[5, 7]) / 1e4), rel=1e-6
    )
    assert as_scans([one], "clean-scans").noise_sd is None


def test_noise_is_that_of_the_scan_where_every_clean_scan_tells_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tomosec"), "propagate", True)  # the command line, where a test ran it, keeps its own
    clean = [scan(seed) for seed in range(12)]
    silent = [replace(one, attributes={}) for one in clean]
    assert calibrate(clean, detectors=QUICK).photons == (2e4, 2e4)
    assert calibrate(clean, detectors=QUICK, noise="clean-scans").photons is None
    with caplog.at_level("INFO", "tomosec"):
        assert calibrate([*clean[:6], *silent[6:]], detectors=QUICK).noise == "clean-scans"
    assert "6 of 12 clean scans tell no number of photons" in caplog.text
    with pytest.raises(InputError, match="6 of 12 clean scans"):
        calibrate([*clean[:6], *silent[6:]], detectors=QUICK, noise="photons")


@pytest.mark.parametrize(("attributes", "message"), [({}, "no number of photons"), ({"photons": 2.0}, "2 photons a bin")])
def test_a_scan_that_tells_other_photons_gets_no_verdict(fan: Profile, attributes: dict[str, float | str], message: str) -> None:
    """Else a file could widen its own noise until nothing stands out."""
    result = fan.screen(replace(planted(scan(900)), attributes=attributes), alpha=0.05)
    assert result.verdict == "no verdict"
    assert message in result.reason


@pytest.mark.parametrize("absurd", [12.0, 60.0, 3e4])
def test_no_ray_can_be_so_noisy_that_the_scan_passes(fan: Profile, absurd: float) -> None:
    """Photon noise grows as exp(p); a single reading must not hide a patch, nor itself."""
    for clean in (scan(900), planted(scan(900))):
        values = clean.line_integrals.copy()
        values[7, 20] = absurd
        result = fan.screen(replace(clean, line_integrals=values), alpha=0.05)
        assert result.verdict == "suspicious"
        assert result.where is not None
        assert abs(result.where.values[7, 20]) > 6


# --- many scans ---------------------------------------------------------------------------------------------------------


class Stream:
    """Clean scans that are made when they are asked for; counts how many are alive at once."""

    def __init__(self, count: int) -> None:
        self.count, self.alive, self.most = count, 0, 0

    def _gone(self) -> None:
        self.alive -= 1

    def __iter__(self) -> Iterator[Measurement]:
        for seed in range(self.count):
            one = scan(seed)
            weakref.finalize(one.line_integrals, self._gone)
            self.alive += 1
            self.most = max(self.most, self.alive)
            yield one
            del one


def test_memory_does_not_grow_with_the_number_of_scans() -> None:
    small, large = Stream(20), Stream(60)
    profile = calibrate(small, detectors=["fourier-wedge"])
    calibrate(large, detectors=["fourier-wedge"])
    assert large.most <= small.most <= 10  # a batch and the one that is made
    screened = Stream(40)
    for one in screened:
        profile.screen(one)
        del one
    assert screened.most <= 2


def test_scans_that_can_be_gone_through_once_are_refused() -> None:
    with pytest.raises(InputError, match="once only"):
        calibrate(scan(seed) for seed in range(4))


def test_the_same_scan_twice_is_no_second_scan() -> None:
    with pytest.raises(InputError, match="copy: the same data as p0001"):
        calibrate([scan(0), scan(1), scan(1, key="copy")])


@pytest.mark.parametrize(("count", "message"), [(0, "no clean scan"), (2, "3 patients at least")])
def test_too_few_for_anything(count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibrate([scan(seed) for seed in range(count)])


def test_scans_that_change_between_readings() -> None:
    class Vanishing(Stream):
        def __iter__(self) -> Iterator[Measurement]:
            yield from super().__iter__()
            self.count -= 1

    with pytest.raises(InputError, match="must not change"):
        calibrate(Vanishing(12), detectors=["fourier-wedge"])


def test_a_clean_scan_of_another_geometry_is_named_with_the_one_that_decided() -> None:
    other = scan(7, FAN.model_copy(update={"bin_mm": 7.9}))
    with pytest.raises(
        InputError, match=r"p0007: measured in another geometry: bin_mm is 7\.9, not 8, as that of p0000, the first"
    ):
        calibrate([scan(0), scan(1), other])
    with pytest.raises(InputError, match=r"bin_mm is 7\.9, not 8$"):
        calibrate([scan(0), scan(1), other], geometry=FAN)


@pytest.mark.parametrize("name", ["patient", "PatientID"])
def test_patient_0_is_a_patient(name: str) -> None:
    assert patient_of(scan(1, **{name: 0.0})) == "0.0"
    assert patient_of(scan(1, **{name: ""})) == "p0001"


def test_slices_of_a_patient_count_once() -> None:
    slices = [scan(10 * patient + k, patient=f"P{patient}") for patient in range(12) for k in range(2)]
    profile = calibrate(slices, detectors=QUICK)
    assert (profile.scans, profile.patients) == (24, 12)
    assert profile.held_out == 6


def test_the_chance_of_so_many_alarms_is_beta_binomial() -> None:
    """Known answer: of N exchangeable scans and one held-out scan with alpha = 1/2, each number of alarms is equally likely."""
    tally = Tally(0.5, 1)
    tally.verdicts |= {"suspicious": 3, "clean": 1}
    tally.patients |= {"a", "b", "c", "d"}
    assert tally.expected == 2
    assert tally.by_chance == pytest.approx(2 / 5)
    tally.patients.discard("a")
    assert tally.by_chance is None
    assert "no probability" in " ".join(tally.lines())


# --- profiles -----------------------------------------------------------------------------------------------------------


def test_a_profile_comes_back_as_it_was(fan: Profile, saved: Path) -> None:
    again = Profile.load(saved)
    for one in (scan(900), planted(scan(901))):
        before, after = fan.screen(one, alpha=0.05), again.screen(one, alpha=0.05)
        assert before.as_json() == after.as_json()
        assert before.where is not None
        assert after.where is not None
        assert np.array_equal(before.where.values, after.where.values)
    assert (again.geometry, again.scans, again.photons, again.known) == (fan.geometry, fan.scans, fan.photons, fan.known)
    assert {path.name for path in saved.iterdir()} == {DESCRIPTION, TENSORS}
    # What was read can be written again, and what two detectors share is stored once.
    copy = again.save(saved.with_name("copy"))
    assert (copy / TENSORS).stat().st_size == (saved / TENSORS).stat().st_size
    assert (saved / TENSORS).stat().st_size < 1.3 * 3 * 2 * 8 * math.prod(FAN.sinogram_shape)
    facts = json.loads((saved / DESCRIPTION).read_text())
    assert facts["held_out"] == 39
    assert facts["smallest_p"] == pytest.approx(1 / 40)
    assert [item["name"] for item in facts["detectors"]] == QUICK
    assert all(item["component"]["version"] for item in facts["detectors"])


def test_a_profile_overwrites_nothing(fan: Profile, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nothing is overwritten"):
        fan.save(saved)

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("tomosec.screening.profile.write_text", fail)
    with pytest.raises(RuntimeError):
        fan.save(saved.with_name("half"))
    assert [path.name for path in saved.parent.iterdir()] == ["profile"]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def other_version(path: Path) -> None:
    detectors = json.loads(path.read_text())["detectors"]
    detectors[0]["component"]["version"] = 7
    edit(path, detectors=detectors)


def reorder(path: Path) -> None:
    """Detectors in another order would take each other's held-out scores."""
    edit(path, detectors=json.loads(path.read_text())["detectors"][::-1])


def test_tensors_that_are_missing_are_named(fan: Profile) -> None:
    kept = {name: value for name, value in fan.panel.tensors().items() if name != "air-rays/mean"}
    with pytest.raises(InputError, match="the tensor 'mean' is missing"):
        panel_module.Panel.restored(fan.panel.components, kept, FAN, {})
    with pytest.raises(InputError, match="3 detectors"):
        panel_module.Panel.restored(dict(list(fan.panel.components.items())[:3]), fan.panel.tensors(), FAN, {})


CHANGED = "changed since it was written"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: shutil.rmtree(p), "no such folder"),
        (lambda p: (p / DESCRIPTION).unlink(), f"no {DESCRIPTION}"),
        (lambda p: (p / TENSORS).unlink(), f"{TENSORS} is missing"),
        (lambda p: (p / DESCRIPTION).write_text("{"), "cannot be read as JSON"),
        (lambda p: (p / DESCRIPTION).write_text("[1]"), "not a profile"),
        (lambda p: edit(p / DESCRIPTION, format=2, tomosec="9.9"), "format 2, written by tomosec 9.9"),
        (lambda p: edit(p / DESCRIPTION, scans="many"), "scans: "),
        (lambda p: edit(p / DESCRIPTION, surprise=1), "unknown field 'surprise'"),
        (lambda p: edit(p / DESCRIPTION, geometry={"kind": "fan-beam"}), "geometry: views"),
        (lambda p: edit(p / DESCRIPTION, held_out=99), CHANGED),
        (lambda p: edit(p / DESCRIPTION, photons=None), CHANGED),
        (lambda p: edit(p / DESCRIPTION, noise="clean-scans"), CHANGED),
        (lambda p: edit(p / DESCRIPTION, photons=[math.nan, math.nan]), "finite number"),
        (lambda p: edit(p / DESCRIPTION, geometry=FAN.model_copy(update={"views": 50}).model_dump()), CHANGED),
        (lambda p: edit(p / DESCRIPTION, clean_scans=[]), CHANGED),
        (lambda p: reorder(p / DESCRIPTION), CHANGED),
        (lambda p: flip_a_byte(p / TENSORS), "SHA-256"),
        (lambda p: (p / TENSORS).write_bytes((p / TENSORS).read_bytes()[:100]), "SHA-256"),
        (lambda p: other_version(p / DESCRIPTION), "version 7 of complementary-rays"),
        (lambda p: edit(p / DESCRIPTION, detectors=[{"name": "x", "component": {"kind": "air-ray"}}]), "did you mean 'air-rays'"),
        (lambda p: edit(p / DESCRIPTION, detectors=[{"name": "x", "component": {"kind": "view-drop"}}]), "no detector of scans"),
        (lambda p: edit(p / DESCRIPTION, detectors=[{"name": "x", "component": AirRays().model_dump()}]), CHANGED),
    ],
)  # fmt: skip
def test_a_harmed_profile_is_named(saved: Path, harm: object, message: str) -> None:
    harm(saved)  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as error:
        Profile.load(saved)
    assert str(saved) in str(error.value)


# --- detectors ----------------------------------------------------------------------------------------------------------


def test_an_unknown_detector_is_said_before_anything_is_read() -> None:
    class Untouched:
        def __iter__(self) -> Iterator[Measurement]:
            raise AssertionError

    with pytest.raises(InputError, match="did you mean 'air-rays'"):
        calibrate(Untouched(), detectors=["air-ray"])


def test_a_detector_that_does_not_apply_says_why() -> None:
    """Rays without air: the calibration scans show it, not the geometry."""
    inside = [replace(scan(seed), line_integrals=scan(seed).line_integrals + np.float32(1)) for seed in range(8)]
    profile = calibrate(inside, detectors=["air-rays", "fourier-wedge"])
    assert list(profile.panel.parts) == ["fourier-wedge"]
    assert "needs rays that miss the object" in profile.panel.not_applicable["air-rays"]
    with pytest.raises(InputError, match="no detector applies"):
        calibrate(inside, detectors=["air-rays"])


def test_detectors_of_other_distributions_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is no residual is scored on the same held-out scans, and combined like the others."""

    class Level(ScanDetection):
        held_out = 1

        def judge(self, scans: Scans) -> ScanVerdicts:
            return ScanVerdicts(scans.line_integrals.double().mean((1, 2, 3)), None)

        def tensors(self) -> dict[str, torch.Tensor]:
            return {}

    class LevelDetector(ScanDetector):
        """Level: the mean."""

        def calibrate(self, context: ScanContext) -> Level:
            return Level()

    monkeypatch.setattr(panel_module, "catalog", lambda: ({"level": LevelDetector(), **panel_module.MEMBERS}, {}))
    clean = [scan(seed) for seed in range(44)]
    profile = calibrate(clean, detectors=["level", "fourier-wedge"])
    assert profile.panel.scores.shape == (22, 2)
    assert set(profile.panel.scores[:, 0].tolist()) <= {float(one.sinogram().double().mean()) for one in clean}
    high = replace(scan(900), line_integrals=scan(900).line_integrals + np.float32(3))
    result = profile.screen(high, alpha=0.05)
    assert result.verdict == "suspicious"
    assert result.readings[0].detector == "level"
