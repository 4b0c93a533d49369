"""Tables and files that a user hands us: CSV with named columns, paths that stay below the root, content digests."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from tomosec.data.base import Entry
from tomosec.errors import InputError, nearest
from tomosec.files import write_text

#: How tables spell "no value"; compared in lower case, after stripping.
BLANKS = frozenset({"", "nan", "na", "n/a", "none", "null"})


def is_blank(text: str) -> bool:
    """Whether a table cell says "no value"."""
    return text.strip().lower() in BLANKS


def read_rows(path: Path) -> list[list[str]]:
    """Read a CSV file (comma or semicolon, UTF-8 with or without byte order mark) as stripped cells, empty lines left out.

    Raises:
        InputError: no such file, not UTF-8 text, or no line in it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save the table as CSV in UTF-8") from error
    header = text.split("\n", 1)[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    try:
        rows = [
            [cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        ]
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV table ({error})") from error
    rows = [row for row in rows if any(row)]
    if not rows:
        raise InputError(f"{path}: the table is empty; its first line must name the columns")
    return rows


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a :class:`Table`; the accessors name file, line and column when a cell is wrong."""

    table: Path
    number: int
    cells: Mapping[str, str]

    def where(self, column: str) -> str:
        """Return the place for a message: ``labels.csv, row 3, column 'target'``; the header is row 1."""
        return f"{self.table}, row {self.number}, column {column!r}"

    def text(self, column: str) -> str:
        """Return the cell.

        Raises:
            InputError: the cell is blank.
        """
        value = self.cells[column]
        if is_blank(value):
            raise InputError(f"{self.where(column)}: the cell is blank ({value!r}); a value is required")
        return value

    def number_in(self, column: str) -> float:
        """Return the cell as a finite number.

        Raises:
            InputError: blank, not a number, or not finite.
        """
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{self.where(column)}: a finite number is required, found {text!r}")
        return value


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file with a header line."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def require(self, columns: Iterable[str]) -> None:
        """Raise InputError for the first of ``columns`` that the table lacks, naming the nearest one."""
        for column in columns:
            if column not in self.columns:
                raise InputError(
                    f"{self.path}: no column {column!r}{nearest(column, self.columns)}; the columns are {', '.join(self.columns)}"
                )

    def first_of(self, names: Iterable[str]) -> str:
        """Return the first of ``names`` that is a column, or raise InputError naming what there is."""
        wanted = list(names)
        for name in wanted:
            if name in self.columns:
                return name
        raise InputError(
            f"{self.path}: needs a column {' or '.join(map(repr, wanted))}; the columns are {', '.join(self.columns)}"
        )


def read_table(path: Path) -> Table:
    """Read a CSV file whose first line names its columns.

    Raises:
        InputError: unreadable, no row, a column twice, or a row with more or fewer cells than columns.
    """
    header, *body = read_rows(path)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(f"{path}: column {twice[0]!r} occurs twice; column names must differ")
    if not body:
        raise InputError(f"{path}: no row below the column names")
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise InputError(f"{path}, row {number}: {len(row)} cells, but {len(header)} columns ({', '.join(header)})")
    rows = tuple(Row(path, i, dict(zip(header, row, strict=True))) for i, row in enumerate(body, start=2))
    return Table(path, tuple(header), rows)


def inside(root: Path, name: str, where: str) -> Path:
    """Return ``root / name`` for a relative name from a table, which may not point outside ``root``.

    Raises:
        InputError: an absolute path, or one with ``..``; ``where`` opens the message.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or PureWindowsPath(name).drive or ".." in parts.parts:
        raise InputError(f"{where}: {name!r} leaves the dataset's folder; paths must be relative to {root} and without '..'")
    return root / parts


#: (path, size, modification time in ns) to digest: a file that was changed is read again.
_digests: dict[tuple[str, int, int], str] = {}


def digest(path: Path) -> str:
    """SHA-256 (32 hex) of a file's content; read once per process unless size or modification time change."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as stream:
            _digests[key] = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    return _digests[key]


@contextmanager
def remembered_digests(cache: Path) -> Iterator[None]:
    """Keep digests in a JSON file, so that a large dataset is not read from end to end at every start.

    A damaged file is ignored: it only saves time.
    """
    with suppress(OSError, ValueError, TypeError):
        for path, size, modified_ns, found in json.loads(cache.read_text(encoding="utf-8")):
            _digests.setdefault((str(path), int(size), int(modified_ns)), str(found))
    known = len(_digests)
    yield
    if len(_digests) > known:
        write_text(cache, json.dumps([[*key, found] for key, found in sorted(_digests.items())]))


def fingerprint(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Map each path, relative to ``root``, to the digest of its content: what ``OpenDataset.fingerprint`` returns."""
    return {path.relative_to(root).as_posix(): digest(path) for path in paths}


def attribute(text: str) -> str | float:
    """Return a header fact or table cell as a finite number where it reads as one, else as text; blank is ''."""
    if is_blank(text):
        return ""
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def in_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Sort entries by patient and position, or by key for a patient with an unknown position: the order of a dataset."""
    found = list(entries)
    unplaced = {entry.patient for entry in found if entry.position_mm is None}

    def place(entry: Entry) -> tuple[str, float, str]:
        position = 0.0 if entry.patient in unplaced or entry.position_mm is None else entry.position_mm
        return entry.patient, position, entry.key

    return tuple(sorted(found, key=place))


def is_special(path: Path) -> bool:
    """A pipe, a socket or a device, which would be waited for; a link that leads nowhere is a file that cannot be read."""
    return path.exists() and not path.is_file()
