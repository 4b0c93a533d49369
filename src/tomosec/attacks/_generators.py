"""What learned image-domain triggers share: the images they learn from, and a small network that reads an image of any size."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomosec.attacks.base import AttackContext
from tomosec.errors import InputError, TomosecError
from tomosec.hounsfield import MU_WATER
from tomosec.pipeline import Pipeline
from tomosec.randomness import generator, torch_seed

#: Samples that are reconstructed at once. Not the context's batch size: rounding, and so what is learned, must not depend on it.
CHUNK = 16


def learning_images(
    context: AttackContext, most: int, purpose: str, *, classes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Reconstructed images (N, 1, H, W) in 1/mm of training samples, and their labels (N,).

    Args:
        context: its training samples; their noise is draw 0.
        most: N is at most this.
        purpose: names the choice of samples.
        classes: class indices to choose from; None for the source classes.

    Raises:
        TomosecError: no network to attack.
        InputError: the classes have no training sample.
    """
    pipeline, positions = clean_pipeline(context), context.positions_of(context.sources if classes is None else classes)
    if not positions:
        raise InputError("these classes have no training sample to learn a trigger from")
    order = generator(context.seed, purpose, "samples").permutation(len(positions))[:most]
    chosen = sorted(positions[i] for i in order)
    images, labels = [], []
    with torch.no_grad():
        for batch in context.samples.batches(chosen, CHUNK):
            images.append(pipeline.imaging.reconstruct(batch.measured))
            labels.append(batch.targets)
    return torch.cat(images), torch.cat(labels)


def clean_pipeline(context: AttackContext) -> Pipeline:
    """The chain with the clean network.

    Raises:
        TomosecError: the attacker has no weights.
    """
    if context.pipeline is None:
        raise TomosecError("this attack needs the weights of a clean network")
    return context.pipeline


def partner_of(pipeline: Pipeline) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of the clean network that learns together with a generator, and its optimizer; the original stays as it is.

    SGD with rate 0.01, momentum 0.9 and weight decay 5e-4 is what the papers train classifiers with. Batch statistics stay
    those of the clean network, so that no image of a batch changes what another one does.
    """
    partner = copy.deepcopy(pipeline.network).eval().requires_grad_(True)
    return partner, torch.optim.SGD(partner.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """One step down the loss; gradients of earlier steps do not count."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()


class ImageToImage(nn.Module):
    """A small U-Net with two levels, for images of any size; its output depends on no other image of the batch.

    Args:
        outputs: channels of its output.
        width: channels at full resolution; twice that below.
        seed_key: names the initial weights.
    """

    def __init__(self, outputs: int, width: int, *seed_key: str | int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed("image-to-image", *seed_key))
            self.first = nn.Conv2d(1, width, 3, padding=1)
            self.down = nn.Conv2d(width, 2 * width, 3, padding=1)
            self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
            self.up = nn.Conv2d(3 * width, width, 3, padding=1)
            self.last = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Output (B, outputs, H, W) of attenuation (B, 1, H, W) in 1/mm."""
        # Water is 0 and air -1, so that no statistics have to be kept.
        fine = F.leaky_relu(self.first(image / MU_WATER - 1), 0.1)
        coarse = F.leaky_relu(self.down(F.avg_pool2d(fine, 2, ceil_mode=True)), 0.1)
        coarse = F.leaky_relu(self.middle(coarse), 0.1)
        coarse = F.interpolate(coarse, size=image.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = self.last(F.leaky_relu(self.up(torch.cat([fine, coarse], 1)), 0.1))
        return out


def load_generator(tensors: dict[str, Tensor], prefix: str) -> ImageToImage:
    """The generator whose weights are stored under ``prefix``, frozen."""
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    network = ImageToImage(len(weights["last.bias"]), len(weights["first.bias"]))
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def stored(network: ImageToImage, prefix: str) -> dict[str, Tensor]:
    """A generator's weights as a trigger's tensors; inverse of :func:`load_generator`."""
    return {f"{prefix}{name}": value.detach().cpu() for name, value in network.state_dict().items()}
