from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_fixtures import JPEG_LOSSLESS, infected_rows, write_covid_ct_md, write_covid_ldct

from tomosec.data.base import OpenDataset
from tomosec.data.covid_ct_md import CovidCTMD
from tomosec.data.covid_ldct import CovidLDCT
from tomosec.data.splits import PatientSplit
from tomosec.errors import InputError

LESION = (35, 44)  # row and column of the drawn lesion in a 64 x 64 slice, at -300 HU in a lung of -850 HU


def said(opened: OpenDataset) -> str:
    return " | ".join(f"{finding.level}: {finding.message} [{finding.where}]" for finding in opened.findings)


@pytest.fixture(scope="module")
def ldct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_covid_ldct(tmp_path_factory.mktemp("ldct") / "COVID-LDCT")


def lesions(opened: OpenDataset, name: str = "covid") -> list[bool]:
    """Whether the lesion is seen in each slice of a class."""
    target = opened.classes.index(name)
    return [bool(opened.read(entry).hu[LESION] > -500) for entry in opened.entries if entry.target == target]


def test_fixture_is_true_to_the_format(ldct: Path) -> None:
    data = pydicom.dcmread(ldct / "COVID-S1/C001/IM0001.dcm")
    assert data.file_meta.TransferSyntaxUID == JPEG_LOSSLESS
    assert (data.BitsAllocated, data.BitsStored, data.PixelRepresentation) == (16, 12, 0)
    assert (data.RescaleSlope, data.RescaleIntercept) == (1, -1024)
    low, high = (pydicom.dcmread(ldct / f"COVID-S1/C002/IM{i:04d}.dcm").SliceLocation for i in (1, 2))
    assert low < high  # file numbers run from the feet, labels from the head


@pytest.mark.parametrize("up", [0, 1, 2])
def test_ldct_labels_meet_their_slices(ldct: Path, up: int) -> None:
    root = (ldct, ldct.parent, ldct.parent.parent)[up]
    opened = CovidLDCT().open(root)
    assert opened.classes == ("covid", "normal")
    infected = sum(high - low for low, high in map(infected_rows, (11, 12, 11)))
    assert [entry.target for entry in opened.entries].count(0) == infected
    assert [entry.target for entry in opened.entries].count(1) == 11 + 12 + 11
    assert all(lesions(opened))
    assert opened.entries[0].key == "COVID-S1/C001/IM0002.dcm"
    assert len(opened.fingerprint()) == len(opened.entries) + 1


def test_ldct_in_the_released_order_labels_other_slices(ldct: Path) -> None:
    opened = CovidLDCT(slice_order="file-name").open(ldct)
    assert not all(lesions(opened))
    assert {entry.key for entry in opened.entries if entry.patient == "C002"} == {
        f"COVID-S1/C002/IM{i:04d}.dcm" for i in range(infected_rows(12)[0] + 1, infected_rows(12)[1] + 1)
    }
    ascending = CovidLDCT(slice_order="slice-location-ascending").open(ldct)
    assert [e.key for e in ascending.entries if e.target == 0] == [e.key for e in opened.entries if e.target == 0]


def test_ldct_findings_and_fields(ldct: Path) -> None:
    opened = CovidLDCT().open(ldct)
    assert "slices of COVID patients are not labeled 1: left out" in said(opened)
    assert "slice position is a shortcut to the class" in said(opened)
    kept = CovidLDCT(uninfected_slices="normal").open(ldct)
    assert len(kept.entries) == 34 + 34
    assert not any(lesions(kept, "normal"))
    narrow = CovidLDCT(normal_slices="positions-of-positives").open(ldct)
    normal = [entry.position_mm or 0 for entry in narrow.entries if entry.target == 1 and entry.patient == "N002"]
    assert len(normal) < 12
    assert max(normal) <= -100 - 2 * infected_rows(12)[0]
    assert "slices left out: outside" in said(narrow)
    assert "is a shortcut" not in said(narrow)


def test_ldct_splits_by_patient(ldct: Path) -> None:
    opened = CovidLDCT().open(ldct)
    assert PatientSplit().assign(opened.entries, opened.classes).counts()["test"] > 0


@pytest.mark.parametrize("padding", ["", "nan", "0.0"])
def test_ldct_padding_after_the_last_slice_means_nothing(tmp_path: Path, padding: str) -> None:
    base = write_covid_ldct(tmp_path, covid=2, normal=1, slices=6, size=16, padding=padding, compress=False)
    opened = CovidLDCT().open(base)
    assert "blank" not in said(opened)
    assert [entry.patient for entry in opened.entries].count("C001") == infected_rows(5)[1] - infected_rows(5)[0]


def test_ldct_blank_cells_are_not_infected(tmp_path: Path) -> None:
    cells = ["0.0", "", "1.0", "nan", "0"]
    base = write_covid_ldct(tmp_path, covid=2, normal=1, slices=6, size=16, compress=False, labels={"C001": cells})
    opened = CovidLDCT().open(base)
    assert [entry.key for entry in opened.entries if entry.patient == "C001"] == ["COVID-S1/C001/IM0003.dcm"]
    assert "warning: 2 slices of 1 patients have a blank label: taken as not infected" in said(opened)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"C009": ["1.0"]}, r"patient 'C009' has no CT slice in COVID-S1 \(did you mean 'C00.'\?\)"),
        ({"C001": ["0"] * 6 + ["1"]}, "row 'C001': slice 7 of patient 'C001' is labeled 1, but 5 slices were found"),
        ({"C001": ["yes"]}, "row 'C001', slice 1: a label is 0, 1 or blank, found 'yes'"),
        ({"C001": ["0", "2"]}, "row 'C001', slice 2: a label is 0, 1 or blank, found '2'"),
        ({"C001": ["0"] * 5, "C002": ["0"] * 6}, "at least two classes are needed, found normal"),
        ({"": ["0"]}, "row 4: the first cell must name a patient"),
    ],
)
def test_ldct_labels_that_do_not_fit(tmp_path: Path, labels: dict[str, list[str]], message: str) -> None:
    base = write_covid_ldct(tmp_path, covid=2, normal=1, slices=6, size=16, compress=False, labels=labels)
    with pytest.raises(InputError, match=message):
        CovidLDCT().open(base)


