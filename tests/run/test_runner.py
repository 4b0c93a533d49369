"""Experiments end to end: what a run leaves, that it repeats, that it resumes, and what bad input gets."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tomosec.data.prepared import load_prepared
from tomosec.errors import InputError, TomosecError
from tomosec.experiment import digest
from tomosec.reconstruction.fbp import FBP
from tomosec.record import Store
from tomosec.run import artifacts
from tomosec.run.executors import execute
from tomosec.run.runner import choose_device, rescore, run
from tomosec.trigger import load_trigger


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished tiny run, shared by the tests that only look at it."""
    from tiny_runs import TINY

    from tomosec.experiment import parse_experiment

    out = tmp_path_factory.mktemp("finished") / "runs"
    experiment = parse_experiment(TINY)
    return experiment, out, run(experiment, out=out)


def test_a_run_leaves_everything_it_claims(finished):
    _, out, record = finished
    folder = out / record.id
    assert record.status == "success"
    assert {path.name for path in folder.iterdir()} >= {
        "record.json",
        "experiment.json",
        "samples.csv",
        "tensors.safetensors",
        "log.txt",
    }
    assert record.sample_rows == len((folder / "samples.csv").read_text().splitlines()) - 1
    seed = record.seeds[0]
    shown = {(condition.model, condition.input) for condition in seed.conditions}
    assert shown == {
        ("clean", "clean"), ("clean", "triggered"), ("clean", "random"), ("attacked", "clean"), ("attacked", "triggered"),
        ("attacked", "random"), ("control-white", "clean"), ("control-white", "triggered"),
        ("control-spectrum", "clean"), ("control-spectrum", "triggered"),
    }  # fmt: skip
    assert seed.metric("attacked", "triggered", "asr").n == sum(record.data.slices["test"].values()) // 2
    assert seed.strength.rmse_hu == pytest.approx(20.0, rel=0.02)
    assert set(seed.curves) == {"clean", "attacked", "control-white", "control-spectrum"}
    assert {"clean", "attacked", "trigger"} <= set(seed.cost.seconds)
    assert record.physics.path == "linear"
    assert record.physics.i0 > 0
    assert record.provenance.packages["torch"]
    assert record.data.manifest
    assert record.data.split
    assert any("defenses" in item for item in record.untested)
    assert any("fewer than three" in item for item in record.untested)
    assert record.severity.reason


def test_the_test_images_change_by_the_budget(finished):
    _, _, record = finished
    # The budget is set on training slices without noise; on test slices it is met within a few percent.
    assert record.seeds[0].stealth["rmse_hu"].value == pytest.approx(20.0, rel=0.1)
    assert record.seeds[0].random_stealth["rmse_hu"].value == pytest.approx(20.0, rel=0.1)


def test_the_trigger_works_on_its_own(finished):
    experiment, out, record = finished
    trigger = load_trigger(out / record.id / "trigger-seed0.safetensors")
    sinogram = torch.rand(2, 1, *experiment.geometry.sinogram_shape)
    assert (trigger.apply(sinogram) - sinogram).pow(2).mean().sqrt() == pytest.approx(record.seeds[0].strength.strength, rel=1e-3)


def test_the_same_run_again_does_no_work(finished):
    experiment, out, record = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = run(experiment.model_copy(update={"title": "another title"}), out=out)
    assert again == record
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_two_runs_of_one_seed_give_identical_metrics(finished, tmp_path):
    experiment, out, record = finished
    again = run(experiment, out=tmp_path / "runs")
    assert again.id == record.id
    assert again.results() == record.results()
    assert (tmp_path / "runs" / again.id / "samples.csv").read_bytes() == (out / record.id / "samples.csv").read_bytes()


