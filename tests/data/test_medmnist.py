"""MedMNIST files: what has to be stated, what the images become, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tomosec.data.check import inspect_dataset
from tomosec.data.medmnist import MedMNIST
from tomosec.data.splits import GivenSplit
from tomosec.errors import InputError

STATED: dict[str, Any] = {"hu_of_0": -160.0, "hu_of_255": 240.0, "zero_is_air": True, "pixel_mm": 12.0}


def arrays(count: int = 6, size: int = 28, classes: int = 2) -> dict[str, np.ndarray]:
    """Random images whose first rows are 0, as outside the body."""
    rng = np.random.default_rng(0)
    out: dict[str, np.ndarray] = {}
    for part, number in (("train", count), ("val", count // 2), ("test", count // 3)):
        images = rng.integers(1, 256, (number, size, size), dtype=np.uint8)
        images[:, :3] = 0
        out[f"{part}_images"] = images
        out[f"{part}_labels"] = (np.arange(number) % classes).astype(np.uint8)[:, None]
    return out


def write(folder: Path, **changes: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "organamnist.npz", **(arrays() | changes), allow_pickle=True)
    return folder


def test_gray_values_become_hu_by_the_stated_window(tmp_path: Path) -> None:
    opened = MedMNIST(**STATED).open(write(tmp_path))
    assert opened.classes == ("0", "1")
    assert [entry.key for entry in opened.entries[:2]] == ["test/000000", "test/000001"]
    gray = arrays()["val_images"][2].astype(float)
    entry = next(entry for entry in opened.entries if entry.key == "val/000002")
    assert (entry.target, entry.attributes["part"]) == (0, "val")
    found = opened.read(entry)
    expected = np.where(gray == 0, -1000, -160 + gray * 400 / 255)
    assert found.hu.dtype == np.float32
    assert found.hu == pytest.approx(expected, rel=1e-6)
    assert found.spacing_mm == (12.0, 12.0)
    window = MedMNIST(**STATED | {"zero_is_air": False}).open(tmp_path)
    assert window.read(entry).hu.min() == -160


def test_nothing_about_the_pixels_is_assumed() -> None:
    for name in STATED:
        with pytest.raises(ValidationError, match=name):
            MedMNIST(**{key: value for key, value in STATED.items() if key != name})
    with pytest.raises(ValidationError, match="brighter is denser"):
        MedMNIST(**STATED | {"hu_of_255": -200.0})


def test_the_published_parts_are_a_split_and_patients_are_unknown(tmp_path: Path) -> None:
    opened = MedMNIST(**STATED).open(write(tmp_path))
    split = GivenSplit(column="part", validation=("val",), test=("test",))
    summary, findings = inspect_dataset(opened, split)
    assert summary.parts["train"] == {"0": 3, "1": 3}
    assert summary.parts["test"] == {"0": 1, "1": 1}
    assert [finding.level for finding in findings if "names no patients" in finding.message] == ["warning"]
    assert [finding.level for finding in findings if "stated by the user" in finding.message] == ["warning"]


def test_classes_may_be_named(tmp_path: Path) -> None:
    assert MedMNIST(**STATED, classes=("bladder", "femur")).open(write(tmp_path)).classes == ("bladder", "femur")
    with pytest.raises(InputError, match="labels go up to 1, and classes names 1"):
        MedMNIST(**STATED, classes=("bladder",)).open(tmp_path)


def test_the_file_is_chosen_by_name_where_there_are_several(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "other.npz").write_bytes((tmp_path / "organamnist.npz").read_bytes())
    with pytest.raises(InputError, match=r"found organamnist\.npz, other\.npz; choose with the field 'file'"):
        MedMNIST(**STATED).open(tmp_path)
    assert MedMNIST(**STATED, file="other.npz").open(tmp_path).fingerprint().keys() == {"other.npz"}
    with pytest.raises(InputError, match="no such file"):
        MedMNIST(**STATED, file="third.npz").open(tmp_path)
    with pytest.raises(InputError, match="without a folder"):
        MedMNIST(**STATED, file="../other.npz").open(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((6, 28, 28, 3), np.uint8)}, "train_images has shape .*color images or volumes"),
        ({"val_images": np.zeros((3, 28, 28), np.float32)}, "val_images is float32; MedMNIST images are uint8"),
        ({"val_labels": np.zeros((3, 14), np.uint8)}, r"val_labels is uint8 of shape \(3, 14\); one whole number"),
        ({"val_labels": np.zeros((2, 1), np.uint8)}, r"val_labels is uint8 of shape \(2, 1\)"),
        ({"val_labels": np.full((3, 1), -1)}, "val_labels holds -1"),
        ({"test_labels": np.array([[{}], [{}]], dtype=object)}, "test_labels .*Python objects"),
        (
            {f"{part}_labels": np.zeros((n, 1), np.uint8) for part, n in (("train", 6), ("val", 3), ("test", 2))},
            "two classes are needed",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    write(tmp_path, **changes)
    with pytest.raises(InputError, match=rf"organamnist\.npz: .*{message}"):
        MedMNIST(**STATED).open(tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_image=np.zeros(3))
    with pytest.raises(InputError, match=r"no array 'train_images' \(did you mean 'train_image'\?\)"):
        MedMNIST(**STATED).open(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"PK\3\4 truncated")
    with pytest.raises(InputError, match=r"a\.npz: not an NPZ file"):
        MedMNIST(**STATED).open(tmp_path)


def test_damaged_images_are_named_when_they_are_read(tmp_path: Path) -> None:
    opened = MedMNIST(**STATED).open(write(tmp_path))
    path = tmp_path / "organamnist.npz"
    content = bytearray(path.read_bytes())
    place = content.index(b"test_images.npy") + 400
    content[place : place + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"organamnist\.npz: test_images is damaged"):
        opened.read(opened.entries[0])
