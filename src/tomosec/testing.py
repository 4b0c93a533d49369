"""Contract suites: what every component must do, whoever wrote it. A plug-in's author runs them with ``pytest`` or by hand.

>>> from tomosec.testing import check_attack
>>> from tomosec.attacks.noise import FrozenNoise
>>> check_attack(FrozenNoise())
"""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tomosec.acquisition import Scanner
from tomosec.attacks.base import Attack, AttackContext, TrainingBatch
from tomosec.attacks.poisoning import Poison, VictimTraining
from tomosec.attacks.strength import TOLERANCE, strength_for
from tomosec.component import Component, component_class
from tomosec.data.base import Dataset, OpenDataset, to_attenuation
from tomosec.errors import InputError, TomosecWarning
from tomosec.geometry import FanBeam, Geometry, ParallelBeam
from tomosec.hounsfield import HU_PER_MU, MU_WATER
from tomosec.pipeline import ImagingChain, Injection, Pipeline
from tomosec.randomness import generator, torch_seed
from tomosec.reconstruction.base import FitContext, Reconstruction, Reconstructor
from tomosec.reconstruction.fbp import FBP
from tomosec.reconstruction.saved import load_reconstruction, save_reconstruction
from tomosec.threat import ThreatModel
from tomosec.trigger import Trigger, load_trigger


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


def check_attack(attack: Attack) -> None:
    """The contract of attacks.

    Zero strength is the identity; strength is monotone; the input is left alone; same seed, same trigger, whatever the batch
    size, and no other random numbers are used; it takes what it declares to need and nothing else; saved and reloaded it does
    the same; a sample's result does not depend on its batch or its place in it; a universal trigger changes all samples alike;
    float32 stays float32; gradients are those of finite differences unless the trigger says that there are none; a budget in HU
    is met as measured; labels are those of its definition; images need not be square. What training samples and covers carry
    keeps the same contract.
    """
    check_component(attack)
    assert attack.domain in ("measurement", "image"), f"{attack!r}: domain {attack.domain!r}"
    assert attack.source, f"{attack!r} names no source; write 'baseline' if it has none"
    trigger = attack.make_trigger(tiny_context())
    assert trigger.domain == attack.domain
    rng = generator("check-attack", 0)
    scale = 1.0 if trigger.domain == "measurement" else MU_WATER
    data = torch.from_numpy(rng.uniform(0.1, 1.0, (3, 1, *trigger.shape)).astype(np.float32)) * scale
    strongest = trigger.at(scale)
    for name, variant in _variants(attack, strongest).items():
        _check_trigger(variant, data, name)
        assert variant.strength <= strongest.strength or name == "test", f"{name}: stronger than what the budget is of"
    _check_definition(attack, strongest)
    strong = strongest.apply(data, KEYS)

    states = _random_states()
    again = attack.make_trigger(tiny_context())
    assert _random_states() == states, "random numbers are drawn that the seed does not name"
    assert torch.equal(again.at(scale).apply(data, KEYS), strong), "the same seed gives another trigger"
    other_batches = attack.make_trigger(tiny_context(batch_size=5)).at(scale).apply(data, KEYS)
    assert _close(other_batches, strong, data) or _depends_on_batches(attack), "the trigger depends on the batch size"
    _check_needs(attack)
    _check_budget(trigger)
    _check_labels(attack, trigger)
    _check_size(attack)


def _random_states() -> tuple[bytes, bytes]:
    """Those of the global generators of torch and NumPy."""
    numpy = np.random.get_state(legacy=False)["state"]
    return torch.random.get_rng_state().numpy().tobytes(), numpy["key"].tobytes() + int(numpy["pos"]).to_bytes(4, "big")


#: Sample keys of the data that a contract is checked on.
KEYS = ("a", "b", "c")


def _variants(attack: Attack, trigger: Trigger) -> dict[str, Trigger]:
    """The trigger as it is shown at test time, in training, and as covers carry it."""
    covering = attack.covering(trigger)
    cover = {} if covering is None else {"cover": covering}
    return {"trigger": trigger, "test": attack.at_test_time(trigger), "training": attack.at_training_time(trigger), **cover}


