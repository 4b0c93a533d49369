"""The bundled recipes: every one and every preset parses, and those that need data run on format-true fixtures."""

from __future__ import annotations

import pytest
from dicom_fixtures import write_covid_ldct

from tomosec.experiment import load_recipe, recipe_folder
from tomosec.run.chain import open_data
from tomosec.run.runner import run
from tomosec.trigger import load_trigger

RECIPES = sorted(path.stem for path in recipe_folder().glob("*.yaml"))
#: A recipe's own settings at a size that takes seconds.
SMALL = {
    "geometry.views": 60,
    "geometry.bins": 48,
    "geometry.bin_mm": 32.0,
    "geometry.shape": [32, 32],
    "geometry.pixel_mm": 15.0,
    "training.epochs": 1,
    "victim_training.epochs": 1,
    "split.test": 0.34,
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_and_preset_parses(name):
    recipe = load_recipe(name)
    for preset in (None, *recipe.presets):
        experiments = recipe.experiments(preset=preset)
        assert experiments
        assert all(experiment.title for experiment in experiments)


def test_the_demo_is_one_seed_of_the_phantom_with_its_controls():
    (demo,) = load_recipe("demo").experiments()
    assert demo.seeds == (0,)
    assert demo.data.kind == "chest-phantom"
    assert {"random-trigger", "white-victim"} <= set(demo.controls)
    assert max(demo.threat.budget.candidates) <= 10.0


def test_the_published_setting_is_the_default_but_for_the_objective():
    (paper,) = load_recipe("ltgm-paper").experiments()
    assert paper.attack.objective == "true-label"
    assert paper.attack.samples == "all"
    assert not paper.attack.flip_test_sign
    assert paper.geometry.sinogram_shape == (1024, 768)
    assert paper.geometry.shape == (256, 256)


def test_the_architectures_are_every_surrogate_against_every_victim():
    five = {"vgg11", "vgg11-bn", "resnet18", "densenet121", "vit"}
    recipe = load_recipe("architectures")
    for preset in ("study", "full"):
        experiments = recipe.experiments(preset=preset)
        cells = [(e.surrogate.kind, e.network.kind) for e in experiments if e.surrogate is not None]
        assert len(cells) == 25
        assert set(cells) == {(surrogate, victim) for surrogate in five for victim in five}
        white_box = [
            e.network.kind for e in experiments if e.surrogate is None and e.attack is not None and e.attack.kind == "ltgm"
        ]
        assert sorted(white_box) == sorted(five)
        assert {e.seeds for e in experiments} == {(0, 1, 2)}
        assert any(e.attack is None for e in experiments)
        assert any(e.attack is not None and e.attack.kind == "fresh-noise" for e in experiments)
        for network in {e.network for e in experiments}:
            network.build(classes=2, shape=experiments[0].geometry.shape, seed=0)
    quick = recipe.experiments(preset="quick")
    two = {"small-cnn", "resnet18"}
    assert {(e.surrogate.kind, e.network.kind) for e in quick if e.surrogate is not None} == {(a, b) for a in two for b in two}
    assert {e.seeds for e in quick} == {(0,)}


def test_the_paper_runs_on_the_layout_of_its_dataset(tmp_path):
    root = write_covid_ldct(tmp_path / "data", covid=6, normal=6, slices=6)
    (paper,) = load_recipe("ltgm-paper").experiments(preset="quick", overrides=SMALL)
    record = run(paper, data=root, out=tmp_path / "runs")
    assert record.status == "success"
    assert record.data.dataset == "covid-ldct"
    assert not record.data.shares_patients
    assert record.seeds[0].metric("attacked", "triggered", "asr").n > 0


def test_the_released_code_runs_with_its_faults_on(tmp_path):
    root = write_covid_ldct(tmp_path / "data", covid=4, normal=4, slices=6)
    changes = {
        **{name: value for name, value in SMALL.items() if not name.startswith("victim_training")},
        "network": {"kind": "vgg11", "softmax": True},
        "geometry.shape": [64, 64],
        "geometry.pixel_mm": 7.5,
        "training.epochs": 1,
    }
    (released,) = load_recipe("ltgm-released").experiments(overrides=changes)
    record = run(released, data=root, out=tmp_path / "runs")
    assert record.status == "success"
    assert record.data.shares_patients
    assert any("new patients" in item for item in record.untested)
    shown = load_trigger(tmp_path / "runs" / record.id / "trigger-seed0.safetensors")
    assert shown.strength == record.seeds[0].strength.strength > 0  # trained with the other sign, see attack.at_training_time
    assert record.seeds[0].metric("clean", "unscanned", "accuracy") is not None


def test_the_real_sample_is_read_as_the_recipe_says(covid_sample):
    (experiment,) = load_recipe("covid-ct-md").experiments()
    opened = open_data(experiment, covid_sample)
    assert len(opened.entries) == 315
    assert len({entry.patient for entry in opened.entries}) == 6
    assert set(opened.classes) == {"normal", "pneumonia"}
    split = experiment.split.assign(opened.entries, opened.classes)
    assert split.shares_patients
    assert "5 slices apart" in split.description
