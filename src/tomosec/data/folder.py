"""A folder of 16-bit PNG or NPY slices with a ``labels.csv``: the form in which a prepared set is easiest to pass on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator

from tomosec.component import Value
from tomosec.data.base import Dataset, Entry, Finding, OpenDataset, Slice, require_classes
from tomosec.data.files import Row, Table, attribute, fingerprint, in_order, inside, is_blank, read_table
from tomosec.errors import InputError, nearest

LABELS = "labels.csv"


class Columns(Value):
    """Names of the columns of ``labels.csv``.

    Attributes:
        file: path of the image, relative to the folder.
        patient: name of the patient.
        target: class, as text.
        position: position along the patient axis in mm, larger towards the head; may be missing or blank.
        spacing: pixel spacing in mm, of square pixels of the stored image.
    """

    file: str = "file"
    patient: str = "patient"
    target: str = "target"
    position: str = "position_mm"
    spacing: str = "spacing_mm"


class Filter(Value):
    """Keep the rows whose number in ``column`` is within [min, max]; a blank cell is left out and counted."""

    column: str
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a filter needs a min, a max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def keeps(self, row: Row) -> bool:
        """Whether the row passes.

        Raises:
            InputError: the cell is not a number.
        """
        if is_blank(row.cells[self.column]):
            return False
        value = row.number_in(self.column)
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class ImageFolder(Dataset):
    """A folder of 16-bit grayscale PNG or two-dimensional NPY files, one slice each, listed in ``labels.csv``.

    HU = ``hu_scale * (value - hu_offset)``. Rows run anterior to posterior. Every column that has no other role becomes an
    attribute of its slices, so that ``tomosec check data`` can look for shortcuts in it and a split can use it.

    Attributes:
        hu_offset: stored value of 0 HU.
        hu_scale: HU per stored unit.
        columns: names of the columns.
        label_map: class name of each text in the target column; rows whose text is not in it are left out and counted. None
            takes the texts as class names.
        classes: order of the classes; None sorts their names.
        filters: rows to keep.
        attribute_columns: columns to keep as attributes; None keeps all.

    Raises:
        InputError: at ``open``: a missing column, file or label, or fewer than two classes.
    """

    kind: Literal["image-folder"] = "image-folder"
    version: Literal[1] = 1
    hu_offset: float
    hu_scale: Annotated[float, Field(gt=0)] = 1.0
    columns: Columns = Columns()
    label_map: dict[str, str] | None = None
    classes: tuple[str, ...] | None = None
    filters: tuple[Filter, ...] = ()
    attribute_columns: tuple[str, ...] | None = None

    def open(self, root: Path | None) -> OpenImageFolder:
        """Read ``labels.csv`` and check that its files exist; no pixels are read."""
        folder = self.require_root(root)
        return OpenImageFolder(self, folder, read_table(folder / LABELS))


class OpenImageFolder(OpenDataset):
    """An :class:`ImageFolder` with its table read; made by ``ImageFolder.open``."""

    def __init__(self, config: ImageFolder, root: Path, table: Table) -> None:
        self.config = config
        self.root = root
        self._table = table.path
        columns = config.columns
        table.require([columns.file, columns.patient, columns.target, columns.spacing])
        table.require(item.column for item in config.filters)
        table.require(config.attribute_columns or ())
        self._has_position = columns.position in table.columns
        if not self._has_position and columns.position != Columns().position:
            table.require([columns.position])
        roles = {columns.file, columns.patient, columns.target, columns.position, columns.spacing}
        self._attributes = config.attribute_columns or tuple(name for name in table.columns if name not in roles)

        findings: list[Finding] = []
        rows = self._filtered(table, findings)
        labels = {id(row): row.text(columns.target) for row in rows}
        rows, names = self._labeled(rows, labels, findings)
        self.classes = self._class_order(set(names.values()))
        index = {name: i for i, name in enumerate(self.classes)}
        self._files: dict[str, tuple[Path, float]] = {}
        entries = [self._entry(row, index[names[id(row)]]) for row in rows]
        self.entries = in_order(entries)
        if not self._has_position:
            findings.append(
                Finding("note", f"no column {columns.position!r}: slices have no position and are ordered by file name", LABELS)
            )
        self.findings = tuple(findings)
        require_classes(self.classes, self.entries, str(table.path))

    def _filtered(self, table: Table, findings: list[Finding]) -> list[Row]:
        rows = list(table.rows)
        for item in self.config.filters:
            kept = [row for row in rows if item.keeps(row)]
            if not kept:
                raise InputError(f"{table.path}: the filter {item!r} leaves no row of {len(rows)}")
            if len(kept) < len(rows):
                blank = sum(is_blank(row.cells[item.column]) for row in rows)
                detail = f", {blank} of them blank" if blank else ""
                findings.append(Finding("note", f"{item!r} left out {len(rows) - len(kept)} of {len(rows)} rows{detail}", LABELS))
            rows = kept
        return rows

    def _labeled(self, rows: list[Row], labels: Mapping[int, str], findings: list[Finding]) -> tuple[list[Row], dict[int, str]]:
        mapping = self.config.label_map
        if mapping is None:
            return rows, dict(labels)
        found = set(labels.values())
        for text in mapping:
            if text not in found:
                raise InputError(
                    f"{self._table}: label_map has {text!r}, but column {self.config.columns.target!r} holds "
                    f"{', '.join(sorted(found))}{nearest(text, found)}"
                )
        for text in sorted(found - set(mapping)):
            count = sum(label == text for label in labels.values())
            findings.append(Finding("warning", f"{count} rows are {text!r}, which label_map does not name: left out", LABELS))
        kept = [row for row in rows if labels[id(row)] in mapping]
        return kept, {id(row): mapping[labels[id(row)]] for row in kept}

    def _class_order(self, names: set[str]) -> tuple[str, ...]:
        order = self.config.classes
        if order is None:
            return tuple(sorted(names))
        for name in sorted(names):
            if name not in order:
                raise InputError(f"{self._table}: class {name!r} is not in classes: {', '.join(order)}{nearest(name, order)}")
        return order

    def _entry(self, row: Row, target: int) -> Entry:
        columns = self.config.columns
        name = row.text(columns.file)
        path = inside(self.root, name, row.where(columns.file))
        key = path.relative_to(self.root).as_posix()
        if key in self._files:
            raise InputError(f"{row.where(columns.file)}: {name!r} is listed twice; each slice needs one row")
        if not path.is_file():
            raise InputError(f"{row.where(columns.file)}: no such file below {self.root}: {name!r}")
        spacing = row.number_in(columns.spacing)
        if spacing <= 0:
            raise InputError(f"{row.where(columns.spacing)}: the pixel spacing must be above 0 mm, found {spacing:g}")
        position = None
        if self._has_position and not is_blank(row.cells[columns.position]):
            position = row.number_in(columns.position)
        self._files[key] = (path, spacing)
        facts = {column: attribute(row.cells[column]) for column in self._attributes} | {"spacing_mm": spacing}
        return Entry(key, row.text(columns.patient), target, position, facts)

    def read(self, entry: Entry) -> Slice:
        """Read one image as HU, ``hu_scale * (value - hu_offset)``.

        Raises:
            InputError: neither a 16-bit grayscale PNG nor a 2-D NPY of numbers, damaged, or not finite.
        """
        path, spacing = self._files[entry.key]
        values = read_image(path)
        hu = (self.config.hu_scale * (values - np.float32(self.config.hu_offset))).astype(np.float32)
        return Slice(hu, (spacing, spacing))

    def fingerprint(self) -> Mapping[str, str]:
        """Digest of ``labels.csv`` and of each image."""
        return fingerprint(self.root, [self._table, *(path for path, _ in self._files.values())])


def read_image(path: Path) -> NDArray[np.float32]:
    """Read the stored values of a 16-bit grayscale PNG or of a 2-D NPY file, (rows, columns) float32.

    Raises:
        InputError: another format or pixel type, a damaged file, NaN or infinity.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        values = _read_png(path)
    elif suffix == ".npy":
        values = _read_npy(path)
    else:
        raise InputError(f"{path}: a slice is a .png (16-bit grayscale) or .npy file, found {suffix or 'no suffix'!r}")
    if not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise InputError(f"{path}: {bad} of {values.size} pixels are NaN or infinite; every pixel needs a value")
    return values


def _read_png(path: Path) -> NDArray[np.float32]:
    try:
        # A file that promises more pixels than memory holds is damaged or hostile; Pillow only warns.
        with warnings.catch_warnings(), Image.open(path, formats=["PNG"]) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Pillow spells a 16-bit grayscale PNG "I;16"; before 10.1 it opened it as "I".
            if image.mode not in {"I;16", "I;16B", "I"}:
                depth = {"L": "8-bit grayscale", "1": "1-bit", "P": "palette", "LA": "grayscale with alpha"}.get(
                    image.mode, image.mode
                )
                raise InputError(
                    f"{path}: a 16-bit grayscale PNG is required, found {depth}; 8 bits cannot hold HU, color is not CT"
                )
            return np.asarray(image).astype(np.float32)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombWarning) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as PNG, it is damaged or another format ({error})") from error


def _read_npy(path: Path) -> NDArray[np.float32]:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as NPY, it is damaged or holds Python objects ({error})") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iuf":
        found = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise InputError(f"{path}: a slice is a 2-D array of real numbers, found {found}")
    return values.astype(np.float32)
