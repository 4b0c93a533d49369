"""The threat model refuses what contradicts itself, and says so in the words of the recipe."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tomosec.threat import Budget, Goal, ThreatModel


def test_a_budget_is_one_number_or_several_smallest_first() -> None:
    assert Budget(value=5).candidates == (5.0,)
    assert Budget(value=(20, 2, 10)).candidates == (2.0, 10.0, 20.0)


@pytest.mark.parametrize("value", [-1, (), (5, -2), float("nan"), float("inf"), "ten", None])
def test_what_is_no_budget(value: object) -> None:
    with pytest.raises(ValidationError):
        Budget(value=value)  # type: ignore[arg-type]


def test_zero_is_a_budget() -> None:
    assert Budget(value=0).candidates == (0.0,)


@pytest.mark.parametrize("field", ["enough_asr", "max_ca_loss"])
@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_fractions_are_between_zero_and_one(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        Budget.model_validate({field: value})


def test_unknown_unit_is_named() -> None:
    with pytest.raises(ValidationError, match="'hu', 'relative-rms' or 'reference-mu'"):
        Budget.model_validate({"unit": "HU"})


def test_the_target_is_no_source() -> None:
    with pytest.raises(ValidationError, match="'normal' cannot be a source class as well"):
        Goal(target="normal", sources=("covid", "normal"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"access": "training-control", "poison_rate": 0.2}, "poison_rate belongs to access 'training-data'"),
        ({"access": "training-control", "cover_rate": 0.2}, "cover_rate belongs to access 'training-data'"),
        ({"access": "inference-data", "poison_rate_of": "candidates"}, "poison_rate_of belongs to access 'training-data'"),
        ({"access": "training-data", "loss_weight": 1.0}, "loss_weight belongs to access 'training-control'"),
        ({"access": "inference-data", "victim_start": "scratch"}, "victim_start belongs to access 'training-control'"),
    ],
)
def test_a_field_of_another_access_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ThreatModel.model_validate(fields)


def test_a_default_may_be_spelled_out_for_any_access() -> None:
    assert ThreatModel(access="training-control", poison_rate=0.1) == ThreatModel()


@pytest.mark.parametrize(
    ("field", "value"),
    [("poison_rate", -0.1), ("poison_rate", 1.5), ("cover_rate", 1.5), ("loss_weight", 0), ("loss_weight", -1)],
)
def test_ranges(field: str, value: float) -> None:
    access = "training-data" if field.endswith("_rate") else "training-control"
    with pytest.raises(ValidationError, match=field):
        ThreatModel.model_validate({"access": access, field: value})


def test_misspelled_fields_name_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"unknown field 'acess' \(did you mean 'access'\?\)"):
        ThreatModel.model_validate({"acess": "training-data"})
    with pytest.raises(ValidationError, match=r"unknown field 'vlaue' \(did you mean 'value'\?\)"):
        ThreatModel.model_validate({"budget": {"vlaue": 3}})


def test_survives_json() -> None:
    threat = ThreatModel(
        access="training-data", goal=Goal(target="a", sources=("b",)), budget=Budget(value=(2, 5)), poison_rate=0.3
    )
    assert ThreatModel.model_validate_json(threat.model_dump_json()) == threat


def test_the_attacker_is_white_box_unless_it_is_said() -> None:
    assert ThreatModel().knowledge == "white-box"
    assert ThreatModel(knowledge="surrogate") != ThreatModel()
    with pytest.raises(ValidationError, match="'white-box' or 'surrogate'"):
        ThreatModel.model_validate({"knowledge": "grey-box"})
