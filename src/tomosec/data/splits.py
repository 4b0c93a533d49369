"""Which slices train, validate and test. Splits are by patient; one that shares patients has to be asked for by name.

Slices of one patient are near copies of each other, so a split that shares patients measures memory of patients: on six
real patients a linear model gets 100 % on shared and chance on separate patients. Every assignment therefore carries a
sentence that is printed next to the numbers it leads to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tomosec.component import Component
from tomosec.data.base import Entry
from tomosec.errors import InputError, nearest
from tomosec.randomness import generator

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
Fraction = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, slots=True)
class SplitAssignment:
    """The indices into a dataset's entries of each part, ascending.

    Attributes:
        train: what networks and triggers are learned from.
        validation: what strength and hyper-parameters are chosen on; may be empty.
        test: what is claimed.
        dropped: in no part.
        shares_patients: True where a patient may be in several parts, so that nothing is said about new patients.
        description: one sentence to print next to every number.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    dropped: tuple[int, ...]
    shares_patients: bool
    description: str

    def counts(self) -> dict[str, int]:
        """Return the number of slices in each part and in ``dropped``."""
        return {name: len(getattr(self, name)) for name in (*PARTS, "dropped")}


def patient_targets(entries: Sequence[Entry]) -> dict[str, tuple[int, ...]]:
    """Map each patient, in alphabetical order, to the sorted class indices of its slices."""
    found: dict[str, set[int]] = defaultdict(set)
    for entry in entries:
        found[entry.patient].add(entry.target)
    return {patient: tuple(sorted(found[patient])) for patient in sorted(found)}


class Split(Component):
    """Base of the splits. ``assign`` works on entries alone, so it needs no pixels and no torch."""

    family: ClassVar[str] = "split"

    def assign(self, entries: Sequence[Entry], classes: Sequence[str] = ()) -> SplitAssignment:
        """Give every entry a part, or drop it; the same entries give the same parts in any order.

        Args:
            entries: the slices of an open dataset.
            classes: class names for messages; without them classes are named by index.

        Raises:
            InputError: the entries cannot be split like that; the message names the class or patient and a way out.
        """
        raise NotImplementedError


def _class_name(target: int, classes: Sequence[str]) -> str:
    return repr(classes[target]) if target < len(classes) else f"number {target}"


def _patients(count: int) -> str:
    return f"{count} patient" if count == 1 else f"{count} patients"


def _by_patient(entries: Sequence[Entry], parts: Mapping[str, Part | None], description: str) -> SplitAssignment:
    chosen: dict[Part | None, list[int]] = {part: [] for part in (*PARTS, None)}
    for index, entry in enumerate(entries):
        chosen[parts[entry.patient]].append(index)
    numbers = [sum(part == name for part in parts.values()) for name in PARTS]
    sizes = " / ".join(map(str, numbers))
    return SplitAssignment(
        train=tuple(chosen["train"]),
        validation=tuple(chosen["validation"]),
        test=tuple(chosen["test"]),
        dropped=tuple(chosen[None]),
        shares_patients=False,
        description=f"{description}: {sizes} patients in train / validation / test, none in two.",
    )


class _Fractions(Split):
    validation: Fraction = 0.15
    test: Annotated[float, Field(gt=0, lt=1)] = 0.25

    @model_validator(mode="after")
    def _leave_training(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} + test {self.test} leave nothing to train on; their sum must be below 1"
            )
        return self


