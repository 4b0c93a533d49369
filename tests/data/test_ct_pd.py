"""DICOM-CT-PD: line integrals and images of a known phantom, in every position of the patient, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ct_pd_fixtures import BODY, Scanner, write_scan

from tomosec.data import ct_pd
from tomosec.data.ct_pd import open_ct_pd, read_ct_pd
from tomosec.data.measured import Measurement
from tomosec.data.rebinning import Detector, FocalSpot, rebin_view
from tomosec.errors import InputError
from tomosec.geometry import Geometry
from tomosec.operators.check import ellipse_image, ellipse_integrals
from tomosec.reconstruction.fbp import FBP

SMALL = Scanner(rows=4, columns=24, column_mm=17.0, row_mm=10.0, central_column=12.6, central_row=2.5, views_per_turn=24)
SHAPE = (48, 48)
#: The focal spots of the Siemens scans in the collection: a constant angle, and every other view farther out and lower.
SIEMENS = ((3.35e-4, 0.0, 0.0), (3.35e-4, 5.45, -0.66))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over that of what is expected."""
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def ellipses(geometry: Geometry) -> tuple[tuple[float, ...], ...]:
    radius = geometry.scan_radius_mm
    return tuple((value, a / radius, b / radius, x / radius, y / radius, angle) for value, a, b, x, y, angle in BODY)


def exact(geometry: Geometry) -> np.ndarray:
    """Line integrals of the phantom, x to the patient's left and y to the front, in the measurement's own geometry."""
    return ellipse_integrals(geometry, ellipses=ellipses(geometry))


def only(measurements: Any) -> Measurement:
    (found,) = measurements
    return found


@pytest.mark.parametrize("position", ["HFS", "HFP", "FFS", "FFP"])
@pytest.mark.parametrize("clockwise", [False, True], ids=["counter-clockwise", "clockwise"])
def test_an_axial_scan_gives_the_phantom_back_the_right_way_round(tmp_path: Path, position: str, clockwise: bool) -> None:
    folder = write_scan(tmp_path / "scan", Scanner(), position=position, clockwise=clockwise)
    scan = only(read_ct_pd(folder, shape=SHAPE))
    assert scan.geometry.is_full_circle
    assert scan.geometry.detector == "curved"
    assert relative(scan.line_integrals, exact(scan.geometry)) < 3e-5
    image = FBP(scan.geometry)(scan.sinogram())[0, 0].numpy()
    circle = scan.geometry.scan_circle()
    truth = ellipse_image(scan.geometry, ellipses=ellipses(scan.geometry))
    assert relative(image[circle], truth[circle]) < 0.05
    # A test that cannot fail shows nothing: mirrored or turned, the phantom is far from itself.
    for other in (truth[:, ::-1], truth[::-1], truth[::-1, ::-1]):
        assert relative(image[circle], other[circle]) > 0.3


@pytest.mark.parametrize(
    ("implicit", "transposed"), [(True, True), (True, False), (False, True), (False, False)], ids=lambda flag: str(flag)
)
def test_both_codings_and_both_orders_of_the_image_say_the_same(tmp_path: Path, implicit: bool, transposed: bool) -> None:
    folder = write_scan(tmp_path / "scan", SMALL, implicit=implicit, transposed=transposed)
    scan = only(read_ct_pd(folder, shape=(16, 16)))
    assert relative(scan.line_integrals, exact(scan.geometry)) < 3e-5
    assert scan.attributes["PhotonStatistics"] == pytest.approx(2000)
    assert scan.attributes["WaterAttenuationCoefficient"] == 0.0192
    assert scan.attributes["FlyingFocalSpotMode"] == "FFSNONE"
    assert scan.attributes["LogFlag"] == "YES"
    assert scan.attributes["PatientPosition"] == "HFS"
    assert scan.geometry.pixel_mm == 200 / 16
    assert scan.key == "scan/0.000"


