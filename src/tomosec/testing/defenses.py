"""Contract suite of defenses, role by role. A plug-in's author runs it with ``pytest`` or by hand.

>>> from tomosec.testing import check_defense
>>> from tomosec.defenses.strip import Strip
>>> check_defense(Strip())
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomosec.analysis.architectures import SmallCNN
from tomosec.analysis.networks import Classifier
from tomosec.analysis.plan import Training
from tomosec.analysis.training import train
from tomosec.defenses.base import (
    Defense,
    Images,
    ImageSource,
    InputDetector,
    Inspection,
    Inspector,
    ModelContext,
    Need,
    Repair,
    Role,
    SampleFilter,
    TrainingContext,
    TrainingDefense,
)
from tomosec.errors import NotApplicable
from tomosec.hounsfield import MU_WATER
from tomosec.randomness import generator, torch_seed
from tomosec.testing.components import check_component
from tomosec.testing.scans import check_scan_defense

#: Images of the contract: not square, and odd.
SHAPE = (33, 35)


class ImageList:
    """Slices in memory as a source: what the runner hands to a defense.

    Args:
        images: (N, 1, H, W) in 1/mm.
        targets: N class indices.
    """

    def __init__(self, images: Tensor, targets: Sequence[int]) -> None:
        self._images, self.targets = images, tuple(int(target) for target in targets)

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, size: int) -> Iterator[Images]:
        """All of them, in order."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            keys = tuple(f"slice-{i}" for i in range(start, stop))
            yield Images(self._images[start:stop], torch.tensor(self.targets[start:stop]), keys)

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and positions, as training reads them."""
        chosen = list(indices)
        return self._images[chosen], torch.tensor(self.targets)[chosen], torch.tensor(chosen)


def tiny_slices(
    count: int, classes: int = 2, *, shape: tuple[int, int] = SHAPE, contrast: float = 0.5, seed: int = 0
) -> ImageList:
    """Noise around half of water; in slices of class k a square somewhere that is k times ``contrast`` of water denser.

    Classes take turns.
    """
    rng = generator(seed, "tiny-slices", count, classes)
    images = MU_WATER * (0.5 + 0.2 * rng.standard_normal((count, 1, *shape))).astype(np.float32)
    for i in range(count):
        row, column = (int(rng.integers(4, side - 14)) for side in shape)
        images[i, 0, row : row + 10, column : column + 10] += contrast * MU_WATER * (i % classes)
    return ImageList(torch.from_numpy(images), [i % classes for i in range(count)])


def tiny_classifier(classes: int = 2, *, batch_norm: bool = False, shape: tuple[int, int] = SHAPE, seed: int = 0) -> Classifier:
    """An untrained network of two convolutions, in evaluation mode, without gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(seed, "tiny-classifier"))
        norms = [nn.BatchNorm2d(8) if batch_norm else nn.Identity() for _ in range(2)]
        body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), norms[0], nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), norms[1], nn.ReLU(), nn.MaxPool2d(2),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, classes),
        )  # fmt: skip
    network = Classifier(body, config=SmallCNN(), classes=classes, shape=shape)
    network.set_input_statistics(0.5 * MU_WATER, 0.3 * MU_WATER)
    return network.eval().requires_grad_(False)


