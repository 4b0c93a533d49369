"""What is kept of a defense, as artifacts: its result, its calibration, and what it does to the clean network.

Clean scans and the clean network are the same for every attack on a chain and seed, so what defenses make of them is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from tomosec.defenses.base import Defense, ScanContext, ScanDetection, ScanSetDetection
from tomosec.errors import NotApplicable
from tomosec.geometry import Geometry
from tomosec.metrics.table import SampleTable
from tomosec.record import DefenseResult
from tomosec.run.artifacts import Artifact
from tomosec.run.granted import UnderAttack
from tomosec.tensorfile import read_tensors, write_tensors

#: Raised when the runner measures the same defense otherwise, so that results that are kept are not taken for new ones.
EVALUATION = 2

_D_co = TypeVar("_D_co", bound=ScanDetection | ScanSetDetection, covariant=True)


class _Calibratable(Protocol[_D_co]):
    """What detectors of scans and of sets of scans have in common."""

    def why_not(self, context: ScanContext) -> str: ...

    def calibrate(self, context: ScanContext) -> _D_co: ...

    def restore(self, tensors: Mapping[str, Tensor], geometry: Geometry) -> _D_co: ...


def kept_result(
    defense: Defense, name: str, attack: UnderAttack, measure: Callable[[], tuple[DefenseResult, SampleTable | None]]
) -> tuple[DefenseResult, SampleTable | None]:
    """A defense's result and the rows of models that read through it; ``measure`` runs where they are not there yet."""

    def make(folder: Path) -> dict[str, Any]:
        result, rows = measure()
        if rows is not None:
            rows.write(folder / "samples.csv")
        return {"result": result.model_dump(mode="json"), "has_rows": rows is not None}

    artifact = attack.artifacts.get("defense", _key(defense, name, attack.key), make)
    rows = SampleTable.read(artifact.folder / "samples.csv") if artifact.facts["has_rows"] else None
    return DefenseResult.model_validate(artifact.facts["result"]), rows


def calibrated(defense: _Calibratable[_D_co], context: ScanContext, attack: UnderAttack) -> tuple[_D_co, float]:
    """A calibrated detector, and what to add to this run's seconds for its calibration: 0 where it was made here.

    Raises:
        NotApplicable: it does not apply to this chain.
    """
    if reason := defense.why_not(context):
        raise NotApplicable(reason)

    def make(folder: Path) -> dict[str, Any]:
        write_tensors(folder / "detector.safetensors", defense.calibrate(context).tensors(), {})
        return {}

    artifact = attack.artifacts.get("detector", {**attack.chain.key, "detector": defense, "seed": attack.seed}, make)
    tensors, _ = read_tensors(artifact.folder / "detector.safetensors")
    return defense.restore(tensors, context.geometry), 0.0 if artifact.made else float(artifact.facts["seconds"])


def on_clean(defense: Defense, name: str, attack: UnderAttack, make: Callable[[Path], dict[str, Any]]) -> Artifact:
    """What a defense does to the clean network."""
    return attack.artifacts.get("defense-on-clean", _key(defense, name, attack.clean_key), make)


def clean_rows(defense: Defense, name: str, attack: UnderAttack, rows: Callable[[], SampleTable]) -> SampleTable:
    """Rows of the clean network behind a defense, on clean test slices."""

    def make(folder: Path) -> dict[str, Any]:
        rows().write(folder / "samples.csv")
        return {}

    return SampleTable.read(on_clean(defense, name, attack, make).folder / "samples.csv")


def _key(defense: Defense, name: str, of: Mapping[str, Any]) -> dict[str, Any]:
    return {**of, "defense": defense, "name": name, "evaluation": EVALUATION}
