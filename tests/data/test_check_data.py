from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_fixtures import chest, write_covid_ct_md, write_covid_ldct, write_ct
from folder_fixtures import write_folder, write_png, write_table

from tomosec.data.base import Finding
from tomosec.data.check import check_dataset, inspect_dataset
from tomosec.data.covid_ct_md import CovidCTMD
from tomosec.data.covid_ldct import CovidLDCT
from tomosec.data.dicom_folder import DicomFolder
from tomosec.data.folder import Columns, ImageFolder
from tomosec.data.guess import guess_dataset
from tomosec.data.shortcuts import find_shortcuts
from tomosec.data.splits import PatientSplit, SamePatientBlocks
from tomosec.errors import InputError

BALANCED = {f"{name[0]}{i:02d}": name for name in ("disease", "normal") for i in range(12)}
READ = ImageFolder(hu_offset=1024)


def about(findings: list[Finding], text: str) -> list[Finding]:
    return [finding for finding in findings if text in finding.message]


def test_a_clean_cohort_has_nothing_to_say(tmp_path: Path) -> None:
    write_folder(tmp_path, BALANCED)
    summary, findings = inspect_dataset(READ.open(tmp_path), PatientSplit())
    assert summary.patients == {"disease": 12, "normal": 12}
    assert summary.slices == {"disease": 36, "normal": 36}
    assert summary.slices_per_patient["d00"] == {"disease": 3}
    assert summary.shapes == {(48, 48): 72}
    assert summary.spacing_mm == (8.0, 8.0)
    assert summary.field_mm == (384.0, 384.0)
    assert summary.slices_read == 72
    assert summary.parts["test"] == {"disease": 9, "normal": 9}
    assert summary.hu_range is not None
    assert summary.hu_range[0] >= -1024
    assert [finding.level for finding in findings] == ["note"]
    assert findings[0].where == "split"


def test_shortcuts_are_found_with_their_numbers(tmp_path: Path) -> None:
    rows = write_folder(tmp_path, BALANCED)
    rng = np.random.default_rng(0)
    for row in rows:
        sick = row["target"] == "disease"
        row["kernel"] = "D40s" if sick else "B41s"
        row["kvp"] = 110 if sick and row["patient"] != "d00" else 120
        row["dose"] = rng.normal()
        row["sex"] = "MF"[int(str(row["patient"])[1:]) % 2]
        if sick:
            write_png(tmp_path / str(row["file"]), np.roll(chest(48, lesion=True, seed=len(str(row))), 6, axis=0))
    write_table(tmp_path, rows)
    findings = check_dataset(READ.open(tmp_path))
    by_name = {finding.where: finding for finding in findings if "predicts class" in finding.message}
    assert "balanced accuracy 1.00" in by_name["kernel"].message
    assert "B41s 12/12 against D40s 12/12" in by_name["kernel"].message
    assert "12 against 12 patients" in by_name["kernel"].message
    assert "AUROC 0.96" in by_name["kvp"].message
    assert "AUROC 1.00" in by_name["body center down, mm"].message
    assert {"dose", "sex", "number of slices", "spacing_mm"}.isdisjoint(by_name)


def test_few_patients_prove_nothing(tmp_path: Path) -> None:
    rows = write_folder(tmp_path, {"d1": "disease", "d2": "disease", "n1": "normal", "n2": "normal"})
    for row in rows:
        row["kernel"] = "D40s" if row["target"] == "disease" else "B41s"
    write_table(tmp_path, rows)
    findings = check_dataset(READ.open(tmp_path))
    assert not about(findings, "predicts class")
    (honest,) = about(findings, "by chance")
    assert honest.level == "note"
    assert "kernel" in honest.message
    assert "with 2 and 2 patients each does so by chance with probability 0.3" in honest.message
    assert len(about(findings, "under 10 no interval")) == 2


def test_shortcut_p_values_are_honest_under_no_relation() -> None:
    rng = np.random.default_rng(1)
    small = 0
    for _ in range(20):
        units = [(int(i < 8), {f"x{k}": float(rng.normal()) for k in range(10)}) for i in range(20)]
        found = find_shortcuts(units, 1)
        assert len(found) == 10
        small += sum(item.p_value <= 0.05 for item in found)
    assert small <= 0.05 * 200 + 3 * np.sqrt(200 * 0.05 * 0.95)


def test_missing_values_can_be_the_shortcut() -> None:
    units = [(int(i < 12), {"sex": "M"} | ({"kvp": 110.0} if i < 12 else {})) for i in range(24)]
    (found,) = find_shortcuts(units, 1)
    assert (found.attribute, found.strength) == ("kvp", 1.0)
    assert found.is_established
    assert "(a number) 12/12 against (missing) 12/12" in found.detail


def test_bad_images_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path, BALANCED)
    write_png(tmp_path / "d00/0000.png", np.full((48, 48), -1000.0))
    big = chest(48)
    big[20:30, :] = 40.0
    write_png(tmp_path / "d01/0000.png", big)
    shutil.copy(tmp_path / "d02/0000.png", tmp_path / "n02/0000.png")
    shutil.copy(tmp_path / "d03/0000.png", tmp_path / "d03/0001.png")
    (tmp_path / "d04/0000.png").write_bytes(b"\x89PNG")
    write_png(tmp_path / "d05/0000.png", chest(40))
    summary, findings = inspect_dataset(READ.open(tmp_path))
    assert summary.slices_read == 71
    (empty,) = about(findings, "1 empty images")
    assert (empty.level, empty.where) == ("error", "d00/0000.png")
    (cut,) = about(findings, "truncated body")
    assert (cut.level, cut.where) == ("warning", "d01/0000.png")
    assert "160 mm" in cut.message
    (shared,) = about(findings, "identical images in 2 patients (d02, n02)")
    assert shared.level == "error"
    assert about(findings, "1 images repeat another of the same patient")
    (broken,) = about(findings, "cannot be read as PNG")
    assert (broken.level, broken.where) == ("error", "d04/0000.png")
    assert about(findings, "several image sizes: 48 x 48 (70), 40 x 40 (1)")
    levels = [finding.level for finding in findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)


