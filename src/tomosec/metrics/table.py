"""The per-sample table: one row per test sample, model and kind of input. Every classification metric is computed from it.

It is written as ``samples.csv`` beside the record, so that metrics can be computed again without a GPU. No torch here.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tomosec.errors import InputError, nearest
from tomosec.files import replacing

#: Models of a run: trained on clean data, by the attack, and with frozen random triggers (white; with the trigger's spectrum).
MODELS: Final = ("clean", "attacked", "control-white", "control-spectrum")
#: What a model is shown: clean scans, scans with the trigger, scans with a random trigger of equal budget. At another scan
#: setting the setting's name follows, see :func:`input_at`.
INPUTS: Final = ("clean", "triggered", "random")
COLUMNS: Final = ("seed", "model", "input", "sample", "patient", "target", "prediction")
#: Softmax probabilities may miss a sum of 1 by this much; half precision does.
SUM_TOLERANCE: Final = 2e-3


def input_at(shown: str, setting: str) -> str:
    """Name of an input at another scan setting: ``triggered@low-dose``; ``shown`` itself where the setting has no name."""
    return f"{shown}@{setting}" if setting else shown


def split_input(name: str) -> tuple[str, str]:
    """What is shown and the name of the setting, empty for the experiment's own; the inverse of :func:`input_at`."""
    shown, _, setting = name.partition("@")
    return shown, setting


