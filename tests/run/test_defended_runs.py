"""Runs with defenses: what they are handed, what the record says of them, and that one that cannot run stops nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

import pytest
import torch
from scipy.stats import norm
from tiny_runs import TINY
from torch import nn

from tomosec.attacks.base import Attack
from tomosec.attacks.poisoning import Poison, VictimTraining
from tomosec.defenses.base import ScanSetDetection, SetVerdict
from tomosec.defenses.calibration import halves
from tomosec.defenses.complementary_rays import ComplementaryRays
from tomosec.defenses.cross_scan_residual import CrossScanResidual
from tomosec.defenses.fine_tuning import FineTuning
from tomosec.defenses.strip import Strip
from tomosec.experiment import Experiment, parse_experiment
from tomosec.pipeline import Injection
from tomosec.record import Store
from tomosec.report.build import build_report
from tomosec.report.defenses import defenses_table
from tomosec.run import defended_scans
from tomosec.run import seed as seed_module
from tomosec.run.chain import Chain, MeasuredSamples
from tomosec.run.defended_networks import _least_suspicious, _precision
from tomosec.run.granted import GrantedImages, UnderAttack, measured_scans, model_context, scan_context, training_context
from tomosec.run.runner import rescore, run
from tomosec.threat import ThreatModel
from tomosec.trigger import Trigger

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
    n = result(record, "strip").metrics["auroc"].n
    assert f"n\u00a0=\u00a0{n}\u00a0slices" in table.notes[0]
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
    # The poisoned and the clean slices that were taken out are 15 % of all.
    taken = {kind: found.metrics[f"removed_fraction_{kind}"] for kind in ("poisoned", "clean")}
    total = sum(share.n for share in taken.values())
    assert sum(share.value * share.n for share in taken.values()) == pytest.approx(round(0.15 * total))
    assert found.details["kept"] == total - round(0.15 * total)
    assert found.model == "attacked+spectral-signatures"
    assert 0 <= found.metrics["der"].value <= 1
    assert record.seeds[0].metric("attacked+abl", "clean", "accuracy") is not None


POISONED = {"access": "training-data", "poison_rate": 0.3, "budget": {"value": 20.0}}


@pytest.fixture(scope="module")
def attack(defended):
    """What the runner knows of a poisoned training set."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seed_module, "evaluate_defenses", lambda defenses, attack: (seen.append(attack), ([], []))[1])
        run(experiment(["strip"], threat=POISONED), out=defended[1].root)
    return seen[0]


def reachable(value, seen):
    """Everything that public attributes and containers lead to."""
    if id(value) in seen or (callable(value) and not isinstance(value, nn.Module)):
        return
    seen[id(value)] = value
    if isinstance(value, torch.Tensor | str | bytes):
        return
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, Sequence | set | frozenset):
        inside = list(value)
    else:
        names = {*getattr(value, "__dict__", ()), *(n for c in type(value).__mro__ for n in getattr(c, "__slots__", ()))}
        inside = [getattr(value, name) for name in names if not name.startswith("_") and hasattr(value, name)]
        inside += list(value.children()) if isinstance(value, nn.Module) else []
    for item in inside:
        reachable(item, seen)


def test_nothing_that_a_defense_is_handed_leads_to_the_attack_or_to_test_data(attack):
    secret = (Trigger, Injection, Poison, VictimTraining, Attack, ThreatModel, Experiment, Chain, MeasuredSamples, UnderAttack)
    handed = [
        scan_context(attack),
        model_context(attack, attack.attacked),
        training_context(attack)[0],
        measured_scans(attack.chain, attack.test, [0, 1], attack.trigger),
    ]
    for item in handed:
        seen = {}
        reachable(item, seen)
        assert len(seen) > 2
        found = [type(value).__name__ for value in seen.values() if isinstance(value, secret)]
        assert found == []
    test_keys = {entry.key for entry in attack.test.entries}
    for context in handed[:3]:
        source = context.samples if hasattr(context, "samples") else context.clean
        assert not test_keys & {key for batch in source.batches(32) for key in batch.keys}


def test_slices_are_delivered_with_their_poison_and_labels_under_names_that_say_nothing(attack):
    context, training = training_context(attack)
    batches = list(context.samples.batches(5))
    images, targets = torch.cat([batch.images for batch in batches]), torch.cat([batch.targets for batch in batches])
    everything = range(len(attack.train))
    clean, triggered = attack.train.pair(everything, 1, attack.poison.trigger)
    for i in everything:
        poisoned = i in training.poisoned
        assert torch.equal(images[i], (triggered if poisoned else clean)[i])
        assert targets[i] == context.samples.targets[i] == (attack.chain.target if poisoned else attack.train.targets[i])
    assert 0 < len(training.poisoned) < len(attack.train)
    names = [key for batch in batches for key in batch.keys]
    assert names == [f"delivered-{i}" for i in everything]


