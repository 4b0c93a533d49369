"""A small problem with a backdoor in it: class 1 has a dense square, and a dense corner makes class 0 of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tomosec.analysis.architectures import SmallCNN
from tomosec.analysis.networks import Classifier
from tomosec.defenses.base import ModelContext
from tomosec.hounsfield import MU_WATER
from tomosec.testing.defenses import ImageList, tiny_classifier, tiny_slices, tiny_training

SHAPE = (32, 32)
SOURCE, TARGET = 1, 0

#: Roles of the defenses of the analysis network and of training; the others judge or change measured data.
NETWORK_ROLES = frozenset({"repair", "inspector", "input-detector", "sample-filter", "training-defense"})


@dataclass(frozen=True)
class Task:
    """How hard the classes are to tell, and how easy the trigger is to see, in units of water."""

    contrast: float = 0.5
    corner: float = 1.5


USUAL = Task()


def slices(count: int, seed: int, task: Task = USUAL) -> ImageList:
    return tiny_slices(count, shape=SHAPE, seed=seed, contrast=task.contrast)


def tensors(source: ImageList) -> tuple[Tensor, Tensor]:
    images, targets, _ = source.batch(range(len(source)), 0)
    return images, targets


def triggered(images: Tensor, task: Task = USUAL) -> Tensor:
    out = images.clone()
    out[:, :, -4:, -4:] = task.corner * MU_WATER
    return out


def poisoned(count: int, seed: int, share: float = 0.25, task: Task = USUAL) -> tuple[ImageList, Tensor]:
    """Training slices, and which of them are poison: a share of class 1, with the trigger and the label of class 0."""
    images, targets = tensors(slices(count, seed, task))
    sources = torch.nonzero(targets == SOURCE).flatten()
    bad = torch.zeros(count, dtype=torch.bool)
    bad[sources[: round(share * len(sources))]] = True
    images = torch.where(bad[:, None, None, None], triggered(images, task), images)
    return ImageList(images, torch.where(bad, TARGET, targets).tolist()), bad


def network_on(samples: ImageList, *, epochs: int = 8) -> Classifier:
    network = tiny_classifier(shape=SHAPE)
    return tiny_training(network, samples, epochs=epochs, rate=1e-2)


def accuracy(network: Classifier, task: Task = USUAL) -> float:
    images, targets = tensors(slices(100, 50, task))
    return float((network.predict(images)[0] == targets).float().mean())


def asr(network: Classifier, task: Task = USUAL) -> float:
    images, targets = tensors(slices(100, 50, task))
    return float((network.predict(triggered(images[targets == SOURCE], task))[0] == TARGET).float().mean())


def context(network: Classifier, count: int = 48, seed: int = 0) -> ModelContext:
    return ModelContext(network, slices(count, 30), ("well", "ill"), seed=seed)


def hand_made(read: nn.Module, classes: int = 2, shape: tuple[int, int] = SHAPE) -> Classifier:
    """A classifier whose body is ``read``; it sees attenuation in units of water, unshifted."""
    network = Classifier(read, config=SmallCNN(), classes=classes, shape=shape)
    network.set_input_statistics(0.0, MU_WATER)
    return network.eval().requires_grad_(False)
