"""From an experiment to its record: find what is done, do what is not, and leave a record whatever happens."""

from __future__ import annotations

import time
import traceback
from datetime import datetime
from pathlib import Path

import torch

from tomosec.errors import InputError, NotApplicable, TomosecError
from tomosec.experiment import Experiment
from tomosec.files import write_text
from tomosec.metrics.statistics import SeedSummary, over_seeds
from tomosec.metrics.table import SampleTable, input_at
from tomosec.progress import Progress, SilentProgress
from tomosec.record import Condition, DataSummary, Physics, Record, SeedResult, Store, now
from tomosec.run.artifacts import Artifacts
from tomosec.run.assess import severity, untested
from tomosec.run.chain import Chain, Identified, build_chain, identify
from tomosec.run.provenance import provenance
from tomosec.run.score import conditions, with_effectiveness
from tomosec.run.seed import SeedRun, SeedRunner
from tomosec.run.transfer import build_settings
from tomosec.tensorfile import write_tensors
from tomosec.threat import Goal


def run(
    experiment: Experiment,
    *,
    data: Path | None = None,
    out: Path = Path("runs"),
    device: str = "auto",
    progress: Progress | None = None,
) -> Record:
    """Run one experiment, or return its record where it is complete.

    Args:
        experiment: what to run.
        data: folder of the dataset, where it needs one.
        out: folder of runs; made where it does not exist.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: where progress goes; nowhere by default.

    Returns:
        The record; its status is ``success`` or ``not-applicable``.

    Raises:
        InputError: the data or the folder cannot be used.
        TomosecError: the run failed; what was complete is kept, and the record says ``error``.
    """
    store = Store(out, create=True)
    (found,) = identify([experiment], data, store)
    return run_identified(found, store, device=device, progress=progress)


def run_identified(found: Identified, store: Store, *, device: str = "auto", progress: Progress | None = None) -> Record:
    """As :func:`run`, of an experiment whose data are open."""
    progress = progress or SilentProgress()
    experiment, identity = found.experiment, found.identity
    if store.has(identity) and (done := store.read(identity)).complete:
        return done
    with store.claim(identity) as folder:
        if store.has(identity) and (done := store.read(identity)).complete:
            return done
        chosen = choose_device(device)
        begun, clock = now(), time.perf_counter()
        record = Record(
            id=identity,
            title=experiment.title,
            status="started",
            experiment=experiment.model_dump(mode="json"),
            provenance=provenance(chosen),
            started=begun,
            heartbeat=begun,
        )
        write_text(folder / "experiment.json", experiment.model_dump_json(indent=1))
        log = _Log(folder / "log.txt", begun)
        watched = _Heartbeat(store, record, progress, log)
        store.write(record)
        try:
            artifacts = Artifacts(store.artifacts)
            chain = build_chain(experiment, found.opened, artifacts, watched, chosen)
            record = watched.update(
                data=_data_summary(chain, experiment),
                warnings=tuple(
                    f"{f.where}: {f.message}" if f.where else f.message for f in chain.prepared.findings if f.level != "note"
                ),
            )
            settings = build_settings(chain, found.opened, artifacts, watched)
            runs: list[SeedRun] = []
            for seed in experiment.seeds:
                runs.append(SeedRunner(chain, seed, artifacts, watched, settings).run())
            record = _finish(record, chain, runs, folder, time.perf_counter() - clock)
        except NotApplicable as reason:
            record = _ended(record, "not-applicable", str(reason), clock)
        except KeyboardInterrupt:
            store.write(_ended(record, "error", "interrupted; run the same command again to continue", clock))
            raise
        except Exception as error:
            log.write(traceback.format_exc())
            store.write(
                _ended(
                    record, "error", f"{error}" if isinstance(error, TomosecError) else f"{type(error).__name__}: {error}", clock
                )
            )
            raise
        store.write(record)
        log.write(f"finished: {record.status}")
        return record