class PatientSplit(_Fractions):
    """Patients drawn at random, stratified by class; the default.

    Each class gives ``round(fraction * patients)`` patients to validation and to test, at least one each, and keeps at least
    one for training. A patient with slices of several classes counts for each of them, and the class with the fewest
    patients is served first (iterative stratification: Sechidis et al., ECML PKDD 2011). A patient's place in the draw
    depends on the seed and its name alone, so that adding slices or patients moves few of the others.

    Attributes:
        validation: fraction of the patients of each class.
        test: fraction of the patients of each class.
        seed: of the draw; the split is part of the cohort, so an experiment's own seed does not move it.

    Raises:
        InputError: a class has fewer patients than parts.
    """

    kind: Literal["by-patient"] = "by-patient"
    version: Literal[1] = 1
    seed: int = 0

    def assign(self, entries: Sequence[Entry], classes: Sequence[str] = ()) -> SplitAssignment:
        """Assign whole patients; see the class."""
        targets = patient_targets(entries)
        order = sorted(targets, key=lambda patient: (generator(self.seed, "split", patient).random(), patient))
        wanted: dict[Part, float] = {"test": self.test, "validation": self.validation}
        sizes: dict[int, int] = {}
        for patient_classes in targets.values():
            for target in patient_classes:
                sizes[target] = sizes.get(target, 0) + 1
        needed = 1 + sum(fraction > 0 for fraction in wanted.values())
        for target, size in sorted(sizes.items()):
            if size < needed:
                raise InputError(self._too_few(_class_name(target, classes), size, needed))

        parts: dict[str, Part | None] = {}
        for target in sorted(sizes, key=lambda t: (sizes[t], t)):
            members = [patient for patient in order if target in targets[patient]]
            free = [patient for patient in members if patient not in parts]
            left, later = sizes[target], needed
            for part, fraction in wanted.items():
                if fraction == 0:
                    continue
                later -= 1
                # A small class must keep somebody for training and for the part that comes next.
                share = min(max(1, round(fraction * sizes[target])), left - later)
                left -= share
                missing = share - sum(parts.get(patient) == part for patient in members)
                for patient in free[: max(0, missing)]:
                    parts[patient] = part
                free = [patient for patient in free if patient not in parts]
            parts.update(dict.fromkeys(free, "train"))
        for target in sizes:
            present = {parts[patient] for patient in targets if target in targets[patient]}
            if len(present) < needed:
                raise InputError(self._too_few(_class_name(target, classes), sizes[target], needed))
        return _by_patient(entries, parts, f"Split by patient (seed {self.seed}), stratified by class")

    @staticmethod
    def _too_few(name: str, size: int, needed: int) -> str:
        return (
            f"split 'by-patient': class {name} has {_patients(size)}, too few to be in {needed} parts without sharing one; "
            "set validation: 0, name the parts with the split 'given', or use the split 'same-patient-blocks', which shares "
            "patients and says so next to every number"
        )


#: Top to bottom, from the largest position to the smallest. The test block is at the bottom, the top and in the middle in turn.
_BLOCK_ORDERS: tuple[tuple[Part, Part, Part], ...] = (
    ("train", "validation", "test"),
    ("test", "train", "validation"),
    ("validation", "test", "train"),
    ("test", "validation", "train"),
    ("validation", "train", "test"),
    ("train", "test", "validation"),
)


