from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_fixtures import write_folder, write_png, write_table
from PIL import Image

from tomosec.component import parse_component
from tomosec.data.folder import Columns, Filter, ImageFolder
from tomosec.data.splits import GivenSplit, SamePatientBlocks
from tomosec.errors import InputError

PATIENTS = {"p1": "disease", "p2": "normal"}


def test_values_order_and_attributes(tmp_path: Path) -> None:
    write_folder(tmp_path, {"p2": "normal", "p1": "disease"})
    opened = ImageFolder(hu_offset=1024).open(tmp_path)
    assert opened.classes == ("disease", "normal")
    assert [entry.key for entry in opened.entries] == [f"{p}/{i:04d}.png" for p in ("p1", "p2") for i in (2, 1, 0)]
    assert [entry.target for entry in opened.entries] == [0, 0, 0, 1, 1, 1]
    assert opened.entries[0].position_mm == -8.0
    assert opened.entries[0].attributes == {"kernel": "B41s", "spacing_mm": 8.0}
    slice_ = opened.read(opened.entries[0])
    stored = np.asarray(Image.open(tmp_path / "p1/0002.png")).astype(float)
    assert slice_.hu.dtype == np.float32
    np.testing.assert_array_equal(slice_.hu, stored - 1024)
    assert slice_.spacing_mm == (8.0, 8.0)


def test_npy_scale_and_float(tmp_path: Path) -> None:
    rows = write_folder(tmp_path, PATIENTS, slices=1)
    np.save(tmp_path / "p1.npy", np.array([[0.5, 1.0], [1.5, 2.0]]))
    rows[0]["file"] = "p1.npy"
    write_table(tmp_path, rows)
    opened = ImageFolder(hu_offset=1.0, hu_scale=1000.0).open(tmp_path)
    np.testing.assert_allclose(opened.read(opened.entries[0]).hu, [[-500, 0], [500, 1000]])


def test_label_map_filters_and_class_order(tmp_path: Path) -> None:
    rows = write_folder(tmp_path, PATIENTS | {"p3": "unclear"})
    for i, row in enumerate(rows):
        row["lung"] = "" if i == 0 else i
    write_table(tmp_path, rows)
    config = ImageFolder(
        hu_offset=1024,
        label_map={"disease": "sick", "normal": "healthy"},
        classes=("sick", "healthy"),
        filters=(Filter(column="lung", min=1, max=7),),
        attribute_columns=("lung",),
    )
    opened = config.open(tmp_path)
    assert opened.classes == ("sick", "healthy")
    assert [entry.target for entry in opened.entries] == [0, 0, 1, 1, 1]
    assert set(opened.entries[0].attributes) == {"lung", "spacing_mm"}
    said = " | ".join(finding.message for finding in opened.findings)
    assert "left out 2 of 9 rows, 1 of them blank" in said
    assert "2 rows are 'unclear'" in said


def test_manifest_follows_content_and_labels_but_not_the_place(tmp_path: Path) -> None:
    for name in ("here", "there"):
        write_folder(tmp_path / name, PATIENTS)
    config = ImageFolder(hu_offset=1024)
    first = config.open(tmp_path / "here").manifest_hash()
    assert config.open(tmp_path / "there").manifest_hash() == first
    write_png(tmp_path / "there/p1/0001.png", np.zeros((48, 48)))
    assert config.open(tmp_path / "there").manifest_hash() != first