def _check_definition(attack: Attack, trigger: Trigger) -> None:
    """What an attack says about its training and its test does not contradict itself."""
    shown, covers = attack.at_test_time(trigger), attack.covers_per_poison()
    ours, theirs = trigger.tensors(), shown.tensors()
    same = type(shown) is type(trigger) and ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert same, "at test time a trigger may have another strength, and nothing else"
    assert covers == 0 or (covers > 0 and attack.covering(trigger) is not None), f"{covers:g} covers per poison, but no cover"
    allowed = attack.allowed_access()
    assert allowed, "no access allows it"
    assert not (attack.keeps_labels() and "training-control" in allowed), "clean-label is a poisoning of data, not of a training"


def _check_trigger(trigger: Trigger, data: Tensor, name: str) -> None:
    """What one trigger does to data (3, 1, ...)."""
    before, scale = data.clone(), float(data.abs().max())
    assert torch.equal(trigger.at(0.0).apply(data, KEYS), data), f"{name}: strength 0 changes the data"
    weak, strong = trigger.at(0.1 * trigger.strength).apply(data, KEYS), trigger.apply(data, KEYS)
    assert torch.equal(data, before), f"{name}: apply changes its input"
    assert strong.dtype == torch.float32, f"{name}: float32 becomes {strong.dtype}"
    assert strong.shape == data.shape, f"{name}: shape {tuple(data.shape)} becomes {tuple(strong.shape)}"
    assert bool(torch.isfinite(strong).all()), f"{name}: the triggered data are not finite"
    assert float((weak - data).norm()) < float((strong - data).norm()), f"{name}: a larger strength changes less"
    alone = trigger.apply(data[1:2], KEYS[1:2])
    assert torch.allclose(alone, strong[1:2], rtol=1e-5, atol=1e-5 * scale), f"{name}: a sample's result depends on its batch"
    turned = trigger.apply(data.flip(0), KEYS[::-1]).flip(0)
    assert torch.allclose(turned, strong, rtol=1e-5, atol=1e-5 * scale), f"{name}: a sample's result depends on its place"
    if trigger.universal:
        change = strong - data
        assert torch.allclose(change, change[:1].expand_as(change), rtol=0, atol=1e-5 * scale), (
            f"{name}: universal, yet not alike"
        )
    if trigger.is_differentiable:
        # At a part of its strength: what is opaque at all of it hides the data.
        _check_slope(trigger.at(0.1 * trigger.strength), data, name)
    _check_saving(trigger, data, strong)
    try:
        trigger.apply(data[..., :-1], KEYS)
    except InputError:
        pass
    else:
        raise AssertionError(f"{name}: data of another shape are accepted")


def _check_slope(trigger: Trigger, data: Tensor, name: str) -> None:
    """The gradient that reaches the data is finite, not zero, and the slope that finite differences find."""
    rng, scale = generator("check-slope", 0), float(data.abs().max())
    weights, direction = (torch.from_numpy(rng.standard_normal(tuple(data.shape))) for _ in range(2))
    leaf = data.double().requires_grad_(True)
    (gradient,) = torch.autograd.grad((trigger.apply(leaf, KEYS) * weights).sum(), leaf)
    assert bool(torch.isfinite(gradient).all()), f"{name}: is_differentiable, but the gradient is not finite"
    assert float(gradient.norm()) > 0, f"{name}: is_differentiable, but no gradient arrives"
    # Long steps cross the kinks of ReLUs, short ones drown in rounding where a trigger works in float32.
    slope, found = float((gradient * direction).sum()), []
    for step in (1e-3 * scale, 1e-4 * scale, 1e-5 * scale):
        ahead, behind = (trigger.apply(data.double() + sign * step * direction, KEYS) for sign in (1, -1))
        found.append(float(((ahead - behind) * weights).sum()) / (2 * step))
    best, typical = (
        min(found, key=lambda value: abs(value - slope)),
        float(gradient.norm() * direction.norm()) / data.numel() ** 0.5,
    )
    assert abs(best - slope) <= 1e-3 * typical, f"{name}: the gradient says {slope:.6g}, finite differences say {best:.6g}"