@dataclass(frozen=True, slots=True)
class Row:
    """One prediction.

    Attributes:
        seed: of the training run.
        model: one of :data:`MODELS`, or a name of a defense's model.
        input: one of :data:`INPUTS`, or another name.
        sample: the slice's key, as in :class:`tomosec.data.base.Entry`.
        patient: the slice's patient.
        target: true class.
        prediction: predicted class.
        scores: probability of each class; sums to 1.
    """

    seed: int
    model: str
    input: str
    sample: str
    patient: str
    target: int
    prediction: int
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SampleTable:
    """Predictions as read-only columns of equal length; see :class:`Row` for what they hold. Checked when made.

    Attributes:
        seed: (n,) int64.
        model: (n,) str.
        input: (n,) str.
        sample: (n,) str.
        patient: (n,) str.
        target: (n,) int64 in [0, K).
        prediction: (n,) int64 in [0, K).
        scores: (n, K) float64 in [0, 1], rows sum to 1.

    Raises:
        InputError: lengths differ; a value is out of range, empty or not finite; one sample is listed twice for the same
            seed, model and input, or with two patients or two targets.
    """

    seed: NDArray[np.int64]
    model: NDArray[np.str_]
    input: NDArray[np.str_]
    sample: NDArray[np.str_]
    patient: NDArray[np.str_]
    target: NDArray[np.int64]
    prediction: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        self._check_shapes()
        for name in ("model", "input", "sample", "patient"):
            for i in np.flatnonzero(getattr(self, name) == "")[:1]:
                raise InputError(f"sample table, row {i}: {name} is empty")
        for name in ("target", "prediction"):
            column = getattr(self, name)
            for i in np.flatnonzero((column < 0) | (column >= self.classes))[:1]:
                raise InputError(f"sample table, row {i}: {name} {column[i]} is not in 0 to {self.classes - 1}")
        # A comparison with NaN is False, so this finds NaN too.
        for i in np.flatnonzero(~((self.scores >= 0) & (self.scores <= 1)).all(1))[:1]:
            raise InputError(f"sample table, row {i}: scores {self.scores[i].tolist()} are not all finite and in [0, 1]")
        for i in np.flatnonzero(np.abs(self.scores.sum(1) - 1) > SUM_TOLERANCE)[:1]:
            raise InputError(f"sample table, row {i}: scores {self.scores[i].tolist()} do not sum to 1")
        self._check_identity()
        for name in (*COLUMNS, "scores"):
            getattr(self, name).setflags(write=False)

    def _check_shapes(self) -> None:
        if self.scores.ndim != 2:
            raise InputError(f"sample table: scores of shape {self.scores.shape}; expected (rows, classes)")
        for name in COLUMNS:
            if getattr(self, name).shape != (len(self),):
                raise InputError(f"sample table: {name} of shape {getattr(self, name).shape} for {len(self)} rows of scores")

    def _check_identity(self) -> None:
        seen: set[tuple[int, str, str, str]] = set()
        facts: dict[str, tuple[str, int]] = {}
        for i, (seed, model, kind, sample, patient, target) in enumerate(self._identities()):
            key = (seed, model, kind, sample)
            where = f"sample table, row {i}: sample {sample!r}"
            if key in seen:
                raise InputError(f"{where} is listed twice for seed {seed}, model {model!r}, input {kind!r}")
            seen.add(key)
            known = facts.setdefault(sample, (patient, target))
            if known != (patient, target):
                raise InputError(f"{where} has patient {patient!r} and target {target}, elsewhere {known[0]!r} and {known[1]}")

    def _identities(self) -> Iterator[tuple[int, str, str, str, str, int]]:
        columns = (self.seed, self.model, self.input, self.sample, self.patient, self.target)
        return zip(*(column.tolist() for column in columns), strict=True)

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return int(self.scores.shape[1])

    @classmethod
    def from_rows(cls, rows: Iterable[Row], *, classes: int | None = None) -> SampleTable:
        """Make a table of rows.

        Args:
            rows: any number.
            classes: number of classes; needed where there may be no rows.

        Raises:
            InputError: as for the table; or rows with different numbers of scores; or no rows and no ``classes``.
        """
        listed = list(rows)
        if classes is None:
            if not listed:
                raise InputError("sample table: no rows, and the number of classes is not given")
            classes = len(listed[0].scores)
        for i, row in enumerate(listed):
            if len(row.scores) != classes:
                raise InputError(f"sample table, row {i}: {len(row.scores)} scores, expected {classes}")
        return cls(
            seed=np.array([row.seed for row in listed], dtype=np.int64),
            model=np.array([row.model for row in listed], dtype=np.str_),
            input=np.array([row.input for row in listed], dtype=np.str_),
            sample=np.array([row.sample for row in listed], dtype=np.str_),
            patient=np.array([row.patient for row in listed], dtype=np.str_),
            target=np.array([row.target for row in listed], dtype=np.int64),
            prediction=np.array([row.prediction for row in listed], dtype=np.int64),
            scores=np.array([row.scores for row in listed], dtype=np.float64).reshape(len(listed), classes),
        )

    @classmethod
    def from_predictions(
        cls,
        *,
        seed: int,
        model: str,
        input: str,
        samples: Sequence[str],
        patients: Sequence[str],
        targets: ArrayLike,
        scores: ArrayLike,
        predictions: ArrayLike | None = None,
    ) -> SampleTable:
        """Make the table of one condition from the arrays that a prediction loop has.

        Args:
            seed: of the training run, the same for all rows.
            model: one of :data:`MODELS` or another name, the same for all rows.
            input: one of :data:`INPUTS` or another name, the same for all rows.
            samples: (n,) keys.
            patients: (n,) patients.
            targets: (n,) true classes.
            scores: (n, K) softmax probabilities.
            predictions: (n,) predicted classes; the first maximum of the scores if not given.
        """
        table = np.array(scores, dtype=np.float64)
        n = len(samples)
        if table.ndim != 2 or len(table) != n:
            raise InputError(f"sample table: scores of shape {table.shape} for {n} samples; expected ({n}, classes)")
        return cls(
            seed=np.full(n, seed, dtype=np.int64),
            model=np.array([model] * n, dtype=np.str_),
            input=np.array([input] * n, dtype=np.str_),
            sample=np.array(samples, dtype=np.str_),
            patient=np.array(patients, dtype=np.str_),
            target=np.array(targets, dtype=np.int64),
            prediction=table.argmax(1).astype(np.int64) if predictions is None else np.array(predictions, dtype=np.int64),
            scores=table,
        )

    @classmethod
    def concat(cls, tables: Iterable[SampleTable]) -> SampleTable:
        """Put tables below each other.

        Raises:
            InputError: no table, different numbers of classes, or a sample that is in two of them for the same condition.
        """
        listed = list(tables)
        if not listed or len({table.classes for table in listed}) != 1:
            raise InputError(f"sample tables of {[table.classes for table in listed]} classes cannot be joined")
        return cls(*(np.concatenate([getattr(table, name) for table in listed]) for name in (*COLUMNS, "scores")))

    def select(
        self,
        *,
        model: str | None = None,
        input: str | None = None,
        seed: int | None = None,
    ) -> SampleTable:
        """Rows of a condition, in their order; an argument that is not given does not select. May be empty."""
        keep = np.ones(len(self), dtype=bool)
        if model is not None:
            keep &= self.model == model
        if input is not None:
            keep &= self.input == input
        if seed is not None:
            keep &= self.seed == seed
        return self.where(keep)

    def where(self, keep: NDArray[np.bool_]) -> SampleTable:
        """Rows where ``keep`` (n,) is True."""
        return SampleTable(*(getattr(self, name)[keep] for name in (*COLUMNS, "scores")))

    def seeds(self) -> tuple[int, ...]:
        """The seeds there are, sorted."""
        return tuple(int(seed) for seed in np.unique(self.seed))

    def rows(self) -> Iterator[Row]:
        """The rows, in order."""
        for identity, prediction, scores in zip(self._identities(), self.prediction.tolist(), self.scores.tolist(), strict=True):
            yield Row(*identity, prediction, tuple(scores))

    def write(self, path: Path) -> None:
        """Write as CSV (UTF-8, LF), all or nothing; floats keep every digit, so reading gives back an equal table.

        Raises:
            TomosecError: the disk is full or the folder cannot be written.
        """
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            plain = csv.writer(file, lineterminator="\n")
            # The csv module does not quote a lone carriage return by itself, and then reads it as the end of the line.
            quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
            plain.writerow((*COLUMNS, *(f"score_{k}" for k in range(self.classes))))
            for row in self.rows():
                texts = (row.model, row.input, row.sample, row.patient)
                writer = quoting if any("\r" in text for text in texts) else plain
                # Floats are written with repr, which is exact.
                writer.writerow((row.seed, *texts, row.target, row.prediction, *row.scores))

    @classmethod
    def read(cls, path: Path) -> SampleTable:
        """Read what :meth:`write` wrote.

        Raises:
            InputError: the file cannot be read or is no such table; the message names line and column.
        """
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                # strict: a quote that is never closed is an error, not a very long cell.
                reader = csv.reader(file, strict=True)
                header = next(reader, [])
                classes = _check_header(header, path)
                rows = [_parse(cells, header, f"{path}, line {reader.line_num}") for cells in reader]
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
        try:
            return cls.from_rows(rows, classes=classes)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _check_header(header: list[str], path: Path) -> int:
    """Number of classes that a header announces."""
    classes = len(header) - len(COLUMNS)
    expected = [*COLUMNS, *(f"score_{k}" for k in range(max(classes, 1)))]
    for position, name in enumerate(expected):
        found = header[position] if position < len(header) else ""
        if found != name:
            hint = nearest(found, [name]) if found else ""
            raise InputError(f"{path}, line 1: column {position + 1} is {found!r}, expected {name!r}{hint}")
    return classes


