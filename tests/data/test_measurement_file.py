"""The neutral files of one scan, and what ``check data`` says of measured data."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ct_pd_fixtures import Scanner, write_scan
from matlab_fixtures import htc_scan, write_v5
from PIL import Image

from tomosec.cli import main
from tomosec.data import two_detect
from tomosec.data.dicom_folder import DicomFolder
from tomosec.data.guess import guess_dataset
from tomosec.data.measurement_file import read_measurement
from tomosec.data.npz import Npz
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
    with pytest.raises(InputError, match="line_integrals is object of shape"):
        read_measurement(write_npz(tmp_path / "a.npz", line_integrals=np.array([[{}]], dtype=object)))
    with pytest.raises(InputError, match="key is damaged, or holds Python objects"):
        read_measurement(write_npz(tmp_path / "a.npz", key=np.array([{}], dtype=object)))
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


def counts(path: Path, *, geometry: bool = True, **changes: Any) -> Path:
    level = {"counts": np.full((12, 8), 600), "flats": np.full((2, 8), 1100), "darks": np.full(8, 100)} | changes
    with h5py.File(path, "w") as file:
        for name, values in level.items():
            file[name] = values
        if geometry:
            file.attrs["geometry"] = SCAN.model_dump_json()
    return path


def test_each_kind_is_recognized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    degrees = np.arange(25) * 15.0
    matlab = write_v5(tmp_path / "htc.mat", CtDataFull=htc_scan(np.random.default_rng(0).random((25, 14)), degrees))
    scanner = Scanner(rows=4, columns=24, column_mm=17.0, row_mm=10.0, central_column=12.6, central_row=2.5, views_per_turn=24)
    said = {
        matlab: ("Helsinki Tomography Challenge 2022", "24 x 14", "-360 degrees", "of 1 views"),
        write_npz(tmp_path / "a.npz"): ("neutral form", "12 x 8", "listed", "curved"),
        write_hdf5(tmp_path / "a.h5"): ("neutral form", "read_measurement"),
        counts(tmp_path / "raw.hdf5"): ("raw counts", "12 x 8", "0.693147 to 0.693147", "read_counts"),
        counts(tmp_path / "bare.hdf5", geometry=False): ("not checked further", "flats 2 x 8", "say geometry"),
        counts(tmp_path / "rows.hdf5", counts=np.ones((12, 4, 8))): ("counts 12 x 4 x 8", "say row"),
        medmnist(tmp_path / "med"): ("MedMNIST", "4 x 28 x 28", "labels 0, 1", "hu_of_0"),
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


def test_a_folder_of_two_detect_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "slice00001" / "mode1"
    folder.mkdir(parents=True)
    monkeypatch.setattr(two_detect, "_VIEWS", 13)
    monkeypatch.setattr(two_detect, "_PIXELS", 16)
    for name, rows, level in (("sinogram", 13, 600), ("flat1", 1, 1100), ("flat2", 1, 1100), ("dark", 1, 100)):
        values = np.full((rows, 16), level, np.uint16)
        values[:1, 3] = 50 if name == "sinogram" else values[0, 3]  # one count below the dark field
        Image.fromarray(values).save(folder / f"{name}.tif")
    found = recognize(folder)
    assert found is not None
    assert "2DeteCT" in found.what
    facts = dict(found.facts)
    assert (facts["views x bins"], facts["second measurements"]) == ("12 x 8", "of 1 views")
    assert "counts at the floor" not in facts  # the sum of two pixels is above it
    (folder / "flat2.tif").unlink()
    with pytest.raises(InputError, match=r"flat2\.tif: no such file"):
        recognize(folder)


def test_what_a_dataset_has_beside_it_does_not_stop_it(tmp_path: Path) -> None:
    from dicom_fixtures import chest, write_ct

    (tmp_path / "notes.npz").write_text("no archive")
    with pytest.raises(InputError, match=r"notes\.npz: not an NPZ file"):
        recognize(tmp_path)  # alone it is what the folder is about
    for name in ("a", "b"):
        write_ct(tmp_path / name / "p" / "1.dcm", chest(32), patient=name)
    assert recognize(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flats": np.full((2, 8), 100)}, "8 of 8 bins are dead"),
        ({"darks": np.full(7, 100)}, r"darks are int64 of shape \(7,\)"),
        ({"counts": np.ones((11, 8))}, r"counts has shape \(11, 8\), and the geometry has \(12, 8\)"),
    ],
)
def test_raw_counts_that_cannot_be_used_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recognize(counts(tmp_path / "raw.h5", **change))


def test_volumes_of_medmnist_are_refused(tmp_path: Path) -> None:
    folder = medmnist(tmp_path / "med")
    with np.load(folder / "organamnist.npz") as archive:
        arrays = dict(archive)
    np.savez(folder / "organamnist.npz", **arrays | {"val_images": np.zeros((4, 9, 9, 9), np.uint8)})
    with pytest.raises(InputError, match=r"val_images has shape \(4, 9, 9, 9\), color images or volumes"):
        recognize(folder)


def test_projections_of_a_patient_whose_position_is_not_read(tmp_path: Path) -> None:
    scanner = Scanner(rows=4, columns=24, column_mm=17.0, row_mm=10.0, central_column=12.6, central_row=2.5, views_per_turn=24)
    for name, position in (("none", None), ("side", "HFDR")):
        found = recognize(write_scan(tmp_path / name, scanner, change=lambda _, position=position: {"PatientPosition": position}))
        assert found is not None
        assert dict(found.facts)["PatientPosition"] == f"{position or 'none'}: say patient_position, HFS, HFP, FFS, FFP"


@pytest.mark.parametrize("write", [write_npz, write_hdf5], ids=["npz", "hdf5"])
def test_a_file_that_claims_more_than_its_geometry_is_refused_unread(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / ("a.npz" if write is write_npz else "a.h5"))
    shape = (10**6, 10**6)
    if write is write_hdf5:
        with h5py.File(path, "a") as file:
            del file["line_integrals"]
            file.create_dataset("line_integrals", shape=shape, chunks=(100, 100), dtype="f4")  # no chunk is stored
    else:
        with zipfile.ZipFile(path, "w") as archive, archive.open("line_integrals.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "a") as archive, archive.open("geometry.npy", "w") as member:
            np.save(member, np.array(SCAN.model_dump_json()))
    with pytest.raises(InputError, match=r"line_integrals has shape \(1000000, 1000000\), and the geometry has"):
        read_measurement(path)
    if write is write_npz:
        with pytest.raises(InputError, match="does not fit in memory"):
            Npz(path).array("line_integrals")


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
