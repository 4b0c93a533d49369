"""Whole runs of image-domain attacks: triggers that are not additive, covers, clean labels and a rate of zero."""

from __future__ import annotations

import pytest

from tomosec.run.runner import run

IMAGE = {"site": "image", "budget": {"value": 20.0}}
SHORT = {"training": {"epochs": 1, "batch_size": 8}, "controls": ["random-trigger"]}


def test_a_warp_with_covers_meets_its_budget_and_reconstructs_nothing_for_it(tiny, tmp_path):
    threat = {**IMAGE, "access": "training-data", "poison_rate": 0.1}
    record = run(tiny(**SHORT, attack={"kind": "wanet"}, threat=threat), out=tmp_path / "runs")
    assert record.status == "success"
    assert record.seeds[0].strength.rmse_hu == pytest.approx(20.0, rel=0.02)
    assert record.physics.why_not_linear
    assert record.seeds[0].metric("attacked", "triggered", "asr").n == sum(record.data.slices["test"].values()) // 2


def test_a_clean_label_attack_under_training_control_is_not_applicable(tiny, tmp_path):
    attack = {"kind": "sig", "clean_label": True}
    record = run(tiny(**SHORT, attack=attack, threat={**IMAGE, "access": "training-control"}), out=tmp_path / "runs")
    assert record.status == "not-applicable"
    assert "needs threat.access inference-data or training-data" in str(record.error)


@pytest.mark.parametrize(("attack", "rate"), [({"kind": "sig", "clean_label": True}, 0.2), ({"kind": "sig"}, 0)], ids=str)
def test_clean_label_and_rate_zero_run(tiny, tmp_path, attack, rate):
    threat = {**IMAGE, "access": "training-data", "poison_rate": rate}
    record = run(tiny(**SHORT, attack=attack, threat=threat), out=tmp_path / "runs")
    assert record.status == "success"
    assert record.seeds[0].strength.rmse_hu == pytest.approx(20.0, rel=0.02)