def test_without_a_filter_s_finds_the_victim_is_trained_as_it_was(attack):
    everything = range(len(attack.train))
    again = attack.train_again(everything)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), attack.attacked.parameters(), strict=True))
    _, training = training_context(attack)
    clean = [i for i in everything if i not in training.poisoned]
    other = attack.train_again(clean)
    assert not all(torch.equal(a, b) for a, b in zip(other.parameters(), attack.attacked.parameters(), strict=True))
    keys = [path for path in attack.artifacts.root.glob("model/*/key.json") if json.loads(path.read_text()).get("kept") == clean]
    (facts,) = (json.loads(path.with_name("facts.json").read_text()) for path in keys)
    assert (facts["poisoned"], facts["covered"]) == (0, 0)


def test_the_least_suspicious_are_kept_whatever_their_order():
    scores = torch.tensor([0.0, 3.0, 1.0, 2.0, 5.0])
    assert _least_suspicious(scores, 0.4, seed=0) == [0, 2, 3]
    assert _least_suspicious(scores, 0.01, seed=0) == [0, 1, 2, 3, 4]
    drawn = {tuple(_least_suspicious(torch.zeros(6), 0.5, seed)) for seed in range(20)}
    assert len(drawn) > 5, "equal scores are not taken by their place"
    assert all(len(kept) == 3 for kept in drawn)


def test_a_defense_works_on_a_copy_of_the_network(attack):
    before = [parameter.clone() for parameter in attack.attacked.parameters()]
    for context in (model_context(attack, attack.attacked), training_context(attack)[0]):
        with torch.no_grad():
            for parameter in context.network.requires_grad_(True).parameters():
                parameter.zero_()
    for old, parameter in zip(before, attack.attacked.parameters(), strict=True):
        assert torch.equal(old, parameter)
        assert not parameter.requires_grad


def test_slices_of_no_weight_are_not_shown(attack):
    context, _ = training_context(attack)
    batches = list(context.samples.batches(8))
    batches[0].images[0] = float("nan")
    weights = torch.ones(len(context.samples))
    weights[0] = 0
    samples = GrantedImages(context.samples.targets, lambda size: iter(batches))
    fitted = context.fit(context.new_network(), samples, weights)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in fitted.parameters())


def test_input_detectors_are_dealt_the_patients_that_scan_detectors_are(attack, defended):
    record, _ = defended
    patients = [entry.patient for entry in attack.validation.entries]
    dealt = halves(patients, 0, "any")
    found = result(record, "strip")
    assert (found.clean_slices, found.held_out) == (len(dealt.fit), round(float(dealt.weights.sum())))
    assert found.held_out == len({patients[i] for i in dealt.held_out})


def test_ties_among_the_most_suspicious_do_not_depend_on_the_order():
    scores = torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    poisoned = torch.tensor([True, True, False, False, True, False])
    # Three are poisoned: the first for sure, and two of the four that tie, of which half are.
    assert _precision(scores, poisoned) == pytest.approx((1 + 2 * 0.5) / 3)
    assert _precision(scores.flip(0), poisoned.flip(0)) == _precision(scores, poisoned)
    assert _precision(torch.zeros(6), poisoned) == pytest.approx(0.5)
    assert _precision(-scores, poisoned) == pytest.approx(1 / 3 * (0 + 2 * 0.5))


class OneOfEach(ScanSetDetection):
    """Judges one scan of each patient."""

    def judge(self, scans):
        return SetVerdict(score=0.0, p_value=0.01, scans=len(set(scans.patients)))

    def tensors(self):
        return {}


def test_rates_of_sets_count_the_scans_that_were_judged(defended, monkeypatch):
    """Two test patients are of the attacked class, so a set of four scans is of two patients."""
    _, store = defended
    monkeypatch.setattr(CrossScanResidual, "calibrate", lambda self, context: OneOfEach())
    monkeypatch.setattr(CrossScanResidual, "restore", lambda self, tensors, geometry: OneOfEach())
    monkeypatch.setattr(defended_scans, "SET_SIZES", (2, 4))
    record = run(experiment(["cross-scan-residual"], threat={"budget": {"value": 25.0}}), out=store.root)
    found = result(record, "cross-scan-residual")
    fewer = "1 set of 4 scans, of which 2 were judged, one of each patient"
    for size, sets, note in ((2, 3, "3 sets of 2 scans"), (4, 1, fewer)):
        for metric in (f"tpr_at_5_of_{size}", f"fpr_at_5_of_{size}"):
            rate = found.metrics[metric]
            assert (rate.value, rate.n, rate.patients, rate.note) == (1.0, 2 * sets, 2, note)
    assert [item["judged"] for item in found.details["sets"]] == [2] * 8


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        ([10], "1 set of 10 scans"),
        ([10, 10], "2 sets of 10 scans"),
        ([10, 7], "2 sets of 10 scans, of which 7 to 10 were judged, one of each patient"),
        ([6, 6], "2 sets of 10 scans, of which 6 were judged, one of each patient"),
    ],
)
def test_sets_of_fewer_patients_are_called_that(judged, expected):
    assert defended_scans._of_sets(judged, 10) == expected


