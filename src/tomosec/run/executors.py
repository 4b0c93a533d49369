"""How several experiments are worked off: one after the other, or in processes that share the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch

from tomosec.errors import InputError, TomosecError
from tomosec.experiment import Experiment, parse_experiment
from tomosec.progress import Progress, SilentProgress
from tomosec.record import Record, Store
from tomosec.run.chain import Identified, identify
from tomosec.run.runner import run, run_identified
from tomosec.varying import labels

Executor = Literal["inline", "processes"]


def execute(
    experiments: Sequence[Experiment],
    *,
    executor: Executor = "inline",
    workers: int | None = None,
    data: Path | None = None,
    out: Path = Path("runs"),
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Record]:
    """Run experiments and return their records in the same order. One that fails is recorded as such; the others go on.

    Args:
        experiments: what to run; equal ones are run once.
        executor: ``inline``, or ``processes``, which gives each of ``workers`` processes its share of the threads.
        workers: number of processes; two by default.
        data: folder of the dataset, where it needs one.
        out: folder of runs.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: where progress goes.

    Raises:
        InputError: bad input of any experiment, before anything is run.
    """
    store = Store(out, create=True)
    found = identify(experiments, data, store)
    return execute_identified(found, store, executor=executor, workers=workers, data=data, device=device, progress=progress)


def execute_identified(
    found: Sequence[Identified],
    store: Store,
    *,
    executor: Executor = "inline",
    workers: int | None = None,
    data: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Record]:
    """As :func:`execute`, of experiments whose data are open; processes open ``data`` anew."""
    progress = progress or SilentProgress()
    pending = {item.identity: item for item in found}
    if executor == "inline":
        told_apart = labels([item.experiment.model_dump(mode="json") for item in pending.values()])
        titles = [item.experiment.title for item in pending.values()]
        if len(set(titles)) == len(titles):  # then a title says it already
            told_apart = [""] * len(titles)
        for number, (item, label) in enumerate(zip(pending.values(), told_apart, strict=True), 1):
            if len(pending) > 1:
                title = item.experiment.title
                progress.message(f"Experiment {number} of {len(pending)}: {title}{f' ({label})' if label else ''}")
            try:
                run_identified(item, store, device=device, progress=progress)
            except InputError:
                raise
            except Exception as error:  # the record has it; the other experiments go on
                progress.message(f"failed: {error}")
    else:
        experiments = {identity: item.experiment for identity, item in pending.items()}
        _in_processes(experiments, workers or 2, data, store.root, device, progress)
    unstarted = [identity for identity in pending if not store.has(identity)]
    if unstarted:
        raise TomosecError(
            f"{store.folder(unstarted[0])}: another process has just begun this experiment; repeat when it is done"
        )
    return [store.read(item.identity) for item in found]


def _in_processes(
    pending: dict[str, Experiment], workers: int, data: Path | None, out: Path, device: str, progress: Progress
) -> None:
    # "spawn" because forking a process that holds threads of torch or Numba may hang.
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        futures = {
            pool.submit(_run_one, experiment.model_dump_json(), data, out, device): identity
            for identity, experiment in pending.items()
        }
        progress.start(len(futures), "Experiments")
        for future in as_completed(futures):
            try:
                error = future.result()
            except BrokenProcessPool as broken:
                raise TomosecError(
                    "a worker process died, most likely for lack of memory; what is complete is kept: "
                    "run the same command again, with fewer workers"
                ) from broken
            progress.message(f"{futures[future]}: {error}" if error else f"{futures[future]}: done")
            progress.advance(1)


def _run_one(experiment: str, data: Path | None, out: Path, device: str) -> str:
    """Run one experiment in a worker; return what went wrong, if anything. Values travel as JSON, not as pickled objects."""
    try:
        run(parse_experiment(json.loads(experiment)), data=data, out=out, device=device)
    except TomosecError as error:
        return str(error)
    except Exception as error:  # the record has the traceback; the worker goes on
        return f"{type(error).__name__}: {error}"
    return ""