def _parse(cells: list[str], header: list[str], where: str) -> Row:
    """One row; :class:`SampleTable` checks what needs more than one cell."""
    if len(cells) != len(header):
        raise InputError(f"{where}: {len(cells)} columns, expected {len(header)}")
    integers: dict[str, int] = {}
    for name in ("seed", "target", "prediction"):
        text = cells[COLUMNS.index(name)]
        # int() also takes "1_0", " 1" and other scripts' digits; a written table has none of them.
        if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 18):
            raise InputError(f"{where}, column {name}: {text!r} is not an integer")
        integers[name] = int(text)
    classes = len(header) - len(COLUMNS)
    for name in ("target", "prediction"):
        if not 0 <= integers[name] < classes:
            raise InputError(f"{where}, column {name}: {integers[name]} is not in 0 to {classes - 1}")
    for name in ("model", "input", "sample", "patient"):
        if not cells[COLUMNS.index(name)]:
            raise InputError(f"{where}, column {name}: empty")
    scores = []
    for name, text in zip(header[len(COLUMNS) :], cells[len(COLUMNS) :], strict=True):
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not 0 <= score <= 1:
            raise InputError(f"{where}, column {name}: {text!r} is not a number in [0, 1]")
        scores.append(score)
    _, model, kind, sample, patient, _, _ = cells[: len(COLUMNS)]
    return Row(integers["seed"], model, kind, sample, patient, integers["target"], integers["prediction"], tuple(scores))
