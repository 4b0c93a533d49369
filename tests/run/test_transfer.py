"""Other scan settings: the same networks and trigger there, what is shared, what repeats, and what cannot go."""

from __future__ import annotations

import numpy as np
import pytest

from tomosec.metrics.table import SampleTable, input_at, split_input
from tomosec.record import Store
from tomosec.report.transfer import own_setting, transfer_table
from tomosec.run.runner import rescore, run
from tomosec.trigger import load_trigger

SETTINGS = [
    {"name": "own"},
    {"name": "few-views", "changes": {"geometry.views": 24}},
    {"name": "rough", "changes": {"acquisition.dose": "low", "reconstruction": {"kind": "cgls", "steps": 4}}},
]


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """One finished run with three settings, shared by the tests that only look at it."""
    from tiny_runs import TINY

    from tomosec.experiment import parse_experiment

    out = tmp_path_factory.mktemp("moved") / "runs"
    experiment = parse_experiment({**TINY, "controls": [], "training": {"epochs": 1, "batch_size": 8}, "transfer": SETTINGS})
    return experiment, out, run(experiment, out=out)


def rows(out, record, model, shown):
    return SampleTable.read(out / record.id / "samples.csv").select(model=model, input=shown)


def test_every_setting_has_its_conditions_and_its_size(moved):
    _, _, record = moved
    assert record.status == "success"
    seed = record.seeds[0]
    assert [there.setting for there in seed.transfer] == ["own", "few-views", "rough"]
    for there in seed.transfer:
        for model in ("clean", "attacked"):
            clean = seed.metric(model, input_at("clean", there.setting), "accuracy")
            assert clean.n == sum(record.data.slices["test"].values())
            hit = seed.metric(model, input_at("triggered", there.setting), "asr")
            assert hit.n == record.data.slices["test"]["disease"]
            assert record.summary[f"{model}/triggered@{there.setting}/asr"].mean == hit.value
        assert there.note == ""
        assert record.summary[f"stealth@{there.setting}/rmse_hu"].mean == there.stealth["rmse_hu"].value
    assert any("those of the transfer table" in item for item in record.untested)
    assert record.warnings == ()


def test_the_own_setting_repeats_the_experiment(moved):
    _, out, record = moved
    for model in ("clean", "attacked"):
        for shown in ("clean", "triggered"):
            here, there = rows(out, record, model, shown), rows(out, record, model, f"{shown}@own")
            assert np.array_equal(here.scores, there.scores)
    own = record.seeds[0].transfer[0]
    assert own.strength == record.seeds[0].strength.strength
    assert own.stealth == {name: record.seeds[0].stealth[name] for name in own.stealth}


def test_the_trigger_keeps_its_amplitude_on_the_other_scan(moved):
    """Every other view of the scan is the other scan, so the trigger there is every other row of the pattern."""
    _, out, record = moved
    trigger = load_trigger(out / record.id / "trigger-seed0.safetensors")
    there = record.seeds[0].transfer[1]
    added = trigger.strength * trigger.pattern[0, 0, ::2].double()
    assert there.strength == pytest.approx(float(added.pow(2).mean().sqrt()), rel=1e-5)
    # A smoother reconstruction shows less of it, at the same strength.
    rough = record.seeds[0].transfer[2]
    assert rough.strength == record.seeds[0].strength.strength
    assert 0 < rough.stealth["rmse_hu"].value < 0.8 * record.seeds[0].stealth["rmse_hu"].value


def test_an_experiment_at_a_setting_shares_what_was_made_for_it(moved):
    experiment, out, record = moved
    before = set((out / "artifacts" / "reconstructed").iterdir())
    there = experiment.at(experiment.transfer[1])
    learned = run(there, out=out)
    # The test slices of that scan were reconstructed for the setting; its validation slices were not.
    made = set((out / "artifacts" / "reconstructed").iterdir()) - before
    assert len([folder for folder in made if folder.is_dir()]) == 1
    assert len([folder for folder in (out / "artifacts" / "data").iterdir() if folder.is_dir()]) == 1
    clean = rows(out, learned, "clean", "clean")
    assert clean.sample.tolist() == rows(out, record, "clean", "clean@few-views").sample.tolist()


def test_rescoring_measures_each_setting_against_its_own_clean_scans(moved):
    _, out, record = moved
    assert rescore(Store(out), record.id).results() == record.results()
    clean = rows(out, record, "clean", "clean@rough")
    right = int(((clean.prediction == clean.target) & (clean.target == 1)).sum())
    assert record.seeds[0].metric("attacked", "triggered@rough", "asr_on_correct").n == right


def test_a_chain_without_an_attack_is_measured_at_settings_too(tiny, moved):
    _, out, _ = moved
    record = run(tiny(attack=None, training={"epochs": 1, "batch_size": 8}, transfer=SETTINGS[1:]), out=out)
    shown = {(condition.model, condition.input) for condition in record.seeds[0].conditions}
    assert shown == {("clean", "clean"), ("clean", "clean@few-views"), ("clean", "clean@rough")}
    assert all(there.strength is None and not there.stealth for there in record.seeds[0].transfer)
    table = transfer_table(record)
    assert table.head == ("Setting", "Accuracy, clean model")


def test_a_trigger_that_is_no_pattern_goes_to_the_same_geometry_alone(tiny, moved):
    _, out, _ = moved
    changes = {"controls": [], "training": {"epochs": 1, "batch_size": 8}}
    record = run(tiny(attack={"kind": "center-shift"}, transfer=SETTINGS[1:], **changes), out=out)
    assert record.status == "success"
    few, rough = record.seeds[0].transfer
    assert few.note.startswith("not applicable: a detector-shift trigger is not one additive pattern of rays")
    assert few.strength is None
    assert rough.note == ""
    assert record.seeds[0].metric("attacked", "triggered@few-views", "asr") is None
    assert record.seeds[0].metric("attacked", "clean@few-views", "accuracy") is not None
    assert record.seeds[0].metric("attacked", "triggered@rough", "asr") is not None
    assert record.warnings == (f"transfer to few-views: {few.note}",)
    cells = {row[0].text: [cell.text for cell in row[1:]] for row in transfer_table(record).rows}
    assert all(text.startswith("not applicable") for text in cells["few-views"][2:])
    assert not any(text.startswith("not applicable") for text in (*cells["few-views"][:2], *cells["rough"]))
    assert own_setting(record) == ""


def test_an_image_trigger_goes_everywhere_unchanged(tiny, moved):
    _, out, _ = moved
    changes = {"controls": [], "training": {"epochs": 1, "batch_size": 8}}
    threat = {"budget": {"value": 20.0}, "site": "image"}
    record = run(tiny(attack={"kind": "badnets"}, threat=threat, transfer=SETTINGS[1:2], **changes), out=out)
    there = record.seeds[0].transfer[0]
    assert there.note == ""
    assert there.strength == record.seeds[0].strength.strength


def test_input_names_come_apart_as_they_were_put_together():
    assert split_input(input_at("triggered", "few-views")) == ("triggered", "few-views")
    assert split_input(input_at("clean", "")) == ("clean", "")