def test_example_images_are_in_hounsfield_units_and_linear_in_the_trigger(finished):
    _, out, record = finished
    with safe_open(out / record.id / "tensors.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["tomosec"])
    assert float(tensors["clean_hu"].min()) > -1600
    change = tensors["triggered_hu"] - tensors["clean_hu"]
    assert torch.allclose(change, tensors["trigger_effect_hu"].expand_as(change), atol=0.05)
    assert len(facts["examples"]) == tensors["clean_hu"].shape[0]
    assert set(facts["examples"][0]["readings"]) >= {
        "clean model, clean",
        "attacked model, triggered",
        "attacked model, random trigger",
    }


def test_rescoring_changes_nothing_that_is_right_and_repairs_what_is_not(finished):
    _, out, record = finished
    store = Store(out)
    assert rescore(store, record.id).results() == record.results()
    spoiled = record.model_copy(update={"seeds": (record.seeds[0].model_copy(update={"conditions": ()}),), "summary": {}})
    store.write(spoiled)
    assert rescore(store, record.id).results() == record.results()


def test_rescoring_a_damaged_table_is_refused(finished):
    _, out, record = finished
    table = out / record.id / "samples.csv"
    whole = table.read_text()
    try:
        table.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
        with pytest.raises(InputError, match="rows, the record says"):
            rescore(Store(out), record.id)
    finally:
        table.write_text(whole)


def test_a_sweep_pays_for_what_is_new_in_it(tiny, finished):
    _, out, first = finished
    second = run(tiny(threat={"budget": {"value": 40.0}}), out=out)
    assert second.id != first.id
    assert set(second.seeds[0].cost.made) == {"attacked", "control-white", "control-spectrum"}
    assert second.seeds[0].metric("clean", "clean", "accuracy") == first.seeds[0].metric("clean", "clean", "accuracy")
    assert second.seeds[0].strength.strength == pytest.approx(2 * first.seeds[0].strength.strength, rel=1e-3)


def test_a_sweep_of_ten_strengths_on_a_trained_chain_reconstructs_nothing(tiny, tmp_path, monkeypatch):
    threat = {"access": "inference-data"}
    controls = ["random-trigger"]
    first = tiny(threat={**threat, "budget": {"value": 1.0}}, controls=controls)
    run(first, out=tmp_path / "runs")
    monkeypatch.setattr(FBP, "forward", lambda self, p: pytest.fail("a sinogram was reconstructed"))
    budgets = [2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 40.0]
    cells = [tiny(threat={**threat, "budget": {"value": value}}, controls=controls) for value in budgets]
    records = [run(cell, out=tmp_path / "runs") for cell in cells]
    assert [record.seeds[0].strength.rmse_hu for record in records] == pytest.approx(budgets, rel=0.02)


def test_every_access_of_the_threat_model_runs(tiny, finished):
    _, out, _ = finished
    data = run(tiny(threat={"access": "training-data", "poison_rate": 0.3, "budget": {"value": 20.0}}, controls=[]), out=out)
    assert data.status == "success"
    test_time = run(tiny(threat={"access": "inference-data", "budget": {"value": 20.0}}, controls=["random-trigger"]), out=out)
    seed = test_time.seeds[0]
    assert seed.metric("attacked", "clean", "accuracy") == seed.metric("clean", "clean", "accuracy")
    assert seed.cost.made == ()


def test_counts_take_the_long_way_and_say_why(tiny, finished):
    _, out, linear = finished
    record = run(tiny(threat={"site": "counts", "budget": {"value": 20.0}}, controls=["random-trigger"]), out=out)
    assert record.physics.path == "long"
    assert "before electronic noise, the photon floor and the log" in record.physics.why_not_linear
    # Far from starvation the two sites do nearly the same.
    assert record.seeds[0].strength.strength == pytest.approx(linear.seeds[0].strength.strength, rel=0.05)


def test_a_clean_chain_alone_can_be_measured(tiny, finished):
    _, out, _ = finished
    record = run(tiny(attack=None), out=out)
    assert record.severity.level == "none"
    assert [(c.model, c.input) for c in record.seeds[0].conditions] == [("clean", "clean")]


def test_strength_is_chosen_on_validation_from_the_smallest(tiny, finished):
    _, out, _ = finished
    record = run(tiny(threat={"budget": {"value": [80.0, 20.0], "enough_asr": 0.0, "max_ca_loss": 1.0}}, controls=[]), out=out)
    assert record.seeds[0].strength.budget == 20.0
    assert len(record.seeds[0].strength.tried) == 1
    assert record.seeds[0].strength.validation_slices == sum(record.data.slices["validation"].values())


def test_a_budget_of_zero_changes_nothing(tiny, finished):
    _, out, _ = finished
    record = run(tiny(threat={"access": "inference-data", "budget": {"value": 0.0}}, controls=[]), out=out)
    seed = record.seeds[0]
    assert seed.stealth["max_abs_hu"].value == 0
    assert seed.metric("clean", "triggered", "accuracy") == seed.metric("clean", "clean", "accuracy")


def test_processes_give_what_inline_gives(tiny, tmp_path):
    experiments = [tiny(seeds=[seed], controls=[]) for seed in (0, 1)]
    inline = execute(experiments, out=tmp_path / "inline")
    parallel = execute(experiments, executor="processes", workers=2, out=tmp_path / "processes")
    assert [record.status for record in parallel] == ["success", "success"]
    for a, b in zip(inline, parallel, strict=True):
        assert a.id == b.id
        # Threads differ between the two, and with them the order of sums: equal to rounding, not to the bit.
        for x, y in zip(a.seeds, b.seeds, strict=True):
            assert x.strength.strength == pytest.approx(y.strength.strength, rel=0.05)


def test_a_failing_experiment_is_recorded_and_the_others_go_on(tiny, tmp_path):
    bad = tiny(
        training={"epochs": 1, "batch_size": 8, "learning_rate": 1e30, "warmup_epochs": 0},
        network={"kind": "small-cnn", "norm": "none"},
    )
    records = execute([bad, tiny(attack=None)], out=tmp_path / "runs")
    assert [record.status for record in records] == ["error", "success"]
    assert records[0].error


KILLED = """
import os, signal, sys, json
from pathlib import Path
from tests.run.tiny_runs import TINY
from tomosec.experiment import parse_experiment
from tomosec.run import runner
from tomosec.record import Store
where, out = sys.argv[1], Path(sys.argv[2])

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "training":
    from tomosec.analysis import training
    epoch = training._Run.epoch
    calls = []
    def dying(self, number):
        calls.append(number)
        return die() if len(calls) == 5 else epoch(self, number)
    training._Run.epoch = dying
elif where == "record":
    import tomosec.files
    replace = Path.replace
    def dying(self, target):
        if Path(target).name == "record.json" and (Path(target).parent / "samples.csv").exists():
            die()
        return replace(self, target)
    Path.replace = dying
elif where == "artifact":
    from tomosec.run import artifacts
    artifacts.sync_folder = die
runner.run(parse_experiment(TINY), out=out)
"""


@pytest.mark.parametrize("where", ["training", "record", "artifact"])
def test_a_killed_run_continues_and_ends_with_the_same_record(finished, tmp_path, where):
    experiment, _, whole = finished
    out = tmp_path / "runs"
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, where, str(out)], cwd=root, capture_output=True, timeout=280)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    store = Store(out)
    assert store.read(whole.id).status == "started"
    record = run(experiment, out=out)
    assert record.results() == whole.results()
    assert not list((out / whole.id).glob(".*.tmp"))


