"""Measured scans in files and folders: what is found, under which names, and in which geometry."""

from __future__ import annotations

import math
import os
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


def test_links_are_followed_and_each_place_is_read_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", write(tmp_path / "elsewhere", [scan(1)])
    write(root, [scan(2)])
    (root / "linked").symlink_to(elsewhere, target_is_directory=True)
    (root / "linked.npz").symlink_to(root / "p0002.npz")
    (root / "dangling.npz").symlink_to(tmp_path / "gone.npz")
    (root / "circle").symlink_to(root, target_is_directory=True)
    found = list(ScanFiles([root]).readings())
    assert [one.key for one in found] == ["root/dangling.npz", "root/linked.npz", "root/linked/p0001.npz"]
    assert isinstance(found[0], Unreadable)


def test_a_folder_that_cannot_be_looked_into_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "root", [scan(1)])
    closed = write(root / "closed", [scan(2)])
    look = os.scandir

    def deny(place: str) -> object:
        if Path(place) == closed:
            raise PermissionError(13, "Permission denied", str(place))
        return look(place)

    monkeypatch.setattr(os, "scandir", deny)
    denied, read = ScanFiles([root]).readings()
    assert denied == Unreadable(str(closed), "the folder cannot be read (Permission denied)")
    assert read.key == "root/p0001.npz"
    with pytest.raises(InputError, match=r"closed: the folder cannot be read"):
        list(ScanFiles([root]))
    (only,) = ScanFiles([closed]).readings()
    assert only == denied


@pytest.mark.skipif(os.name != "posix", reason="pipes with a name")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "scans", [scan(1)])
    for name in ("pipe", "pipe.npz", "pipe.mat", "pipe.dcm"):
        os.mkfifo(folder / name)
    assert [one.key for one in ScanFiles([folder]).readings()] == ["scans/p0001.npz"]


@pytest.mark.skipif(os.name != "posix", reason="names that only POSIX allows")
def test_a_name_can_forge_no_line_and_break_no_page(tmp_path: Path) -> None:
    folder = write(tmp_path / "scans", [scan(1)])
    content = (folder / "p0001.npz").read_bytes()
    for name in (b"a\nb.npz: clean, p 1", b"c\x1b[2J", b"d\xff"):
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name + b".npz"))).write_bytes(content)
    (folder / "e\n.npz").write_bytes(b"PK")
    found = list(ScanFiles([folder]).readings())
    keys = [one.key for one in found]
    assert keys[:3] == ["scans/a\\nb.npz: clean, p 1.npz", "scans/c\\x1b[2J.npz", "scans/d\\udcff.npz"]
    for one in found:
        assert f"{one.key} {getattr(one, 'reason', '')}".isprintable()
        one.key.encode()


def test_a_reason_names_the_scan_once_and_spares_the_next_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = FAN.model_copy(update={"bin_mm": 7.0})
    folder = write(tmp_path / "scans", [scan(1)])
    monkeypatch.setattr(ScanFiles, "_read", lambda *_: iter([(scan(1, other), " at 0 mm"), (scan(2), " at 5 mm")]))
    wrong, right = ScanFiles([folder], geometry=FAN).readings()
    assert wrong == Unreadable("scans/p0001.npz at 0 mm", "measured in another geometry: bin_mm is 7, not 8")
    assert right.key == "scans/p0001.npz at 5 mm"
    with pytest.raises(InputError, match=r"^1 cannot be used:\nscans/p0001\.npz at 0 mm: measured in"):
        list(ScanFiles([folder], geometry=FAN))


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
    assert geometry_differences(late, PARALLEL) == ("start is 0.1 rad, not 0 rad",)
    with pytest.raises(InputError, match=r"p0001: measured in another geometry: start is 0\.1"):
        aligned(scan(1, late), PARALLEL)


def test_a_turn_further_is_the_same_place() -> None:
    for turns in (-1, 1, 3):
        assert geometry_differences(PARALLEL.model_copy(update={"start": 2 * math.pi * turns}), PARALLEL) == ()


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
    assert found == Unreadable(f"{tmp_path.name}/medmnist.npz", "images, not measured data")