class SamePatientBlocks(_Fractions):
    """Contiguous blocks of slices of the same patients: for plumbing and for data with too few patients, never for a claim.

    Each patient's slices are ordered from the largest ``position_mm`` (head) to the smallest, or by key where a position is
    unknown, and cut into one block per part and round, ``gap`` slices apart so that no test slice has a neighbor in
    training. The order of the blocks changes from patient to patient, and the k-th patient of every class has the same
    order: with one order for all, train would hold the apices and test the bases; with a random order, few patients would
    leave one class's test block at the apex and the other's at the base, and position would predict the class.
    Few blocks are better than many: each further border costs ``gap`` slices.

    A patient with fewer than ``3 * rounds`` slices left after the gaps goes to training whole.

    Attributes:
        validation: fraction of the slices that are kept.
        test: fraction of the slices that are kept.
        gap: slices dropped at each border between blocks.
        rounds: how often the three parts follow each other along a patient.

    Raises:
        InputError: a class has no slice in one of the parts.
    """

    kind: Literal["same-patient-blocks"] = "same-patient-blocks"
    version: Literal[1] = 1
    gap: Annotated[int, Field(ge=0)] = 5
    rounds: Annotated[int, Field(ge=1)] = 1

    def assign(self, entries: Sequence[Entry], classes: Sequence[str] = ()) -> SplitAssignment:
        """Cut each patient into blocks; see the class."""
        targets = patient_targets(entries)
        slices: dict[str, list[int]] = defaultdict(list)
        for index, entry in enumerate(entries):
            slices[entry.patient].append(index)
        rank: dict[tuple[int, ...], int] = defaultdict(int)
        chosen: dict[Part, list[int]] = {part: [] for part in PARTS}
        whole = 0
        for patient, group in targets.items():
            order = _BLOCK_ORDERS[rank[group] % len(_BLOCK_ORDERS)]
            rank[group] += 1
            along = self._along_patient(entries, slices[patient])
            cut = self._cut(len(along), order)
            if cut is None:
                whole += 1
                chosen["train"] += along
                continue
            for part, start, stop in cut:
                chosen[part] += along[start:stop]
        for target in sorted({entry.target for entry in entries}):
            for part in PARTS:
                fraction = {"train": 1.0, "validation": self.validation, "test": self.test}[part]
                if fraction > 0 and not any(entries[i].target == target for i in chosen[part]):
                    raise InputError(
                        f"split 'same-patient-blocks': class {_class_name(target, classes)} has no slice in {part}; its patients "
                        f"have too few slices for blocks with a gap of {self.gap}: make gap smaller, or give more slices"
                    )
        used = {index for part in chosen.values() for index in part}
        short = f" {_patients(whole)} with too few slices only in train;" if whole else ""
        return SplitAssignment(
            train=tuple(sorted(chosen["train"])),
            validation=tuple(sorted(chosen["validation"])),
            test=tuple(sorted(chosen["test"])),
            dropped=tuple(index for index in range(len(entries)) if index not in used),
            shares_patients=True,
            description=(
                f"SAME PATIENTS in train and test: blocks of slices of {_patients(len(targets))}, {self.gap} slices apart;"
                f"{short} "
                "accuracy here says nothing about new patients."
            ),
        )

    @staticmethod
    def _along_patient(entries: Sequence[Entry], indices: list[int]) -> list[int]:
        if all(entries[i].position_mm is not None for i in indices):
            return sorted(indices, key=lambda i: (-(entries[i].position_mm or 0.0), entries[i].key))
        return sorted(indices, key=lambda i: entries[i].key)

    def _cut(self, count: int, order: tuple[Part, Part, Part]) -> list[tuple[Part, int, int]] | None:
        fractions: dict[Part, float] = {
            "train": 1 - self.validation - self.test,
            "validation": self.validation,
            "test": self.test,
        }
        sequence = [part for part in order if fractions[part] > 0] * self.rounds
        kept = count - self.gap * (len(sequence) - 1)
        if kept < len(sequence):
            return None
        blocks: list[tuple[Part, int, int]] = []
        start, edge, spent = 0, 0.0, 0
        for number, part in enumerate(sequence):
            edge += kept * fractions[part] / self.rounds
            # At least one slice each, and enough left for the blocks that follow.
            size = min(max(1, round(edge) - spent), kept - spent - (len(sequence) - number - 1))
            blocks.append((part, start, start + size))
            spent += size
            start += size + self.gap
        return blocks


