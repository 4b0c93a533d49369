"""RED-CNN: a residual encoder-decoder of convolutions that denoises low-dose FBP images."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tomosec.geometry import Geometry
from tomosec.reconstruction.fbp import FBP
from tomosec.reconstruction.filters import Window
from tomosec.reconstruction.learned import LearnedReconstruction, PostProcessor

_LAYERS = 5  # convolutions, and as many transposed ones
_KERNEL = 5


class RedCNNBody(nn.Module):
    """Five convolutions and five transposed convolutions of 5 x 5 with three shortcuts, the outermost from the input.

    The published network pads nothing, so that the grid loses four pixels at each convolution and wins them back; here zeros
    are padded, because small grids do not have 20 pixels to spare. It returns the correction, to which the caller adds the
    input: the outermost shortcut. The published ReLU after that sum is left out; standardized images are negative too.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = _KERNEL // 2
        ins, outs = [1] + [width] * (_LAYERS - 1), [width] * (_LAYERS - 1) + [1]
        self.encoder = nn.ModuleList(nn.Conv2d(channels, width, _KERNEL, padding=half) for channels in ins)
        self.decoder = nn.ModuleList(nn.ConvTranspose2d(width, channels, _KERNEL, padding=half) for channels in outs)
        for layer in (*self.encoder, *self.decoder):
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        last = self.decoder[-1]
        assert isinstance(last, nn.ConvTranspose2d)
        nn.init.zeros_(last.weight)  # training starts from FBP

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) → the correction, same shape."""
        kept: list[Tensor] = []
        for number, layer in enumerate(self.encoder):
            x = F.relu(layer(x))
            if number in (1, 3):  # the outputs of layers 2 and 4, as in the paper's figure 1
                kept.append(x)
        for number, layer in enumerate(self.decoder):
            x = layer(x)
            if number in (0, 2):
                x = x + kept.pop()
            if number < _LAYERS - 1:
                x = F.relu(x)
        return x


class RedCNN(LearnedReconstruction):
    """Residual encoder-decoder that corrects FBP. Learned. Not linear; its gradient costs what the image does.

    Trained on scans with known ground truth. An image costs one FBP and the network, its gradient the transposed FBP and as many
    operations of the network.

    Attributes:
        window: of the FBP.
        width: channels of every layer. The paper has 96.
    """

    source: ClassVar[str] = "Chen et al., IEEE Trans. Med. Imaging 36:2524, 2017"
    kind: Literal["red-cnn"] = "red-cnn"
    version: Literal[1] = 1
    window: Window = "ram-lak"
    width: Annotated[int, Field(ge=4, le=256)] = 16
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 12

    def network(self, geometry: Geometry) -> PostProcessor:
        """FBP and the encoder-decoder."""
        return PostProcessor(geometry, FBP(geometry, window=self.window), RedCNNBody(self.width))
