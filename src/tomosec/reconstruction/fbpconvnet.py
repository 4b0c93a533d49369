"""FBPConvNet: a U-Net that removes what FBP leaves of noise and streaks."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, cast

from pydantic import Field
from torch import nn

from tomosec.errors import InputError
from tomosec.geometry import Geometry
from tomosec.reconstruction.fbp import FBP
from tomosec.reconstruction.filters import Window
from tomosec.reconstruction.learned import LearnedReconstruction, PostProcessor

_DEPTH = 4  # halvings of the grid


class FBPConvNet(LearnedReconstruction):
    """U-Net that corrects FBP, MONAI's BasicUNet. Learned. Not linear; its gradient costs what the image does.

    Four halvings of the grid and batch normalization as published, far fewer channels. Trained on scans with known ground
    truth. An image costs one FBP and the network, its gradient the transposed FBP and as many operations of the network.

    Attributes:
        window: of the FBP.
        width: channels at full resolution; they double with each halving after the first. The paper has 64.
    """

    source: ClassVar[str] = "Jin et al., IEEE Trans. Image Process. 26:4509, 2017"
    kind: Literal["fbpconvnet"] = "fbpconvnet"
    version: Literal[1] = 1
    window: Window = "ram-lak"
    width: Annotated[int, Field(ge=4, le=128)] = 16

    def network(self, geometry: Geometry) -> PostProcessor:
        """FBP and the U-Net.

        Raises:
            InputError: an image of fewer than 16 pixels a side, which cannot be halved four times.
        """
        if min(geometry.shape) < 2**_DEPTH:
            raise InputError(
                f"reconstruction fbpconvnet: {geometry.shape[0]} x {geometry.shape[1]} pixels are too few; {2**_DEPTH} a side at "
                "least"
            )
        from monai.networks.nets import BasicUNet

        wide = (self.width, self.width, 2 * self.width, 4 * self.width, 8 * self.width, self.width)
        body = BasicUNet(
            spatial_dims=2, in_channels=1, out_channels=1, features=wide, act=("relu", {"inplace": True}), norm="batch"
        )
        nn.init.zeros_(body.final_conv.weight)  # training starts from FBP
        nn.init.zeros_(body.final_conv.bias)
        return PostProcessor(geometry, FBP(geometry, window=self.window), cast(nn.Module, body))
