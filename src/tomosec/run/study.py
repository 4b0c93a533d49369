"""Run the cells of a study and compare them: what a cell changes, slice by slice on the same test slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tomosec.experiment import Experiment, Recipe
from tomosec.metrics.attack import auroc, source_rows
from tomosec.metrics.statistics import Estimate, average
from tomosec.metrics.table import SampleTable
from tomosec.progress import Progress
from tomosec.record import Record, Store
from tomosec.run.chain import identify
from tomosec.run.executors import Executor, execute_identified
from tomosec.study import Comparison, ModelDetection, Study, write_study
from tomosec.threat import Goal

#: Networks of either kind that a ROC of inspectors needs.
LEAST_NETWORKS = 8
#: Which rows decide a metric, and what counts in them.
_INPUTS: dict[Literal["asr", "accuracy"], str] = {"asr": "triggered", "accuracy": "clean"}


def run_study(
    recipe: Recipe,
    experiments: Sequence[Experiment],
    *,
    preset: str | None = None,
    executor: Executor = "inline",
    workers: int | None = None,
    data: Path | None = None,
    out: Path = Path("runs"),
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Record]:
    """Run the cells of a recipe that names a study, and keep what belongs together in ``runs/studies/``.

    The arguments are those of :func:`tomosec.run.executors.execute`.

    Raises:
        InputError: bad input of any cell, before anything is run.
    """
    assert recipe.study is not None
    store = Store(out, create=True)
    identified = identify(experiments, data, store)
    cells = tuple(dict.fromkeys(item.identity for item in identified))
    study = Study(kind=recipe.study, title=recipe.title, recipe=Path(recipe.source).name, preset=preset or "", cells=cells)
    write_study(store, study)
    try:
        return execute_identified(
            identified, store, executor=executor, workers=workers, data=data, device=device, progress=progress
        )
    finally:
        # Whatever is complete is compared, also when the rest was interrupted.
        found = {"comparisons": compare(store, cells), "inspections": inspections(store, cells)}
        write_study(store, study.model_copy(update=found))


def compare(store: Store, cells: Sequence[str]) -> tuple[Comparison, ...]:
    """Differences of every complete cell to the first complete one that has an attack.

    Cells are compared where they have the same test slices, classes and goal; others are left out.
    """
    there = [store.read(cell) for cell in cells if store.has(cell)]
    attacked = [record for record in there if record.status == "success" and record.experiment.get("attack") is not None]
    if len(attacked) < 2:
        return ()
    first, *others = attacked
    base = _rows(store, first)
    out = []
    for record in others:
        if record.data is None or first.data is None or record.data.classes != first.data.classes:
            continue
        if record.experiment["threat"]["goal"] != first.experiment["threat"]["goal"]:
            continue
        rows = _rows(store, record)
        for metric in _INPUTS:
            comparison = _difference(record, rows, base, metric)
            if comparison is not None:
                out.append(comparison)
    return tuple(out)


def _rows(store: Store, record: Record) -> SampleTable:
    return SampleTable.read(store.folder(record.id) / "samples.csv").select(model="attacked")


def _difference(record: Record, rows: SampleTable, base: SampleTable, metric: Literal["asr", "accuracy"]) -> Comparison | None:
    assert record.data is not None
    classes = record.data.classes
    target, sources = Goal.model_validate(record.experiment["threat"]["goal"]).indices(classes)
    shown = _INPUTS[metric]
    seeds = sorted({int(seed) for seed in np.unique(rows.seed)} & {int(seed) for seed in np.unique(base.seed)})
    change: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = []
    patients, labels, order = None, None, None
    for seed in seeds:
        pair = [table.select(input=shown, seed=seed) for table in (rows, base)]
        if metric == "asr":
            pair = [source_rows(table, target, sources) for table in pair]
        places = [np.argsort(table.sample, kind="stable") for table in pair]
        names = [table.sample[place] for table, place in zip(pair, places, strict=True)]
        if not np.array_equal(names[0], names[1]) or (order is not None and not np.array_equal(names[0], order)):
            return None
        hits = [
            (table.prediction == (target if metric == "asr" else table.target))[place].astype(np.float64)
            for table, place in zip(pair, places, strict=True)
        ]
        order, change = names[0], [*change, hits[0] - hits[1]]
        patients, labels = pair[0].patient[places[0]], pair[0].target[places[0]]
    if patients is None or labels is None:
        return None
    difference = average(np.mean(change, axis=0), patients, labels, class_names=classes)
    if difference.value is None:
        return None
    if difference.low is not None and difference.low == difference.high:
        # A bootstrap of equal patients has no width, which would claim certainty.
        difference = Estimate(
            value=difference.value,
            n=difference.n,
            patients=difference.patients,
            note="no interval: every patient shows the same difference",
        )
    return Comparison(id=record.id, metric=metric, seeds=tuple(seeds), difference=difference)


def inspections(store: Store, cells: Sequence[str]) -> tuple[ModelDetection, ...]:
    """AUROC of every inspector over the networks of a study; a clean network that several cells share counts once."""
    records = [record for cell in cells if store.has(cell) and (record := store.read(cell)).status == "success"]
    scores: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for seed in record.seeds:
            for result in seed.defenses:
                for shown in ("clean", "attacked"):
                    found = result.metrics.get(f"score_{shown}")
                    if found is not None and found.value is not None:
                        scores.setdefault(result.name, {}).setdefault(shown, []).append(found.value)
    out = []
    for name, kinds in scores.items():
        clean, attacked = list(dict.fromkeys(kinds.get("clean", []))), kinds.get("attacked", [])
        if min(len(clean), len(attacked)) >= LEAST_NETWORKS:
            value = auroc([*clean, *attacked], [False] * len(clean) + [True] * len(attacked))
            n = len(clean) + len(attacked)
            note = f"{len(clean)} clean and {len(attacked)} attacked networks; no interval"
            out.append(ModelDetection(name=name, auroc=Estimate(value=value, n=n, patients=0, note=note)))
    return tuple(out)
