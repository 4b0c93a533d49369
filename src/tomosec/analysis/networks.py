"""Analysis networks: a slice of attenuation in, one logit per class out.

A network component is a value; ``build`` gives a :class:`Classifier`, which holds the body's weights and the input statistics
together and saves both. The built-in ones are in :mod:`tomosec.analysis.architectures`; third-party networks subclass
:class:`Network` and give :meth:`Network.body`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tomosec.component import Component, describe_validation_error, parse_component
from tomosec.errors import InputError
from tomosec.hounsfield import MU_WATER
from tomosec.randomness import torch_seed
from tomosec.tensorfile import UnreadableFileError, read_tensors, write_tensors

#: Version of the files that :func:`save_classifier` writes.
FORMAT = 1
SMALLEST_SIDE = 32


class Network(Component):
    """Base of the network components."""

    family: ClassVar[str] = "network"

    @abstractmethod
    def body(self, *, classes: int, shape: tuple[int, int]) -> nn.Module:
        """Return a module from standardised images (B, 1, H, W) to logits (B, classes), with fresh weights.

        It is called with torch's CPU generator seeded; whatever it draws from there is a function of the experiment's seed.
        """

    def build(self, *, classes: int, shape: tuple[int, int], seed: int) -> Classifier:
        """Return a classifier with the initial weights of ``seed``, on the CPU, in training mode.

        The global random state is left as it was. Weights depend on (seed, kind, fields, torch's initialisers) alone.

        Args:
            classes: how many, at least 2.
            shape: (rows, columns) of the images it will see, each at least 32.
            seed: names the weights.

        Raises:
            InputError: fewer than two classes, or images that are too small.
        """
        kind = getattr(self, "kind", type(self).__name__)
        if classes < 2:
            raise InputError(f"network {kind!r}: at least two classes are needed, got {classes}")
        if min(shape) < SMALLEST_SIDE:
            raise InputError(f"network {kind!r}: {shape[0]} x {shape[1]} pixels are too few; {SMALLEST_SIDE} a side at least")
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would also reseed every GPU, which fork_rng would have to restore.
            torch.default_generator.manual_seed(torch_seed(seed, "weights", kind))
            body = self.body(classes=classes, shape=shape)
        # Channels last is the order that convolutions are fastest in, on CPUs (up to 1.5 times here) and on tensor cores.
        cast(Any, body).to(memory_format=torch.channels_last)
        return Classifier(body, config=self, classes=classes, shape=shape)


class Classifier(nn.Module):
    """A network with what it needs to read attenuation: its input statistics are buffers, saved with the weights.

    Attributes:
        body: the module that the network component made.
        config: that component.
        classes: number of classes.
        shape: (rows, columns) of its images.
        mean, std: of the training images in 1/mm; until :meth:`set_input_statistics` those of a chest image, roughly.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, *, config: Network, classes: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.body, self.config, self.classes, self.shape = body, config, classes, (int(shape[0]), int(shape[1]))
        self.register_buffer("mean", torch.tensor(0.5 * MU_WATER))
        self.register_buffer("std", torch.tensor(0.5 * MU_WATER))

    def set_input_statistics(self, mean: float, std: float) -> None:
        """Set mean and standard deviation of attenuation, 1/mm, over the training images.

        Raises:
            InputError: they are not finite, or the deviation is not positive.
        """
        mean, std = float(mean), float(std)
        if not (abs(mean) < float("inf") and 0 < std < float("inf")):
            raise InputError(f"input statistics must be finite with a positive deviation, got mean {mean:g}, std {std:g} per mm")
        self.mean.fill_(mean)
        self.std.fill_(std)

    @property
    def has_batch_norm(self) -> bool:
        """Whether any layer keeps batch statistics: some defenses need it, and single-slice batches cannot train it."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules())

    @property
    def returns_probabilities(self) -> bool:
        """Whether the outputs have been through a softmax already (a fault of the released LTGM code, on request)."""
        return bool(getattr(self.config, "softmax", False))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, classes) of attenuation (B, 1, H, W) in 1/mm.

        Raises:
            InputError: the shape is not the one it was built for.
        """
        if image.ndim != 4 or tuple(image.shape[1:]) != (1, *self.shape):
            expected = f"(batch, 1, {self.shape[0]}, {self.shape[1]})"
            raise InputError(f"images of shape {tuple(image.shape)}: this network reads {expected}")
        logits: Tensor = self.body((image - self.mean) / self.std)
        return logits

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (B,) and probabilities (B, classes) of attenuation (B, 1, H, W) in 1/mm, in eval mode whatever the mode is."""
        training = self.training
        self.eval()
        try:
            outputs = self(images)
        finally:
            self.train(training)
        probabilities = outputs if self.returns_probabilities else outputs.float().softmax(dim=1)
        return outputs.argmax(dim=1), probabilities

    def representation(self, images: Tensor) -> Tensor:
        """What the last linear layer reads, (B, features): the space that many detectors look for clusters in. Differentiable.

        Raises:
            InputError: the body has no linear layer.
        """
        linear = [module for module in self.body.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise InputError(f"network {getattr(self.config, 'kind', '')!r} has no linear layer to take a representation from")
        seen: list[Tensor] = []
        handle = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self(images)
        finally:
            handle.remove()
        return seen[0]


def save_classifier(path: str | Path, classifier: Classifier, metadata: Mapping[str, Any] | None = None) -> Path:
    """Save weights, input statistics and how to rebuild the network; all or nothing.

    Args:
        path: a ``.safetensors`` file.
        classifier: any mode, any device.
        metadata: plain data to keep with it, such as class names.

    Raises:
        TomosecError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    header = {
        "format": FORMAT,
        "network": classifier.config.model_dump(mode="json"),
        "classes": classifier.classes,
        "shape": list(classifier.shape),
        "metadata": dict(metadata or {}),
    }
    write_tensors(path, classifier.state_dict(), header)
    return path


def load_classifier(path: str | Path, *, device: torch.device | str = "cpu") -> tuple[Classifier, dict[str, Any]]:
    """Load what :func:`save_classifier` wrote: the classifier in eval mode, and the metadata.

    Raises:
        InputError: no such file, a damaged one, not a classifier, of a newer format, or of a network this version cannot build.
    """
    path = Path(path)
    try:
        tensors, header = read_tensors(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such model file") from error
    except UnreadableFileError as error:
        raise InputError(str(error)) from error
    if "network" not in header:
        raise InputError(f"{path}: a file of tomosec, but not a classifier")
    if header.get("format") != FORMAT:
        raise InputError(f"{path}: classifier format {header.get('format')}; this version of tomosec reads format {FORMAT}")
    try:
        config = cast(Network, parse_component("network", header["network"]))
    except ValidationError as error:
        raise InputError(describe_validation_error(error, f"{path}: network")) from error
    classifier = config.build(classes=header["classes"], shape=tuple(header["shape"]), seed=0)
    try:
        classifier.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: the weights do not fit the network {header['network'].get('kind')!r}: {error}") from error
    return classifier.to(device).eval(), header["metadata"]
