"""Labels given slice by slice, as the COVID sets of the Concordia group give them: one row per patient, head to feet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tomosec.data.dicom import Header
from tomosec.errors import InputError

#: A slice label: 1 infected, 0 not, None where the table has a blank.
Label = int | None


@dataclass(frozen=True, slots=True)
class Labeled:
    """The slices of one patient by label.

    Attributes:
        infected: slices labeled 1.
        clean: slices labeled 0, blank, or beyond the end of the row: not known to be infected.
        blank: how many of ``clean`` have no label.
    """

    infected: tuple[Header, ...]
    clean: tuple[Header, ...]
    blank: int


def match_labels(patient: str, labels: Sequence[Label], ordered: Sequence[Header | None], where: str) -> Labeled:
    """Pair label i with slice i. Rows are padded to the longest patient, so labels other than 1 may go beyond the slices.

    Args:
        patient: for messages.
        labels: one per column of the table.
        ordered: the patient's slices in the order of the columns; None where a file is missing.
        where: the table and row, for messages.

    Raises:
        InputError: a label 1 for a slice that does not exist: order or patient do not fit.
    """
    infected: list[Header] = []
    clean: list[Header] = []
    blank = 0
    for number, label in enumerate(labels, start=1):
        header = ordered[number - 1] if number <= len(ordered) else None
        if header is None:
            if label == 1:
                count = sum(item is not None for item in ordered)
                raise InputError(f"{where}: slice {number} of patient {patient!r} is labeled 1, but {count} slices were found")
            continue
        blank += label is None
        (infected if label == 1 else clean).append(header)
    beyond = [header for header in ordered[len(labels) :] if header is not None]
    return Labeled(tuple(infected), (*clean, *beyond), blank + len(beyond))


def child(root: Path, *names: str) -> Path | None:
    """Return the first entry of ``root`` with one of ``names``, in upper or lower case, or None."""
    found = {path.name.lower(): path for path in sorted(root.iterdir())}
    for name in names:
        if name.lower() in found:
            return found[name.lower()]
    return None
