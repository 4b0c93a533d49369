"""Every registered attack keeps the contract; LTGM keeps it at every setting."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tomosec import testing
from tomosec.attacks.base import Attack
from tomosec.attacks.blended import Blended
from tomosec.attacks.bpp import BPP
from tomosec.attacks.center_shift import DetectorShift
from tomosec.attacks.i0_drift import I0Drift
from tomosec.attacks.ltgm import LTGM
from tomosec.attacks.poisoning import Poison
from tomosec.attacks.projected import Projected
from tomosec.attacks.reconstruction_gradient import ReconstructionGradient
from tomosec.attacks.refool import Refool
from tomosec.attacks.sig import SIG
from tomosec.component import components
from tomosec.testing import attacks as contract
from tomosec.testing import check_attack
from tomosec.trigger import AdditiveTrigger


@pytest.mark.parametrize("kind", components("attack"))
def test_every_attack_keeps_the_contract(kind):
    cls = components("attack")[kind]
    # The contract does not depend on how long a trigger is learned.
    check_attack(cls(**({"steps": 4} if "steps" in cls.model_fields else {})))


@pytest.mark.parametrize(
    "switches",
    [
        {"mask": "none"},
        {"mask": "released"},
        {"mask": "released", "mask_statistics": "batch"},
        {"mask_scope": "mean"},
        {"mask_input": "noisy"},
        {"quantile": 0.25},
        {"objective": "true-label"},
        {"objective": "true-label", "samples": "all"},
        {"network_mode": "train"},
        {"flip_test_sign": True},
        {"values": "sign"},
        {"quantile": 0.75},
    ],
    ids=str,
)
def test_ltgm_keeps_the_contract_at_every_setting(switches):
    check_attack(LTGM(**switches))


@pytest.mark.parametrize(
    "attack",
    [
        Blended(clean_label=True, pattern="noise"),
        BPP(dither="none"),
        I0Drift(profile="constant"),
        ReconstructionGradient(mask="released", mask_scope="mean"),
        Refool(clean_label=True, ghost_rate=1.0),
        SIG(clean_label=True, test_gain=2.0),
    ],
    ids=lambda attack: attack.kind,
)
def test_variants_keep_the_contract(attack):
    check_attack(attack)


@pytest.mark.parametrize("attack", [SIG(test_gain=2.0), LTGM(flip_test_sign=True)], ids=lambda attack: attack.kind)
def test_poison_of_another_strength_costs_no_reconstruction(attack, monkeypatch):
    imaging = testing.tiny_context().pipeline.imaging
    injection = imaging.inject(attack.make_trigger(testing.tiny_context()).at(0.5))
    monkeypatch.setattr(type(imaging), "inject", lambda *_: pytest.fail("the trigger is reconstructed again"))
    poison = Poison.of(attack, injection)
    assert poison.trigger.effect is injection.effect
    assert poison.trigger.trigger.strength == attack.at_training_time(injection.trigger).strength != 0.5


@pytest.mark.parametrize("kind", ["lira", "blended"])
def test_a_projected_attack_needs_what_it_carries_needs(kind):
    carried = components("attack")[kind].needs
    assert Projected(attack=kind).needs == {"raw-sinogram", "geometry"} | carried
    assert Projected.needs == {"raw-sinogram", "geometry"}  # what all projections need: `tomosec list attacks`


class Detached(DetectorShift):
    """Its derivative lacks a part, as where a change is computed without gradients."""

    def _apply(self, data):
        return data + (super()._apply(data) - data).detach()


def test_the_contract_sees_a_gradient_that_is_not_the_slope():
    geometry = testing.tiny_geometry()
    data = torch.linspace(0, 1, 3 * 32 * 28).reshape(3, 1, 32, 28)
    whole, part = (cls(geometry=geometry, domain="measurement", strength=0.5) for cls in (DetectorShift, Detached))
    contract._check_slope(whole, data, "whole")
    with pytest.raises(AssertionError, match="finite differences say"):
        contract._check_slope(part, data, "part")


@pytest.mark.parametrize(
    ("domain", "needs", "look", "message"),
    [
        ("image", set(), lambda context: context.samples.targets, "'training-data' is not among its needs"),
        ("image", set(), lambda context: len(context.samples), "'training-data' is not among its needs"),
        ("measurement", {"weights"}, lambda context: None, "without a need of 'raw-sinogram'"),
    ],
)
def test_the_contract_sees_an_attack_that_takes_more_than_it_declares(domain, needs, look, message):
    with pytest.raises(AssertionError, match=message):
        contract._check_needs(SimpleNamespace(domain=domain, needs=needs, make_trigger=look))


class TwoFaced(Attack):
    """Contradictions, one by one; without a kind of its own it is no component."""

    def at_test_time(self, trigger):
        return AdditiveTrigger(trigger.pattern.flip(-1), geometry=trigger.geometry, domain="image")


class CoverWithoutCover(Attack):
    """As above."""

    def covers_per_poison(self):
        return 1.0


class CleanControl(Attack):
    """As above."""

    def keeps_labels(self):
        return True

    def allowed_access(self):
        return frozenset({"training-control"})


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (TwoFaced, "another strength, and nothing else"),
        (CoverWithoutCover, "1 covers per poison, but no cover"),
        (CleanControl, "clean-label is a poisoning of data"),
    ],
)
def test_the_contract_sees_an_attack_that_contradicts_itself(cls, message):
    trigger = SIG().make_trigger(testing.tiny_context())
    contract._check_definition(Attack(), trigger)
    with pytest.raises(AssertionError, match=message):
        contract._check_definition(cls(), trigger)


def test_an_attack_without_weights_is_shown_none():
    seen = []
    attack = SimpleNamespace(domain="image", needs=frozenset(), make_trigger=lambda context: seen.append(context.pipeline))
    contract._check_needs(attack)
    assert seen == [None]