def tiny_training(
    network: Classifier, samples: ImageSource, weights: Tensor | None = None, *, epochs: int = 2, rate: float = 3e-3
) -> Classifier:
    """Train a network as the runner does for a training defense."""
    weights = torch.ones(len(samples)) if weights is None else weights

    def objective(module: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        losses = F.cross_entropy(module(batch[0]), batch[1], reduction="none") * weights[batch[2]]
        return losses.sum() / weights[batch[2]].sum().clamp_min(1e-12)

    plan = Training(epochs=epochs, batch_size=16, learning_rate=rate)
    train(network.requires_grad_(True), plan, cast(ImageList, samples), objective=objective, seed=0)
    return network.eval().requires_grad_(False)


def tiny_model_context(
    classes: int = 2, count: int = 24, *, batch_norm: bool = False, seed: int = 0, without: int | None = None
) -> ModelContext:
    """A lightly trained network and clean slices.

    Args:
        classes: of the network.
        count: clean slices.
        batch_norm: whether the network has it.
        seed: of the experiment.
        without: a class of which there is no clean slice.
    """
    network = tiny_training(tiny_classifier(classes, batch_norm=batch_norm), tiny_slices(32, classes, seed=1))
    clean = tiny_slices(count, classes)
    kept = [i for i, target in enumerate(clean.targets) if target != without]
    names = tuple(f"class-{k}" for k in range(classes))
    images, _, _ = clean.batch(kept, 0)
    return ModelContext(network, ImageList(images, [clean.targets[i] for i in kept]), names, seed=seed)


def tiny_training_context(
    classes: int = 2, count: int = 40, *, batch_norm: bool = False, seed: int = 0, without: int | None = None
) -> TrainingContext:
    """Training slices and a network that was trained on them; the arguments are those of :func:`tiny_model_context`."""
    model = tiny_model_context(classes, count, batch_norm=batch_norm, seed=seed, without=without)
    return TrainingContext(
        samples=model.clean,
        training=Training(epochs=2, batch_size=16),
        new_network=lambda: tiny_classifier(classes, batch_norm=batch_norm).train().requires_grad_(True),
        fit=tiny_training,
        classes=model.classes,
        network=model.network,
        seed=seed,
    )


def check_defense(defense: Defense) -> None:
    """The contract of defenses; those of measured data have it from :func:`tomosec.testing.scans.check_scan_defense`.

    It is documented, says its source and needs, and answers in the form of its role, the same for the same seed, with two classes
    or three, with BatchNorm or without, with ten slices, with one, with none and with a class missing: finite numbers, or
    ``NotApplicable`` with its reason, and nothing else. What it was given is as before, and so is the global random state.
    """
    check_component(defense)
    assert defense.role in get_args(Role), f"{defense!r}: role {defense.role!r}"
    assert defense.needs <= set(get_args(Need)), f"{defense!r} needs {', '.join(defense.needs - set(get_args(Need)))}"
    assert defense.source, f"{defense!r} names no source; write 'baseline' if it has none"
    CHECKS[defense.role](defense)


def check_repair(defense: Repair) -> None:
    """A repair gives a network like the one it was given, and is repeatable."""

    def run(context: ModelContext) -> Tensor:
        repaired = defense.repair(context)
        assert repaired is not context.network, "the network that was given is returned"
        assert not repaired.training, "the repaired network is not in evaluation mode"
        assert repaired.config == context.network.config
        ours, theirs = repaired.state_dict(), context.network.state_dict()
        assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}, "other weights"
        assert all(bool(torch.isfinite(tensor.double()).all()) for tensor in ours.values()), "weights are not finite"
        _, probabilities = repaired.predict(tiny_slices(6, len(context.classes)).batch(range(6), 0)[0])
        return probabilities

    _check_everywhere(defense, tiny_model_context, run)


def check_inspector(defense: Inspector) -> None:
    """An inspector gives one number for the network, and one for each class or none."""

    def run(context: ModelContext) -> Tensor:
        found: Inspection = defense.inspect(context)
        assert len(found.by_class) in (0, len(context.classes)), f"{len(found.by_class)} classes"
        return torch.tensor([found.score, *found.by_class], dtype=torch.float64)

    _check_everywhere(defense, tiny_model_context, run)


def check_input_detector(defense: InputDetector) -> None:
    """A detector scores each image by itself."""

    def run(context: ModelContext) -> Tensor:
        detection = defense.fit(context)
        images, _, _ = tiny_slices(5, len(context.classes), seed=2).batch(range(5), 0)
        before = images.clone()
        scores = detection.score(images)
        assert torch.equal(images, before), "the images are changed"
        assert scores.shape == (5,), f"scores of 5 images have shape {tuple(scores.shape)}"
        assert scores.dtype == torch.float64, f"scores are {scores.dtype}"
        assert detection.score(images[:0]).shape == (0,), "no image has no score"
        alone = torch.cat([detection.score(image[None]) for image in images])
        assert torch.allclose(alone, scores, rtol=1e-4, atol=1e-6), "a score depends on the batch"
        return scores

    _check_everywhere(defense, tiny_model_context, run)


