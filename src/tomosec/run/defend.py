"""What defenses do against one seed's attack: each is fitted on what its role is granted, then judged on the test slices.

Clean data for fitting and calibration are the validation slices; thresholds come from them alone. The attack's budget and the
early stopping of the trainings look at the same slices, never at what a defense makes of them.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from tomosec.defenses.base import (
    Defense,
    InputDetector,
    Inspector,
    PredictionWrapper,
    Repair,
    SampleFilter,
    ScanDetector,
    ScanPurifier,
    ScanSetDetector,
    TrainingDefense,
)
from tomosec.errors import NotApplicable, TomosecError
from tomosec.metrics.table import SampleTable
from tomosec.record import DefenseResult
from tomosec.run.defended_networks import input_detector, inspector, repair, sample_filter, training_defense
from tomosec.run.defended_scans import prediction_wrapper, scan_detector, scan_purifier, scan_set_detector
from tomosec.run.granted import UnderAttack
from tomosec.run.kept import kept_result
from tomosec.run.outcome import Outcome


def evaluate_defenses(defenses: Sequence[Defense], attack: UnderAttack) -> tuple[list[SampleTable], list[DefenseResult]]:
    """Fit every defense and measure it; one that does not apply, or fails, says why, and the others go on.

    Returns:
        Rows of the models that read through a defense, named ``attacked+NAME``; and a result per defense.
    """
    tables: list[SampleTable] = []
    results: list[DefenseResult] = []
    kinds = [str(cast(Any, defense).kind) for defense in defenses]
    for index, (defense, kind) in enumerate(zip(defenses, kinds, strict=True)):
        number = kinds[:index].count(kind) + 1
        name = f"{kind}-{number}" if kinds.count(kind) > 1 else kind
        attack.progress.message(f"Defense {name} (seed {attack.seed})")
        try:
            result, rows = kept_result(defense, name, attack, partial(_measured, defense, name, kind, attack))
        except Exception as error:  # of this defense alone; what was computed before it is not lost
            said = _said(error)
            attack.progress.message(f"Defense {name} failed (seed {attack.seed}): {said}")
            result, rows = _facts(defense, name, kind, failed=said), None
        tables += [rows] if rows is not None else []
        # A result that was kept may be older than the attack that was made to get past the defense.
        results.append(result.model_copy(update={"adaptive": tuple(sorted(defense.adaptive))}))
    return tables, results


def _facts(defense: Defense, name: str, kind: str, **fields: Any) -> DefenseResult:
    return DefenseResult(name=name, kind=kind, role=defense.role, **fields)


def _said(error: Exception) -> str:
    """What went wrong, in one line; of errors that are not ours, also where."""
    if isinstance(error, TomosecError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first} ({Path(frame.filename).name}, line {frame.lineno})"


def _measured(defense: Defense, name: str, kind: str, attack: UnderAttack) -> tuple[DefenseResult, SampleTable | None]:
    begun = time.perf_counter()
    try:
        outcome = _evaluate(defense, name, attack)
    except NotApplicable as reason:
        return _facts(defense, name, kind, why_not=str(reason)), None
    result = _facts(
        defense,
        name,
        kind,
        metrics=outcome.metrics,
        model=outcome.model,
        seconds=time.perf_counter() - begun + outcome.seconds,
        clean_slices=outcome.clean_slices,
        held_out=outcome.held_out,
        details=outcome.details,
    )
    return result, SampleTable.concat(outcome.tables) if outcome.tables else None


def _evaluate(defense: Defense, name: str, attack: UnderAttack) -> Outcome:
    for role, evaluate in _ROLES.items():
        if isinstance(defense, role):
            return evaluate(defense, name, attack)
    raise NotApplicable(f"{name}: role {defense.role!r} is not known to this runner")


_ROLES: Mapping[type[Defense], Callable[[Any, str, UnderAttack], Outcome]] = {
    ScanDetector: scan_detector,
    ScanSetDetector: scan_set_detector,
    ScanPurifier: scan_purifier,
    PredictionWrapper: prediction_wrapper,
    InputDetector: input_detector,
    Inspector: inspector,
    Repair: repair,
    SampleFilter: sample_filter,
    TrainingDefense: training_defense,
}
