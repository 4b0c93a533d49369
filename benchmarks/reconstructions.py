"""Every reconstruction at its defaults: error on slices of the chest phantom, time of an image and of its gradient, and memory.

    python benchmarks/reconstructions.py [--doses standard low] [--slices 16] [--learned] [--threads 1]

Scan and phantom are the demo's; the acquisition is ``simulated``. The error is the RMSE in HU inside the scan circle, over all
slices, one of each patient; learned reconstructions (--learned) are trained at each dose with their own defaults on 48 other
patients. The scans come from the projector that the iterative ones invert, which flatters them.

Times are the least of five, one slice, after a first call; "kept" is what autograd holds for the gradient of one slice, without
tables and weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from tomosec.acquisition import Scanner, SimulatedAcquisition
from tomosec.component import components
from tomosec.data.base import to_attenuation
from tomosec.data.synthetic import ChestPhantom
from tomosec.experiment import load_recipe
from tomosec.geometry import Geometry
from tomosec.hounsfield import HU_PER_MU
from tomosec.reconstruction.base import FitContext, Reconstructor
from tomosec.reconstruction.fbp import FBP

TRAINING = 48


class Scans:
    """Scans of some patients' slices, for training and for the error."""

    def __init__(self, images: Tensor, scanner: Scanner, name: str) -> None:
        self.images, self.scanner, self.name = images, scanner, name

    def __len__(self) -> int:
        return len(self.images)

    def pair(self, positions: Sequence[int], draw: int) -> tuple[Tensor, Tensor]:
        """Measured line integrals and truth."""
        truth = self.images[list(positions)]
        keys = [f"{self.name} {position}" for position in positions]
        return self.scanner.measure(self.scanner(truth), keys, seed=0, draw=draw), truth


def phantom(geometry: Geometry, patients: int) -> Tensor:
    """One slice of each patient on the grid, (patients, 1, H, W) in 1/mm."""
    opened = ChestPhantom(patients=patients, slices_per_patient=1).open()
    slices = [to_attenuation(opened.read(entry), geometry.shape, geometry.pixel_mm) for entry in opened.entries]
    return torch.stack([torch.from_numpy(image).float() for image in slices])[:, None]


def cost(runtime: Reconstructor, sinogram: Tensor) -> tuple[float, float, float]:
    """Milliseconds of an image and of its gradient, and MiB that are kept for the latter."""
    tables = {tensor.untyped_storage().data_ptr() for tensor in (*runtime.buffers(), *runtime.parameters())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        runtime(sinogram.clone().requires_grad_(True))
    held = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in tables)
    images, gradients = [], []
    for _ in range(5):
        q = sinogram.clone().requires_grad_(True)
        start = time.perf_counter()
        image = runtime(q)
        middle = time.perf_counter()
        torch.autograd.grad(image.square().sum(), q)
        images.append(middle - start)
        gradients.append(time.perf_counter() - middle)
    return 1e3 * min(images), 1e3 * min(gradients), held / 2**20


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doses", nargs="+", default=["standard", "low"])
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--learned", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    geometry = load_recipe("demo").experiments()[0].geometry
    assert isinstance(geometry, Geometry)
    images, circle = phantom(geometry, TRAINING + options.slices), torch.from_numpy(geometry.scan_circle())
    scanners = {}
    for dose in options.doses:
        acquisition = SimulatedAcquisition(dose=dose)
        scanners[dose] = acquisition.build(acquisition.fit(geometry, FBP(geometry)), geometry)
    print(f"| kind | {' | '.join(f'{dose}, HU' for dose in scanners)} | image, ms | gradient, ms | kept, MiB |")
    print(f"|---|{'---|' * len(scanners)}---|---|---|")
    for kind, cls in components("reconstruction").items():
        reconstruction = cls()
        if reconstruction.is_learned and not options.learned:
            continue
        errors = []
        for scanner in scanners.values():
            training, held_out = (
                Scans(part, scanner, name) for part, name in ((images[:TRAINING], "training"), (images[TRAINING:], "test"))
            )
            state = reconstruction.fit(FitContext(geometry, training)).state if reconstruction.is_learned else None
            runtime = reconstruction.build(geometry, state=state)
            measured, truth = held_out.pair(range(len(held_out)), 0)
            with torch.no_grad():
                wrong = (runtime(measured) - truth)[:, 0, circle]
            errors.append(f"{float(wrong.square().mean().sqrt()) * HU_PER_MU:.1f}")
        spent = " | ".join(f"{value:.3g}" for value in cost(runtime, measured[:1]))
        print(f"| `{kind}` | {' | '.join(errors)} | {spent} |", flush=True)


if __name__ == "__main__":
    main()
