"""Every defense of the analysis network keeps the contract of its role; the contract finds those that do not."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from defense_toys import NETWORK_ROLES

from tomosec import component
from tomosec.component import components
from tomosec.defenses.base import Repair
from tomosec.defenses.strip import StripDetection
from tomosec.errors import NotApplicable
from tomosec.testing.defenses import check_defense

#: Work that the contract does not depend on.
SHORT = {
    "epochs": 2, "teacher_epochs": 1, "steps": 6, "rounds": 2, "mask_epochs": 1, "generator_epochs": 1, "isolation_epochs": 1,
    "unlearning_epochs": 1, "overlays": 8, "carriers": 6, "draws": 19, "width": 4,
}  # fmt: skip
KINDS = [kind for kind, cls in components("defense").items() if cls.role in NETWORK_ROLES]


def short(kind: str, **fields: object):
    cls = components("defense")[kind]
    return cls(**{name: value for name, value in SHORT.items() if name in cls.model_fields}, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_every_defense_keeps_the_contract(kind):
    check_defense(short(kind))


class Good(Repair):
    """Gives the network as it is, or breaks the contract in one way."""

    kind: Literal["test-good"] = "test-good"
    version: Literal[1] = 1
    source: ClassVar[str] = "baseline"
    fault: str = ""

    def why_not(self, context):
        """Slices."""
        return "" if len(context.clean) or self.fault == "empty" else "needs slices"

    def repair(self, context):
        """A copy, unless there is a fault."""
        if self.why_not(context):
            raise NotApplicable(self.why_not(context))
        network = copy.deepcopy(context.network)
        if self.fault == "same":
            return context.network
        if self.fault == "mode":
            network.train()
        if self.fault == "nan":
            network.body[-1].bias.data[:] = float("nan")
        if self.fault == "changes":
            context.network.body[-1].bias.data += 1
        if self.fault == "random":
            network.body[-1].bias.data += torch.randn(1)
        if self.fault == "hidden-random":
            network.body[-1].bias.data[0] += float(np.random.default_rng().normal())  # of one class: probabilities must differ
        if self.fault == "hooks":
            context.network.body.register_forward_hook(lambda *_: None)
        if self.fault == "crash" and len(set(context.clean.targets)) < 2:
            raise ValueError("one class")
        if self.fault == "silent" and len(context.clean) == 1:
            raise NotApplicable("")
        return network


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(component, "_registered", {**component._registered, "defense": {"test-good": Good}})


def test_the_contract_takes_a_good_defense(registered):
    check_defense(Good())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("same", "is returned"),
        ("mode", "evaluation mode"),
        ("nan", "not finite"),
        ("changes", "is changed"),
        ("random", "random state"),
        ("hidden-random", "another answer"),
        ("hooks", "hooks are left behind"),
        ("crash", "ValueError: one class"),
        ("silent", "gives no reason"),
        ("empty", "without slices"),
    ],
)
def test_the_contract_finds(registered, fault, message):
    with pytest.raises(AssertionError, match=message):
        check_defense(Good(fault=fault))


def test_the_contract_asks_for_a_source(registered, monkeypatch):
    monkeypatch.setattr(Good, "source", "")
    with pytest.raises(AssertionError, match="names no source"):
        check_defense(Good())


def test_a_score_must_not_depend_on_its_batch(monkeypatch):
    score = StripDetection.score
    monkeypatch.setattr(StripDetection, "score", lambda self, images: score(self, images) + len(images))
    with pytest.raises(AssertionError, match="depends on the batch"):
        check_defense(short("strip"))
