"""Run the cells of a study and compare them: what a cell changes, slice by slice on the same test slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tomosec.defenses.calibration import rank_p_values
from tomosec.experiment import Experiment, Recipe
from tomosec.metrics.attack import auroc, source_rows
from tomosec.metrics.statistics import Estimate, average, wilson
from tomosec.metrics.table import SampleTable
from tomosec.progress import Progress
from tomosec.record import Record, Store
from tomosec.run.chain import identify
from tomosec.run.executors import Executor, execute_identified
from tomosec.study import Comparison, Inspected, ModelDetection, Study, clean_networks, inspected, write_study
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
    """AUROC of every inspector: of each cell's attacked networks among the clean ones of its chain, then of all together."""
    records = [record for cell in cells if store.has(cell) and (record := store.read(cell)).status == "success"]
    results = (result for record in records for seed in record.seeds for result in seed.defenses)
    out = []
    for name in dict.fromkeys(result.name for result in results if result.role == "inspector"):
        clean, attacked = inspected(records, name)
        for record in records:
            chain = clean_networks(record)
            own = [item for item in attacked if item.of == record.id]
            out += _told(name, record.id, [item for item in clean if item.of == chain], own)
        out += _told(name, "", clean, attacked)
    return tuple(out)


def _told(name: str, cell: str, clean: Sequence[Inspected], attacked: Sequence[Inspected]) -> list[ModelDetection]:
    """The AUROC and the p-value of every attacked network, where there are enough networks.

    Networks of one seed share their noise and initial weights, so the interval is Wilson's for as many cases as there are seeds:
    conservative, for it takes all the networks of a seed for one.
    """
    if min(len(clean), len(attacked)) < LEAST_NETWORKS:
        return []
    scores = [item.score for item in (*clean, *attacked)]
    value = auroc(scores, [False] * len(clean) + [True] * len(attacked))
    seeds = min(len({item.seed for item in kind}) for kind in (clean, attacked))
    low, high = wilson(value * seeds, seeds)
    note = f"{len(clean)} clean and {len(attacked)} attacked networks of {seeds} seeds, each seed one case in the interval"
    estimate = Estimate(
        value=value, low=min(low, value), high=max(high, value), n=len(scores), patients=0, method="wilson", note=note
    )
    ranked = torch.tensor(sorted((item.score for item in attacked), reverse=True), dtype=torch.float64)
    p_values = rank_p_values(ranked, torch.tensor([item.score for item in clean], dtype=torch.float64))
    return [ModelDetection(name=name, cell=cell, auroc=estimate, p_values=tuple(p_values.tolist()))]
