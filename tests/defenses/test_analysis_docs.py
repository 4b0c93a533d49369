"""The page on these defenses names each of them with its source, and the defaults that it states are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from defense_toys import NETWORK_ROLES

from tomosec.component import components

PAGE = (Path(__file__).parents[2] / "docs" / "defenses-analysis.md").read_text(encoding="utf-8")
KINDS = {
    kind: cls
    for kind, cls in components("defense").items()
    if cls.role in NETWORK_ROLES and cls.__module__.startswith("tomosec.")
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_has_a_row_for_each_kind(kind):
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{kind}` |")]
    assert len(rows) == 1
    assert KINDS[kind].source in rows[0]


def test_the_page_names_no_other_kind():
    assert set(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE)) == set(KINDS)


def test_none_claims_an_adaptive_evaluation():
    assert not any(cls.adaptive for cls in KINDS.values())
