"""The page on these defenses names each of them with its source, and the defaults that it states are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from defense_toys import NETWORK_ROLES

from tomosec.component import components

PAGE = (Path(__file__).parents[2] / "docs" / "defenses-analysis.md").read_text(encoding="utf-8")
#: Defaults as the rows state them.
DEFAULTS = {
    "neural-cleanse": "{steps} steps of Adam {learning_rate} (0.5, 0.9), initial cost {initial_cost:.0e}, success {success}, "
    "patience {patience}, multiplier {multiplier:g}",
    "strip": "{overlays} overlays, opacity {opacity}",
    "scale-up": "level {level_hu:g}, width {width_hu:g} HU",
    "ibd-psc": "factor {factor}, {models} networks, error {error}",
    "grad-cam": "{carriers} carriers, threshold {threshold}",
    "frequency": "{bands} bands, all but the lowest {lowest}",
    "activation-clustering": "{dimensions} axes, 2 clusters, at most {largest:.0%}",
    "spectre": "poison rate {poison_rate}, alpha {alpha:g}, up to {dimensions} axes",
    "scan-untangling": "{dimensions} axes, {draws} draws, level {level}",
}
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


@pytest.mark.parametrize("kind", DEFAULTS)
def test_the_row_states_the_defaults_of_the_code(kind):
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{kind}` |"))
    stated = row.replace("−", "-").replace(" %", "%").replace("e-3", "e-03")
    assert DEFAULTS[kind].format(**KINDS[kind]().model_dump()) in stated


def test_the_page_names_no_other_kind():
    assert set(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE)) == set(KINDS)


def test_none_claims_an_adaptive_evaluation():
    assert not any(cls.adaptive for cls in KINDS.values())
