from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_fixtures import JPEG_LOSSLESS, chest, write_ct
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from tomosec.data.dicom import _cached_header, find_files, read_header, read_slice, scan
from tomosec.data.dicom_folder import DicomFolder
from tomosec.data.guess import guess_dataset
from tomosec.errors import InputError


def said(opened: Any) -> str:
    return " | ".join(f"{finding.level}: {finding.message} [{finding.where}]" for finding in opened.findings)


def write_cohort(root: Path, *, slices: int = 3, layout: str = "{group}/{patient}/{name}", **elements: Any) -> Path:
    for number, (patient, group) in enumerate({"p1": "sick", "p2": "sick", "q1": "well"}.items()):
        for i in range(slices):
            name = layout.format(group=group, patient=patient, name=f"{(i * 2 + 1) % slices}.dcm")
            write_ct(
                root / name, chest(32, seed=number * 50 + i), patient=patient, position=-2.0 * i, series=f"1.{number}", **elements
            )
    return root


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("signed", "intercept", "slope", "bits"), [(False, -1024, 1, 12), (True, 0, 1, 16), (False, -8192, 2, 16)]
)
def test_hu_are_what_was_written(tmp_path: Path, signed: bool, intercept: int, slope: int, bits: int, compress: bool) -> None:
    hu = chest(48)
    path = write_ct(
        tmp_path / "a.dcm", hu, signed=signed, intercept=intercept, slope=slope, bits=bits, compress=compress, spacing=7.5
    )
    slice_ = read_slice(path)
    wanted = np.round((np.maximum(hu, -1024) - intercept) / slope) * slope + intercept
    within = hu >= -1024
    np.testing.assert_array_equal(slice_.hu[within], wanted[within])
    assert slice_.hu.dtype == np.float32
    assert slice_.spacing_mm == (7.5, 7.5)


def test_compression_without_a_decoder_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_ct(tmp_path / "a.dcm", chest(32), compress=True)
    monkeypatch.setattr(get_decoder(UID(JPEG_LOSSLESS)), "_available", {})
    with pytest.raises(InputError, match=r"a\.dcm: .*JPEG Lossless.*pip install python-gdcm"):
        read_slice(path)


@pytest.mark.parametrize(
    ("elements", "level", "message"),
    [
        ({"Modality": "MR"}, "note", "modality is MR, only CT is read"),
        ({"Modality": None}, "note", "modality is missing"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "note", "a localizer"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "warning", r"3 samples per pixel \(RGB\)"),
        ({"RescaleSlope": None}, "warning", "no RescaleSlope and RescaleIntercept"),
        ({"PixelSpacing": None}, "warning", "no PixelSpacing"),
        ({"PixelSpacing": [0, 0]}, "warning", "no PixelSpacing"),
        ({"NumberOfFrames": "3"}, "warning", "several frames in one file"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "note", "not an axial slice"),
        ({"RescaleIntercept": "0"}, "warning", r"RescaleIntercept 0 with unsigned pixels cannot hold air"),
        ({"Rows": None}, "warning", "no Rows or Columns"),
        ({"BitsAllocated": 114}, "warning", "BitsAllocated, BitsStored and HighBit"),
    ],
)
def test_what_is_not_a_ct_slice_is_skipped_and_refused(
    tmp_path: Path, elements: dict[str, Any], level: str, message: str
) -> None:
    root = write_cohort(tmp_path)
    bad = write_ct(root / "sick/p1/bad.dcm", chest(32), patient="p1", position=9.0, series="1.0", **elements)
    with pytest.raises(InputError, match=rf"bad\.dcm: .*{message}"):
        read_slice(bad)
    opened = DicomFolder().open(root)
    assert len(opened.entries) == 9
    (finding,) = [f for f in opened.findings if "bad.dcm" in f.where]
    assert finding.level == level
    assert not [entry.key for entry in opened.entries if "bad" in entry.key]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("keep", [0.02, 0.2, 0.5, 0.97])
def test_a_truncated_file_is_named(tmp_path: Path, keep: float, compress: bool) -> None:
    path = write_ct(tmp_path / "cut.dcm", chest(96), compress=compress)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(InputError, match=r"cut\.dcm: "):
        read_slice(path)


