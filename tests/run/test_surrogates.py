"""Attackers who do not have the network: their trigger comes from a surrogate, and the report says from which."""

from __future__ import annotations

import json

import pytest
import torch

from tomosec.analysis.networks import load_classifier
from tomosec.attacks.ltgm import LTGM
from tomosec.report import narrative, settings, tables, wording
from tomosec.run.runner import run
from tomosec.trigger import load_trigger

WHITE_BOX = {"threat": {"budget": {"value": 20.0}}, "controls": ["random-trigger"]}
SAME = {"kind": "small-cnn"}
OTHER = {"kind": "vit", "width": 24, "depth": 2}


def with_surrogate(surrogate, **threat):
    return {**WHITE_BOX, "threat": {**WHITE_BOX["threat"], "knowledge": "surrogate", **threat}, "surrogate": surrogate}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The white-box attack, one from a surrogate of the same kind, and one from another kind: one store."""
    from tiny_runs import TINY

    from tomosec.experiment import parse_experiment

    out = tmp_path_factory.mktemp("surrogates") / "runs"
    used = {}
    make = LTGM.make_trigger

    def watched(self, context):
        used[name] = {key: tensor.clone() for key, tensor in context.pipeline.network.state_dict().items()}
        return make(self, context)

    records = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LTGM, "make_trigger", watched)
        for name, changes in (("white-box", WHITE_BOX), ("same", with_surrogate(SAME)), ("other", with_surrogate(OTHER))):
            records[name] = run(parse_experiment({**TINY, **changes}), out=out)
    return out, records, used


def models(out, role):
    """The saved classifiers of a role, with their artifact keys."""
    found = []
    for folder in sorted(path for path in (out / "artifacts" / "model").iterdir() if path.is_dir()):
        network, metadata = load_classifier(folder / "model.safetensors")
        if metadata["role"] == role:
            found.append((network, json.loads((folder / "key.json").read_text())))
    return found


def clean_model(out):
    return next(network for network, _ in models(out, "clean") if network.config.kind == SAME["kind"])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_surrogate_is_measured_with_the_other_models(runs):
    _, records, _ = runs
    for name in ("same", "other"):
        seed = records[name].seeds[0]
        shown = [(c.model, c.input) for c in seed.conditions]
        assert shown.count(("surrogate", "clean")) == shown.count(("surrogate", "triggered")) == 1
        assert seed.metric("surrogate", "triggered", "asr").n == seed.metric("clean", "triggered", "asr").n
        assert len(seed.curves["surrogate"]) == len(seed.curves["clean"])
        assert seed.cost.seconds["surrogate"] > 0
        assert seed.cost.gradient_passes["surrogate"] == seed.cost.gradient_passes["clean"]
        assert {"surrogate", "trigger", "attacked"} <= set(seed.cost.made)
        assert "clean" not in seed.cost.made  # the victim's own model is the white-box run's
    assert not [c for c in records["white-box"].seeds[0].conditions if c.model == "surrogate"]


def test_gradients_come_from_the_surrogate_and_not_from_the_clean_model(runs):
    out, _, used = runs
    clean = clean_model(out)
    surrogates = models(out, "surrogate")
    assert len(surrogates) == 2
    assert {key["purpose"] for _, key in surrogates} == {"surrogate"}
    by_kind = {network.config.kind: network.state_dict() for network, _ in surrogates}
    assert same(used["white-box"], clean.state_dict())
    assert same(used["same"], by_kind["small-cnn"])
    assert same(used["other"], by_kind["vit"])


def test_a_surrogate_of_the_same_architecture_is_another_network_of_the_same_scans(runs):
    out, records, _ = runs
    clean = clean_model(out)
    surrogate = next(network for network, _ in models(out, "surrogate") if network.config == clean.config)
    weights, others = clean.state_dict(), surrogate.state_dict()
    assert not any(torch.equal(weights[name], others[name]) for name in weights if name.endswith("0.weight"))
    assert torch.equal(weights["mean"], others["mean"])
    assert torch.equal(weights["std"], others["std"])
    curves = records["same"].seeds[0].curves
    assert curves["surrogate"][0]["loss"] != curves["clean"][0]["loss"]


def test_each_knowledge_has_a_trigger_of_its_own(runs):
    out, records, _ = runs
    patterns = {
        name: load_trigger(out / record.id / "trigger-seed0.safetensors").pattern.flatten() for name, record in records.items()
    }
    for a, b in (("white-box", "same"), ("white-box", "other"), ("same", "other")):
        assert torch.nn.functional.cosine_similarity(patterns[a], patterns[b], dim=0) < 0.99
    for record in records.values():
        assert record.seeds[0].strength.rmse_hu == pytest.approx(20.0, rel=0.02)


def test_a_surrogate_is_shared_by_the_victims_of_a_sweep(runs, tiny):
    out, records, _ = runs
    second = run(tiny(**with_surrogate(SAME), network=OTHER), out=out)
    assert set(second.seeds[0].cost.made) == {"clean", "attacked"}
    first = records["same"].seeds[0]
    assert second.seeds[0].metric("surrogate", "clean", "accuracy") == first.metric("surrogate", "clean", "accuracy")


def test_an_attacker_who_only_changes_scans_has_a_surrogate_too(runs, tiny):
    out, records, _ = runs
    seed = run(tiny(**with_surrogate(OTHER, access="inference-data")), out=out).seeds[0]
    assert seed.cost.made == ()
    assert seed.metric("attacked", "triggered", "asr") == seed.metric("clean", "triggered", "asr")
    assert seed.metric("surrogate", "triggered", "asr") == records["other"].seeds[0].metric("surrogate", "triggered", "asr")


def test_an_attack_that_the_threat_model_rules_out_trains_no_surrogate(tiny, tmp_path):
    changes = with_surrogate(SAME, access="training-control", site="image")
    record = run(tiny(**changes, attack={"kind": "sig", "clean_label": True}), out=tmp_path / "runs")
    assert record.status == "not-applicable"
    assert not models(tmp_path / "runs", "surrogate")


def test_the_report_says_what_was_known_and_which_surrogate(runs):
    _, records, _ = runs
    for name, text in (
        ("white-box", "white-box: knows the network"),
        ("same", "surrogate: makes the trigger without the network"),
    ):
        facts = {row[0].text: row[1].text for row in settings.threat_facts(records[name]).rows}
        assert facts["Knowledge"].startswith(text)
        assert ("Surrogate" in facts) == (name == "same")
    same, other = records["same"], records["other"]
    assert "as the network is, trained from other initial weights" in " ".join(narrative.story(same))
    assert "The surrogate is a small vision transformer (ViT). " in " ".join(narrative.story(other))
    assert any("had a surrogate of kind 'small-cnn'" in item for item in same.untested)
    assert any("this one had the clean model itself (white-box)" in item for item in records["white-box"].untested)
    said = [verdict.text for verdict in narrative.verdicts(same) if "made on a surrogate" in verdict.text]
    floor = wording.share(same.summary["surrogate/triggered/asr"].mean)
    assert len(said) == 1
    assert f"the surrogate reads {floor} of the triggered scans" in said[0]
    assert not [verdict for verdict in narrative.verdicts(records["white-box"]) if "surrogate" in verdict.text]
    assert wording.MODELS["surrogate"] in [row[0].text for row in tables.controls_table(same).rows]
    assert "Surrogate, scans with the trigger" in [row[0].text for row in tables.metrics_table(same, main=True).rows]
    assert "Training: surrogate" in [row[0].text for row in tables.cost_table(same).rows]
