"""What the runner hands to defenses: scans, slices and networks, as their roles are granted them, and nothing of the attack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from tomosec.analysis.networks import Classifier, Network
from tomosec.analysis.plan import Training
from tomosec.analysis.training import train
from tomosec.attacks.poisoning import Poison, VictimTraining
from tomosec.defenses.base import Images, ImageSource, ModelContext, ScanContext, Scans, TrainingContext
from tomosec.errors import NotApplicable
from tomosec.pipeline import Injection
from tomosec.progress import Progress
from tomosec.randomness import torch_seed
from tomosec.run.artifacts import Artifacts
from tomosec.run.chain import BATCH, Chain, MeasuredSamples


@dataclass(frozen=True, slots=True)
class MeasuredScans:
    """Scans of some slices, with a trigger or without: a :class:`~tomosec.defenses.base.ScanSource`."""

    chain: Chain
    samples: MeasuredSamples
    positions: tuple[int, ...]
    trigger: Injection | None = None

    @property
    def patients(self) -> Sequence[str]:
        """Patient of each."""
        return [self.samples.entries[i].patient for i in self.positions]

    def __len__(self) -> int:
        return len(self.positions)

    def batches(self, size: int) -> Iterator[Scans]:
        """All of them, with the noise of draw 0."""
        trigger = None if self.trigger is None else self.trigger.trigger
        imaging, seed = self.chain.imaging, self.samples.seed
        for start in range(0, len(self), size):
            chosen = self.positions[start : start + size]
            keys, integrals = self.samples.keys(chosen), self.samples.integrals(chosen)
            measured = imaging.measure_integrals(integrals, keys, seed=seed, draw=0, trigger=trigger)
            # The noise model reads the measured data, as a site has them, and not the noiseless ones.
            noise = imaging.scanner.noise_sd(measured.clamp_min(0)) if imaging.scanner.is_noisy else None
            yield Scans(measured, keys, noise)


@dataclass(frozen=True, slots=True)
class ReconstructedSlices:
    """Clean reconstructed slices with their labels: an :class:`~tomosec.defenses.base.ImageSource`."""

    samples: MeasuredSamples
    positions: tuple[int, ...]

    @property
    def targets(self) -> Sequence[int]:
        """Label of each."""
        return [self.samples.targets[i] for i in self.positions]

    def __len__(self) -> int:
        return len(self.positions)

    def batches(self, size: int) -> Iterator[Images]:
        """All of them, draw 0."""
        for start in range(0, len(self), size):
            chosen = list(self.positions[start : start + size])
            images, _ = self.samples.pair(chosen, 0, None)
            targets = torch.tensor([self.samples.targets[i] for i in chosen], device=images.device)
            yield Images(images, targets, self.samples.keys(chosen))


@dataclass(frozen=True, slots=True)
class DeliveredSlices:
    """Training slices as they were delivered, poison and its labels included; every slice was scanned once."""

    training: VictimTraining
    keys: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def targets(self) -> Sequence[int]:
        """Label of each, as delivered."""
        return self.labels

    def __len__(self) -> int:
        return len(self.keys)

    def batches(self, size: int) -> Iterator[Images]:
        """All of them, in the order of the training split."""
        for start in range(0, len(self), size):
            chosen = range(start, min(start + size, len(self)))
            batch = self.training.batch(chosen, 0)
            yield Images(batch.images, batch.labels, self.keys[start : start + size])


@dataclass(frozen=True, slots=True)
class UnderAttack:
    """What the runner knows and defenses do not."""

    chain: Chain
    seed: int
    train: MeasuredSamples
    validation: MeasuredSamples
    test: MeasuredSamples
    clean: Classifier
    attacked: Classifier
    trigger: Injection
    poison: Poison
    artifacts: Artifacts
    progress: Progress


def scan_context(attack: UnderAttack) -> ScanContext:
    """What defenses of measured data are granted: the validation scans."""
    chain = attack.chain
    clean = MeasuredScans(chain, attack.validation, tuple(range(len(attack.validation))))
    return ScanContext(
        geometry=chain.imaging.geometry,
        clean=clean,
        reconstruct=chain.imaging.reconstruct,
        seed=attack.seed,
        device=chain.device,
        progress=attack.progress,
    )


def model_context(attack: UnderAttack, network: Classifier, positions: Sequence[int] | None = None) -> ModelContext:
    """What defenses of a network are granted: the network, and validation slices, all or some."""
    chosen = tuple(range(len(attack.validation)) if positions is None else positions)
    return ModelContext(
        network=network,
        clean=ReconstructedSlices(attack.validation, chosen),
        classes=attack.chain.classes,
        imaging=attack.chain.imaging,
        seed=attack.seed,
        device=attack.chain.device,
        progress=attack.progress,
    )


def training_context(attack: UnderAttack) -> tuple[TrainingContext, VictimTraining]:
    """What defenses of the training are granted, and how the slices were poisoned, which they are not told.

    Raises:
        NotApplicable: the attacker delivers no training data.
    """
    chain, experiment = attack.chain, attack.chain.experiment
    if experiment.threat.access != "training-data":
        raise NotApplicable(
            f"needs threat.access training-data: with {experiment.threat.access} no poisoned slices are delivered"
        )
    training = VictimTraining(
        attack.train,
        device=chain.device,
        poison=attack.poison,
        threat=experiment.threat,
        target=chain.target,
        sources=chain.sources,
        seed=attack.seed,
    )
    plan = experiment.victim_training or experiment.training
    relabeled = training.poisoned if not attack.poison.keeps_labels else frozenset()
    labels = tuple(chain.target if i in relabeled else target for i, target in enumerate(attack.train.targets))
    source = DeliveredSlices(training, attack.train.keys(range(len(attack.train))), labels)

    def new_network() -> Classifier:
        config = cast(Network, experiment.network)
        network = config.build(
            classes=len(chain.classes), shape=chain.imaging.geometry.shape, seed=torch_seed(attack.seed, "defense")
        )
        network.set_input_statistics(float(attack.attacked.mean), float(attack.attacked.std))
        return network.to(chain.device)

    def fit(network: Classifier, images: ImageSource, weights: Tensor | None) -> Classifier:
        return _fit(network, images, weights, plan, attack)

    context = TrainingContext(
        samples=source,
        training=plan,
        new_network=new_network,
        fit=fit,
        classes=chain.classes,
        network=attack.attacked,
        seed=attack.seed,
        device=chain.device,
        progress=attack.progress,
    )
    return context, training


def _fit(network: Classifier, images: ImageSource, weights: Tensor | None, plan: Training, attack: UnderAttack) -> Classifier:
    """Train on given slices, each with its weight in the loss."""
    batches = list(images.batches(BATCH))
    pictures = torch.cat([batch.images.cpu() for batch in batches])
    targets = torch.cat([batch.targets.cpu() for batch in batches])
    weight = torch.ones(len(targets)) if weights is None else weights.float().cpu()

    class Source:
        def __len__(self) -> int:
            return len(targets)

        def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor, Tensor]:
            chosen, device = list(indices), attack.chain.device
            return pictures[chosen].to(device), targets[chosen].to(device), weight[chosen].to(device)

    def objective(module: torch.nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        losses = torch.nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")
        return (losses * batch[2]).mean()

    changed = plan.model_copy(update={"patience": None})
    train(
        network,
        changed,
        Source(),
        objective=objective,
        seed=torch_seed(attack.seed, "defense-fit"),
        device=attack.chain.device,
        progress=attack.progress,
    )
    return network.eval()
