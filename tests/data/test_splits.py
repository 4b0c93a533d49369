from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tomosec.component import components, parse_component
from tomosec.data.base import Entry
from tomosec.data.splits import PARTS, GivenSplit, PatientSplit, SamePatientBlocks, SliceSplit, Split, SplitAssignment
from tomosec.errors import InputError


def cohort(sizes: list[int], slices: int = 20, both: int = 0) -> list[Entry]:
    """Patients per class; the first ``both`` patients have slices of classes 0 and 1."""
    entries = []
    for target, size in enumerate(sizes):
        for i in range(size):
            name = f"{'abc'[target]}{i:03d}"
            for k in range(slices):
                mixed = target == 0 and i < both and k % 2 == 1
                fold = "A" if i % 2 else "B"
                entries.append(
                    Entry(f"{name}/{k:03d}", name, int(mixed) if both else target, -2.0 * k, {"fold": fold, "run": i % 3})
                )
    return entries


def part_of_patients(entries: list[Entry], result: SplitAssignment) -> dict[str, set[str]]:
    return {part: {entries[i].patient for i in getattr(result, part)} for part in PARTS}


def check_contract(entries: list[Entry], result: SplitAssignment) -> None:
    """Every entry once, indices ascending, no patient in two parts unless the assignment says so."""
    everything = [*result.train, *result.validation, *result.test, *result.dropped]
    assert sorted(everything) == list(range(len(entries)))
    for part in (*PARTS, "dropped"):
        assert list(getattr(result, part)) == sorted(getattr(result, part))
    assert result.train
    assert result.test
    assert sum(result.counts().values()) == len(entries)
    assert result.description.endswith(".")
    found = part_of_patients(entries, result)
    if not result.shares_patients:
        assert not found["train"] & found["test"]
        assert not found["train"] & found["validation"]
        assert not found["validation"] & found["test"]
    else:
        assert "SAME PATIENTS" in result.description


EXAMPLES: dict[str, Split] = {
    "by-patient": PatientSplit(),
    "same-patient-blocks": SamePatientBlocks(),
    "given": GivenSplit(column="fold", test=("B",)),
    "by-slice": SliceSplit(),
}


@pytest.mark.parametrize("kind", sorted(components("split")))
def test_every_split_keeps_the_contract(kind: str) -> None:
    entries = cohort([8, 5], slices=25)
    split = EXAMPLES[kind]
    result = split.assign(entries, ("disease", "normal"))
    check_contract(entries, result)
    assert result == split.assign(entries, ("disease", "normal"))
    assert parse_component("split", split.model_dump(mode="json")) == split


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_order_of_entries_does_not_matter(kind: str) -> None:
    entries = cohort([6, 7])
    backwards = entries[::-1]
    forward, reverse = EXAMPLES[kind].assign(entries), EXAMPLES[kind].assign(backwards)
    for part in PARTS:
        assert {entries[i].key for i in getattr(forward, part)} == {backwards[i].key for i in getattr(reverse, part)}


@given(
    sizes=st.lists(st.integers(3, 30), min_size=2, max_size=3),
    validation=st.floats(0.0, 0.45),
    test=st.floats(0.01, 0.5),
    seed=st.integers(0, 5),
)
def test_by_patient_puts_each_class_in_each_part(sizes: list[int], validation: float, test: float, seed: int) -> None:
    entries = cohort(sizes, slices=2)
    result = PatientSplit(validation=validation, test=test, seed=seed).assign(entries)
    check_contract(entries, result)
    for part, fraction in (("train", 1.0), ("validation", validation), ("test", test)):
        for target, size in enumerate(sizes):
            count = len({entries[i].patient for i in getattr(result, part) if entries[i].target == target})
            assert (count > 0) == (fraction > 0)
            if part == "test":
                assert count <= max(1, round(fraction * size))


def test_by_patient_handles_patients_of_both_classes() -> None:
    entries = cohort([12, 0], slices=4, both=6)
    result = PatientSplit().assign(entries)
    check_contract(entries, result)
    for part in PARTS:
        assert {entries[i].target for i in getattr(result, part)} == {0, 1}


def test_by_patient_seed_moves_patients_and_a_new_patient_moves_few() -> None:
    entries = cohort([20, 20], slices=1)
    first = part_of_patients(entries, PatientSplit(seed=0).assign(entries))
    assert first != part_of_patients(entries, PatientSplit(seed=1).assign(entries))
    more = [*entries, Entry("new/0", "new", 0)]
    after = part_of_patients(more, PatientSplit(seed=0).assign(more))
    moved = sum(len(first[part] - after[part]) for part in PARTS)
    assert moved <= 3