def test_a_flat_detector(tmp_path: Path) -> None:
    scan = only(read_ct_pd(write_scan(tmp_path / "scan", Scanner(curved=False)), shape=SHAPE))
    assert scan.geometry.detector == "flat"
    assert relative(scan.line_integrals, exact(scan.geometry)) < 3e-5


@pytest.mark.parametrize(("feed", "position"), [(12.0, "HFS"), (-12.0, "FFS")])
def test_a_helical_scan_gives_the_fans_of_slices(tmp_path: Path, feed: float, position: str) -> None:
    folder = write_scan(tmp_path / "scan", Scanner(), turns=2.2, feed_mm=feed, z_start=40.0, position=position)
    wanted = [40 + 1.2 * feed, 40 + feed]
    scans = list(read_ct_pd(folder, positions_mm=wanted, shape=SHAPE))
    assert [scan.attributes["positionMm"] for scan in scans] == wanted[::-1]  # in the order of acquisition
    for scan in scans:
        assert scan.geometry.is_full_circle
        assert relative(scan.line_integrals, exact(scan.geometry)) < 3e-5
        assert scan.attributes["feedMm"] == pytest.approx(feed, rel=1e-5)
        assert scan.attributes["complementaryRays"] == 0


def test_a_helical_slice_is_at_its_position(tmp_path: Path) -> None:
    """The body ends at 35 mm: a slice 6 mm inside is whole, one 6 mm outside is empty but for rays that cross the end."""
    folder = write_scan(tmp_path / "scan", Scanner(), turns=3, feed_mm=20.0, z_range=(35.0, 1e4))
    below, above = read_ct_pd(folder, positions_mm=[29.0, 41.0], shape=SHAPE)
    assert relative(above.line_integrals, exact(above.geometry)) < 0.02
    assert np.sqrt(np.mean(below.line_integrals**2)) < 0.02 * np.sqrt(np.mean(exact(below.geometry) ** 2))


def test_rows_that_do_not_reach_are_measured_from_the_other_end(tmp_path: Path) -> None:
    """At 1.2 times the height of the detector a turn, a part of the rays has no row; the other end has one."""
    folder = write_scan(tmp_path / "scan", Scanner(), turns=2.2, feed_mm=32.0)
    scan = only(read_ct_pd(folder, positions_mm=[35.0], shape=SHAPE))
    assert 0.1 < scan.attributes["complementaryRays"] / scan.line_integrals.size < 0.3
    assert relative(scan.line_integrals, exact(scan.geometry)) < 0.01
    folder = write_scan(tmp_path / "high", Scanner(), turns=2.2, feed_mm=80.0)
    with pytest.raises(
        InputError, match=r"measured from neither end; a turn moves the table by 80 mm, and the 16 rows .* 26\.31 mm"
    ):
        list(read_ct_pd(folder, positions_mm=[88.0], shape=SHAPE))


@pytest.mark.parametrize("feed", [0.0, 12.0], ids=["axial", "helical"])
def test_a_flying_focal_spot_is_sorted_into_the_fan(tmp_path: Path, feed: float) -> None:
    """Inside the body, where interpolation costs little; with the spot taken as the focal center, rays are off by ten times."""
    errors = []
    for name, change in (("sorted", lambda number: {}), ("ignored", _no_shift)):
        folder = write_scan(tmp_path / name, Scanner(), turns=2.2 if feed else 1, feed_mm=feed, spots=SIEMENS, change=change)
        scan = only(read_ct_pd(folder, positions_mm=[feed], shape=SHAPE))
        expected = exact(scan.geometry)
        errors.append(float(np.median(np.abs(scan.line_integrals - expected)[expected > 0.5])))
        if name == "sorted":
            assert relative(scan.line_integrals, expected) < 0.007  # linear interpolation at the edges of the body
    assert errors[0] < 0.15 * errors[1]


def _no_shift(number: int) -> dict[str, Any]:
    return {"7033_100B": ("FL", 0.0), "7033_100C": ("FL", 0.0), "7033_100D": ("FL", 0.0)}


