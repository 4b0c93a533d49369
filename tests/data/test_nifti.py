"""NIfTI volumes: every way to lay out the axes gives the same image, and what is refused."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folder_fixtures import write_table

from tomosec.data.nifti import NiftiFolder, read_volume_header
from tomosec.errors import InputError

nibabel = pytest.importorskip("nibabel")

SHAPE = (7, 6, 5)  # right-left, back-front, feet-head
SPACING = (2.0, 3.0, 4.0)


def body() -> np.ndarray:
    """HU on axes to the right, the front and the head: all values differ, and the corners are air."""
    hu = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    hu[0, 0] = -1000
    return hu


def save(path: Path, hu: np.ndarray, affine: np.ndarray | None = None, *, unit: str = "mm", oriented: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(hu, affine)
    image.header.set_xyzt_units(unit)
    if not oriented:
        image.set_sform(None, 0)
        image.set_qform(None, 0)
    nibabel.save(image, path)
    return path


def laid_out(order: tuple[int, ...], flips: tuple[bool, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The same body with its axes in another order and direction, and the affine that says so."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-6.0, -7.5, 100.0)
    image = nibabel.Nifti1Image(body(), affine)
    orientation = np.array([[order[axis], -1 if flips[axis] else 1] for axis in range(3)])
    moved = image.as_reoriented(orientation)
    return np.asarray(moved.dataobj), moved.affine


def write(root: Path, **volumes: np.ndarray) -> Path:
    rows = []
    for number, (name, hu) in enumerate(volumes.items()):
        save(root / f"{name}.nii.gz", hu)
        rows.append({"file": f"{name}.nii.gz", "patient": name, "target": ("CT-0", "CT-1")[number % 2], "site": "A"})
    write_table(root, rows)
    return root


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_layout_gives_the_same_slices(tmp_path: Path, order: tuple[int, ...], suffix: str) -> None:
    for number, flips in enumerate(itertools.product([False, True], repeat=3)):
        folder = tmp_path / str(number)
        hu, affine = laid_out(order, flips)
        save(folder / f"a{suffix}", hu, affine)
        save(folder / f"b{suffix}", body())
        write_table(folder, [{"file": f"{name}{suffix}", "patient": name, "target": name} for name in "ab"])
        opened = NiftiFolder().open(folder)
        slices = [entry for entry in opened.entries if entry.patient == "a"]
        assert [entry.position_mm for entry in slices] == pytest.approx([100, 104, 108, 112, 116])
        for index, entry in enumerate(slices):
            found = opened.read(entry)
            # Row 0 is anterior and column 0 on the patient's right: both axes of a right-anterior-superior image reversed.
            assert np.array_equal(found.hu, body()[::-1, ::-1, index].T)
            assert found.spacing_mm == pytest.approx((3.0, 2.0))


def test_steps_and_extent_choose_slices(tmp_path: Path) -> None:
    root = write(tmp_path, p1=body(), p2=body())
    assert [entry.key for entry in NiftiFolder(slice_step=2).open(root).entries if entry.patient == "p1"] == [
        "p1.nii.gz/0000",
        "p1.nii.gz/0002",
        "p1.nii.gz/0004",
    ]
    opened = NiftiFolder(extent=(0.4, 0.8)).open(root)
    assert [entry.position_mm for entry in opened.entries if entry.patient == "p1"] == [8.0, 12.0]
    assert opened.entries[0].attributes == {"site": "A", "spacing_mm": 3.0}
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        NiftiFolder(extent=(0.8, 0.4))


def test_scaling_and_padding(tmp_path: Path) -> None:
    hu = body()
    hu[1, 0] = -3024
    image = nibabel.Nifti1Image((hu + 1024).astype(np.int16), np.diag([*SPACING, 1.0]))
    image.header.set_slope_inter(1.0, -1024.0)
    root = write(tmp_path, p1=body(), p2=body())
    nibabel.save(image, root / "p1.nii.gz")
    opened = NiftiFolder().open(root)
    expected = hu[::-1, ::-1, 0].T
    assert expected.min() == -3024
    assert np.array_equal(opened.read(opened.entries[0]).hu, np.where(expected < -1100, -1000, expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hu": np.zeros((4, 4, 4, 2), np.float32)}, r"shape \(4, 4, 4, 2\); a CT volume has three axes"),
        ({"unit": "micron"}, "xyzt_units says micron"),
        ({"oriented": False}, "sform_code and qform_code are 0"),
        ({"hu": np.zeros((4, 4, 4), np.complex64)}, "voxels of type complex64"),
        (
            {"affine": np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, -1.1, 1, 0], [0, 0, 0, 1.0]])},
            "more than 45 degrees off",
        ),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "a.nii", **{"hu": body()} | change)
    with pytest.raises(InputError, match=rf"a\.nii: .*{message}"):
        read_volume_header(path)


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(b"nothing of that kind")
    with pytest.raises(InputError, match=r"a\.nii: not a NIfTI file"):
        read_volume_header(path)
    with pytest.raises(InputError, match="no such file"):
        read_volume_header(tmp_path / "b.nii")
    nibabel.save(nibabel.Nifti1Pair(body(), np.eye(4)), tmp_path / "c.img")
    with pytest.raises(InputError, match="only NIfTI"):
        read_volume_header(tmp_path / "c.hdr")


def test_values_that_are_not_hu(tmp_path: Path) -> None:
    root = write(tmp_path, p1=np.full(SHAPE, 100, np.float32), p2=body())
    opened = NiftiFolder().open(root)
    with pytest.raises(InputError, match=r"p1\.nii\.gz: the smallest value of its middle slice is 100; air is -1000 HU"):
        opened.read(opened.entries[0])
    bad = body()
    bad[3, 3, 4] = np.nan
    save(root / "p1.nii.gz", bad)
    opened = NiftiFolder().open(root)
    opened.read(opened.entries[0])
    with pytest.raises(InputError, match="1 of 42 voxels of slice 4 are NaN"):
        opened.read(opened.entries[4])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_volume_is_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)
    for name in "ab":
        path = save(tmp_path / f"{name}{suffix}", noise)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    write_table(tmp_path, [{"file": f"{name}{suffix}", "patient": name, "target": name} for name in "ab"])
    opened = NiftiFolder().open(tmp_path)
    with pytest.raises(InputError, match="truncated or damaged"):
        opened.read(opened.entries[0])


def test_tables_that_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, p1=body(), p2=body())
    row = {"file": "p1.nii.gz", "patient": "p1", "target": "CT-0"}
    write_table(root, [row, row])
    with pytest.raises(InputError, match="listed twice"):
        NiftiFolder().open(root)
    write_table(root, [row, row | {"file": "p3.nii.gz"}])
    with pytest.raises(InputError, match=r"no such file below .*'p3\.nii\.gz'"):
        NiftiFolder().open(root)
    write_table(root, [row, row | {"file": "p2.nii.gz", "target": "CT-2"}])
    with pytest.raises(InputError, match=r"class 'CT-2' is not in classes: CT-0, CT-1"):
        NiftiFolder(classes=("CT-0", "CT-1")).open(root)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, p1=body(), p2=body())
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(InputError, match=r'need nibabel, which is not installed; pip install "tomosec\[nifti\]"'):
        NiftiFolder().open(root)
