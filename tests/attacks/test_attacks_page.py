"""docs/attacks.md says of every attack what its class says, and every attack has a name for people and a documented class."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from tomosec.attacks.base import Attack
from tomosec.component import components
from tomosec.report.wording import KINDS as NAMES
from tomosec.testing import tiny_context
from tomosec.trigger import AdditiveTrigger

PAGE = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text(encoding="utf-8")
# What another distribution installed here adds is its own to document.
ATTACKS = {kind: cls for kind, cls in components("attack").items() if cls.__module__.startswith("tomosec.")}
DASH = "–"


def rows():
    """The table by kind: column to cell."""
    lines = [line for line in PAGE.splitlines() if line.startswith(("| kind |", "| `"))]
    header, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[: 1 + len(ATTACKS)])
    return {cells[0].strip("`"): dict(zip(header, cells, strict=True)) for cells in body}


def brief(cls):
    """The attack, learned for as short as it can be."""
    return cls(**{name: 1 for name in ("steps", "epochs") if name in cls.model_fields})


def test_every_attack_has_one_row():
    assert sorted(rows()) == sorted(ATTACKS)
    assert len(ATTACKS) >= 30


@pytest.mark.parametrize("kind", ATTACKS)
def test_a_row_says_what_the_class_says(kind):
    cls, row = ATTACKS[kind], rows()[kind]
    attack = brief(cls)
    trigger = attack.make_trigger(tiny_context())
    carries = "attack" in cls.model_fields
    own = "universal, additive" if isinstance(trigger, AdditiveTrigger) else "by sample" if trigger.needs_keys else "by scan"
    covers = DASH if attack.covering(trigger) is None else f"{attack.covers_per_poison():g}"
    said = {name: row[name] for name in ("domain", "source", "trigger", "access", "clean label", "covers", "needs")}
    assert said == {
        "domain": cls.domain,
        "source": cls.source,
        "trigger": own,
        "access": "any" if len(attack.allowed_access()) == 3 else ", ".join(sorted(attack.allowed_access())),
        "clean label": "as carried" if carries else "option" if "clean_label" in cls.model_fields else DASH,
        "covers": "as carried" if carries else covers,
        "needs": ", ".join(sorted(cls.needs)) or DASH,
    }
    assert row["what it changes"]
    assert row["strength"].endswith(f"at most {trigger.limit:g}") == (trigger.limit < float("inf"))


def test_clean_label_attacks_exclude_control_of_the_training():
    optional = [cls for cls in ATTACKS.values() if "clean_label" in cls.model_fields]
    assert {cls(clean_label=True).kind for cls in optional} >= {"sig", "blended"}
    assert all(cls(clean_label=True).allowed_access() == {"inference-data", "training-data"} for cls in optional)


@pytest.mark.parametrize("kind", ATTACKS)
def test_every_attack_has_a_name_for_people(kind):
    assert NAMES[kind] != kind
    assert list(NAMES.values()).count(NAMES[kind]) == 1


@pytest.mark.parametrize("kind", ATTACKS)
def test_a_docstring_names_the_paper_and_every_field(kind):
    cls = ATTACKS[kind]
    text = f"{inspect.getdoc(inspect.getmodule(cls))} {inspect.getdoc(cls)}"
    first = re.match(r"([A-Z][a-z]+)(?: et al\.|,| and)", cls.source)
    if first:
        assert first[1] in text, f"{kind}: its docstring does not name {first[1]}"
    else:
        assert cls.source.startswith(("baseline", "negative control", "ablation of Yang", "adaptive variant of Yang"))
    fields = set(cls.model_fields) - set(Attack.model_fields) - {"kind", "version"}
    missing = [name for name in fields if not re.search(rf"\b{name}\b.*:", inspect.getdoc(cls) or "")]
    assert not missing, f"{kind}: fields without a word in the docstring: {missing}"


def test_the_examples_on_the_page_run():
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)):
        exec(compile(block, f"docs/attacks.md, example {number}", "exec"), {})
