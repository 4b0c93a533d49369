"""What an attack is: a value that makes a trigger from what its threat model grants, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from tomosec.component import Component
from tomosec.geometry import Geometry
from tomosec.pipeline import Pipeline
from tomosec.progress import Progress, SilentProgress
from tomosec.threat import Access
from tomosec.trigger import Domain, Trigger

#: What an attack may declare that it needs; the runner answers "not applicable: needs ..." where it is missing.
Need = Literal[
    "training-data",
    "weights",
    "geometry",
    "raw-sinogram",
    "differentiable-reconstruction",
    "linear-reconstruction",
    "three-classes",
]


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Some training samples, as the attacker holds them.

    Attributes:
        attenuation: (B, 1, H, W) ground truth in 1/mm, or a stated reference reconstruction for genuine measurements.
        integrals: (B, 1, views, bins) noiseless line integrals.
        measured: (B, 1, views, bins) line integrals with the noise of the experiment's dose.
        targets: (B,) class indices.
        keys: sample keys.
    """

    attenuation: Tensor
    integrals: Tensor
    measured: Tensor
    targets: Tensor
    keys: tuple[str, ...]


class TrainingSamples(Protocol):
    """The training split, read in batches; test samples cannot be reached through it."""

    def __len__(self) -> int:
        """Number of training samples."""
        ...

    @property
    def targets(self) -> Sequence[int]:
        """Class index of every training sample."""
        ...

    def batches(self, positions: Sequence[int], size: int) -> Iterator[TrainingBatch]:
        """Batches of the samples at ``positions`` (0 .. len - 1), in that order."""
        ...


@dataclass(slots=True)
class AttackContext:
    """What the threat model grants to the attacker.

    Attributes:
        geometry: the scan.
        samples: training samples.
        pipeline: chain with the network that the attacker knows, the victim's clean one or a surrogate, parameters frozen; None
            where the attacker has no weights.
        target: class index that triggered scans should be read as.
        sources: class indices that are attacked.
        seed: seed of the experiment; draw with ``randomness.generator(seed, <attack kind>, ...)``.
        batch_size: samples per gradient pass.
        gradient_passes: backward passes per sample done so far; attacks add theirs, the record reports it.
    """

    geometry: Geometry
    samples: TrainingSamples
    pipeline: Pipeline | None
    target: int
    sources: tuple[int, ...]
    seed: int
    batch_size: int = 16
    progress: Progress = field(default_factory=SilentProgress)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    gradient_passes: int = 0

    def positions_of(self, classes: Sequence[int]) -> list[int]:
        """Positions of the training samples of some classes."""
        wanted = set(classes)
        return [i for i, target in enumerate(self.samples.targets) if target in wanted]


_ANY_ACCESS: frozenset[Access] = frozenset({"inference-data", "training-data", "training-control"})
_POISONING: frozenset[Access] = frozenset({"inference-data", "training-data"})


class Attack(Component):
    """Base of the attack components.

    A plug-in subclasses this, sets ``kind``, ``version``, ``domain`` and ``needs``, and writes :meth:`make_trigger`. The
    runner scales the trigger to the budget, poisons, trains, measures and adds the controls. The docstring's first line is
    what `tomosec list attacks` prints; ``source`` is the publication.

    How a trigger is trained in is written once, in :mod:`tomosec.attacks.poisoning`; the methods after :meth:`make_trigger` say
    where a published definition departs from it.
    """

    family: ClassVar[str] = "attack"
    domain: ClassVar[Domain]
    needs: ClassVar[frozenset[Need]] = frozenset()
    source: ClassVar[str] = ""

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Make the trigger; its strength is set afterwards to the budget."""
        raise NotImplementedError

    def at_test_time(self, trigger: Trigger) -> Trigger:
        """The trigger as it is applied at test time: the same, or of another strength where a definition says so."""
        return trigger

    def at_training_time(self, trigger: Trigger) -> Trigger:
        """The trigger as poisoned samples carry it: the same, unless the definition trains on a weaker or another one."""
        return trigger

    def covering(self, trigger: Trigger) -> Trigger | None:
        """What cover samples carry, which keep their label: a variant of the trigger, or None where the attack defines none.

        Its strength is the trigger's, so that covers are no more visible than poison.
        """
        return None

    def covers_per_poison(self) -> float:
        """Cover samples per poisoned sample, by the attack's definition; see ``threat.cover_rate``."""
        return 0.0

    def keeps_labels(self) -> bool:
        """Whether it is a clean-label attack: samples of the target class are poisoned, and no label is changed."""
        return False

    def allowed_access(self) -> frozenset[Access]:
        """Kinds of access that the attack's definition allows; a clean-label attack is a poisoning of data."""
        return _POISONING if self.keeps_labels() else _ANY_ACCESS