def test_too_few_patients_names_the_class_and_the_way_out() -> None:
    with pytest.raises(InputError, match=r"class 'normal' has 2 patients.*same-patient-blocks"):
        PatientSplit().assign(cohort([9, 2]), ("disease", "normal"))
    check_contract(cohort([9, 2]), PatientSplit(validation=0).assign(cohort([9, 2])))


def test_fractions_that_leave_no_training_are_refused() -> None:
    with pytest.raises(ValueError, match="leave nothing to train on"):
        PatientSplit(validation=0.5, test=0.5)


def test_blocks_are_contiguous_and_gaps_are_kept() -> None:
    entries = cohort([3, 3], slices=40)
    split = SamePatientBlocks(gap=4)
    result = split.assign(entries)
    part = {i: name for name in PARTS for i in getattr(result, name)}
    for patient in {entry.patient for entry in entries}:
        along = sorted((i for i, e in enumerate(entries) if e.patient == patient), key=lambda i: -(entries[i].position_mm or 0))
        labels = [part.get(i, "gap") for i in along]
        blocks = [name for k, name in enumerate(labels) if k == 0 or labels[k - 1] != name]
        assert sorted(name for name in blocks if name != "gap") == sorted(PARTS)
        assert labels.count("gap") == 8
        assert blocks.count("gap") == 2
        assert labels.count("test") == 8  # a quarter of the 32 that are kept


def test_place_of_the_test_block_does_not_tell_the_class() -> None:
    entries = cohort([3, 3], slices=40)
    result = SamePatientBlocks().assign(entries)
    places = {
        target: sorted((entries[i].position_mm or 0.0) for i in result.test if entries[i].target == target) for target in (0, 1)
    }
    assert places[0] == places[1]
    # and the test blocks of a class are not all at one end
    assert max(places[0]) - min(places[0]) > 0.8 * 2.0 * 39


def test_short_patients_train_and_are_mentioned() -> None:
    entries = cohort([2, 2], slices=40) + [Entry(f"short/{k}", "short", 0, float(k)) for k in range(6)]
    result = SamePatientBlocks().assign(entries)
    check_contract(entries, result)
    assert "1 patient with too few slices only in train" in result.description
    assert {entries[i].patient for i in result.test} == {"a000", "a001", "b000", "b001"}


def test_class_without_test_slices_is_an_error() -> None:
    entries = cohort([2, 0], slices=40) + [Entry(f"short/{k}", "short", 1, float(k)) for k in range(6)]
    with pytest.raises(InputError, match=r"class 'normal' has no slice in validation.*make gap smaller"):
        SamePatientBlocks().assign(entries, ("disease", "normal"))


def test_more_rounds_alternate() -> None:
    entries = cohort([1, 1], slices=80)
    result = SamePatientBlocks(rounds=2, gap=2).assign(entries)
    check_contract(entries, result)
    assert result.counts()["dropped"] == 2 * 2 * 5


def test_without_positions_keys_give_the_order() -> None:
    entries = [Entry(e.key, e.patient, e.target) for e in cohort([1, 1], slices=40)]
    result = SamePatientBlocks().assign(entries)
    first = [i for i in result.train if entries[i].patient == "a000"]
    assert first == list(range(first[0], first[-1] + 1))


def test_given_by_patient_and_by_column() -> None:
    entries = cohort([4, 4])
    result = GivenSplit(test=("a000", "b000"), validation=("a001",)).assign(entries)
    assert part_of_patients(entries, result)["test"] == {"a000", "b000"}
    assert part_of_patients(entries, result)["validation"] == {"a001"}
    numbered = parse_component("split", {"kind": "given", "column": "run", "test": [2], "train": [0]}).assign(entries)
    assert part_of_patients(entries, numbered)["test"] == {"a002", "b002"}
    assert {entries[i].patient for i in numbered.dropped} == {"a001", "b001"}


def test_given_refuses_a_patient_in_two_parts() -> None:
    entries = [*cohort([3, 3]), Entry("a000/x", "a000", 0, 1.0, {"fold": "A"})]
    with pytest.raises(InputError, match=r"patient 'a000' is in both test and train \(column 'fold'\)"):
        GivenSplit(column="fold", test=("B",)).assign(entries)
    with pytest.raises(InputError, match="patient 'a001' is named in both validation and test"):
        GivenSplit(test=("a001",), validation=("a001",)).assign(entries)


def test_given_names_what_is_missing() -> None:
    entries = cohort([3, 3])
    with pytest.raises(InputError, match=r"test names patient 'a01', but no slice has it \(did you mean 'a001'\?\)"):
        GivenSplit(test=("a01",)).assign(entries)
    with pytest.raises(InputError, match=r"no attribute 'folds' \(did you mean 'fold'\?\)"):
        GivenSplit(column="folds", test=("A",)).assign(entries)
    with pytest.raises(InputError, match="no patient is left for training"):
        GivenSplit(column="fold", test=("A", "B")).assign(entries)
