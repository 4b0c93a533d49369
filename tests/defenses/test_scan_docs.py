"""The page on defenses of measured data says of adaptive attacks what the classes say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tomosec.component import components

PAGE = (Path(__file__).parents[2] / "docs" / "defenses.md").read_text()
ROLES = ("scan-detector", "scan-set-detector", "scan-purifier", "prediction-wrapper")
KINDS = {kind: cls for kind, cls in components("defense").items() if cls.role in ROLES}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_names_the_attacks_that_were_made_to_get_past_it(kind):
    row = re.findall(rf"^\| `{kind}` \|.*$", PAGE, re.MULTILINE)[0]  # a later table is of measured scores
    last = row.rstrip(" |").rsplit(" | ", 1)[1]
    adaptive = KINDS[kind].adaptive
    assert set(re.findall(r"`([a-z-]+)`", last)) == adaptive
    assert ("not adaptively evaluated" in last) == (not adaptive)


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_that_are_named_exist(kind):
    assert KINDS[kind].adaptive <= set(components("attack"))
