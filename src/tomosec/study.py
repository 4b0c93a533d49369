"""A study is a sweep with a question: which runs belong to it, and how its cells differ from the first one. No torch here.

``runs/studies/<kind>-<preset>-<hash>.json`` is written before the first cell runs, so that a report can say how far it got. A
run may belong to several studies; it is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tomosec.component import Value
from tomosec.experiment import StudyKind, digest
from tomosec.files import write_text
from tomosec.metrics.statistics import Estimate
from tomosec.record import Record, Store, read_value

STUDY_SCHEMA = 1


class Comparison(Value):
    """How a cell differs from the study's first attacked cell, slice by slice on the same test slices.

    Attributes:
        id: identity of the cell.
        metric: ``asr`` on triggered source slices or ``accuracy`` on clean slices, both of the attacked model.
        seeds: the seeds that both cells have; a slice counts with its mean over them.
        difference: cell minus first cell, with the interval of a patient bootstrap. The seeds are taken as they are: the
            interval is about other patients, not about other trainings.
    """

    id: str
    metric: Literal["asr", "accuracy"]
    seeds: tuple[int, ...]
    difference: Estimate


class ModelDetection(Value):
    """How well an inspector's scores tell attacked networks from clean ones, over the cells and seeds of a study.

    Attributes:
        name: of the defense.
        cell: whose attacked networks these are, among the clean ones of its chain; empty for those of all cells together.
        auroc: ``n`` counts networks.
        p_values: of the attacked networks, the most suspicious first: ranks among n clean ones, never below 1 / (n + 1).
    """

    name: str
    cell: str = ""
    auroc: Estimate
    p_values: tuple[float, ...] = ()


class Study(Value):
    """The cells of one study, in the order of its recipe.

    Attributes:
        kind: the question, which decides the table and the figure.
        title: for people.
        recipe: file that describes it.
        preset: the preset it was run with, or an empty string.
        cells: identities of its experiments; those that have no complete record are still to be run.
        comparisons: differences to the first attacked cell, where cells share their test slices.
        inspections: of the defenses that inspect networks, where there are eight clean and eight attacked ones at least.
    """

    schema_version: int = STUDY_SCHEMA
    kind: StudyKind
    title: str
    recipe: str
    preset: str = ""
    cells: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()
    inspections: tuple[ModelDetection, ...] = ()

    @property
    def name(self) -> str:
        """File name without its ending; the same cells always have the same one."""
        return "-".join(part for part in (self.kind, self.preset, digest(sorted(self.cells))[:8]) if part)


@dataclass(frozen=True, slots=True)
class Inspected:
    """What an inspector said of one network.

    Attributes:
        of: what the network is of: for a clean one, all that it follows from but the seed; for an attacked one, its cell.
        seed: of its training.
        score: higher is more suspicious.
    """

    of: str
    seed: int
    score: float


def inspected(records: Sequence[Record], name: str) -> tuple[list[Inspected], list[Inspected]]:
    """Scores that the inspector ``name`` gave clean and attacked networks; a clean one that several cells share counts once."""
    clean: dict[tuple[str, int], Inspected] = {}
    attacked: list[Inspected] = []
    for record in records:
        chain = clean_networks(record)
        for seed in record.seeds:
            for result in seed.defenses:
                before, after = (result.metrics.get(f"score_{shown}") for shown in ("clean", "attacked"))
                if result.name == name and before is not None and before.value is not None:
                    clean.setdefault((chain, seed.seed), Inspected(chain, seed.seed, before.value))
                if result.name == name and after is not None and after.value is not None:
                    attacked.append(Inspected(record.id, seed.seed, after.value))
    return list(clean.values()), attacked


def clean_networks(record: Record) -> str:
    """A name for the clean networks of a cell: what they follow from but the seed."""
    fields = ("split", "geometry", "acquisition", "reconstruction", "network", "training")
    data = record.data.manifest if record.data is not None else ""
    return digest({"data": data, **{name: record.experiment.get(name) for name in fields}})


def write_study(store: Store, study: Study) -> None:
    """Write a study, all or nothing."""
    write_text(store.root / "studies" / f"{study.name}.json", study.model_dump_json(indent=1) + "\n")


def read_studies(store: Store) -> list[Study]:
    """Every study of a store, by kind in the order of :data:`~tomosec.experiment.StudyKind`, then by name.

    Raises:
        InputError: a file that this version cannot read.
    """
    paths = sorted((store.root / "studies").glob("*.json"))
    found = [read_value(path, Study, "study", STUDY_SCHEMA) for path in paths]
    order: Sequence[str] = get_args(StudyKind)
    return sorted(found, key=lambda study: order.index(study.kind))
