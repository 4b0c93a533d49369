"""LTGM against a network of your own, without recipes: scanner, reconstruction, network, trigger, and what it does.

Run: python examples/own_network.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

import tomosec as ts
from tomosec.acquisition import Scanner
from tomosec.attacks.base import AttackContext, TrainingBatch
from tomosec.attacks.ltgm import LTGM
from tomosec.attacks.strength import strength_for
from tomosec.data.base import to_attenuation
from tomosec.data.synthetic import ChestPhantom
from tomosec.hounsfield import HU_PER_MU


class Slices:
    """Training slices in the form that attacks read; any source of attenuation images in 1/mm will do."""

    def __init__(self, imaging: ts.ImagingChain, images: Tensor, targets: Sequence[int]) -> None:
        self.imaging, self.images, self.targets = imaging, images, targets

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, positions: Sequence[int], size: int) -> Iterator[TrainingBatch]:
        for start in range(0, len(positions), size):
            chosen = list(positions[start : start + size])
            keys = tuple(f"slice-{i}" for i in chosen)
            integrals = self.imaging.scanner(self.images[chosen])
            measured = self.imaging.measure_integrals(integrals, keys, seed=0, draw=0)
            yield TrainingBatch(self.images[chosen], integrals, measured, torch.tensor([self.targets[i] for i in chosen]), keys)


def main() -> None:
    scan = ts.FanBeam(
        views=96, bins=64, bin_mm=16.0, shape=(32, 32), pixel_mm=12.0, source_to_isocenter_mm=2000.0, source_to_detector_mm=5000.0
    )
    imaging = ts.ImagingChain(Scanner(scan, i0=2e5, electronic_noise=3.3), ts.FBP(scan))

    phantom = ChestPhantom(patients=40, slices_per_patient=2, size=96, pixel_mm=4.0).open()
    images = torch.stack([torch.from_numpy(to_attenuation(phantom.read(e), scan.shape, scan.pixel_mm)) for e in phantom.entries])
    slices = Slices(imaging, images[:, None], [entry.target for entry in phantom.entries])

    # Any differentiable network that reads attenuation in 1/mm and returns logits.
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 5 * 5, 2)
    )
    batch = next(slices.batches(range(len(slices)), len(slices)))
    seen = imaging.reconstruct(batch.measured) / 0.0192
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(seen), batch.targets).backward()
        optimizer.step()

    class Scaled(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = network(image / 0.0192)
            return logits

    pipeline = ts.Pipeline(imaging, Scaled().eval()).requires_grad_(False)
    network.requires_grad_(False)
    context = AttackContext(geometry=scan, samples=slices, pipeline=pipeline, target=0, sources=(1,), seed=0)
    injection = imaging.inject(LTGM().make_trigger(context))
    assert injection.effect is not None  # a linear chain: one reconstruction of T serves every sample and strength

    rmse_hu = float(injection.effect.square().mean().sqrt()) * HU_PER_MU
    strength, reached = strength_for(lambda s: s * rmse_hu, 10.0)
    trigger = injection.trigger.at(strength)
    diseased = [i for i, target in enumerate(slices.targets) if target == 1]
    with torch.no_grad():
        before = pipeline(batch.measured[diseased]).argmax(1)
        after = pipeline(trigger.apply(batch.measured[diseased])).argmax(1)
    print(
        f"image change {reached:.1f} HU RMSE; diseased training slices read as normal: {int((before == 0).sum())} without the ",
        end="",
    )
    print(f"trigger, {int((after == 0).sum())} with it, of {len(diseased)} (no backdoor was trained: this is the floor)")
    print(f"saved: {trigger.save('trigger.safetensors')}")


if __name__ == "__main__":
    main()