def _change(rows: list[dict[str, object]], index: int, **cells: object) -> list[dict[str, object]]:
    rows[index] |= cells
    return rows


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"target": ""}, r"row 3, column 'target': the cell is blank"),
        ({"patient": " "}, r"row 3, column 'patient': the cell is blank"),
        ({"file": "p1/none.png"}, r"row 3, column 'file': no such file"),
        ({"file": "p1/0000.png"}, r"row 3, column 'file': 'p1/0000.png' is listed twice"),
        ({"file": "../secret.png"}, r"row 3, column 'file': '../secret.png' leaves the dataset's folder"),
        ({"file": "..\\secret.png"}, r"leaves the dataset's folder"),
        ({"file": "/etc/passwd"}, r"'/etc/passwd' leaves the dataset's folder"),
        ({"file": "C:\\x.png"}, r"leaves the dataset's folder"),
        ({"spacing_mm": "wide"}, r"row 3, column 'spacing_mm': a finite number is required, found 'wide'"),
        ({"spacing_mm": "inf"}, r"row 3, column 'spacing_mm': a finite number is required"),
        ({"spacing_mm": "-1"}, r"row 3, column 'spacing_mm': the pixel spacing must be above 0"),
        ({"position_mm": "top"}, r"row 3, column 'position_mm': a finite number is required"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, cells: dict[str, object], message: str) -> None:
    write_table(tmp_path, _change(write_folder(tmp_path, PATIENTS), 1, **cells))
    with pytest.raises(InputError, match=message):
        ImageFolder(hu_offset=1024).open(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": Columns(target="class")}, "no column 'class'; the columns are"),
        ({"columns": Columns(patient="pateint")}, r"no column 'pateint' \(did you mean 'patient'\?\)"),
        ({"columns": Columns(position="z")}, "no column 'z'"),
        ({"filters": (Filter(column="kernle", min=0),)}, r"no column 'kernle' \(did you mean 'kernel'\?\)"),
        ({"filters": (Filter(column="kernel", min=0),)}, "column 'kernel': a finite number is required, found 'B41s'"),
        ({"filters": (Filter(column="position_mm", min=9),)}, "leaves no row of 6"),
        ({"attribute_columns": ("dose",)}, "no column 'dose'"),
        ({"label_map": {"disaese": "sick"}}, r"label_map has 'disaese'.*did you mean 'disease'"),
        ({"label_map": {"disease": "x", "normal": "x"}}, "at least two classes are needed, found x"),
        ({"classes": ("disease", "healthy")}, "class 'normal' is not in classes"),
    ],
)
def test_a_config_that_does_not_fit_the_table(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_folder(tmp_path, PATIENTS)
    with pytest.raises(InputError, match=message):
        ImageFolder(hu_offset=1024, **fields).open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("file,patient\n", "no row below the column names"),
        ("file,file\na,b\n", "column 'file' occurs twice"),
        ("file,patient\na\n", "row 2: 1 cells, but 2 columns"),
        ("file,patient\n\xff,b\n", "not UTF-8 text"),
    ],
)
def test_a_broken_table(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        ImageFolder(hu_offset=0).open(tmp_path)


def test_semicolons_and_byte_order_mark(tmp_path: Path) -> None:
    write_folder(tmp_path, PATIENTS)
    path = tmp_path / "labels.csv"
    path.write_text("\ufeff" + path.read_text().replace(",", ";"), encoding="utf-8")
    assert len(ImageFolder(hu_offset=1024).open(tmp_path).entries) == 6


def test_no_folder_and_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give it with --data PATH"):
        ImageFolder(hu_offset=0).open(None)
    with pytest.raises(InputError, match="no such folder"):
        ImageFolder(hu_offset=0).open(tmp_path / "none")
    with pytest.raises(InputError, match=r"labels\.csv: no such file"):
        ImageFolder(hu_offset=0).open(tmp_path)


def _save_8bit(path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)


def _save_rgb(path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


def _save_truncated(path: Path) -> None:
    write_png(path, np.random.default_rng(0).integers(0, 3000, (64, 64)).astype(float))
    path.write_bytes(path.read_bytes()[:2000])


def _save_jpeg(path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path, format="JPEG")


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (_save_8bit, "16-bit grayscale PNG is required, found 8-bit grayscale"),
        (_save_rgb, "16-bit grayscale PNG is required, found RGB"),
        (_save_truncated, "cannot be read as PNG"),
        (_save_jpeg, "cannot be read as PNG"),
    ],
)
def test_a_bad_png_is_named(tmp_path: Path, save: Any, message: str) -> None:
    write_folder(tmp_path, PATIENTS)
    save(tmp_path / "p1/0000.png")
    opened = ImageFolder(hu_offset=1024).open(tmp_path)
    with pytest.raises(InputError, match=rf"p1/0000\.png: .*{message}"):
        opened.read(opened.entries[2])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.0, np.nan]]), "1 of 2 pixels are NaN or infinite"),
        (np.zeros((2, 2, 2)), "a slice is a 2-D array of real numbers, found float64 of shape"),
        (np.zeros((2, 2), complex), "found complex128"),
        (np.array([[{}]], dtype=object), "damaged or holds Python objects"),
    ],
)
def test_a_bad_npy_is_named(tmp_path: Path, array: np.ndarray, message: str) -> None:
    rows = write_folder(tmp_path, PATIENTS)
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    write_table(tmp_path, _change(rows, 0, file="bad.npy"))
    opened = ImageFolder(hu_offset=1024).open(tmp_path)
    entry = next(entry for entry in opened.entries if entry.key == "bad.npy")
    with pytest.raises(InputError, match=rf"bad\.npy: .*{message}"):
        opened.read(entry)


def test_a_filter_needs_bounds_in_order() -> None:
    with pytest.raises(ValueError, match="needs a min, a max or both"):
        Filter(column="x")
    with pytest.raises(ValueError, match="min 2 is above max 1"):
        Filter(column="x", min=2, max=1)


def test_real_slices_of_covid_ct_md(covid_sample: Path) -> None:
    config = parse_component(
        "dataset",
        {
            "kind": "image-folder",
            "hu_offset": 1024,
            "columns": {"target": "cls", "position": "slice_location_mm", "spacing": "pixel_spacing_mm"},
            "label_map": {"covid": "disease", "cap": "disease", "normal": "normal"},
            "filters": [{"column": "lung_px_512", "min": 15000}],
        },
    )
    opened = config.open(covid_sample)
    assert len(opened.entries) == 315
    assert len({entry.patient for entry in opened.entries}) == 6
    assert opened.classes == ("disease", "normal")
    hu = opened.read(opened.entries[100]).hu
    assert -1024 <= hu.min() < -950
    assert 200 < hu.max() < 3072
    folds = GivenSplit(column="fold", test=("B",)).assign(opened.entries, opened.classes)
    assert folds.counts() == {"train": 165, "validation": 0, "test": 150, "dropped": 0}
    blocks = SamePatientBlocks().assign(opened.entries, opened.classes)
    assert {opened.entries[i].target for i in blocks.test} == {0, 1}


def test_readers_load_no_torch() -> None:
    names = "base, check, covid_ct_md, covid_ldct, dicom, dicom_folder, files, folder, guess, medmnist, nifti, recognize, splits"
    code = f"import sys; from tomosec.data import {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