def choose_device(name: str) -> torch.device:
    """Return the device that ``name`` asks for; ``auto`` prefers a GPU.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: not a device; allowed: auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: allowed are auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices that torch can use")
    return device


def rescore(store: Store, experiment_id: str) -> Record:
    """Recompute a record's metrics from its sample table; no network and no GPU are needed.

    Raises:
        InputError: the run has no complete record or its table is damaged.
    """
    record = store.read(experiment_id)
    if record.status != "success" or record.data is None:
        raise InputError(f"{store.folder(experiment_id)}: status {record.status}; only a successful run can be rescored")
    table = SampleTable.read(store.folder(experiment_id) / "samples.csv")
    if len(table) != record.sample_rows:
        raise InputError(
            f"{store.folder(experiment_id) / 'samples.csv'}: {len(table)} rows, the record says {record.sample_rows}"
        )
    classes = record.data.classes
    target, sources = Goal.model_validate(record.experiment["threat"]["goal"]).indices(classes)
    seeds = tuple(_rescored(seed, conditions(table.select(seed=seed.seed), classes, target, sources)) for seed in record.seeds)
    updated = record.model_copy(update={"seeds": seeds, "summary": summarise(seeds)})
    updated = updated.model_copy(update={"severity": severity(updated)})
    store.write(updated)
    return updated


def _rescored(seed: SeedResult, measured: tuple[Condition, ...]) -> SeedResult:
    return seed.model_copy(update={"conditions": measured, "defenses": with_effectiveness(seed.defenses, measured)})


def summarise(seeds: tuple[SeedResult, ...]) -> dict[str, SeedSummary]:
    """Every metric over the seeds: each value, their mean and range; named ``model/input/metric``.

    At another scan setting the input is ``clean@NAME`` or ``triggered@NAME``, and the trigger's size is ``stealth@NAME/metric``.
    """
    values: dict[str, dict[int, float | None]] = {}
    for seed in seeds:
        for condition in seed.conditions:
            for name, estimate in condition.metrics.items():
                values.setdefault(f"{condition.model}/{condition.input}/{name}", {})[seed.seed] = estimate.value
        for name, estimate in seed.stealth.items():
            values.setdefault(f"stealth/{name}", {})[seed.seed] = estimate.value
        for name, estimate in seed.random_stealth.items():
            values.setdefault(f"random_stealth/{name}", {})[seed.seed] = estimate.value
        for defense in seed.defenses:
            for name, estimate in defense.metrics.items():
                values.setdefault(f"defense/{defense.name}/{name}", {})[seed.seed] = estimate.value
        for there in seed.transfer:
            for name, estimate in there.stealth.items():
                values.setdefault(f"{input_at('stealth', there.setting)}/{name}", {})[seed.seed] = estimate.value
    return {name: over_seeds(column) for name, column in values.items()}


def _finish(record: Record, chain: Chain, runs: list[SeedRun], folder: Path, seconds: float) -> Record:
    """Write the table, the triggers and the examples, then fill the record."""
    table = SampleTable.concat(run.table for run in runs)
    table.write(folder / "samples.csv")
    for seed_run in runs:
        if seed_run.trigger is not None:
            seed_run.trigger.save(folder / f"trigger-seed{seed_run.result.seed}.safetensors")
    if runs[0].examples.tensors:
        write_tensors(folder / "tensors.safetensors", runs[0].examples.tensors, runs[0].examples.facts)
    seeds = tuple(seed_run.result for seed_run in runs)
    ended = now()
    record = record.model_copy(
        update={
            "status": "success",
            "seeds": seeds,
            "summary": summarise(seeds),
            "warnings": record.warnings + _transfer_notes(seeds),
            "sample_rows": len(table),
            "finished": ended,
            "heartbeat": ended,
            "wall_seconds": round(seconds, 1),
            "physics": _physics(chain, runs[0].why_not_linear),
        }
    )
    warnings = record.warnings + record.failures
    return record.model_copy(update={"severity": severity(record), "untested": untested(record), "warnings": warnings})


def _transfer_notes(seeds: tuple[SeedResult, ...]) -> tuple[str, ...]:
    """Settings that the trigger could not go to, with the reason, once for all seeds."""
    notes = (f"transfer to {there.setting}: {there.note}" for seed in seeds for there in seed.transfer if there.note)
    return tuple(dict.fromkeys(notes))


def _ended(record: Record, status: str, reason: str, clock: float) -> Record:
    ended = now()
    return record.model_copy(
        update={
            "status": status,
            "error": reason,
            "finished": ended,
            "heartbeat": ended,
            "wall_seconds": round(time.perf_counter() - clock, 1),
        }
    )


def _data_summary(chain: Chain, experiment: Experiment) -> DataSummary:
    slices: dict[str, dict[str, int]] = {}
    patients: dict[str, dict[str, int]] = {}
    for part in ("train", "validation", "test"):
        entries = [chain.prepared.entries[i] for i in getattr(chain.split, part)]
        slices[part] = {name: sum(e.target == k for e in entries) for k, name in enumerate(chain.classes)}
        patients[part] = {name: len({e.patient for e in entries if e.target == k}) for k, name in enumerate(chain.classes)}
    return DataSummary(
        dataset=str(getattr(experiment.data, "kind", "")),
        manifest=chain.manifest,
        classes=chain.classes,
        slices=slices,
        patients=patients,
        split=chain.split.description,
        shares_patients=chain.split.shares_patients,
        dropped=len(chain.split.dropped),
    )


def _physics(chain: Chain, why_not_linear: str) -> Physics:
    geometry, calibration = chain.imaging.geometry, chain.calibration
    shown = chain.samples("test", 0)
    some = shown.integrals(range(min(32, len(shown))))
    return Physics(
        geometry=repr(geometry),
        views=geometry.views,
        bins=geometry.bins,
        shape=geometry.shape,
        pixel_mm=geometry.pixel_mm,
        dose_hu=calibration.target_hu,
        predicted_noise_hu=calibration.predicted_hu,
        i0=None if calibration.i0 == float("inf") else calibration.i0,
        floored_fraction=chain.imaging.scanner.floored_fraction(some),
        path="long" if why_not_linear else "linear",
        why_not_linear=why_not_linear,
    )


class _Log:
    """The run's log: one line per event, appended."""

    def __init__(self, path: Path, begun: datetime) -> None:
        self._path = path
        self.write(f"started {begun.isoformat()}")

    def write(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{now().isoformat()} {text}\n")


class _Heartbeat:
    """A progress that also keeps the record's heartbeat fresh, so that ``status`` can tell a live run from a dead one."""

    EVERY_SECONDS = 30.0

    def __init__(self, store: Store, record: Record, progress: Progress, log: _Log) -> None:
        self._store, self._record, self._progress, self._log, self._last = store, record, progress, log, time.monotonic()

    def update(self, **fields: object) -> Record:
        """Change the started record and write it."""
        self._record = self._record.model_copy(update={**fields, "heartbeat": now()})
        self._store.write(self._record)
        return self._record

    def start(self, total: int, description: str) -> None:
        self._progress.start(total, description)
        self._beat()

    def advance(self, n: int = 1) -> None:
        self._progress.advance(n)
        self._beat()

    def message(self, text: str) -> None:
        self._progress.message(text)
        self._log.write(text)
        self._beat()

    def _beat(self) -> None:
        if time.monotonic() - self._last > self.EVERY_SECONDS:
            self._last = time.monotonic()
            self.update()