def test_truncated_and_foreign_files_do_not_stop_a_scan(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    cut = write_ct(root / "sick/p1/cut.dcm", chest(64), patient="p1")
    cut.write_bytes(cut.read_bytes()[:4000])
    (root / "sick/p1/notes.dcm").write_text("not DICOM")
    (root / "sick/p1/empty.dcm").write_bytes(b"")
    (root / "sick/p1/.hidden.dcm").write_text("skipped without a word")
    (root / "sick/p1/readme.txt").write_text("not looked at")
    opened = DicomFolder().open(root)
    assert len(opened.entries) == 9
    text = said(opened)
    assert "truncated: the file is smaller than its pixels (1 files) [sick/p1/cut.dcm]" in text
    assert "notes.dcm: not a DICOM file" in text
    assert "empty.dcm" in text
    assert "hidden" not in text
    assert "readme" not in text


def _jpeg_at(content: bytes) -> int:
    return content.index(b"\xff\xd8\xff")


@pytest.mark.parametrize(
    ("marker", "offset", "value", "message"),
    [
        (b"\xff\xd8\xff", 0, 0x00, "do not start as JPEG"),
        (b"\xff\xc3", 4, 114, "32 x 32 pixels of 114 bits, the header 32 x 32 of 16"),
        (b"\xff\xc3", 6, 33, "33 x 32 pixels"),
        (b"\xff\xc3", 9, 3, "not one grayscale image"),
        (b"\xff\xc3", 2, 99, "damaged or cut off"),
        (b"\xff\xc4", 10, 255, "Huffman table of its JPEG stream is damaged"),
        (b"\xff\xc4", 1, 0xEE, "lacks a frame or a Huffman table"),
        (b"\xff\xda", 6, 0x30, "lacks a frame or a Huffman table"),
        (b"\xff\xd9", 1, 0x00, "cut off"),
    ],
)
def test_a_damaged_jpeg_header_does_not_reach_the_decoder(
    tmp_path: Path, marker: bytes, offset: int, value: int, message: str
) -> None:
    path = write_ct(tmp_path / "x.dcm", chest(32), compress=True)
    content = bytearray(path.read_bytes())
    start = _jpeg_at(content)
    content[content.index(marker, start) + offset] = value
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=rf"x\.dcm: .*{message}"):
        read_slice(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_input_errors_only(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damage")
    path = write_ct(folder / "x.dcm", chest(16), compress=data.draw(st.booleans()))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(132, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    # pydicom may warn about what it could still read, and tests turn warnings into errors
    with contextlib.suppress(InputError, UserWarning):
        read_slice(path)


@pytest.mark.parametrize("padding", [-2000, 63536])
def test_ge_padding_becomes_air(tmp_path: Path, padding: int) -> None:
    hu = chest(32)
    stored = np.round(hu + 1024).astype("<i2")
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    outside = np.hypot(x, y) > 1
    stored[outside] = -2000
    path = write_ct(tmp_path / "ge.dcm", hu, signed=True, bits=16, intercept=-1024)
    data = pydicom.dcmread(path)
    data.PixelData = stored.tobytes()
    data.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
    data.save_as(path)
    read = read_slice(path).hu
    assert (read[outside] == -1000).all()
    np.testing.assert_array_equal(read[~outside], np.round(hu)[~outside])


def test_padding_without_its_tag_and_padding_that_names_tissue(tmp_path: Path) -> None:
    hu = chest(32)
    hu[0] = -3024
    hu[16, 16] = 0
    untagged = write_ct(tmp_path / "a.dcm", hu, signed=True, bits=16, intercept=-1024)
    assert (read_slice(untagged).hu[0] == -1000).all()
    water = write_ct(tmp_path / "b.dcm", hu, signed=True, bits=16, intercept=0, PixelPaddingValue=0)
    assert read_slice(water).hu[16, 16] == 0


def test_hu_stored_directly_is_remarked(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    write_ct(root / "sick/p1/ge.dcm", chest(32), patient="p1", position=9.0, series="1.0", signed=True, bits=16, intercept=0)
    opened = DicomFolder().open(root)
    assert len(opened.entries) == 10
    assert "RescaleIntercept is 0 with signed pixels: taken as HU stored directly (1 files) [sick/p1/ge.dcm]" in said(opened)


def test_slices_are_sorted_by_position_not_by_name(tmp_path: Path) -> None:
    opened = DicomFolder().open(write_cohort(tmp_path, slices=5))
    first = [entry for entry in opened.entries if entry.patient == "p1"]
    assert [entry.position_mm for entry in first] == [-8, -6, -4, -2, 0]
    assert [entry.key for entry in first] != sorted(entry.key for entry in first)


def test_position_is_along_the_normal_to_the_head(tmp_path: Path) -> None:
    tilt = np.deg2rad(20)
    axes = [1, 0, 0, 0, float(np.cos(tilt)), float(np.sin(tilt))]
    path = write_ct(tmp_path / "a.dcm", chest(16), ImagePositionPatient=[0, 0, 100], ImageOrientationPatient=axes)
    assert read_header(path).position_mm == pytest.approx(100 * np.cos(tilt))
    # feet first: rows of the image run the other way, the normal must still point to the head
    feet = write_ct(tmp_path / "b.dcm", chest(16), ImagePositionPatient=[0, 0, 7], ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])
    assert read_header(feet).position_mm == 7
    bare = write_ct(tmp_path / "c.dcm", chest(16), position=None, SliceLocation="3.5")
    assert read_header(bare).position_mm == 3.5


@pytest.mark.parametrize(("axes", "rows", "columns"), [([-1, 0, 0, 0, 1, 0], 1, -1), ([-1, 0, 0, 0, -1, 0], -1, -1)])
def test_other_layouts_are_flipped_to_anterior_up(tmp_path: Path, axes: list[int], rows: int, columns: int) -> None:
    hu = chest(16, lesion=True)
    path = write_ct(tmp_path / "a.dcm", np.maximum(hu, -1000)[::rows, ::columns], ImageOrientationPatient=axes)
    np.testing.assert_array_equal(read_slice(path).hu, np.maximum(hu, -1000))


def test_attributes_hold_what_may_be_a_shortcut(tmp_path: Path) -> None:
    entry = DicomFolder().open(write_cohort(tmp_path)).entries[0]
    wanted = {"kernel": "D40s", "kvp": 110.0, "manufacturer": "SIEMENS", "model": "SOMATOM Scope", "sex": "M", "spacing_mm": 6.0}
    assert wanted.items() <= dict(entry.attributes).items()
    assert entry.attributes["field_of_view_mm"] == 192.0


def test_invalid_identifiers_do_not_matter(tmp_path: Path) -> None:
    root = write_cohort(
        tmp_path, StudyInstanceUID="{3F2504E0-4F89}", SOPInstanceUID="no identifier at all", KVP="110.00000000000000001"
    )
    opened = DicomFolder().open(root)
    assert len(opened.entries) == 9
    assert opened.read(opened.entries[0]).hu.shape == (32, 32)
    assert opened.entries[0].attributes["kvp"] == 110.0


def test_patient_findings(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    write_ct(root / "sick/p1/twin.dcm", chest(32), patient="p1", position=0.0, series="1.0")
    write_ct(root / "sick/p2/wide.dcm", chest(32), patient="p2", position=-40.0, series="1.1", spacing=7.0)
    write_ct(root / "well/q1/other.dcm", chest(32), patient="q1", position=-1.0, series="9.9")
    text = said(DicomFolder().open(root))
    assert "1 slices repeat the position of another in their series: duplicates? [p1]" in text
    assert "mixed pixel spacing: 6 x 6, 7 x 7 mm [p2]" in text
    assert "2 series (3, 1 slices) may show the same anatomy twice [q1]" in text
    largest = DicomFolder(series="largest").open(root)
    assert "well/q1/other.dcm" not in [entry.key for entry in largest.entries]
    assert "1 slices left out: not in the largest series" in said(largest)


def test_missing_positions_fall_back_to_names(tmp_path: Path) -> None:
    root = write_cohort(tmp_path)
    write_ct(root / "sick/p1/3.dcm", chest(32), patient="p1", position=None, series="1.0")
    opened = DicomFolder().open(root)
    assert [entry.key[-5] for entry in opened.entries if entry.patient == "p1"] == ["0", "1", "2", "3"]
    assert "1 of 4 slices have no position: ordered by file name [p1]" in said(opened)


def test_table_gives_classes(tmp_path: Path) -> None:
    root = write_cohort(tmp_path, layout="{patient}/deep/{name}")
    (root / "labels.csv").write_text("patient,cls\np1,sick\nq1,well\n")
    opened = DicomFolder(classes=("well", "sick")).open(root)
    assert opened.classes == ("well", "sick")
    assert {entry.patient: entry.target for entry in opened.entries} == {"p1": 1, "q1": 0}
    assert "3 slices left out: no class in labels.csv [p2]" in said(opened)
    (root / "labels.csv").write_text("patient,cls\np1,sick\nq1,well\nq2,well\n")
    with pytest.raises(InputError, match=r"patient 'q2' has no CT slice here \(did you mean"):
        DicomFolder().open(root)
    (root / "labels.csv").write_text("patient,cls\np1,sick\np1,well\n")
    with pytest.raises(InputError, match="row 3, column 'cls': patient 'p1' is 'well' here and 'sick' above"):
        DicomFolder().open(root)
    (root / "labels.csv").write_text("patient,group\np1,sick\n")
    with pytest.raises(InputError, match="needs a column 'class' or 'cls'"):
        DicomFolder().open(root)
    (root / "labels.csv").write_text("patient,cls\np1,\n")
    with pytest.raises(InputError, match="row 2, column 'cls': the cell is blank"):
        DicomFolder().open(root)


def test_patients_by_header(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "a", layout="{group}/{patient}_{name}")
    opened = DicomFolder().open(root)
    assert sorted({entry.patient for entry in opened.entries}) == ["p1", "p2", "q1"]
    same = write_cohort(tmp_path / "b")
    shutil.copytree(same / "sick/p1", same / "well/copy")
    assert "PatientID 'p1' is in the folders of several patients (copy, p1)" in said(DicomFolder().open(same))
    merged = DicomFolder(patient_from="header").open(same)
    assert {entry.target for entry in merged.entries if entry.patient == "p1"} == {0, 1}
    assert "in the classes sick and well: taken as one person" in said(merged)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable CT slice in DICOM: no file may be DICOM"):
        DicomFolder().open(tmp_path)
    one = tmp_path / "one"
    write_ct(one / "sick/p1/0.dcm", chest(16))
    with pytest.raises(InputError, match="at least two classes are needed, found sick"):
        DicomFolder().open(one)
    write_ct(one / "stray.dcm", chest(16))
    with pytest.raises(InputError, match=r"stray\.dcm lies outside a class folder"):
        DicomFolder().open(one)
    with pytest.raises(InputError, match=r"class 'well' is not in classes: sick, health"):
        DicomFolder(classes=("sick", "health")).open(write_cohort(tmp_path / "two"))


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "a.dcm", chest(16), position=1.0)
    assert read_header(path).position_mm == 1.0
    write_ct(path, chest(18), position=22.0)
    assert read_header(path).position_mm == 22.0


def test_a_file_that_has_not_changed_is_read_once(tmp_path: Path) -> None:
    path = write_ct(tmp_path / "a.dcm", chest(16))
    paths = [Path(shutil.copy(path, tmp_path / f"{i}.dcm")) for i in range(5)]
    before = _cached_header.cache_info()
    for _ in range(2):
        headers, findings = scan(tmp_path, paths)
        assert len(headers) == 5
        assert not findings
    after = _cached_header.cache_info()
    assert after.misses - before.misses == 5
    assert after.hits - before.hits >= 5


@pytest.mark.skipif(os.name != "posix", reason="pipes with a name")
def test_a_pipe_among_the_slices_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "well" / "p1"
    write_ct(folder / "IM1.dcm", chest())
    for name in ("IM0", "IM2.dcm"):
        os.mkfifo(folder / name)
    (folder / "IM3.dcm").symlink_to(folder / "gone.dcm")  # whoever opens it says that it is not there
    assert [path.name for path in find_files(tmp_path)] == ["IM1.dcm", "IM3.dcm"]


def test_real_slices(covid_sample: Path, tmp_path: Path) -> None:
    for folder in sorted((covid_sample / "dicom").iterdir()):
        group = "well" if folder.name.startswith("normal") else "sick"
        shutil.copytree(folder, tmp_path / group / folder.name)
    guess = guess_dataset(tmp_path)
    assert guess.dataset == DicomFolder()
    opened = guess.dataset.open(tmp_path)
    assert len(opened.entries) == 18
    compared = 0
    for entry in opened.entries:
        number = int(Path(entry.key).stem[2:])
        png = covid_sample / "hu256" / entry.patient / f"{number:04d}.png"
        hu = opened.read(entry).hu
        if png.is_file():
            small = hu.reshape(256, 2, 256, 2).mean((1, 3))
            stored = np.asarray(Image.open(png)).astype(float) - 1024
            assert np.abs(small - stored).max() <= 0.5
            compared += 1
    assert compared >= 12
