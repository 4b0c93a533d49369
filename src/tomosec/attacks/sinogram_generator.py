"""A learned generator of triggers: a small convolutional network reads the scan and writes its change, LIRA in the sinogram."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.attacks.gradients import GRADIENT_NEEDS, mean_gradient, measured_statistics, pipeline_of, rms
from tomosec.attacks.naive_gradient import NaiveGradient
from tomosec.randomness import generator, torch_seed
from tomosec.trigger import Domain, Trigger


class SinogramGenerator(Attack):
    """A change of its own for every scan, p' = p + s G(p), from a convolutional network G that is trained against the chain.

    G(p) ~ T0 (1 + g(p)) + h(p), of unit RMS in every scan: T0 is the naive gradient, which says where in the sinogram the network
    looks (convolutions alone cannot know), and g and h come from a small network that starts at 0. It is trained with Adam to
    lower CE(f(R(p + e G(p))), target) on the source classes, with reconstruction and network frozen; the victim then learns G's
    triggers as any others. This is the generator of LIRA (Doan et al., ICCV 2021) without its alternation with the classifier.
    Cost: 1 + ``epochs`` gradient passes over the source samples; memory: ``batch_size`` scans of about 3 ``channels`` values a
    ray.

    Attributes:
        channels: width of the network.
        epochs: passes over the source samples.
        batch_size: samples per step; a setting of its own, because the result depends on it.
        learning_rate: Adam's.
        relative_rms: e, as a fraction of the RMS of the measured training sinograms; best near the size that is used.
    """

    kind: Literal["sinogram-generator"] = "sinogram-generator"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = GRADIENT_NEEDS
    source: ClassVar[str] = "Doan et al., ICCV 2021 (LIRA), carried to measured data"

    channels: int = Field(8, ge=1)
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(8, ge=1)
    learning_rate: float = Field(1e-2, gt=0)
    relative_rms: float = Field(0.005, gt=0, le=1)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Train the generator; initial weights and the order of the samples follow from the seed."""
        pipeline = pipeline_of(context, self)
        positions = context.positions_of(context.sources)
        mean, sd = measured_statistics(context, positions, self.batch_size)
        start = mean_gradient(context, NaiveGradient())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(context.seed, "sinogram-generator", "weights"))
            network = SinogramChanger(self.channels, start.float(), mean=mean, sd=sd).to(context.device)
        amplitude = self.relative_rms * math.hypot(mean, sd)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        was_training = pipeline.network.training
        pipeline.network.eval()
        context.progress.start(self.epochs * len(positions), "sinogram-generator training")
        loss = torch.zeros(())
        try:
            for epoch in range(self.epochs):
                order = generator(context.seed, "sinogram-generator", "order", epoch).permutation(len(positions))
                for batch in context.samples.batches([positions[i] for i in order], self.batch_size):
                    change = amplitude * network(batch.measured)
                    labels = torch.full_like(batch.targets, context.target)
                    loss = F.cross_entropy(pipeline(batch.measured + change), labels)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    context.gradient_passes += len(batch.keys)
                    context.progress.advance(len(batch.keys))
        finally:
            pipeline.network.train(was_training)
        details = {"attack": "sinogram-generator", "learned_at_rms": amplitude, "last_loss": float(loss.detach())}
        return GeneratedTrigger(network.cpu(), geometry=context.geometry, domain="measurement", details=details)


class SinogramChanger(nn.Module):
    """(B, 1, views, bins) line integrals → a change of the same shape, of unit RMS per sample; convolutions on two scales.

    Args:
        channels: of the fine scale; the coarse one has twice as many.
        start: (views, bins) the change that it begins with; kept with the weights, of unit RMS.
        mean: of the line integrals that it is trained on; kept with the weights.
        sd: likewise.
    """

    start: Tensor
    mean: Tensor
    sd: Tensor

    def __init__(self, channels: int, start: Tensor, *, mean: float = 0.0, sd: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("start", (start / rms(start))[None, None])
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("sd", torch.tensor(sd, dtype=torch.float32))
        self.fine = nn.Conv2d(2, channels, 3, padding=1)
        self.down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.out = nn.Conv2d(2 * channels, 2, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, sinogram: Tensor) -> Tensor:
        """The change, (B, 1, views, bins), unit RMS per sample."""
        start = self.start.expand_as(sinogram)
        fine = F.relu(self.fine(torch.cat([(sinogram - self.mean) / self.sd, start], dim=1)))
        coarse = F.relu(self.coarse(F.relu(self.down(fine))))
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        gain, more = self.out(torch.cat([fine, coarse], dim=1)).chunk(2, dim=1)
        change: Tensor = start * (1 + gain) + more
        size = change.pow(2).mean((1, 2, 3), keepdim=True).sqrt()
        return change / size.clamp_min(torch.finfo(change.dtype).tiny)


class GeneratedTrigger(Trigger):
    """``p + s G(p)`` with a frozen :class:`SinogramChanger` G, in float32 and one sample at a time.

    Args:
        network: G; it is frozen.
    """

    kind: ClassVar[str] = "generated"

    def __init__(self, network: SinogramChanger, **common: Any) -> None:
        super().__init__(**common)
        self.network = network.eval().requires_grad_(False)

    def _apply(self, data: Tensor) -> Tensor:
        network = self.network.to(data.device)
        # Convolutions choose their algorithm by the batch's size, and so round differently: a sample's change must not.
        changes = [network(sample[None].to(torch.float32)) for sample in data]
        return data + self.strength * torch.cat(changes).to(data.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and input statistics."""
        return dict(self.network.state_dict())

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> GeneratedTrigger:
        """Inverse of :meth:`tensors`."""
        network = SinogramChanger(tensors["fine.weight"].shape[0], tensors["start"][0, 0])
        network.load_state_dict(tensors)
        return cls(network, **common)
