"""What the runner hands to defenses: scans, slices and networks, as their roles are granted them, and nothing of the attack."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

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
class GrantedScans:
    """A :class:`~tomosec.defenses.base.ScanSource` that knows how to read its scans, and nothing of where they come from."""

    patients: Sequence[str]
    read: Callable[[int], Iterator[Scans]]

    def __len__(self) -> int:
        return len(self.patients)

    def batches(self, size: int) -> Iterator[Scans]:
        """All of them, in a fixed order."""
        return self.read(size)


@dataclass(frozen=True, slots=True)
class GrantedImages:
    """An :class:`~tomosec.defenses.base.ImageSource` of the same kind."""

    targets: Sequence[int]
    read: Callable[[int], Iterator[Images]]

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, size: int) -> Iterator[Images]:
        """All of them, in a fixed order."""
        return self.read(size)


def measured_scans(
    chain: Chain, samples: MeasuredSamples, positions: Sequence[int], trigger: Injection | None = None
) -> GrantedScans:
    """Scans of some slices with the noise of draw 0, with a trigger or without."""
    imaging, seed = chain.imaging, samples.seed
    injected = None if trigger is None else trigger.trigger

    def read(size: int) -> Iterator[Scans]:
        for start in range(0, len(positions), size):
            chosen = positions[start : start + size]
            keys, integrals = samples.keys(chosen), samples.integrals(chosen)
            measured = imaging.measure_integrals(integrals, keys, seed=seed, draw=0, trigger=injected)
            # The noise model reads the measured data, as a site has them, and not the noiseless ones.
            noise = imaging.scanner.noise_sd(measured.clamp_min(0)) if imaging.scanner.is_noisy else None
            yield Scans(measured, keys, noise)

    return GrantedScans([samples.entries[i].patient for i in positions], read)


def clean_slices(samples: MeasuredSamples, positions: Sequence[int]) -> GrantedImages:
    """Clean reconstructed slices of draw 0 with their labels."""
    targets = [samples.targets[i] for i in positions]

    def read(size: int) -> Iterator[Images]:
        for start in range(0, len(positions), size):
            chosen = positions[start : start + size]
            images, _ = samples.pair(chosen, 0, None)
            labels = torch.tensor(targets[start : start + size], device=images.device)
            yield Images(images, labels, samples.keys(chosen))

    return GrantedImages(targets, read)


def delivered_slices(training: VictimTraining, labels: Sequence[int]) -> GrantedImages:
    """Training slices as they were delivered, poison and its labels included, in the order of the training split.

    Every slice was scanned once, where the victim's own training draws the noise of each epoch anew. Their names are numbers: a
    file name may tell the class that a slice had before it was relabeled.
    """

    def read(size: int) -> Iterator[Images]:
        for start in range(0, len(labels), size):
            chosen = range(start, min(start + size, len(labels)))
            batch = training.batch(chosen, 0)
            yield Images(batch.images, batch.labels, tuple(f"delivered-{i}" for i in chosen))

    return GrantedImages(labels, read)


@dataclass(frozen=True, slots=True)
class UnderAttack:
    """What the runner knows and defenses do not.

    Attributes:
        key: everything that the result of a defense depends on but the defense itself.
        clean_key: identity of the clean network.
        train_again: makes the victim as it was made, on the training slices at some positions, ascending.
    """

    key: Mapping[str, Any]
    clean_key: Mapping[str, Any]
    chain: Chain
    seed: int
    train: MeasuredSamples
    validation: MeasuredSamples
    test: MeasuredSamples
    clean: Classifier
    attacked: Classifier
    trigger: Injection
    poison: Poison
    train_again: Callable[[Sequence[int]], Classifier]
    artifacts: Artifacts
    progress: Progress


def scan_context(attack: UnderAttack) -> ScanContext:
    """What defenses of measured data are granted: the validation scans."""
    chain = attack.chain
    clean = measured_scans(chain, attack.validation, range(len(attack.validation)))
    return ScanContext(
        geometry=chain.imaging.geometry,
        clean=clean,
        reconstruct=chain.imaging.reconstruct,
        seed=attack.seed,
        device=chain.device,
        progress=attack.progress,
    )


def model_context(attack: UnderAttack, network: Classifier, positions: Sequence[int] | None = None) -> ModelContext:
    """What defenses of a network are granted: a copy of the network, and validation slices, all or some."""
    chosen = range(len(attack.validation)) if positions is None else positions
    return ModelContext(
        network=copy.deepcopy(network),
        clean=clean_slices(attack.validation, chosen),
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
        samples=delivered_slices(training, labels),
        training=plan,
        new_network=new_network,
        fit=fit,
        classes=chain.classes,
        network=copy.deepcopy(attack.attacked),
        seed=attack.seed,
        device=chain.device,
        progress=attack.progress,
    )
    return context, training


def _fit(network: Classifier, images: ImageSource, weights: Tensor | None, plan: Training, attack: UnderAttack) -> Classifier:
    """Train on given slices, each with its weight in the loss; those of weight 0 are not shown, to batch statistics neither."""
    batches = list(images.batches(BATCH))
    pictures = torch.cat([batch.images.cpu() for batch in batches])
    targets = torch.cat([batch.targets.cpu() for batch in batches])
    weight = torch.ones(len(targets)) if weights is None else weights.float().cpu()
    seen = weight != 0
    pictures, targets, weight = pictures[seen], targets[seen], weight[seen]

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