def test_equal_files_are_found_beyond_the_sample(tmp_path: Path) -> None:
    write_folder(tmp_path, BALANCED, slices=5)
    shutil.copy(tmp_path / "d00/0000.png", tmp_path / "n00/0004.png")
    assert about(check_dataset(READ.open(tmp_path), sample=1), "identical images in 2 patients (d00, n00)")


def test_wrong_offsets_and_padding_are_noticed(tmp_path: Path) -> None:
    write_folder(tmp_path, BALANCED, slices=1)
    assert about(check_dataset(ImageFolder(hu_offset=0).open(tmp_path)), "no air (smallest value")
    assert about(check_dataset(ImageFolder(hu_offset=1400).open(tmp_path)), "padding around the field of view was not replaced")
    assert about(check_dataset(ImageFolder(hu_offset=800).open(tmp_path)), "soft tissue is at 2")


def test_splits_in_the_check(tmp_path: Path) -> None:
    write_folder(tmp_path, {"d1": "disease", "n1": "normal"}, slices=20)
    opened = READ.open(tmp_path)
    summary, findings = inspect_dataset(opened, PatientSplit(), sample=2)
    assert about(findings, "class 'disease' has 1 patient, too few")[0].level == "error"
    assert summary.split == ""
    summary, findings = inspect_dataset(opened, SamePatientBlocks(gap=1), sample=2)
    assert about(findings, "SAME PATIENTS")[0].level == "warning"
    assert summary.split.startswith("SAME PATIENTS")


def test_patients_of_several_classes_are_mentioned(tmp_path: Path) -> None:
    opened = CovidCTMD(labels="slice", uninfected_slices="normal").open(write_covid_ct_md(tmp_path))
    assert about(check_dataset(opened, sample=2), "4 patients have slices of several classes (first: P001)")


def test_guessing_each_layout(tmp_path: Path) -> None:
    base = write_covid_ldct(tmp_path / "ldct", covid=1, normal=1, slices=2, size=16, compress=False)
    for path in (base, base.parent):
        assert guess_dataset(path).dataset == CovidLDCT()
    assert guess_dataset(write_covid_ct_md(tmp_path / "md", slices=4, size=16)).dataset == CovidCTMD()
    write_ct(tmp_path / "dicom/sick/p1/1", chest(16))
    guess = guess_dataset(tmp_path / "dicom")
    assert guess.dataset == DicomFolder()
    assert guess.assumptions == ("classes are the names of the top folders",)
    write_folder(tmp_path / "png", {"a": "disease", "b": "normal"})
    guess = guess_dataset(tmp_path / "png")
    assert guess.dataset == READ
    assert "taken as HU + 1024 (hu_offset 1024)" in guess.assumptions[1]


def test_guessing_columns_and_saying_what_was_assumed(tmp_path: Path) -> None:
    rows = [
        {"Filename": row["file"], "case_id": row["patient"], "Diagnosis": row["target"], "pixel_spacing": 8}
        for row in write_folder(tmp_path, {"a": "disease", "b": "normal"})
    ]
    write_table(tmp_path, rows)
    write_ct(tmp_path / "raw/a/1.dcm", chest(16))
    guess = guess_dataset(tmp_path)
    assert guess.dataset == ImageFolder(
        hu_offset=1024, columns=Columns(file="Filename", patient="case_id", target="Diagnosis", spacing="pixel_spacing")
    )
    assert guess.assumptions[-1].startswith("the folder also fits dicom-folder; read as image-folder")
    write_table(tmp_path, [{"file": "a/0000.png", "patient": "a", "target": "disease"}])
    with pytest.raises(InputError, match="no column for the spacing of a slice; looked for spacing_mm"):
        guess_dataset(tmp_path)


@pytest.mark.parametrize(("low", "offset"), [(-1000, 0.0), (31768, 32768.0), (0, 1024.0)])
def test_guessing_the_offset(tmp_path: Path, low: int, offset: float) -> None:
    np.save(tmp_path / "a.npy", np.array([[low, low + 1000]]))
    write_table(tmp_path, [{"file": "a.npy", "patient": "a", "target": "x", "spacing_mm": 1}])
    guessed = guess_dataset(tmp_path).dataset
    assert isinstance(guessed, ImageFolder)
    assert guessed.hu_offset == offset


def test_nothing_to_guess(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(InputError, match=r"no known layout.*here is readme\.txt"):
        guess_dataset(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        guess_dataset(tmp_path / "none")


def test_real_slices_are_truncated_and_too_few(covid_sample: Path) -> None:
    guess = guess_dataset(covid_sample)
    summary, findings = inspect_dataset(guess.dataset.open(covid_sample), sample=4)
    assert summary.patients == {"cap": 2, "covid": 2, "normal": 2}
    assert about(findings, "truncated body")
    assert len(about(findings, "under 10 no interval")) == 3
    assert not about(findings, "predicts class")
    assert not [finding for finding in findings if finding.level == "error"]
