"""Runs with defenses: what they are handed, what the record says of them, and that one that cannot run stops nothing."""

from __future__ import annotations

import dataclasses

import pytest
from scipy.stats import norm
from tiny_runs import TINY

from tomosec.defenses import base
from tomosec.defenses.complementary_rays import ComplementaryRays
from tomosec.experiment import parse_experiment
from tomosec.record import Store
from tomosec.report.build import build_report
from tomosec.report.defenses import defenses_table
from tomosec.run.runner import rescore, run

#: Enough validation patients for two halves.
SPLIT = {"kind": "by-patient", "validation": 0.4, "test": 0.3}
FEW_STEPS = {
    "neural-cleanse": {"kind": "neural-cleanse", "steps": 3},
    "fine-tuning": {"kind": "fine-tuning", "epochs": 1},
    "abl": {"kind": "abl", "isolation_epochs": 1, "unlearning_epochs": 1},
}
CONTROL = ["complementary-rays", "cross-scan-residual", "fine-tuning", "strip", "neural-cleanse", "spectral-signatures"]


def experiment(defenses, **changes):
    chosen = [FEW_STEPS.get(kind, {"kind": kind}) for kind in defenses]
    return parse_experiment({**TINY, "controls": [], "split": SPLIT, "defenses": chosen, **changes})


@pytest.fixture(scope="module")
def defended(tmp_path_factory):
    """A run under training control with a defense of every role that applies there, and one that does not."""
    out = tmp_path_factory.mktemp("defended") / "runs"
    return run(experiment(CONTROL), out=out), Store(out)


def result(record, name):
    return next(item for item in record.seeds[0].defenses if item.name == name)


def test_every_defense_has_a_result_in_the_order_of_the_recipe(defended):
    record, _ = defended
    assert record.status == "success"
    assert [item.name for item in record.seeds[0].defenses] == CONTROL


def test_detectors_have_an_auroc_and_no_rates_where_calibration_is_small(defended):
    record, _ = defended
    detector = result(record, "complementary-rays")
    assert 0 <= detector.metrics["auroc"].value <= 1
    assert detector.metrics["tpr_at_1"].value is None
    assert "n too small" in detector.metrics["tpr_at_1"].note
    assert result(record, "strip").metrics["auroc"].value is not None


def test_a_repaired_model_is_measured_like_the_attacked_one_and_rated(defended):
    record, _ = defended
    repaired = result(record, "fine-tuning")
    assert repaired.model == "attacked+fine-tuning"
    seed = record.seeds[0]
    values = [
        seed.metric(model, *what).value
        for model in ("attacked", repaired.model)
        for what in (("triggered", "asr"), ("clean", "accuracy"))
    ]
    expected = (max(0, values[0] - values[2]) - max(0, values[1] - values[3]) + 1) / 2
    assert repaired.metrics["der"].value == pytest.approx(expected)
    assert seed.metric("clean+fine-tuning", "clean", "accuracy") is not None


def test_what_does_not_apply_says_why(defended):
    record, _ = defended
    refused = result(record, "spectral-signatures")
    assert "training-data" in refused.why_not
    assert refused.metrics == {}


def test_rescoring_changes_nothing(defended):
    record, store = defended
    assert rescore(store, record.id).results() == record.results()


def test_the_report_shows_defenses_and_what_was_not_adaptive(defended, tmp_path):
    record, store = defended
    table = defenses_table(record)
    assert [row[0].text for row in table.rows] == CONTROL
    assert "not applicable" in table.rows[-1][1].text
    page = build_report(store, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Would anyone notice?" in page
    assert "Attacked model behind fine-tuning" in page
    assert not any("none was run" in item for item in record.untested)
    assert any("attackers who adapt to" in item for item in record.untested)


def test_filters_and_training_defenses_see_the_slices_as_delivered(tmp_path):
    threat = {"access": "training-data", "poison_rate": 0.3, "budget": {"value": 20.0}}
    record = run(experiment(["spectral-signatures", "abl"], threat=threat), out=tmp_path / "runs")
    assert record.status == "success"
    found = result(record, "spectral-signatures")
    assert found.why_not == ""
    assert 0 <= found.metrics["auroc"].value <= 1
    assert found.details["poisoned"] == found.metrics["precision_at_poisoned"].n
    assert record.seeds[0].metric("attacked+abl", "clean", "accuracy") is not None


def test_votes_and_certificates_reach_the_record_and_the_report(tmp_path):
    smoothing = {"kind": "randomized-smoothing", "samples": 3, "alpha": 0.01, "noise_sd": 0.02}
    wrappers = [
        {**smoothing, "certify_samples": 12},
        {**smoothing, "certify_samples": 3},  # too few to certify anything, even if all agree
        {"kind": "view-drop", "members": 2},
        {"kind": "reconstruction-diversity"},
    ]
    out = tmp_path / "runs"
    record = run(parse_experiment({**TINY, "controls": [], "defenses": wrappers}), out=out)
    assert record.status == "success"
    seed = record.seeds[0]
    for found in seed.defenses:
        assert found.why_not == ""
        assert 0 <= found.metrics["auroc"].value <= 1
        assert found.clean_slices == 0, "a vote is fitted on nothing"
    read = {
        name: seed.metric("attacked+randomized-smoothing-1", *what).value
        for name, what in (("accuracy", ("clean", "accuracy")), ("asr", ("triggered", "asr")))
    }
    some, none = ({name: found.value for name, found in seed.defenses[i].metrics.items()} for i in (0, 1))
    # The network of this run reads every noisy copy of a scan alike.
    assert some["abstained_fraction"] == 0
    assert some["certified_accuracy"] == read["accuracy"]
    assert some["certified_asr"] == read["asr"]
    assert some["certified_radius"] == pytest.approx(0.02 * norm.ppf(0.01 ** (1 / 12)))
    assert some["trigger_norm"] > 10 * some["certified_radius"]
    assert none["abstained_fraction"] == 1
    assert none["certified_accuracy"] == none["certified_asr"] == none["certified_radius"] == 0
    assert "certified_radius" not in seed.defenses[2].metrics
    assert "Mean certified radius" in build_report(Store(out), tmp_path / "report.html").read_text(encoding="utf-8")


def test_no_context_can_hold_a_trigger():
    for context in (base.ScanContext, base.ModelContext, base.TrainingContext):
        names = {field.name for field in dataclasses.fields(context)}
        assert not names & {"trigger", "attack", "poison", "target", "sources", "injection", "experiment"}


def test_another_attack_on_the_chain_calibrates_nothing_anew(defended, monkeypatch):
    record, store = defended
    monkeypatch.setattr(ComplementaryRays, "calibrate", lambda self, context: pytest.fail("calibrated again"))
    other = run(experiment(["complementary-rays"], attack={"kind": "constant-offset"}), out=store.root)
    assert result(other, "complementary-rays").held_out == result(record, "complementary-rays").held_out
    assert result(other, "complementary-rays").metrics["auroc"].value is not None
