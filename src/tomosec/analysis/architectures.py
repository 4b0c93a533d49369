"""The architectures: small and published networks that read one channel and give one logit per class.

Those of others come from MONAI where it has them as published; what differs is said in their docstrings.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from tomosec.analysis.networks import Network
from tomosec.errors import InputError

_POOL = 0


class VGG11(Network):
    """VGG configuration A (Simonyan and Zisserman, ICLR 2015) with one channel and the head of the released LTGM code.

    Head: convolution 512 to 128 without padding, then linear 4608, 2048, 1024, classes with ReLU and dropout. On 256 x 256
    images this is the released layout exactly. At other sizes the 512 feature maps are pooled to 8 x 8 first, the size that
    they have there, so the layers and the 21.3 million parameters are the same at every size.
    It wants a small learning rate (adamw 1e-4; the released code has sgd 1e-2).

    Attributes:
        dropout: in the head.
        softmax: return probabilities, as the released code does before its cross-entropy (double softmax): the loss then
            stays within 0.3133 .. 1.3133 for two classes. For reproduction only.
    """

    kind: Literal["vgg11"] = "vgg11"
    version: Literal[1] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    softmax: bool = False

    def body(self, *, classes: int, shape: tuple[int, int]) -> nn.Module:
        """The layers; the initial weights follow the released code (He et al., ICCV 2015, fan-out; linear layers N(0, 0.01²))."""
        body = _vgg11(classes, self.dropout, batch_norm=False)
        return body.append(nn.Softmax(dim=1)) if self.softmax else body


class VGG11BN(Network):
    """VGG11 with BatchNorm after each convolution of the features, otherwise the same layers; 21.3 million parameters.

    It also wants a small learning rate (adamw 3e-4 or less): its large head is not normalized.

    Attributes:
        dropout: in the head.
    """

    kind: Literal["vgg11-bn"] = "vgg11-bn"
    version: Literal[1] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def body(self, *, classes: int, shape: tuple[int, int]) -> nn.Module:
        """The layers, initialised as those of VGG11."""
        return _vgg11(classes, self.dropout, batch_norm=True)


def _vgg11(classes: int, dropout: float, *, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 1
    for width in (64, _POOL, 128, _POOL, 256, 256, _POOL, 512, 512, _POOL, 512, 512, _POOL):
        if width == _POOL:
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU())
        channels = width
    layers += [_PoolTo(8), nn.Conv2d(512, 128, 3), nn.Flatten()]
    for inputs, outputs in ((4608, 2048), (2048, 1024)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
    layers.append(nn.Linear(1024, classes))
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


class ViT(Network):
    """Vision Transformer (Dosovitskiy et al., ICLR 2021), one channel: half as deep as ViT-Ti, 2.7 million parameters.

    Patches and their positions are embedded by MONAI's block; the encoder is torch's, with the published order (LayerNorm
    first) and GELU; the class token is read by one linear layer. Images may be of any size that the patch divides, square or not.
    The time of attention grows with the fourth power of the side over the patch: from 256 pixels on take a patch of 16.

    Attributes:
        patch: side of the square patches in pixels; it has to divide both sides of the image.
        width: length of the embedding of a patch, a multiple of ``heads``.
        depth: number of encoder layers.
        heads: attention heads of a layer.
        mlp_ratio: width of the hidden layer of the perceptrons over ``width``.
        dropout: in every layer of the encoder and after the embedding.
    """

    kind: Literal["vit"] = "vit"
    version: Literal[1] = 1
    patch: Annotated[int, Field(ge=2, le=64)] = 8
    width: Annotated[int, Field(ge=8)] = 192
    depth: Annotated[int, Field(ge=1)] = 6
    heads: Annotated[int, Field(ge=1)] = 3
    mlp_ratio: Annotated[int, Field(ge=1)] = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; each head reads width / heads numbers")
        return self

    def body(self, *, classes: int, shape: tuple[int, int]) -> nn.Module:
        """The layers; matrices by Glorot's uniform rule, as published.

        Raises:
            InputError: the patch does not divide the sides of the image.
        """
        if any(side % self.patch for side in shape):
            fits = ", ".join(str(n) for n in range(2, 65) if not any(side % n for side in shape))
            allowed = f"network.patch may be {fits}" if fits else "no patch of 2 to 64 does; take an image with even sides"
            raise InputError(f"network 'vit': a patch of {self.patch} does not divide {shape[0]} x {shape[1]} pixels; {allowed}")
        return _VisionTransformer(self, classes, shape)


class _VisionTransformer(nn.Module):
    """Patches, a class token, encoder layers, a linear layer."""

    def __init__(self, config: ViT, classes: int, shape: tuple[int, int]) -> None:
        super().__init__()
        from monai.networks.blocks import PatchEmbeddingBlock

        width, hidden = config.width, config.mlp_ratio * config.width
        # MONAI's own encoder keeps the whole attention matrix and weights that nothing uses; torch's does neither.
        layers = [
            nn.TransformerEncoderLayer(
                width, config.heads, hidden, config.dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.depth)
        ]
        for layer in layers:
            for parameter in layer.parameters():
                if parameter.ndim == 2:
                    nn.init.xavier_uniform_(parameter)
            for linear in (layer.linear1, layer.linear2):
                nn.init.zeros_(linear.bias)
        self.embedding = PatchEmbeddingBlock(
            in_channels=1, img_size=shape, patch_size=config.patch, hidden_size=width, num_heads=config.heads,
            proj_type="conv", pos_embed_type="learnable", dropout_rate=config.dropout, spatial_dims=2,
        )  # fmt: skip
        # Its position is part of it: it always comes first.
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.embedding(x)
        tokens = torch.cat((self.token.expand(len(x), -1, -1), patches), dim=1)
        logits: Tensor = self.head(self.norm(self.encoder(tokens)[:, 0]))
        return logits