def test_focal_spots_that_do_not_take_turns_are_refused(tmp_path: Path) -> None:
    spots = (*SIEMENS, SIEMENS[1])
    folder = write_scan(tmp_path / "scan", SMALL, spots=spots)
    with pytest.raises(InputError, match=r"2 focal spots beside the detector's focal center \(FlyingFocalSpotMode FFSXYZ"):
        list(read_ct_pd(folder, shape=(16, 16)))


def test_table_positions_of_an_axial_scan(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan", SMALL)
    write_scan(folder, SMALL, z_start=20.0, start=2.0, turns=1.25, first=25)
    assert open_ct_pd(folder).positions_mm == (0.0, 20.0)
    scans = list(read_ct_pd(folder, shape=(16, 16)))
    assert [scan.attributes["positionMm"] for scan in scans] == [0.0, 20.0]
    for scan in scans:
        assert scan.geometry.is_full_circle  # and the views beyond it are left out
        assert relative(scan.line_integrals, exact(scan.geometry)) < 3e-5


def test_part_of_a_turn_stays_one(tmp_path: Path) -> None:
    scan = only(read_ct_pd(write_scan(tmp_path / "scan", SMALL, turns=0.75), shape=(16, 16)))
    assert scan.geometry.arc == pytest.approx(1.5 * math.pi)
    assert relative(scan.line_integrals, exact(scan.geometry)) < 3e-5


def test_unequal_steps_become_explicit_angles(tmp_path: Path) -> None:
    jitter = np.random.default_rng(0).uniform(-0.02, 0.02, SMALL.views_per_turn)

    def moved(number: int) -> dict[str, Any]:
        return {"7031_1001": ("FL", 0.7 + (number - 1) * 2 * math.pi / SMALL.views_per_turn + jitter[number - 1])}

    scan = only(read_ct_pd(write_scan(tmp_path / "scan", SMALL, change=moved), shape=(16, 16)))
    assert scan.geometry.angles is not None
    nominal = 0.7 + np.arange(24) * 2 * math.pi / 24
    assert scan.geometry.view_angles == pytest.approx(nominal + jitter, abs=1e-5)


def test_what_the_user_says_wins(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan", SMALL)
    scan = only(read_ct_pd(folder, shape=(16, 16), pixel_mm=5.0, patient_position="FFS", central_column=12.0))
    assert (scan.geometry.pixel_mm, scan.geometry.detector_offset_bins) == (5.0, -0.5)
    assert scan.attributes["PatientPosition"] == "FFS"


def test_each_file_is_read_once_and_slices_come_as_they_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_scan(tmp_path / "scan", SMALL, turns=4, feed_mm=10.0)
    read: list[str] = []
    original = ct_pd.read_projection
    monkeypatch.setattr(ct_pd, "read_projection", lambda view: read.append(view.path.name) or original(view))
    scans = read_ct_pd(folder, positions_mm=[6.0, 9.0, 33.0], shape=(16, 16))
    next(scans)
    assert len(read) < 2 * SMALL.views_per_turn
    list(scans)
    assert len(read) == len(set(read)) < 4 * SMALL.views_per_turn


def _without(element: str) -> Any:
    return lambda number: {element: None}


def _set(at: int, **elements: Any) -> Any:
    return lambda number: elements if number == at else {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("7031_1001"), r"DetectorFocalCenterAngularPosition \(7031,1001\): missing; this is no DICOM-CT-PD projection"),
        (
            _without("7031_1003"),
            r"DetectorFocalCenterRadialDistance \(7031,1003\): a finite number of type FL is needed, found none",
        ),
        (_without("7031_1033"), r"DetectorCentralElement \(7031,1033\): 2 finite numbers"),
        (_without("7033_1013"), r"NumberofSourceAngularSteps \(7033,1013\): found None"),
        (_without("RescaleSlope"), "no RescaleSlope and RescaleIntercept"),
        (_without("PatientPosition"), r"PatientPosition \(0018,5100\) is none; HFS, HFP, FFS, FFP are read"),
        (_without("DataCollectionDiameter"), r"DataCollectionDiameter \(0018,0090\) is None; give pixel_mm"),
        (
            lambda number: {"7039_1009": ("CS", "NO")},
            r"LogFlag \(7039,1009\): found 'NO'; line integrals, LogFlag YES, are needed",
        ),
        (lambda number: {"7039_1009": None}, r"LogFlag \(7039,1009\): found 'none'"),
        (lambda number: {"7029_100B": ("CS", "SPHERICAL")}, "found 'SPHERICAL'; CYLINDRICAL and FLAT are read"),
        (lambda number: {"7037_1009": ("CS", "SCOUT")}, "found 'SCOUT'; AXIAL and HELICAL are read"),
        (lambda number: {"7031_1003": ("FL", -595.0)}, r"found -595; a length of 0\.001 to 100000 mm is needed"),
        (lambda number: {"7031_1003": ("DS", "595.")}, r"\(7031,1003\): found 4\.1\d*e-11; a length of"),
        (lambda number: {"7033_100B": ("FL", -0.66)}, r"found -0\.66 rad, at most 0\.05 is plausible"),
        (lambda number: {"7029_1010": ("US", 5)}, r"Rows x Columns = 24 x 4, but NumberofDetectorRows .* is 5 x 24"),
        (lambda number: {"7033_1013": ("US", 48)}, r"\(7033,1013\) is 48, but the angles of the views step by a 24th of a turn"),
        (lambda number: {"PatientPosition": "HFDR"}, "PatientPosition .* is HFDR"),
        (lambda number: {"7031_1031": ("FL", 500.0)}, "the geometry: .*must exceed source_to_isocenter_mm"),
        (_set(7, **{"7031_1003": ("FL", 600.0)}), "its detector .* differ from those"),
        (_set(7, **{"7033_1063": ("US", 2)}), "one source and spectrum"),
        (_set(7, **{"7031_1001": ("FL", float("nan"))}), r"\(7031,1001\): a finite number of type FL is needed, found nan"),
        (_set(7, InstanceNumber="8"), "InstanceNumber 8 occurs twice"),
    ],
)
def test_elements_that_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    folder = write_scan(tmp_path / "scan", SMALL, change=change)
    with pytest.raises(InputError, match=message) as caught:
        list(read_ct_pd(folder, shape=(16, 16)))
    assert str(folder) in str(caught.value)


