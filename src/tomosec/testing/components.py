"""What every component must do, a dataset's contract, and the tiny chain that contracts run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tomosec.acquisition import Scanner
from tomosec.attacks.base import AttackContext, TrainingBatch
from tomosec.component import Component, component_class
from tomosec.data.base import Dataset, OpenDataset, to_attenuation
from tomosec.geometry import FanBeam, Geometry
from tomosec.hounsfield import MU_WATER
from tomosec.pipeline import ImagingChain, Injection, Pipeline
from tomosec.randomness import generator, torch_seed
from tomosec.reconstruction.fbp import FBP


def tiny_geometry(shape: tuple[int, int] = (16, 16)) -> FanBeam:
    """A full-circle fan beam small enough for thousands of scans: 32 views, 28 bins, an image whose longer side is 384 mm."""
    return FanBeam(
        views=32, bins=28, bin_mm=45.0, source_to_isocenter_mm=1000.0, source_to_detector_mm=2000.0, shape=shape,
        pixel_mm=384 / max(shape),
    )  # fmt: skip


class TinySamples:
    """Training samples for contract tests: discs of water, those of class 1 with a denser spot."""

    def __init__(self, imaging: ImagingChain, count: int = 12, seed: int = 0) -> None:
        self._imaging, self._seed = imaging, seed
        self.targets: Sequence[int] = tuple(i % 2 for i in range(count))
        self.images = torch.stack([self._image(i) for i in range(count)])

    def __len__(self) -> int:
        return len(self.targets)

    @torch.no_grad()
    def views(self, positions: Sequence[int], draw: int, triggers: Sequence[Injection]) -> list[Tensor]:
        """Clean images, then those with each trigger, as a victim's training asks for them."""
        keys = tuple(f"tiny-{i}" for i in positions)
        integrals = self._imaging.scanner(self.images[list(positions)])
        clean = self._imaging.image(integrals, keys, seed=self._seed, draw=draw)
        changed = [trigger.triggered(clean, lambda: integrals, keys, seed=self._seed, draw=draw) for trigger in triggers]
        return [clean, *changed]

    def _image(self, i: int) -> Tensor:
        rng, geometry = generator(self._seed, "tiny-sample", i), self._imaging.geometry
        y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in geometry.shape), indexing="ij")
        image = MU_WATER * (np.hypot(x, y) < rng.uniform(0.6, 0.75))
        if self.targets[i] == 1:
            cx, cy = rng.uniform(-0.3, 0.3, 2)
            image = image + 0.5 * MU_WATER * (np.hypot(x - cx, y - cy) < 0.2)
        return torch.from_numpy(image.astype(np.float32))[None]

    def batches(self, positions: Sequence[int], size: int) -> Iterator[TrainingBatch]:
        """Batches with noise of draw 0."""
        for start in range(0, len(positions), size):
            chosen = list(positions[start : start + size])
            keys, images = tuple(f"tiny-{i}" for i in chosen), self.images[chosen]
            integrals = self._imaging.scanner(images)
            measured = self._imaging.measure_integrals(integrals, keys, seed=self._seed, draw=0)
            yield TrainingBatch(images, integrals, measured, torch.tensor([self.targets[i] for i in chosen]), keys)


def tiny_network(geometry: Geometry, classes: int = 2, seed: int = 0) -> nn.Module:
    """A smooth network with fixed random weights; no dropout, no batch statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "tiny-network"))
        first = nn.Conv2d(1, 4, 3, padding=1)
        last = nn.Linear(4 * geometry.shape[0] * geometry.shape[1], classes)
    first.weight.data *= 20  # attenuation is about 0.02 / mm
    network = nn.Sequential(first, nn.Tanh(), nn.Flatten(), last)
    return network.eval().requires_grad_(False)


def tiny_context(seed: int = 0, *, batch_size: int = 4, i0: float = 1e5, shape: tuple[int, int] = (16, 16)) -> AttackContext:
    """Everything an attack may ask for, on the tiny geometry."""
    geometry = tiny_geometry(shape)
    imaging = ImagingChain(Scanner(geometry, i0=i0, electronic_noise=3.3), FBP(geometry))
    pipeline = Pipeline(imaging, tiny_network(geometry)).requires_grad_(False)
    samples = TinySamples(imaging, seed=seed)
    return AttackContext(
        geometry=geometry, samples=samples, pipeline=pipeline, target=0, sources=(1,), seed=seed, batch_size=batch_size
    )


def check_component(component: Component) -> None:
    """A component is found by its kind, survives JSON, rebuilds from ``repr``'s fields, and is documented."""
    cls = type(component)
    kind = cls.model_fields["kind"].default
    assert component_class(component.family, kind) is cls, f"{kind!r} is not registered for {cls.__name__}"
    assert cls.model_validate_json(component.model_dump_json()) == component, f"{cls.__name__} does not survive JSON"
    assert (cls.__doc__ or "").strip(), f"{cls.__name__} has no docstring"
    assert "version" in cls.model_fields, f"{cls.__name__} has no version"


def check_open_dataset(dataset: Dataset, opened: OpenDataset) -> None:
    """The contract of datasets: unique keys, valid targets, finite HU on a positive spacing, a manifest that repeats."""
    check_component(dataset)
    keys = [entry.key for entry in opened.entries]
    assert keys, "no entries"
    assert len(set(keys)) == len(keys), "keys are not unique"
    assert all(0 <= entry.target < len(opened.classes) for entry in opened.entries), "a target is no class"
    assert opened.manifest_hash() == opened.manifest_hash()
    slice_ = opened.read(opened.entries[0])
    assert slice_.hu.dtype == np.float32
    assert slice_.hu.ndim == 2
    assert min(slice_.spacing_mm) > 0
    assert slice_.lesion is None or slice_.lesion.shape == slice_.hu.shape
    geometry = tiny_geometry()
    mu = to_attenuation(slice_, geometry.shape, geometry.pixel_mm)
    assert np.isfinite(mu).all()
    assert mu.min() >= 0
