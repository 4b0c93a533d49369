"""MedMNIST: small two-dimensional images in one NPZ file (Yang et al., Scientific Data 10:41, 2023; CC BY 4.0).

A file holds ``{train,val,test}_images`` (N, size, size) and ``{train,val,test}_labels`` (N, 1), both 8-bit. It says neither what
a gray value is in HU nor how large a pixel is: the images were windowed, cropped and resized. Both have to be stated here, and a
result rests on what was stated. Nor does it say which images are of one patient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tomosec.data.base import Dataset, Entry, Finding, OpenDataset, Slice, require_classes
from tomosec.data.files import digest, in_order
from tomosec.data.npz import Npz
from tomosec.errors import InputError

#: The published parts of a file.
PARTS = ("train", "val", "test")
ARRAYS = tuple(f"{part}_{content}" for part in PARTS for content in ("images", "labels"))
_AIR_HU = -1000.0


class MedMNIST(Dataset):
    """Two-dimensional gray images of MedMNIST, such as OrganAMNIST, in one NPZ file.

    HU = ``hu_of_0 + (hu_of_255 - hu_of_0) * value / 255``. Row 0 is the top of the image as published; it is anterior only where
    the file's images are axial and upright. The part of each image is its attribute ``part``, for
    ``split: {kind: given, column: part, validation: [val], test: [test]}``.

    Attributes:
        hu_of_0: HU of the gray value 0, the lower end of the window that the images were made with.
        hu_of_255: HU of the gray value 255.
        zero_is_air: whether 0 stands for air, -1000 HU, whatever ``hu_of_0`` is. A soft-tissue window shows air as 0, and
            attenuation outside the body would otherwise be that of the window's lower end.
        pixel_mm: side of a pixel.
        file: name of the file in the folder; None is the only NPZ file there.
        classes: name of each label, in the order of the numbers; None names them by number.

    Raises:
        InputError: at ``open``: no such file, several, other arrays, color or volumes, labels that are not one number each, or
            fewer than two classes.
    """

    kind: Literal["medmnist"] = "medmnist"
    version: Literal[1] = 1
    hu_of_0: float
    hu_of_255: float
    zero_is_air: bool
    pixel_mm: Annotated[float, Field(gt=0)]
    file: str | None = None
    classes: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _brighter_is_denser(self) -> Self:
        if self.hu_of_255 <= self.hu_of_0:
            raise ValueError(f"hu_of_255 = {self.hu_of_255:g} must be above hu_of_0 = {self.hu_of_0:g}: brighter is denser in CT")
        return self

    def open(self, root: Path | None) -> OpenMedMNIST:
        """Read the labels and the sizes of the images; no pixels are read."""
        folder = self.require_root(root)
        if self.file is not None:
            if Path(self.file).name != self.file:
                raise InputError(f"medmnist: file {self.file!r} must be a name in {folder}, without a folder")
            return OpenMedMNIST(self, Npz(folder / self.file))
        there = sorted(folder.glob("*.npz"))
        if len(there) != 1:
            found = ", ".join(path.name for path in there) or "none"
            raise InputError(f"{folder}: one NPZ file is needed, found {found}; choose with the field 'file'")
        return OpenMedMNIST(self, Npz(there[0]))


class OpenMedMNIST(OpenDataset):
    """A :class:`MedMNIST` file with its labels read; made by ``MedMNIST.open``."""

    def __init__(self, config: MedMNIST, npz: Npz) -> None:
        self.config = config
        self._npz = npz
        targets = {part: read_labels(npz, part) for part in PARTS}
        highest = max(int(values.max(initial=0)) for values in targets.values())
        self.classes = config.classes or tuple(str(number) for number in range(highest + 1))
        if highest >= len(self.classes):
            raise InputError(
                f"{npz.path}: labels go up to {highest}, and classes names {len(self.classes)} ({', '.join(self.classes)})"
            )
        self._places = {f"{part}/{index:06d}": (part, index) for part in PARTS for index in range(len(targets[part]))}
        self.entries = in_order(
            Entry(key, key, int(targets[part][index]), attributes={"part": part}) for key, (part, index) in self._places.items()
        )
        self._part: tuple[str, NDArray[np.uint8]] | None = None
        window = f"{config.hu_of_0:g} to {config.hu_of_255:g} HU"
        self.findings = (
            Finding(
                "warning",
                "the file names no patients: each image counts as one, so intervals are too narrow, and a split by patient may "
                "share people; use the published parts (split 'given', column 'part')",
                npz.path.name,
            ),
            Finding(
                "warning",
                f"8-bit images without HU and size: the window {window}{', 0 as air' if config.zero_is_air else ''} and a pixel "
                f"of {config.pixel_mm:g} mm are stated by the user, not by the file",
                npz.path.name,
            ),
        )
        require_classes(self.classes, self.entries, str(npz.path))

    def read(self, entry: Entry) -> Slice:
        """Read one image as HU by the stated window. The images of the entry's part are kept until another part is read.

        Raises:
            InputError: the images are damaged.
        """
        part, index = self._places[entry.key]
        if self._part is None or self._part[0] != part:
            self._part = None  # frees one part before the next is read
            self._part = (part, self._npz.array(f"{part}_images"))
        gray = self._part[1][index]
        config = self.config
        hu = config.hu_of_0 + gray * ((config.hu_of_255 - config.hu_of_0) / 255)
        if config.zero_is_air:
            hu[gray == 0] = _AIR_HU
        return Slice(np.ascontiguousarray(hu, dtype=np.float32), (config.pixel_mm, config.pixel_mm))

    def fingerprint(self) -> Mapping[str, str]:
        """Digest of the file."""
        return {self._npz.path.name: digest(self._npz.path)}


def is_medmnist(names: Iterable[str]) -> bool:
    """Whether the arrays of an NPZ file are those of MedMNIST."""
    return set(ARRAYS) <= set(names)


def read_labels(npz: Npz, part: str) -> NDArray[np.int64]:
    """Check the arrays of one part, its images by their header alone, and return its labels, shape (images,).

    Raises:
        InputError: a missing array, images that are not gray or not 8-bit, or labels that are not one number for each.
    """
    path, images, labels = npz.path, f"{part}_images", f"{part}_labels"
    npz.require((images, labels))
    shape, dtype = npz.header(images)
    if len(shape) != 3 or min(shape[1:]) < 2:
        kind = "color images or volumes" if len(shape) > 3 else "no images"
        raise InputError(f"{path}: {images} has shape {shape}, {kind}; gray images (number, rows, columns) are read")
    if dtype != np.uint8:
        raise InputError(f"{path}: {images} is {dtype}; MedMNIST images are uint8")
    values = npz.array(labels)
    if values.dtype.kind not in "iu" or values.shape not in ((shape[0], 1), (shape[0],)):
        raise InputError(
            f"{path}: {labels} is {values.dtype} of shape {values.shape}; one whole number for each of the {shape[0]} images "
            f"is needed, shape ({shape[0]}, 1)"
        )
    flat: NDArray[np.int64] = values.reshape(-1).astype(np.int64)
    if flat.size and flat.min() < 0:
        raise InputError(f"{path}: {labels} holds {flat.min()}; labels count from 0")
    return flat
