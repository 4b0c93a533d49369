"""Every registered attack keeps the contract; LTGM keeps it at every setting."""

from __future__ import annotations

import pytest

from tomosec.attacks.ltgm import LTGM
from tomosec.component import components
from tomosec.testing import check_attack


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
    ],
    ids=str,
)
def test_ltgm_keeps_the_contract_at_every_setting(switches):
    check_attack(LTGM(**switches))
