"""Every defense of the analysis network keeps the contract of its role; the contract finds those that do not."""

from __future__ import annotations

import pytest

from tomosec.component import components
from tomosec.testing_defenses import CHECKS, check_defense

#: Work that the contract does not depend on.
SHORT = {
    "epochs": 2, "teacher_epochs": 1, "steps": 6, "rounds": 2, "mask_epochs": 1, "generator_epochs": 1, "isolation_epochs": 1,
    "unlearning_epochs": 1, "overlays": 8, "carriers": 6, "draws": 19, "width": 4,
}  # fmt: skip
KINDS = [kind for kind, cls in components("defense").items() if cls.role in CHECKS]


def short(kind: str, **fields: object):
    cls = components("defense")[kind]
    return cls(**{name: value for name, value in SHORT.items() if name in cls.model_fields}, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_every_defense_keeps_the_contract(kind):
    check_defense(short(kind))
