"""What tells experiments apart: fields that differ, and not those that follow from another kind."""

from __future__ import annotations

from tomosec.varying import differing, flatten, labels

LTGM = {"kind": "ltgm", "version": 1, "mask": "erratum"}
PATCH = {"kind": "badnets", "version": 1, "size": 0.1}


def experiment(attack, **fields):
    return {"title": "t", "attack": attack, "threat": {"site": "image", "budget": {"value": 5.0}}, "seeds": [0], **fields}


def test_fields_are_dotted_and_lists_stay_whole():
    assert flatten(experiment(LTGM)) == {
        "title": "t",
        "attack.kind": "ltgm",
        "attack.version": 1,
        "attack.mask": "erratum",
        "threat.site": "image",
        "threat.budget.value": 5.0,
        "seeds": [0],
    }


def test_titles_do_not_count():
    assert differing([experiment(LTGM), experiment(LTGM, title="other")]) == []


def test_what_only_one_kind_has_follows_from_the_kind():
    assert differing([experiment(LTGM), experiment(PATCH), experiment(None)]) == ["attack.kind"]


def test_fields_of_one_kind_count_where_they_differ():
    other = {**LTGM, "mask": "none"}
    assert differing([experiment(LTGM), experiment(other), experiment(PATCH)]) == ["attack.kind", "attack.mask"]


def test_what_a_component_carries_is_a_kind_of_its_own():
    carrying = [{"kind": "projected", "attack": inner} for inner in (PATCH, {"kind": "sig", "frequency": 6.0})]
    assert differing([experiment(attack) for attack in carrying]) == ["attack.attack.kind"]
    assert differing([experiment(carrying[0]), experiment(PATCH)]) == ["attack.kind"]


def test_labels_say_what_sets_each_apart():
    several = [experiment(LTGM), experiment({**LTGM, "mask": "none"}), experiment(None), experiment(PATCH)]
    assert labels(several) == [
        "attack ltgm, attack.mask erratum",
        "attack ltgm, attack.mask none",
        "attack none",
        "attack badnets",
    ]
    assert labels(several[:1]) == [""]
    carrying = [{"kind": "projected", "attack": PATCH}, LTGM]
    assert labels([experiment(attack) for attack in carrying]) == ["attack projected", "attack ltgm"]


def test_defenses_tell_apart_what_nothing_else_does():
    strip, tuning = ({"kind": kind, "version": 1} for kind in ("strip", "fine-tuning"))
    assert labels([experiment(LTGM, defenses=[strip]), experiment(PATCH, defenses=[tuning])]) == ["attack ltgm", "attack badnets"]
    assert labels([experiment(LTGM, defenses=[strip]), experiment(LTGM, defenses=[strip, tuning])]) == [
        "defenses strip",
        "defenses strip, fine-tuning",
    ]
