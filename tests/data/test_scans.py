"""Measured scans in files and folders: what is found, under which names, and in which geometry."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ct_pd_fixtures import Scanner, write_scan
from matlab_fixtures import htc_scan, write_v5
from screening_fixtures import FAN, PARALLEL, scan, write

from tomosec.data.alignment import aligned, geometry_differences
from tomosec.data.measured import Measurement
from tomosec.data.scans import ScanFiles, Unreadable
from tomosec.errors import InputError
from tomosec.screening.measured import patient_of


def test_everything_below_a_folder_is_found_in_order(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "b", [scan(2)])
    write(root / "a", [scan(1)])
    write_v5(root / "c.mat", CtDataFull=htc_scan(np.zeros((4, 8)), np.arange(4.0) * 90))
    (root / ".hidden").mkdir()
    write(root / ".hidden", [scan(3)])
    (root / "README").write_text("no DICOM")
    (root / "notes.txt").write_text("")
    found = ScanFiles([root])
    assert [one.key for one in found.readings()] == ["root/c.mat", "root/a/p0001.npz", "root/b/p0002.npz"]
    assert {path.name for path in found.passed_over} == {"README", "notes.txt"}
    assert found.count == 3


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    one, other = write(tmp_path / "x" / "scans", [scan(1)]), write(tmp_path / "y" / "scans", [scan(1)])
    assert [found.key for found in ScanFiles([one, other])] == [str(one / "p0001.npz"), str(other / "p0001.npz")]
    assert len(list(ScanFiles([one, one / "p0001.npz", tmp_path / "x"]))) == 1


def test_scans_are_read_anew_each_time(tmp_path: Path) -> None:
    found = ScanFiles([write(tmp_path / "scans", [scan(1), scan(2)])])
    first, second = list(found), list(found)
    assert [one.key for one in first] == [one.key for one in second]
    assert first[0].line_integrals is not second[0].line_integrals


def test_the_unreadable_come_last_when_all_are_wanted(tmp_path: Path) -> None:
    folder = write(tmp_path / "scans", [scan(1), scan(3)])
    (folder / "p0002.npz").write_bytes(b"PK")
    kinds = [type(one) for one in ScanFiles([folder]).readings()]
    assert kinds == [Measurement, Unreadable, Measurement]
    got = []
    with pytest.raises(InputError, match="1 cannot be used") as error:
        got.extend(ScanFiles([folder]))
    assert "p0002.npz" in str(error.value)


@pytest.mark.parametrize(("helical", "keys"), [(False, ["at 0 mm"]), (True, ["at"] * 2)])
def test_a_folder_of_projections_is_one_scan_or_its_slices(tmp_path: Path, helical: bool, keys: list[str]) -> None:
    scanner = Scanner(views_per_turn=40, columns=60, column_mm=6.8, central_column=30.5)
    folder = tmp_path / "patients" / "one"
    write_scan(folder, scanner, **({"turns": 2.0, "feed_mm": 12.0} if helical else {}))
    found = list(ScanFiles([tmp_path / "patients"], slices=2))
    assert len(found) == len(keys)
    for one, key in zip(found, keys, strict=True):
        assert one.key.startswith(f"patients/one {key}")
        assert one.geometry.bins == 60
    assert len({patient_of(one) for one in found}) == 1
    if helical:
        low, high = sorted(float(one.attributes["positionMm"]) for one in found)
        assert high > low


# --- alignment ----------------------------------------------------------------------------------------------------------


def test_equal_geometries_do_not_differ() -> None:
    assert geometry_differences(FAN, FAN.model_copy(update={"shape": (8, 8), "pixel_mm": 20.0})) == ()
    listed = FAN.model_copy(update={"angles": tuple(FAN.view_angles)})
    assert geometry_differences(listed, listed.model_copy()) == ()


def test_each_difference_is_named() -> None:
    assert geometry_differences(PARALLEL, FAN) == ("kind is parallel-beam, not fan-beam",)
    other = FAN.model_copy(update={"views": 50, "source_to_detector_mm": 900.0})
    assert geometry_differences(other, FAN) == ("views is 50, not 48", "source_to_detector_mm is 900, not 940")
    listed = FAN.model_copy(update={"angles": tuple(FAN.view_angles)})
    assert geometry_differences(listed, FAN) == ("angles is a list of 48 from 0° to 352.5°, not equal steps",)


def test_half_a_turn_has_to_begin_where_it_begins() -> None:
    late = PARALLEL.model_copy(update={"start": 0.1})
    assert geometry_differences(late, PARALLEL) == ("start is 0.1, not 0",)
    with pytest.raises(InputError, match=r"p0001: measured in another geometry: start is 0\.1"):
        aligned(scan(1, late), PARALLEL)


@pytest.mark.parametrize("arc", [2 * math.pi, -2 * math.pi])
def test_the_views_of_a_circle_are_counted_from_the_nearest(arc: float) -> None:
    wanted = FAN.model_copy(update={"arc": arc})
    began = wanted.model_copy(update={"start": 1.0})
    there = scan(1, began)
    there = replace(there, repeats={3: there.line_integrals[3].copy()})
    found = aligned(there, wanted)
    assert found.geometry == wanted
    step = 2 * math.pi / FAN.views
    for view in (0, 13, 47):
        origin = int(np.flatnonzero((there.line_integrals == found.line_integrals[view]).all(1))[0])
        turned = began.view_angles[origin] - wanted.view_angles[view]
        assert abs((turned + math.pi) % (2 * math.pi) - math.pi) <= step / 2 + 1e-9
    ((view, row),) = found.repeats.items()
    assert np.array_equal(row, found.line_integrals[view])


# --- files that state no geometry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", [False, True])
def test_raw_counts_and_hdf5_take_the_geometry_that_is_given_where_they_state_none(tmp_path: Path, stated: bool) -> None:
    h5py = pytest.importorskip("h5py")
    own = FAN.model_copy(update={"shape": (8, 8), "pixel_mm": 20.0})
    true = scan(1).line_integrals
    with h5py.File(tmp_path / "counts.h5", "w") as file:
        file["counts"] = 1e4 * np.exp(-true.astype(np.float64))
        file["flats"], file["darks"] = np.full(FAN.bins, 1e4), np.zeros(FAN.bins)
        if stated:
            file.attrs["geometry"] = own.model_dump_json()
    with h5py.File(tmp_path / "lines.h5", "w") as file:
        file["line_integrals"] = true
        if stated:
            file.attrs["geometry"] = own.model_dump_json()
    for one in ScanFiles([tmp_path], geometry=FAN):
        assert one.geometry == FAN  # with its image grid, whatever the file says
        assert one.line_integrals == pytest.approx(true, abs=1e-5)
    if stated:
        assert [one.geometry for one in ScanFiles([tmp_path])] == [own, own]
    else:
        reasons = [one.reason for one in ScanFiles([tmp_path]).readings() if isinstance(one, Unreadable)]
        assert [reason.count("geometry") > 0 for reason in reasons] == [True, True]


def test_images_are_no_measured_data(tmp_path: Path) -> None:
    """MedMNIST is an NPZ file too."""
    images = {f"{part}_{what}": np.zeros((2, 8, 8) if what == "images" else (2, 1), np.uint8) for part in ("train", "val", "test")
              for what in ("images", "labels")}  # fmt: skip
    np.savez(tmp_path / "medmnist.npz", **images)
    (found,) = ScanFiles([tmp_path]).readings()
    assert isinstance(found, Unreadable)
    assert "images, not measured data" in found.reason
