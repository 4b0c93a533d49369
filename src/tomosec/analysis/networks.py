"""Analysis networks: a slice of attenuation in, one logit per class out.

A network component is a value; ``build`` gives a :class:`Classifier`, which holds the body's weights and the input statistics
together and saves both. Third-party networks subclass :class:`Network` and give :meth:`Network.body`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor, nn

from tomosec.component import Component, describe_validation_error, parse_component
from tomosec.errors import InputError
from tomosec.hounsfield import MU_WATER
from tomosec.randomness import torch_seed
from tomosec.tensorfile import UnreadableFileError, read_tensors, write_tensors

#: Version of the files that :func:`save_classifier` writes.
FORMAT = 1
SMALLEST_SIDE = 32
_POOL = 0


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


class VGG11(Network):
    """VGG configuration A (Simonyan and Zisserman, ICLR 2015) with one channel and the head of the released LTGM code.

    Head: convolution 512 to 128 without padding, then linear 4608, 2048, 1024, classes with ReLU and dropout. On 256 x 256
    images this is the released layout exactly. At other sizes the 512 feature maps are pooled to 8 x 8 first, the size that
    they have there, so the layers and the 21.3 million parameters are the same at every size.
    Without BatchNorm it wants a small learning rate (adamw 1e-4; the released code has sgd 1e-2).

    Attributes:
        batch_norm: normalise after each convolution of the features.
        dropout: in the head.
        softmax: return probabilities, as the released code does before its cross-entropy (double softmax): the loss then
            stays within 0.3133 .. 1.3133 for two classes. For reproduction only.
    """

    kind: Literal["vgg11"] = "vgg11"
    version: Literal[1] = 1
    batch_norm: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    softmax: bool = False

    def body(self, *, classes: int, shape: tuple[int, int]) -> nn.Module:
        """The layers; the initial weights follow the released code (He et al., ICCV 2015, fan-out; linear layers N(0, 0.01²))."""
        layers: list[nn.Module] = []
        channels = 1
        for width in (64, _POOL, 128, _POOL, 256, 256, _POOL, 512, 512, _POOL, 512, 512, _POOL):
            if width == _POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if self.batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            channels = width
        layers += [_PoolTo(8), nn.Conv2d(512, 128, 3), nn.Flatten()]
        for inputs, outputs in ((4608, 2048), (2048, 1024)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(self.dropout)]
        layers.append(nn.Linear(1024, classes))
        if self.softmax:
            layers.append(nn.Softmax(dim=1))
        body = nn.Sequential(*layers)
        for module in body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        return body


class _PoolTo(nn.Module):
    """Average to (side, side); nothing to do where that is the size already."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[-2:] == (self.side, self.side) else F.adaptive_avg_pool2d(x, self.side)


class SmallCNN(Network):
    """A small network of our own for grids around 64 x 64 and for machines without a GPU; 164 thousand parameters.

    Attributes:
        norm: ``batch``, ``group`` (8 groups: no sample depends on its batch) or ``none``.
        dropout: before the last layer.
    """

    kind: Literal["small-cnn"] = "small-cnn"
    version: Literal[1] = 1
    norm: Literal["batch", "group", "none"] = "batch"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def body(self, *, classes: int, shape: tuple[int, int]) -> nn.Module:
        """Four convolutions, each followed by a halving of the grid, global average, one linear layer."""
        layers: list[nn.Module] = []
        channels = 1
        # Half the widths halve the time, but then a victim learns a trigger only at a loss of clean accuracy.
        for width in (24, 48, 96, 128):
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=self.norm == "none"))
            layers += [*self._normalization(width), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(self.dropout), nn.Linear(channels, classes)]
        body = nn.Sequential(*layers)
        for module in body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return body

    def _normalization(self, width: int) -> list[nn.Module]:
        if self.norm == "none":
            return []
        return [nn.BatchNorm2d(width) if self.norm == "batch" else nn.GroupNorm(8, width)]


class ResNet18(Network):
    """ResNet-18 (He et al., CVPR 2016) from MONAI with the published stem, one channel, 11.2 million parameters."""

    kind: Literal["resnet18"] = "resnet18"
    version: Literal[1] = 1

    def body(self, *, classes: int, shape: tuple[int, int]) -> nn.Module:
        """MONAI's network with random weights."""
        from monai.networks.nets import resnet18

        # MONAI's own default is a stem of stride 1, which is four times the work and not the published network.
        stem = {"conv1_t_size": 7, "conv1_t_stride": 2}
        return cast(nn.Module, resnet18(spatial_dims=2, n_input_channels=1, num_classes=classes, **stem))


class DenseNet121(Network):
    """DenseNet-121 (Huang et al., CVPR 2017) as MONAI builds it, one channel, 6.9 million parameters."""

    kind: Literal["densenet121"] = "densenet121"
    version: Literal[1] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def body(self, *, classes: int, shape: tuple[int, int]) -> nn.Module:
        """MONAI's network with random weights."""
        from monai.networks.nets import DenseNet121 as Monai

        return cast(nn.Module, Monai(spatial_dims=2, in_channels=1, out_channels=classes, dropout_prob=self.dropout))


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
