"""The contract of attacks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tomosec.acquisition import Scanner
from tomosec.attacks.base import Attack, TrainingBatch
from tomosec.attacks.poisoning import Poison, VictimTraining
from tomosec.attacks.strength import TOLERANCE, strength_for
from tomosec.errors import InputError
from tomosec.hounsfield import HU_PER_MU, MU_WATER
from tomosec.pipeline import ImagingChain
from tomosec.randomness import generator
from tomosec.reconstruction.fbp import FBP
from tomosec.testing.components import TinySamples, check_component, tiny_context
from tomosec.threat import ThreatModel
from tomosec.trigger import Trigger, load_trigger


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
