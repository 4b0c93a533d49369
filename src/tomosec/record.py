"""A record is what an experiment leaves behind; a store is a folder of them. No torch here, so reading is quick.

``runs/<id>/`` holds ``record.json``, ``experiment.json``, ``samples.csv`` (one row per test sample and condition),
``tensors.safetensors`` (example slices and the trigger's effect), ``trigger-seed<k>.safetensors`` and ``log.txt``. Every
file is written to a temporary name, synced and renamed. ``runs/artifacts/`` holds what experiments share.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from tomosec.component import Value, describe_validation_error
from tomosec.errors import InputError, TomosecError
from tomosec.files import write_text
from tomosec.metrics.statistics import Estimate, SeedSummary

SCHEMA_VERSION = 1
MARKER = "tomosec-store.json"
#: A run whose heartbeat is older than this is taken for dead by ``status``; the lock, not the clock, decides who may run.
STALE_AFTER = timedelta(minutes=10)

_V = TypeVar("_V", bound=Value)
Status = Literal["started", "success", "error", "not-applicable"]


class Provenance(Value):
    """What ran, on what."""

    tomosec: str
    commit: str = ""
    uncommitted_changes: bool | None = None
    python: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    platform: str = ""
    device: str = ""
    threads: int = 0
    host_hash: str = ""


class DataSummary(Value):
    """Which data, cut how."""

    dataset: str
    manifest: str
    classes: tuple[str, ...]
    slices: dict[str, dict[str, int]]
    patients: dict[str, dict[str, int]]
    split: str
    shares_patients: bool
    dropped: int = 0


class Physics(Value):
    """The scan as it was simulated."""

    geometry: str
    views: int
    bins: int
    shape: tuple[int, int]
    pixel_mm: float
    dose_hu: float
    predicted_noise_hu: float
    i0: float | None
    floored_fraction: float
    path: Literal["linear", "long"]
    why_not_linear: str = ""


class Strength(Value):
    """How strong the trigger is, and how that was chosen.

    Attributes:
        budget: the budget kept, in ``unit``.
        strength: RMS of the added line integrals (or 1/mm in the image domain).
        rmse_hu: RMSE over the body, mean over non-target training samples of the noiseless chain.
        tried: per candidate budget, the validation ASR and loss of clean accuracy that decided.
        validation_slices: how many slices decided.
    """

    unit: str
    budget: float
    strength: float
    rmse_hu: float
    tried: tuple[dict[str, float], ...] = ()
    validation_slices: int = 0


class Condition(Value):
    """Metrics of one model on one kind of input, for one seed."""

    model: str
    input: str
    metrics: dict[str, Estimate]


class Cost(Value):
    """What a stage took when it was made, wherever it was made.

    Attributes:
        seconds: by stage: ``trigger``, or the model that was trained.
        gradient_passes: by stage.
        memory_mb: by stage, the peak above what was held before; only where the system can tell.
        peak_memory_mb: of the whole process or GPU so far; 0 where the system cannot tell.
        trigger_bytes: size of the trigger's file.
        made: the stages that this run made itself.
    """

    seconds: dict[str, float] = Field(default_factory=dict)
    gradient_passes: dict[str, int] = Field(default_factory=dict)
    memory_mb: dict[str, float] = Field(default_factory=dict)
    peak_memory_mb: float = 0.0
    trigger_bytes: int = 0
    made: tuple[str, ...] = ()


class TransferResult(Value):
    """The trigger of one seed at another scan setting; the metrics are the conditions ``clean@NAME`` and ``triggered@NAME``.

    Attributes:
        setting: its name.
        strength: RMS of what is added there: the amplitude is that of the experiment's own setting, the rays are others. None
            where nothing was applied.
        stealth: on test samples of the source classes, as :attr:`SeedResult.stealth`, of images alone.
        note: why the trigger cannot be applied there, or an empty string.
    """

    setting: str
    strength: float | None = None
    stealth: dict[str, Estimate] = Field(default_factory=dict)
    note: str = ""


class DefenseResult(Value):
    """What one defense did against one seed's attack.

    Attributes:
        name: unique in the record: the kind, numbered where there are several of it.
        kind, role: of the component.
        why_not: why it does not apply here; then there is nothing else.
        failed: what went wrong in it; then there is nothing else either, and the same command tries again.
        metrics: detection (``auroc``, ``tpr_at_5``, ...) or the values that its role has.
        model: name of the model in the sample table that reads through it, where it has one.
        seconds: wall time of fitting and judging, wherever that was; without what was measured on the clean network.
        clean_slices: clean slices or scans that it was fitted on.
        held_out: calibration patients behind its p-values.
        adaptive: kinds of attacks made to get past it; empty means "not adaptively evaluated".
        details: plain facts.
    """

    name: str
    kind: str
    role: str
    why_not: str = ""
    failed: str = ""
    metrics: dict[str, Estimate] = Field(default_factory=dict)
    model: str = ""
    seconds: float = 0.0
    clean_slices: int = 0
    held_out: int = 0
    adaptive: tuple[str, ...] = ()
    details: dict[str, Any] = Field(default_factory=dict)


class SeedResult(Value):
    """Everything one seed gave.

    ``stealth`` is on test samples of the source classes; ``curves`` has the learning curve of every model; ``transfer`` has the
    trigger at other scan settings.
    """

    seed: int
    conditions: tuple[Condition, ...]
    strength: Strength | None = None
    stealth: dict[str, Estimate] = Field(default_factory=dict)
    random_stealth: dict[str, Estimate] = Field(default_factory=dict)
    transfer: tuple[TransferResult, ...] = ()
    curves: dict[str, list[dict[str, float]]] = Field(default_factory=dict)
    cost: Cost = Cost()
    defenses: tuple[DefenseResult, ...] = ()

    def metric(self, model: str, input: str, name: str) -> Estimate | None:
        """One estimate, or None where the condition was not run."""
        for condition in self.conditions:
            if condition.model == model and condition.input == input:
                return condition.metrics.get(name)
        return None


class Severity(Value):
    """The headline: a level, and the sentence that says why."""

    level: Literal["critical", "high", "moderate", "low", "none", "unknown"]
    reason: str


class Record(Value):
    """The result of one experiment."""

    schema_version: int = SCHEMA_VERSION
    id: str
    title: str = ""
    status: Status
    experiment: dict[str, Any]
    provenance: Provenance
    started: datetime
    heartbeat: datetime
    finished: datetime | None = None
    data: DataSummary | None = None
    physics: Physics | None = None
    seeds: tuple[SeedResult, ...] = ()
    summary: dict[str, SeedSummary] = Field(default_factory=dict)
    severity: Severity | None = None
    warnings: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()
    sample_rows: int = 0
    wall_seconds: float = 0.0
    error: str = ""

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return self.status in ("success", "not-applicable") and not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """Defenses that failed, each with its seed and reason."""
        return tuple(
            f"defense {result.name} failed (seed {seed.seed}): {result.failed}"
            for seed in self.seeds
            for result in seed.defenses
            if result.failed
        )

    def results(self) -> dict[str, Any]:
        """What two runs of the same experiment must agree on: everything but clocks, machines and cost."""
        content = self.model_dump(
            mode="json", exclude={"provenance", "started", "heartbeat", "finished", "wall_seconds", "title"}
        )
        for seed in content["seeds"]:
            seed.pop("cost")
            for defense in seed["defenses"]:
                defense.pop("seconds")
            for curve in seed["curves"].values():
                for point in curve:
                    point.pop("seconds", None)
        return content


def now() -> datetime:
    """The current time, UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def read_value(path: Path, cls: type[_V], what: str, schema: int, *, missing: str = "no such file") -> _V:
    """Read a value of ours from JSON.

    Args:
        path: the file.
        cls: the value's class, which has a ``schema_version``.
        what: names it in messages.
        schema: the one that this version reads.
        missing: what to say where there is no file.

    Raises:
        InputError: no such file, not JSON, another schema, or a field that is wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: {missing}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable {what} ({error})") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != schema:
        raise InputError(f"{path}: {what} schema {version}; this version of tomosec reads schema {schema}")
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        raise InputError(describe_validation_error(error, str(path))) from error


class Store:
    """A folder of runs.

    Args:
        root: the folder.
        create: make it where it does not exist.

    Raises:
        InputError: the folder holds something else, or does not exist and ``create`` is False.
    """

    def __init__(self, root: str | Path, *, create: bool = False) -> None:
        self.root = Path(root)
        marker = self.root / MARKER
        if marker.is_file():
            return
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root}: a file, not a folder of runs")
        if self.root.is_dir() and any(self.root.iterdir()):
            raise InputError(
                f"{self.root}: this folder holds other files and no {MARKER}; give an empty folder or one that tomosec made"
            )
        if not create:
            raise InputError(f"{self.root}: no runs here (no {MARKER}); give the folder that --out named")
        write_text(marker, json.dumps({"schema_version": SCHEMA_VERSION}))

    @property
    def artifacts(self) -> Path:
        """Folder of what experiments share."""
        return self.root / "artifacts"

    def folder(self, experiment_id: str) -> Path:
        """Folder of one run."""
        return self.root / experiment_id

    def ids(self) -> list[str]:
        """Identities of the runs that have a record."""
        return sorted(path.parent.name for path in self.root.glob("*/record.json"))

    def has(self, experiment_id: str) -> bool:
        """Whether a run has a record, without listing the others."""
        return (self.folder(experiment_id) / "record.json").is_file()

    def read(self, experiment_id: str) -> Record:
        """Read one record.

        Raises:
            InputError: no such run, or a record that this version cannot read.
        """
        path = self.folder(experiment_id) / "record.json"
        record = read_value(path, Record, "record", SCHEMA_VERSION, missing="no such run")
        if record.id != experiment_id:
            raise InputError(f"{path}: the record of run {record.id} lies in the folder of {experiment_id}")
        return record

    def records(self) -> Iterator[Record]:
        """Every readable record, by start time."""
        yield from sorted((self.read(name) for name in self.ids()), key=lambda record: (record.started, record.id))

    def write(self, record: Record) -> None:
        """Write a record, all or nothing."""
        write_text(self.folder(record.id) / "record.json", record.model_dump_json(indent=1) + "\n")

    @contextmanager
    def claim(self, experiment_id: str) -> Iterator[Path]:
        """Hold a run's folder; the lock goes with the process that holds it, however that ends.

        Raises:
            TomosecError: another process is at work on this run.
        """
        folder = self.folder(experiment_id)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock").acquire(timeout=0):
                for left in folder.glob(".*.tmp"):  # by a process that was killed while it wrote
                    left.unlink(missing_ok=True)
                yield folder
        except Timeout as error:
            raise TomosecError(
                f"{folder}: another process is running this experiment; `tomosec status {self.root}` shows it"
            ) from error


def host_hash() -> str:
    """A short name of this machine that gives nothing away, to see when a table mixes machines."""
    return hashlib.sha256(f"{socket.gethostname()}:{os.cpu_count()}".encode()).hexdigest()[:8]