def check_sample_filter(defense: SampleFilter) -> None:
    """A filter gives a number for each training slice, in their order."""

    def run(context: TrainingContext) -> Tensor:
        scores = defense.suspicion(context)
        assert scores.shape == (len(context.samples),), f"{len(context.samples)} slices have scores {tuple(scores.shape)}"
        assert scores.dtype == torch.float64, f"scores are {scores.dtype}"
        return scores

    _check_everywhere(defense, tiny_training_context, run)


def check_training_defense(defense: TrainingDefense) -> None:
    """A training defense gives a trained network."""

    def run(context: TrainingContext) -> Tensor:
        network = defense.train(context)
        assert network is not context.network, "the network that was given is returned"
        assert not network.training, "the network is not in evaluation mode"
        _, probabilities = network.predict(tiny_slices(6, len(context.classes)).batch(range(6), 0)[0])
        return probabilities

    _check_everywhere(defense, tiny_training_context, run)


#: The contract of each role.
CHECKS: dict[Role, Callable[[Any], None]] = {
    "repair": check_repair,
    "inspector": check_inspector,
    "input-detector": check_input_detector,
    "sample-filter": check_sample_filter,
    "training-defense": check_training_defense,
    "scan-detector": check_scan_defense,
    "scan-set-detector": check_scan_defense,
    "scan-purifier": check_scan_defense,
    "prediction-wrapper": check_scan_defense,
}


def _check_everywhere(defense: Defense, make: Callable[..., Any], run: Callable[[Any], Tensor]) -> None:
    """Run in all the situations of the contract; ``run`` gives what has to be finite and repeatable."""
    usual = make()
    first, again = _answer(defense, usual, run), _answer(defense, make(), run)
    if isinstance(first, Tensor) and isinstance(again, Tensor):
        assert torch.equal(first, again), "the same seed gives another answer"
    situations: dict[str, Any] = {
        "three classes": make(3),
        "BatchNorm": make(batch_norm=True),
        "ten slices": make(2, 10),
        "ten slices and BatchNorm": make(3, 10, batch_norm=True),
        "a class missing": make(3, without=1),
        "one class": make(2, 12, without=1),
        "one slice": make(2, 1),
    }
    for name, context in situations.items():
        try:
            _answer(defense, context, run)
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
    nothing = ImageList(torch.zeros(0, 1, *SHAPE), [])
    empty = replace(usual, clean=nothing) if isinstance(usual, ModelContext) else replace(usual, samples=nothing)
    assert isinstance(_answer(defense, empty, run), str), "without slices it answers all the same"


def _answer(defense: Defense, context: Any, run: Callable[[Any], Tensor]) -> Tensor | str:
    """A finite answer, or why there is none; what was given is left as it was."""
    network: Classifier = context.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    flags = [(parameter.requires_grad, parameter.grad) for parameter in network.parameters()]
    random = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    answer: Tensor | str
    try:
        answer = run(context)
    except NotApplicable as error:
        answer = str(error)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the network that was given is changed"
    assert not network.training, "the network that was given changes its mode"
    assert flags == [(parameter.requires_grad, parameter.grad) for parameter in network.parameters()], "gradients are left behind"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()), "hooks are left behind"
    assert torch.equal(random[0], torch.get_rng_state()), "torch's random state is changed"
    assert np.array_equal(random[1], np.random.get_state()[1]), "NumPy's random state is changed"  # type: ignore[index]
    if isinstance(answer, str):
        assert answer, "NotApplicable gives no reason"
        return answer
    assert bool(torch.isfinite(answer).all()), f"the answer is not finite: {answer}"
    assert not defense.why_not(context), f"it answers although {defense.why_not(context)}"
    return answer