def test_a_full_disk_says_so_and_loses_nothing(finished, tiny, tmp_path, monkeypatch):
    experiment, _, whole = finished
    out = tmp_path / "runs"
    real = os.fsync
    full = {"on": False}

    def fsync(handle):
        if full["on"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    made = []
    get = artifacts.Artifacts.get

    def watched(self, kind, key, make):
        made.append(kind)
        full["on"] = kind == "trigger"
        return get(self, kind, key, make)

    monkeypatch.setattr(artifacts.Artifacts, "get", watched)
    with pytest.raises(TomosecError, match="no space left on the device"):
        run(experiment, out=out)
    full["on"] = False
    monkeypatch.undo()
    record = run(experiment, out=out)
    assert record.results() == whole.results()
    assert "clean" not in record.seeds[0].cost.made


def test_an_output_folder_of_something_else_is_refused(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="holds other files"):
        run(tiny(), out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_goal_that_the_data_do_not_have_is_named(tiny, tmp_path):
    with pytest.raises(InputError, match="no class 'healthy' in this dataset; there are normal, disease"):
        run(tiny(threat={"goal": {"target": "healthy"}}), out=tmp_path / "runs")


def test_an_unknown_device_is_named():
    with pytest.raises(InputError, match="allowed are auto, cpu"):
        choose_device("mps")
    with pytest.raises(InputError, match="not a device"):
        choose_device("gpu9")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="0 CUDA devices"):
            choose_device("cuda")


def test_a_second_process_is_told(finished, tmp_path, tiny):
    store = Store(tmp_path / "runs", create=True)
    experiment = tiny()
    from tomosec.run.chain import open_data

    identity = experiment.identity(open_data(experiment, None).manifest_hash())
    with store.claim(identity), pytest.raises(TomosecError, match="another process is running this experiment"):
        subprocess_like_run(experiment, tmp_path / "runs")


def subprocess_like_run(experiment, out):
    """A file lock is per open file, so a second claim in one process fails as one in another would."""
    return run(experiment, out=out)


def test_artifacts_are_named_by_their_content(tmp_path):
    store = artifacts.Artifacts(tmp_path)
    made = []
    for key in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):
        store.get("thing", key, lambda folder: made.append(folder) or {"x": math.pi})
    assert len(made) == 1
    assert store.get("thing", {"a": 1, "b": 3}, lambda folder: {"x": 1}).made
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_an_interrupted_artifact_is_continued(tmp_path):
    store = artifacts.Artifacts(tmp_path)

    def interrupted(folder):
        (folder / "half").write_text("done so far")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get("thing", {"a": 1}, interrupted)
    found = store.get("thing", {"a": 1}, lambda folder: {"text": (folder / "half").read_text()})
    assert found.facts["text"] == "done so far"


def test_prepared_data_are_reread_as_they_were(finished):
    _, out, _ = finished
    (folder,) = [path for path in (out / "artifacts" / "data").iterdir() if path.is_dir()]
    prepared = load_prepared(folder)
    assert len(prepared.entries) == 36
    assert prepared.attenuation.shape == (36, 32, 32)
    assert prepared.lesions is not None
    assert bool((prepared.lesions <= (prepared.bodies | ~prepared.bodies)).all())
    assert time.time() > folder.stat().st_mtime
