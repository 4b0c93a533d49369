"""A learned reconstruction in a run: trained once, on the training part alone, kept, and continued where it was interrupted."""

from __future__ import annotations

import pytest
import torch

from tomosec.cli import main
from tomosec.reconstruction.saved import load_reconstruction
from tomosec.record import Store
from tomosec.run import artifacts, reconstruct
from tomosec.run.executors import execute
from tomosec.run.runner import run

LEARNED = {"kind": "red-cnn", "width": 4, "epochs": 2}
PLAIN = {"controls": [], "threat": {"access": "inference-data", "budget": {"value": 20.0}}}


def test_a_learned_reconstruction_is_trained_once_for_all_seeds_and_attacks(tiny, tmp_path, monkeypatch):
    seen = []
    pair = reconstruct.ScannedSlices.pair

    def watched(self, positions, draw):
        seen.append((frozenset(self.prepared.entries[self.indices[i]].patient for i in positions), draw))
        return pair(self, positions, draw)

    monkeypatch.setattr(reconstruct.ScannedSlices, "pair", watched)
    first = tiny(reconstruction=LEARNED, seeds=[0, 1], **PLAIN)
    second = tiny(reconstruction=LEARNED, seeds=[2], attack={"kind": "frozen-noise"}, **PLAIN)
    records = execute([first, second], out=tmp_path / "runs")
    assert [record.status for record in records] == ["success", "success"]
    assert records[0].physics.path == "long"
    assert records[0].physics.why_not_linear == "the reconstruction is not linear"
    made = [seed.cost.made for record in records for seed in record.seeds]
    assert ["reconstruction" in stages for stages in made] == [True, True, False]
    assert all(seed.cost.gradient_passes["reconstruction"] > 0 for record in records for seed in record.seeds)
    (folder,) = [path for path in (tmp_path / "runs" / "artifacts" / "reconstruction").iterdir() if path.is_dir()]
    assert sorted(path.name for path in folder.iterdir()) == ["facts.json", "key.json", "reconstruction.safetensors"]
    value, geometry, state, facts = load_reconstruction(folder / "reconstruction.safetensors")
    assert value == first.reconstruction
    assert len(facts["curves"]) == 2
    # Weights saw the noise of draws 1 and 2, and with it no patient of validation or test.
    trained = frozenset().union(*(patients for patients, draw in seen if draw > 0))
    counted = records[0].data.patients
    assert len(trained) == sum(counted["train"].values())
    assert {draw for _, draw in seen} == {0, 1, 2}
    shown = frozenset().union(*(patients for patients, _ in seen))
    assert len(shown) == len(trained) + sum(counted["validation"].values())  # whose loss is reported
    assert value.build(geometry, state=state)(torch.zeros(1, 1, *geometry.sinogram_shape)).isfinite().all()


def test_an_interrupted_training_of_a_reconstruction_ends_with_the_same_weights(tiny, tmp_path, monkeypatch):
    experiment = tiny(reconstruction={**LEARNED, "epochs": 3}, attack=None)
    pair = reconstruct.ScannedSlices.pair

    def dying(self, positions, draw):
        if draw == 3:
            raise KeyboardInterrupt
        return pair(self, positions, draw)

    with monkeypatch.context() as context:
        context.setattr(reconstruct.ScannedSlices, "pair", dying)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, out=tmp_path / "interrupted")
    trained = []
    monkeypatch.setattr(
        reconstruct.ScannedSlices, "pair", lambda self, positions, draw: trained.append(draw) or pair(self, positions, draw)
    )
    run(experiment, out=tmp_path / "interrupted")
    assert {draw for draw in trained if draw} == {3}
    run(experiment, out=tmp_path / "whole")
    files = [next((tmp_path / name).glob("artifacts/reconstruction/*/*.safetensors")) for name in ("interrupted", "whole")]
    states = [load_reconstruction(file)[2] for file in files]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_another_seed_of_the_reconstruction_is_another_training(tiny, tmp_path, monkeypatch):
    made = []
    get = artifacts.Artifacts.get
    monkeypatch.setattr(
        artifacts.Artifacts, "get", lambda self, kind, key, make: made.append((kind, key)) or get(self, kind, key, make)
    )
    for seed in (0, 1):
        run(tiny(reconstruction={**LEARNED, "epochs": 1, "seed": seed}, attack=None), out=tmp_path / "runs")
    folders = [path for path in (tmp_path / "runs" / "artifacts" / "reconstruction").iterdir() if path.is_dir()]
    assert len(folders) == 2
    # What came before the reconstruction is shared, what came after is not.
    assert len([path for path in (tmp_path / "runs" / "artifacts" / "data").iterdir() if path.is_dir()]) == 1
    assert len([path for path in (tmp_path / "runs" / "artifacts" / "model").iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize(("kind", "path"), [("sirt", "linear"), ("tv", "long")])
def test_iterative_reconstructions_run_from_the_command_line(tmp_path, kind, path):
    settings = {
        "data.patients": 12,
        "data.slices_per_patient": 2,
        "training.epochs": 1,
        "controls": "[]",
        "threat.access": "inference-data",
        "threat.budget.value": 10.0,
        "acquisition.dose": "ideal",
        "reconstruction.kind": kind,
        "reconstruction.iterations": 3,
    }
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    assert main(["run", "demo", *sets, "--out", str(tmp_path / "runs")]) == 0
    (record,) = Store(tmp_path / "runs").records()
    assert record.physics.path == path
    assert record.experiment["reconstruction"]["kind"] == kind
