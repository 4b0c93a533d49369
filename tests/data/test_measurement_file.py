"""The neutral files of one scan, and what ``check data`` says of measured data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ct_pd_fixtures import Scanner, write_scan
from matlab_fixtures import htc_scan, write_v5

from tomosec.cli import main
from tomosec.data.dicom_folder import DicomFolder
from tomosec.data.guess import guess_dataset
from tomosec.data.measurement_file import read_measurement
from tomosec.data.recognize import recognize
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam

h5py = pytest.importorskip("h5py")

SCAN = FanBeam(
    views=12,
    bins=8,
    bin_mm=2.0,
    detector="curved",
    angles=tuple(np.linspace(0, 6, 12)),
    shape=(8, 8),
    pixel_mm=2.0,
    source_to_isocenter_mm=300.0,
    source_to_detector_mm=450.0,
)
VALUES = np.random.default_rng(0).random((12, 8))


def write_npz(path: Path, **changes: Any) -> Path:
    content = {"line_integrals": VALUES, "geometry": SCAN.model_dump_json()} | changes
    np.savez(path, allow_pickle=True, **{name: value for name, value in content.items() if value is not None})
    return path


def write_hdf5(path: Path, **changes: Any) -> Path:
    attributes = {"geometry": SCAN.model_dump_json()} | changes
    with h5py.File(path, "w") as file:
        file["line_integrals"] = attributes.pop("line_integrals", VALUES)
        file.attrs.update({name: value for name, value in attributes.items() if value is not None})
    return path


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    attributes = json.dumps({"voltage": 45, "object": "disc"})
    scans = [
        read_measurement(write_npz(tmp_path / "a.npz", attributes=attributes)),
        read_measurement(write_hdf5(tmp_path / "a.h5", voltage=45.0, object="disc")),
    ]
    for scan in scans:
        assert scan.key == "a"
        assert scan.geometry == SCAN
        assert np.array_equal(scan.line_integrals, VALUES.astype(np.float32))
        assert scan.attributes == {"voltage": 45.0, "object": "disc"}
    assert read_measurement(write_npz(tmp_path / "a.npz", key="disc 3")).key == "disc 3"
    assert read_measurement(write_hdf5(tmp_path / "a.h5", key="disc 3")).key == "disc 3"


def test_parallel_rays(tmp_path: Path) -> None:
    scan = ParallelBeam(views=12, bins=8, bin_mm=1.0, shape=(8, 8), pixel_mm=1.0)
    assert read_measurement(write_npz(tmp_path / "a.npz", geometry=scan.model_dump_json())).geometry == scan


@pytest.mark.parametrize("write", [write_npz, write_hdf5], ids=["npz", "hdf5"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"line_integrals": VALUES[0]}, r"line_integrals is float64 of shape \(8,\)"),
        ({"line_integrals": VALUES[:11]}, r"line_integrals has shape \(11, 8\), and the geometry has \(12, 8\)"),
        ({"line_integrals": np.where(VALUES > 0.99, np.nan, VALUES)}, "line_integrals: nan at view"),
        ({"geometry": None}, "geometry"),
        ({"geometry": "[]"}, "geometry: found list; a geometry is an object with a kind"),
        ({"geometry": "__import__('os')"}, "geometry: not JSON"),
        ({"geometry": json.dumps(SCAN.model_dump() | {"bin_m": 1})}, r"unknown field 'bin_m' .did you mean 'bin_mm'"),
        ({"geometry": json.dumps(SCAN.model_dump() | {"pixel_mm": -1})}, "geometry: pixel_mm: .*greater than 0"),
    ],
)
def test_what_is_refused(tmp_path: Path, write: Any, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / ("a.npz" if write is write_npz else "a.h5"), **change)
    with pytest.raises(InputError, match=message) as caught:
        read_measurement(path)
    assert str(path) in str(caught.value)


def test_python_objects_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line_integrals is damaged, or holds Python objects"):
        read_measurement(write_npz(tmp_path / "a.npz", line_integrals=np.array([[{}]], dtype=object)))
    with pytest.raises(InputError, match=r"attributes: a is list; text and numbers are read"):
        read_measurement(write_npz(tmp_path / "a.npz", attributes='{"a": [1]}'))
    with pytest.raises(InputError, match=r"geometry is int64 of shape \(\); one text is needed"):
        read_measurement(write_npz(tmp_path / "a.npz", geometry=np.int64(3)))
    with pytest.raises(InputError, match=r"a measurement is a \.npz, \.h5 or \.hdf5 file, found '\.txt'"):
        read_measurement(tmp_path / "a.txt")


def medmnist(folder: Path) -> Path:
    folder.mkdir()
    content: dict[str, Any] = {}
    for part in ("train", "val", "test"):
        content |= {f"{part}_images": np.zeros((4, 28, 28), np.uint8), f"{part}_labels": np.array([[0], [1], [0], [1]], np.uint8)}
    np.savez(folder / "organamnist.npz", **content)
    return folder


def counts(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        for name in ("counts", "flats", "darks"):
            file[name] = np.ones((2, 3))
    return path


def test_each_kind_is_recognized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    degrees = np.arange(25) * 15.0
    matlab = write_v5(tmp_path / "htc.mat", CtDataFull=htc_scan(np.random.default_rng(0).random((25, 14)), degrees))
    scanner = Scanner(rows=4, columns=24, column_mm=17.0, row_mm=10.0, central_column=12.6, central_row=2.5, views_per_turn=24)
    said = {
        matlab: ("Helsinki Tomography Challenge 2022", "24 x 14", "-360 degrees", "of 1 views"),
        write_npz(tmp_path / "a.npz"): ("neutral form", "12 x 8", "listed", "curved"),
        write_hdf5(tmp_path / "a.h5"): ("neutral form", "read_measurement"),
        counts(tmp_path / "raw.hdf5"): ("raw counts", "read_counts"),
        medmnist(tmp_path / "med"): ("MedMNIST", "4 x 28 x 28", "hu_of_0"),
        tmp_path / "med" / "organamnist.npz": ("MedMNIST",),
        write_scan(tmp_path / "pd", scanner, turns=3, feed_mm=10.0): (
            "DICOM-CT-PD",
            "helical, 10 mm a turn",
            "72, 24 a turn",
            "HFS",
        ),
    }
    for path, words in said.items():
        assert main(["check", "data", str(path)]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        for word in words:
            assert word in printed


def test_a_folder_of_two_detect_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "sinogram.tif").write_bytes(b"")
    found = recognize(tmp_path)
    assert found is not None
    assert "2DeteCT" in found.what


def test_what_is_not_recognized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(InputError, match=r"a\.csv: a file of a kind that is not known"):
        recognize(tmp_path / "a.csv")
    with pytest.raises(InputError, match="no such file or folder"):
        recognize(tmp_path / "none")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = 1
    with pytest.raises(InputError, match=r"neither line_integrals nor counts, flats and darks; there are data"):
        recognize(tmp_path / "other.h5")
    np.savez(tmp_path / "other.npz", data=1)
    with pytest.raises(InputError, match="no array 'line_integrals'"):
        recognize(tmp_path / "other.npz")
    assert main(["check", "data", str(tmp_path / "a.csv")]) == 2
    assert recognize(tmp_path) is None


def test_datasets_are_left_to_the_guess(tmp_path: Path) -> None:
    from dicom_fixtures import chest, write_ct

    for name in ("a", "b"):
        write_ct(tmp_path / name / "p" / "1.dcm", chest(32), patient=name)
    assert recognize(tmp_path) is None
    assert guess_dataset(tmp_path).dataset == DicomFolder()


def test_a_folder_of_volumes_is_guessed(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    from folder_fixtures import write_table

    from tomosec.data.nifti import NiftiFolder, VolumeColumns

    rows = []
    for name in ("a", "b"):
        nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), -1000, np.int16), np.eye(4)), tmp_path / f"{name}.nii.gz")
        rows.append({"path": f"{name}.nii.gz", "case": name, "label": name})
    write_table(tmp_path, rows)
    guess = guess_dataset(tmp_path)
    assert guess.dataset == NiftiFolder(columns=VolumeColumns(file="path", patient="case", target="label"))
    assert "every axial slice has its volume's class" in guess.assumptions
    assert len(guess.dataset.open(tmp_path).entries) == 8
    write_table(tmp_path, [{"path": "a.nii.gz", "case": "a"}])
    with pytest.raises(InputError, match="no column for the target of a slice"):
        guess_dataset(tmp_path)


def test_a_measured_scan_of_the_challenge_is_recognized(htc2022: Path) -> None:
    found = recognize(htc2022 / "mat" / "htc2022_tb_limited_075_165.mat")
    assert found is not None
    assert "Helsinki Tomography Challenge 2022" in found.what
    assert ("views x bins", "181 x 560") in found.facts