def test_a_scan_without_rescaling_is_refused_by_its_headers(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan", SMALL, change=_set(3, RescaleSlope=None))
    with pytest.raises(InputError, match=r"-3\.dcm: no RescaleSlope and RescaleIntercept"):
        open_ct_pd(folder)


def test_numbers_that_another_program_wrote_as_another_type_are_the_same_numbers(tmp_path: Path) -> None:
    """Four characters of a decimal are also the four bytes of a float, and a length of 4e-11 mm is above 0."""
    plain = open_ct_pd(write_scan(tmp_path / "plain", SMALL)).views[0]
    for kind in ("DS", "FD"):
        as_text = kind == "DS"
        change = {
            "7031_1003": (kind, "595." if as_text else 595.0),
            "7031_1033": (
                kind,
                [str(SMALL.central_column), str(SMALL.central_row)] if as_text else [SMALL.central_column, SMALL.central_row],
            ),
            "7029_1010": ("IS" if as_text else "UL", str(SMALL.rows) if as_text else SMALL.rows),
        }
        folder = write_scan(tmp_path / kind, SMALL, implicit=False, change=lambda _, change=change: change)
        found = open_ct_pd(folder).views[0].detector
        assert (found.radius_mm, found.rows) == (595.0, SMALL.rows)
        assert found.central_column == pytest.approx(plain.detector.central_column, rel=1e-6)
    folder = write_scan(tmp_path / "LO", SMALL, implicit=False, change=lambda _: {"7031_1003": ("LO", "595.")})
    with pytest.raises(InputError, match=r"\(7031,1003\): a finite number of type FL is needed, found none"):
        open_ct_pd(folder)


def test_a_missing_view_is_noticed(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan", SMALL)
    next(folder.glob("*-9.dcm")).unlink()
    with pytest.raises(InputError, match=r"-10\.dcm: .*the usual step is 0\.26180 rad: a file is missing or out of order"):
        open_ct_pd(folder)


def test_damaged_files_and_folders_without_a_scan(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_ct_pd(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no DICOM file in it"):
        open_ct_pd(tmp_path / "empty")
    folder = write_scan(tmp_path / "scan", SMALL)
    path = next(folder.glob("*-9.dcm"))
    content = path.read_bytes()
    path.write_bytes(content[:-50])
    with pytest.raises(InputError, match=rf"{path.name}: .*truncated or damaged"):
        list(read_ct_pd(folder, shape=(16, 16)))
    path.write_bytes(b"not DICOM")
    with pytest.raises(InputError, match=rf"{path.name}: not a DICOM file"):
        open_ct_pd(folder)


def test_slices_that_were_not_scanned(tmp_path: Path) -> None:
    folder = write_scan(tmp_path / "scan", SMALL, turns=3, feed_mm=10.0)
    with pytest.raises(InputError, match=r"give the slices that are wanted as positions_mm between 5 and 24\.5833 mm"):
        read_ct_pd(folder)
    with pytest.raises(InputError, match=r"a slice at 25 mm has no full turn around it; 5 to 24\.5833 mm have"):
        read_ct_pd(folder, positions_mm=[25.0])
    short = write_scan(tmp_path / "short", SMALL, turns=0.9, feed_mm=10.0)
    with pytest.raises(InputError, match="fewer than the 25 of a full turn"):
        read_ct_pd(short, positions_mm=[5.0])
    axial = write_scan(tmp_path / "axial", SMALL)
    with pytest.raises(InputError, match="measured from neither end"):
        list(read_ct_pd(axial, positions_mm=[40.0], shape=(16, 16)))


def test_reading_loads_no_torch() -> None:
    code = "import sys; from tomosec.data import ct_pd; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_projection_through_water_is_its_length(tmp_path: Path) -> None:
    """The central ray of the first view, worked out by hand: through the long axis of the body and nothing else."""
    folder = write_scan(tmp_path / "scan", Scanner(), start=-math.pi / 2)
    scan = only(read_ct_pd(folder, shape=SHAPE))
    source = scan.geometry.source_positions_mm[0]
    assert source == pytest.approx([595.0, 0.0], abs=1e-3)
    values = torch.tensor(scan.line_integrals[0])
    # Bins near the middle see 2 x 80 mm of water, less the hollow ellipse that they cross.
    hollow = 2 * 25 / math.hypot(math.cos(math.radians(20)), 25 / 30 * math.sin(math.radians(20)))
    assert 160 * 0.0192 - hollow * 0.015 < float(values[60]) < 160 * 0.0192


def test_a_tilted_ray_is_shortened_by_its_cosine() -> None:
    """Every ray of one view has the integral 1; at a slice 100 mm above the source the central one rises 100 mm in 595 mm."""
    detector = Detector(
        columns=3,
        rows=64,
        column_mm=200.0,
        row_mm=10.0,
        central_column=2.0,
        central_row=32.5,
        radius_mm=595.0,
        distance_mm=1085.6,
        curved=True,
    )
    fan = rebin_view(detector, FocalSpot(detector, 0.0, 0.0), np.ones((64, 3)), 0.0, 0.0, 100.0)
    assert fan[1] == pytest.approx(595 / math.hypot(595, 100), rel=1e-12)
    # A ray at the fan angle γ is nearest to the axis after R cos γ.
    nearest = 595 * math.cos(200 / 1085.6)
    assert fan[[0, 2]] == pytest.approx([nearest / math.hypot(nearest, 100)] * 2, rel=1e-12)
    assert np.isnan(rebin_view(detector, FocalSpot(detector, 0.0, 0.0), np.ones((64, 3)), 0.0, 0.0, 300.0)).all()