def test_ldct_missing_parts(tmp_path: Path) -> None:
    base = write_covid_ldct(tmp_path, covid=2, normal=1, slices=6, size=16, compress=False)
    with (base / "LDCT-SL-Labels-S1.csv").open("a", newline="") as stream:
        csv.writer(stream).writerow(["C001", "0.0"])
    with pytest.raises(InputError, match="patient 'C001' has two rows"):
        CovidLDCT().open(base)
    (base / "LDCT-SL-Labels-S1.csv").write_text(",1,2,3,4,5\nC002,0,0,0,0,1\n")
    assert "warning: no row in LDCT-SL-Labels-S1.csv: its slices are left out [C001]" in said(CovidLDCT().open(base))
    shutil.move(base / "Normal-S1", base / "Controls")
    with pytest.raises(InputError, match=r"no Normal-S1; Dataset-S1 holds .* here is COVID-S1, Controls"):
        CovidLDCT().open(base)


@pytest.fixture(scope="module")
def ct_md(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_covid_ct_md(tmp_path_factory.mktemp("md"))


def test_ct_md_by_patient(ct_md: Path) -> None:
    opened = CovidCTMD().open(ct_md)
    assert opened.classes == ("covid", "cap", "normal")
    assert len(opened.entries) == 6 * 8
    assert [e.position_mm for e in opened.entries if e.patient == "P001"] == [36, 38, 40, 42, 44, 46, 48, 50]
    merged = CovidCTMD(classes={"covid": "disease", "cap": "disease", "normal": "normal"}).open(ct_md)
    assert merged.classes == ("disease", "normal")
    assert [entry.target for entry in merged.entries].count(0) == 32
    two = CovidCTMD(classes={"covid": "covid", "normal": "normal"}).open(ct_md)
    assert {entry.patient for entry in two.entries} == {"P001", "P002", "normal001", "normal002"}


def test_ct_md_rows_go_by_position_in_the_index(ct_md: Path) -> None:
    opened = CovidCTMD(labels="slice").open(ct_md)
    # 32 x 32 slices: the lesion is at half the coordinates
    for entry in opened.entries:
        assert (opened.read(entry).hu[17, 22] > -500) == (entry.target != 2)
    upper = {entry.position_mm for entry in opened.entries if entry.patient == "cap001"}
    assert upper == {50, 48, 46, 44}
    assert "16 slices of labeled patients are not infected: left out" in said(opened)
    every = CovidCTMD(labels="slice", uninfected_slices="normal").open(ct_md)
    assert [entry.target for entry in every.entries].count(2) == 16 + 16


def test_ct_md_other_folder_names_and_older_patients(ct_md: Path, tmp_path: Path) -> None:
    root = tmp_path / "md"
    shutil.copytree(ct_md, root)
    (root / "COVID-19 subjects").rename(root / "COVID-19 Cases")
    (root / "Cap subjects").rename(root / "cap cases")
    (root / "cap cases/cap001").rename(root / "cap cases/p001")
    index = root / "Index.csv"
    index.write_text(index.read_text().replace("cap001", "p001").replace("Folder/ID", "Folder").replace("Relative Path", "Path"))
    opened = CovidCTMD(labels="slice").open(root)
    assert {entry.patient for entry in opened.entries} == {"P001", "P002", "cap001", "cap002", "normal001", "normal002"}


def _no_index(root: Path) -> None:
    (root / "Index.csv").unlink()


def _pickle(root: Path) -> None:
    np.save(root / "Slice-level-labels-updated-1.npy", np.array([{}], dtype=object), allow_pickle=True)


def _short(root: Path) -> None:
    np.save(root / "Slice-level-labels-updated-1.npy", np.zeros((3, 9)))


def _grey(root: Path) -> None:
    np.save(root / "Slice-level-labels-updated-1.npy", np.full((4, 9), 0.5))


def _long(root: Path) -> None:
    np.save(root / "Slice-level-labels-updated-1.npy", np.ones((4, 9)))


def _twice(root: Path) -> None:
    index = root / "Index.csv"
    index.write_text(index.read_text().replace("cap002", "cap001"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_index, "labels 'slice' needs Index.csv; without it use labels: patient"),
        (_pickle, "damaged or holds Python objects"),
        (_short, r"one row per patient of Index.csv \(4\) is needed, found \(3, 9\)"),
        (_grey, r"labels are 0 and 1, found \[0.5\]"),
        (_long, "slice 9 of patient 'P001' is labeled 1, but 8 slices were found"),
        (_twice, "row 5, column 'Folder/ID': patient 'cap001' is listed twice"),
    ],
)
def test_ct_md_labels_that_do_not_fit(ct_md: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    root = tmp_path / "md"
    shutil.copytree(ct_md, root)
    spoil(root)
    with pytest.raises(InputError, match=message):
        CovidCTMD(labels="slice").open(root)


def test_ct_md_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the folders COVID-19 subjects, .* here is nothing"):
        CovidCTMD().open(tmp_path)
    with pytest.raises(ValueError, match="at least two different class names"):
        CovidCTMD(classes={"covid": "x", "cap": "x"})