def test_measured_data_do_not_know_of_a_trigger_in_the_image(defended):
    _, store = defended
    threat = {"site": "image", "budget": {"value": 20.0}}
    kinds = ["complementary-rays", "cross-scan-residual", "consistent-projection", "strip"]
    record = run(experiment(kinds, attack={"kind": "badnets"}, threat=threat), out=store.root)
    for kind in kinds[:3]:
        assert "the attack changes images" in result(record, kind).why_not
    assert result(record, "strip").metrics["auroc"].value is not None


def test_a_network_that_no_attack_touched_is_not_inspected(defended):
    _, store = defended
    threat = {"access": "inference-data", "budget": {"value": 20.0}}
    record = run(experiment(["neural-cleanse"], threat=threat), out=store.root)
    assert "leaves the network as it is" in result(record, "neural-cleanse").why_not


def test_a_defense_that_fails_loses_nothing_and_is_tried_again(defended, monkeypatch):
    _, store = defended
    changed = {"attack": {"kind": "constant-offset"}}
    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "repair", lambda self, context: 1 / 0)
        record = run(experiment(["strip", "fine-tuning", "complementary-rays"], **changed), out=store.root)
    failed = result(record, "fine-tuning")
    assert (record.status, record.complete) == ("success", False)
    assert failed.failed.startswith("ZeroDivisionError: division by zero (test_defended_runs.py, line ")
    assert failed.metrics == {}
    assert record.failures[0] in record.warnings
    assert not any("fine-tuning" in item for item in record.untested)
    assert record.seeds[0].metric("attacked", "triggered", "asr") is not None
    assert result(record, "complementary-rays").metrics["auroc"].value is not None
    text = [[cell.text for cell in row] for row in defenses_table(record).rows]
    assert text[1][1].startswith("failed")
    monkeypatch.setattr(Strip, "fit", lambda self, context: pytest.fail("done before"))
    again = run(experiment(["strip", "fine-tuning", "complementary-rays"], **changed), out=store.root)
    assert again.complete
    assert result(again, "fine-tuning").metrics["der"].value is not None
    assert result(again, "strip") == result(record, "strip")


def test_an_interrupted_run_ends_as_an_undisturbed_one_and_repeats_no_defense(defended, tmp_path, monkeypatch):
    _, store = defended
    asked = experiment(["fine-tuning", "strip"], threat={"budget": {"value": 15.0}})

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Strip, "fit", stop)
        with pytest.raises(KeyboardInterrupt):
            run(asked, out=store.root)
    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "repair", lambda self, context: pytest.fail("repaired again"))
        continued = run(asked, out=store.root)
    assert continued.results() == run(asked, out=tmp_path / "runs").results()


def test_the_clean_network_is_repaired_once_and_its_time_does_not_count(defended, monkeypatch):
    _, store = defended
    repair, seen, clock = FineTuning.repair, [], [0.0]

    def slow(self, context):
        seen.append(context.network.state_dict())
        clock[0] += 100.0 if len(seen) == 1 else 1.0
        return repair(self, context)

    monkeypatch.setattr(FineTuning, "repair", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setitem(FEW_STEPS, "fine-tuning", {"kind": "fine-tuning", "epochs": 2})
    attacks = ({"kind": "ltgm"}, {"kind": "constant-offset"})
    runs = [run(experiment(["fine-tuning"], attack=attack), out=store.root) for attack in attacks]
    assert len(seen) == 3
    assert [result(record, "fine-tuning").seconds for record in runs] == [1.0, 1.0]
    rows = [record.seeds[0].metric("clean+fine-tuning", "clean", "accuracy") for record in runs]
    assert rows[0] == rows[1] is not None


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


def test_another_attack_on_the_chain_calibrates_nothing_anew(defended, monkeypatch):
    record, store = defended
    monkeypatch.setattr(ComplementaryRays, "calibrate", lambda self, context: pytest.fail("calibrated again"))
    for facts in (store.artifacts / "detector").glob("*/facts.json"):
        facts.write_text('{"seconds": 1000.0}')
    other = run(experiment(["complementary-rays"], attack={"kind": "frozen-noise"}), out=store.root)
    assert result(other, "complementary-rays").held_out == result(record, "complementary-rays").held_out
    assert result(other, "complementary-rays").metrics["auroc"].value is not None
    # The time of the calibration counts wherever it was.
    assert result(record, "complementary-rays").seconds < 1000 < result(other, "complementary-rays").seconds
