"""What the measurement of a defense leaves, and what all roles have in common."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tomosec.defenses.base import Defense, ModelContext, ScanContext, TrainingContext
from tomosec.errors import NotApplicable
from tomosec.metrics.detection import detection_metrics
from tomosec.metrics.statistics import Estimate
from tomosec.metrics.table import SampleTable
from tomosec.pipeline import Injection
from tomosec.run.granted import UnderAttack


@dataclass(slots=True)
class Outcome:
    """What a role's evaluation leaves.

    Attributes:
        seconds: what to add to the time that it took: a calibration that was kept; less what was done for comparison alone.
    """

    metrics: dict[str, Estimate] = field(default_factory=dict)
    tables: list[SampleTable] = field(default_factory=list)
    model: str = ""
    clean_slices: int = 0
    held_out: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What happens in here is no part of the defense's time: nobody who defends a network has its clean twin."""
        begun = time.perf_counter()
        yield
        self.seconds -= time.perf_counter() - begun


def require(defense: Defense, context: ScanContext | ModelContext | TrainingContext) -> None:
    """Raise NotApplicable with the defense's reason where it does not apply."""
    if reason := defense.why_not(context):
        raise NotApplicable(reason)


def require_measured(attack: UnderAttack) -> None:
    """Scans are the same with and without a trigger that enters the image: to compare them would measure nothing."""
    if attack.trigger.trigger.domain == "image":
        raise NotApplicable("the attack changes images, and this defense measured data")


def source_positions(attack: UnderAttack) -> tuple[int, ...]:
    """Test slices of the attacked classes: those that a trigger is for."""
    return tuple(i for i, target in enumerate(attack.test.targets) if target in attack.chain.sources)


def who(attack: UnderAttack, positions: Sequence[int]) -> tuple[list[str], list[int]]:
    """Patients and labels of some test slices."""
    return [attack.test.entries[i].patient for i in positions], [attack.test.targets[i] for i in positions]


def shown_inputs(attack: UnderAttack) -> tuple[tuple[str, Injection | None], ...]:
    """What test slices are shown with: nothing, and the trigger."""
    return ("clean", None), ("triggered", attack.trigger)


def detection_of(
    attack: UnderAttack, positions: Sequence[int], judged: Sequence[tuple[Tensor, Tensor | None]], held_out: int
) -> dict[str, Estimate]:
    """Metrics of the scores and p-values of clean test slices and of the same slices with the trigger."""
    patients, targets = who(attack, positions)
    (clean, clean_p), (triggered, triggered_p) = judged
    return detection_metrics(
        clean.numpy(),
        triggered.numpy(),
        patients,
        targets,
        clean_p=None if clean_p is None else clean_p.numpy(),
        triggered_p=None if triggered_p is None else triggered_p.numpy(),
        held_out=held_out,
        class_names=attack.chain.classes,
    )