class SliceSplit(_Fractions):
    """Slices drawn at random, stratified by class: the patient leakage of the released LTGM code.

    Every patient is in every part, with neighbors of its test slices in training. For measuring what
    that flatters, never for a claim.

    Attributes:
        validation: fraction of the slices of each class.
        test: fraction of the slices of each class.
        seed: of the draw.
    """

    kind: Literal["by-slice"] = "by-slice"
    version: Literal[1] = 1
    seed: int = 0

    def assign(self, entries: Sequence[Entry], classes: Sequence[str] = ()) -> SplitAssignment:
        """Draw slices; see the class."""
        chosen: dict[Part, list[int]] = {part: [] for part in PARTS}
        for target in sorted({entry.target for entry in entries}):
            members = sorted((i for i, entry in enumerate(entries) if entry.target == target), key=lambda i: entries[i].key)
            order = [members[i] for i in generator(self.seed, "split-by-slice", target).permutation(len(members))]
            test, validation = round(self.test * len(order)), round(self.validation * len(order))
            chosen["test"] += order[:test]
            chosen["validation"] += order[test : test + validation]
            chosen["train"] += order[test + validation :]
        return SplitAssignment(
            train=tuple(sorted(chosen["train"])),
            validation=tuple(sorted(chosen["validation"])),
            test=tuple(sorted(chosen["test"])),
            dropped=(),
            shares_patients=True,
            description=(
                f"SAME PATIENTS in train and test: slices of {_patients(len(patient_targets(entries)))} drawn at random, "
                "neighbors of test slices are in training; accuracy here says nothing about new patients."
            ),
        )


class GivenSplit(Split):
    """Parts by name: lists of patients, or of values of a column of the label table, such as the folds of a published split.

    Attributes:
        column: ``patient``, or an attribute of the entries (a column of the label table, a header fact).
        train: values for training; None means everything not named below.
        validation: values for validation.
        test: values for testing.

    Raises:
        InputError: a value that no slice has, a value or a patient in two parts, or an empty train or test part.
    """

    kind: Literal["given"] = "given"
    version: Literal[1] = 1
    column: str = "patient"
    train: tuple[str, ...] | None = None
    validation: tuple[str, ...] = ()
    test: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_names(cls, data: object) -> object:
        # YAML reads `test: [3]` as a number; a fold or patient is a name.
        if isinstance(data, Mapping):
            return {
                name: tuple(_text(item) if isinstance(item, (int, float)) else item for item in value)
                if name in PARTS and isinstance(value, (list, tuple))
                else value
                for name, value in data.items()
            }
        return data

    def assign(self, entries: Sequence[Entry], classes: Sequence[str] = ()) -> SplitAssignment:
        """Assign each patient to the part that its column names; see the class."""
        named: dict[str, Part] = {}
        for part in PARTS:
            for value in getattr(self, part) or ():
                if value in named:
                    raise InputError(f"split 'given': {self.column} {value!r} is named in both {named[value]} and {part}")
                named[value] = part
        parts: dict[str, Part | None] = {}
        seen: set[str] = set()
        for entry in entries:
            value = self._value(entry)
            seen.add(value)
            part_here = named.get(value, "train" if self.train is None else None)
            if parts.setdefault(entry.patient, part_here) != part_here:
                raise InputError(
                    f"split 'given': patient {entry.patient!r} is in both {parts[entry.patient] or 'no part'} and "
                    f"{part_here or 'no part'} (column {self.column!r}); a patient belongs to one part"
                )
        for value, part in named.items():
            if value not in seen:
                raise InputError(
                    f"split 'given': {part} names {self.column} {value!r}, but no slice has it{nearest(value, seen)}"
                )
        if "train" not in parts.values():
            raise InputError(
                f"split 'given': no patient is left for training; {self.column} values are {', '.join(sorted(seen))}"
            )
        return _by_patient(entries, parts, f"Split given by {self.column}")

    def _value(self, entry: Entry) -> str:
        if self.column == "patient":
            return entry.patient
        if self.column not in entry.attributes:
            raise InputError(
                f"split 'given': slice {entry.key} has no attribute {self.column!r}{nearest(self.column, entry.attributes)}; "
                f"there are patient, {', '.join(entry.attributes) or 'no others'}"
            )
        return _text(entry.attributes[self.column])


def _text(value: str | float) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else value