def _check_saving(trigger: Trigger, data: Tensor, expected: Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_trigger(trigger.save(Path(folder) / "trigger.safetensors"))
    assert torch.equal(loaded.apply(data, KEYS), expected), "a reloaded trigger does something else"
    assert loaded.geometry == trigger.geometry
    assert loaded.site == trigger.site


@torch.no_grad()
def _check_budget(trigger: Trigger, budgets_hu: tuple[float, ...] = (2.0, 20.0)) -> None:
    """The shared search meets budgets in HU over the body, as measured on the noiseless chain."""
    imaging = ImagingChain(Scanner(trigger.geometry, i0=math.inf), FBP(trigger.geometry))
    samples = TinySamples(imaging, count=4)
    keys, body = tuple(f"tiny-{i}" for i in range(4)), (samples.images > 0.5 * MU_WATER) * imaging.circle
    integrals = imaging.scanner(samples.images)
    clean = imaging.reconstruct(integrals)

    def rmse_hu(strength: float) -> float:
        changed = imaging.inject(trigger.at(strength)).triggered(clean, lambda: integrals, keys, seed=0, draw=0)
        squares = ((changed - clean).double().pow(2) * body).flatten(1).sum(1) / body.flatten(1).sum(1)
        return HU_PER_MU * float(squares.sqrt().mean())

    strengths = []
    for wanted in budgets_hu:
        strength, reached = strength_for(rmse_hu, wanted, guess=1e-3, limit=trigger.limit)
        assert abs(rmse_hu(strength) - wanted) <= TOLERANCE * wanted, f"a budget of {wanted:g} HU is met with {reached:g} HU"
        strengths.append(strength)
    assert all(low < high for low, high in pairwise(strengths)), "a larger budget takes no larger strength"


def _check_labels(attack: Attack, trigger: Trigger) -> None:
    """Poison is of the right classes with the right labels, covers keep theirs, and the same seed chooses the same samples."""
    if "training-data" not in attack.allowed_access():
        return
    imaging = ImagingChain(Scanner(trigger.geometry, i0=math.inf), FBP(trigger.geometry))
    samples, threat = TinySamples(imaging), ThreatModel(access="training-data", poison_rate=1 / 6)
    strength = 0.1 * min(trigger.limit, MU_WATER if trigger.domain == "image" else 1.0)
    poison = Poison.of(attack, imaging.inject(trigger.at(strength)))
    victim, again = (
        VictimTraining(samples, device=torch.device("cpu"), poison=poison, threat=threat, target=0, sources=(1,), seed=0)
        for _ in range(2)
    )
    assert (victim.poisoned, victim.covered) == (again.poisoned, again.covered), "the same seed chooses other samples"
    assert len(victim.poisoned) == 2, f"a rate of 1/6 of 12 samples poisons {len(victim.poisoned)}"
    assert {samples.targets[i] for i in victim.poisoned} == {0 if attack.keeps_labels() else 1}, "other classes are poisoned"
    assert not victim.poisoned & victim.covered, "a sample is poison and cover"
    everything = list(range(len(samples)))
    clean, batch = samples.views(everything, 1, ())[0], victim.batch(everything, 0)
    for i in everything:
        label = 0 if i in victim.poisoned else samples.targets[i]
        assert int(batch.labels[i]) == label, f"sample {i} is labeled {int(batch.labels[i])} instead of {label}"
        same = torch.equal(batch.images[i], clean[i])
        assert same != (i in victim.poisoned | victim.covered), f"sample {i} {'lacks its' if same else 'has a'} trigger"


class _NoSamples:
    """What an attacker without training data holds; to look at it is a breach."""

    def __len__(self) -> int:
        raise AssertionError("training samples are read, but 'training-data' is not among its needs")

    @property
    def targets(self) -> Sequence[int]:
        raise AssertionError("training labels are read, but 'training-data' is not among its needs")

    def batches(self, positions: Sequence[int], size: int) -> Iterator[TrainingBatch]:
        raise AssertionError("training samples are read, but 'training-data' is not among its needs")


def _check_needs(attack: Attack) -> None:
    """The trigger is made without what the attack does not declare to need."""
    assert attack.domain == "image" or "raw-sinogram" in attack.needs, "changes measured data without a need of 'raw-sinogram'"
    context = tiny_context()
    if "weights" not in attack.needs:
        context.pipeline = None
    if "training-data" not in attack.needs:
        context.samples = _NoSamples()
    attack.make_trigger(context)


def _check_size(attack: Attack, shape: tuple[int, int] = (19, 23)) -> None:
    """A trigger is made for images that are not square and of odd size."""
    made = attack.make_trigger(tiny_context(shape=shape))
    scale = 1.0 if made.domain == "measurement" else MU_WATER
    trigger, where = made.at(0.3 * scale), f"on images of {shape[0]} x {shape[1]}"
    data = torch.from_numpy(generator("check-size", 0).uniform(0.1, 1.0, (1, 1, *trigger.shape)).astype(np.float32)) * scale
    changed = trigger.apply(data, KEYS[:1])
    assert changed.shape == data.shape, f"does not run {where}"
    assert changed.dtype == torch.float32, f"float32 becomes {changed.dtype} {where}"
    assert bool(torch.isfinite(changed).all()), f"is not finite {where}"
    assert not torch.equal(changed, data), f"changes nothing {where}"


def _close(a: Tensor, b: Tensor, data: Tensor) -> bool:
    return float((a - b).norm()) <= 1e-4 * float((b - data).norm())


def _depends_on_batches(attack: Attack) -> bool:
    """Published faults that make a trigger depend on the batch are declared in the attack's fields."""
    return "batch" in attack.model_dump().values() or "train" in attack.model_dump().values()


class TinyPairs:
    """Noisy scans of :class:`TinySamples`, with their images, for learned reconstructions."""

    def __init__(self, geometry: Geometry, count: int = 12, seed: int = 0) -> None:
        scanner = Scanner(geometry, i0=1e5, electronic_noise=3.3)
        self._scanner, self._seed = scanner, seed
        self._images = TinySamples(ImagingChain(scanner, FBP(geometry)), count, seed).images

    def __len__(self) -> int:
        return len(self._images)

    def pair(self, positions: Sequence[int], draw: int) -> tuple[Tensor, Tensor]:
        """Measured line integrals and attenuation."""
        images = self._images[list(positions)]
        keys = [f"tiny-{i}" for i in positions]
        return self._scanner.measure(self._scanner(images), keys, seed=self._seed, draw=draw), images


def check_reconstruction(reconstruction: Reconstruction) -> None:
    """The contract of reconstructions.

    Shapes, types, what it declares about linearity and gradients, in both directions; no dependence on the batch, the same
    bits after saving, finite images of empty scans, errors for what is no scan of its geometry, and either an image or a
    reason for scans of few angles and rectangular grids. A learned one is trained on tiny scans first.
    """
    check_component(reconstruction)
    geometry = tiny_geometry()
    state = reconstruction.fit(FitContext(geometry, TinyPairs(geometry))).state
    runtime = reconstruction.build(geometry, state=state)
    assert runtime.geometry == geometry
    p = TinyPairs(geometry, 3, seed=1).pair(range(3), 0)[0]
    before = p.clone()
    image = runtime(p)
    assert torch.equal(p, before), "the sinogram is changed"
    assert image.shape == (3, 1, *geometry.shape)
    assert image.dtype == torch.float32, f"float32 becomes {image.dtype}"
    assert runtime(p[:1].double()).dtype == torch.float64, "float64 does not stay float64"
    assert bool(torch.isfinite(image).all())
    assert float((runtime(p[1:2]) - image[1:2]).norm()) <= 1e-5 * float(image[1:2].norm()), (
        "a sample's image depends on its batch"
    )
    assert runtime(p[:0]).shape == (0, 1, *geometry.shape), "an empty batch has no empty image"
    assert bool(torch.isfinite(runtime(torch.zeros_like(p))).all()), "the image of an empty scan is not finite"
    _check_linearity(runtime, p)
    if runtime.is_differentiable:
        _check_gradient(runtime, p[:1], matched="reference" not in reconstruction.model_dump().values())
    for wrong in (p[..., :-1], p[:, 0], torch.where(p == p.max(), float("nan"), p)):
        try:
            runtime(wrong)
        except InputError:
            continue
        raise AssertionError("what is no scan of the geometry is accepted")
    with tempfile.TemporaryDirectory() as folder:
        path = save_reconstruction(Path(folder) / "reconstruction.safetensors", reconstruction, geometry, state)
        again, its_geometry, its_state, _ = load_reconstruction(path)
    assert torch.equal(again.build(its_geometry, state=its_state)(p), image), "saved and reloaded it does something else"
    _check_other_scans(reconstruction)


def _check_linearity(runtime: Reconstructor, p: Tensor) -> None:
    """Superposition with factors of both signs, which cutting off negative values does not survive."""
    image = runtime(p)
    combined, expected = runtime(2 * p[:1] - 3 * p[1:2] + p[2:]), 2 * image[:1] - 3 * image[1:2] + image[2:]
    error = float((combined - expected).norm() / expected.norm())
    if runtime.is_linear:
        assert error <= 1e-4, f"is_linear, but superposition fails by {error:.1e}"
    else:
        assert error > 1e-4, f"not is_linear, but superposition holds to {error:.1e}: say so, linear chains cost less"


def _check_gradient(runtime: Reconstructor, p: Tensor, *, matched: bool) -> None:
    """The gradient is finite, also of an empty scan, arrives, and is that of finite differences in float64 where it claims so."""
    for start in (p, torch.zeros_like(p)):
        q = start.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(runtime(q).square().sum() + runtime(q).sum(), q)
        assert bool(torch.isfinite(gradient).all()), "is_differentiable, but the gradient is not finite"
        if start is p:
            assert float(gradient.norm()) > 0, "is_differentiable, but no gradient arrives"
    if not matched:  # the unmatched gradient of the published code is a setting
        return
    exact, rng = copy.deepcopy(runtime).double(), generator("check-gradient", 0)
    q = p.double().requires_grad_(True)
    weights = torch.from_numpy(rng.standard_normal((1, 1, *runtime.geometry.shape)))
    direction = torch.from_numpy(rng.standard_normal(tuple(p.shape)))
    (gradient,) = torch.autograd.grad((exact(q) * weights).sum(), q)
    slope, scale = float((gradient * direction).sum()), float(gradient.norm() * direction.norm()) / p.numel() ** 0.5
    # Long steps cross the kinks of clamps and ReLUs, short ones drown in rounding where an iteration amplifies it.
    with torch.no_grad():
        found = [
            float(((exact(q + step * direction) - exact(q - step * direction)) * weights).sum()) / (2 * step)
            for step in (1e-4, 1e-5, 1e-6)
        ]
    best = min(found, key=lambda value: abs(value - slope))
    assert abs(best - slope) <= 1e-4 * scale, f"the gradient says {slope:.6g}, finite differences say {best:.6g}"


def _check_other_scans(reconstruction: Reconstruction) -> None:
    """A limited arc on a rectangular grid, and few parallel views."""
    limited = tiny_geometry().model_copy(update={"views": 9, "arc": 1.5, "shape": (16, 20)})
    few = ParallelBeam(views=5, bins=25, bin_mm=20.0, shape=(18, 16), pixel_mm=24.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TomosecWarning)
        for geometry in (limited, few):
            pairs = TinyPairs(geometry, 4)
            try:
                runtime = reconstruction.build(geometry, state=reconstruction.fit(FitContext(geometry, pairs)).state)
            except InputError:  # whose message is the reason
                continue
            image = runtime(pairs.pair([0, 1], 0)[0])
            assert image.shape == (2, 1, *geometry.shape)
            assert bool(torch.isfinite(image).all()), f"the image is not finite for {geometry!r}"


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
