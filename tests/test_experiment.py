"""Identity: what changes the numbers changes the id, and nothing else does. Recipes: what is wrong is named."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tomosec.component import canonical
from tomosec.errors import InputError
from tomosec.experiment import (
    Experiment,
    Recipe,
    digest,
    find_recipe,
    load_recipe,
    parse_experiment,
    parse_overrides,
    recipe_folder,
)
from tomosec.setting import set_field

BASE: dict[str, Any] = {
    "data": {"kind": "chest-phantom", "patients": 8},
    "split": "by-patient",
    "geometry": {
        "kind": "fan-beam", "views": 64, "bins": 48, "bin_mm": 24.0, "shape": [32, 32], "pixel_mm": 12.0,
        "source_to_isocenter_mm": 1000.0, "source_to_detector_mm": 2000.0,
    },
    "acquisition": "simulated",
    "reconstruction": "fbp",
    "network": "small-cnn",
    "attack": "ltgm",
}  # fmt: skip
MANIFEST = "abc"


def changed(path: str, value: Any) -> dict[str, Any]:
    fields = copy.deepcopy(BASE)
    set_field(fields, path, value)
    return fields


def identity(fields: dict[str, Any], manifest: str = MANIFEST) -> str:
    return parse_experiment(fields).identity(manifest)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def recipe(**keys: Any) -> Recipe:
    return Recipe.model_validate({"experiment": copy.deepcopy(BASE), "source": "r.yaml", **keys})


# --- identity -----------------------------------------------------------------------------------------------------------


def test_identity_is_a_short_hash_that_repeats() -> None:
    found = identity(BASE)
    assert found == identity(copy.deepcopy(BASE))
    assert len(found) == 16
    assert set(found) <= set("0123456789abcdef")


def test_the_order_of_keys_does_not_matter() -> None:
    turned = {key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in reversed(BASE.items())}
    assert list(turned) != list(BASE)
    assert identity(turned) == identity(BASE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seeds", 3),
        ("seeds", [0, 1, 2]),
        ("acquisition.dose", "standard"),
        ("reconstruction", {"kind": "fbp", "version": 1, "window": "ram-lak"}),
        ("threat.budget.value", 10),
        ("threat.goal.target", "normal"),
        ("attack.mask", "erratum"),
        ("data.seed", 0),
        ("victim_training", None),
        ("geometry.start", 0),
        ("geometry.pixel_mm", 12),
        ("surrogate", None),
        ("threat.knowledge", "white-box"),
    ],
)
def test_spelling_out_a_default_does_not_change_it(path: str, value: Any) -> None:
    assert identity(changed(path, value)) == identity(BASE)


@pytest.mark.parametrize(("path", "value"), [("title", "A title"), ("description", "Words.\nMore words.")])
def test_a_title_does_not_change_it(path: str, value: Any) -> None:
    assert identity(changed(path, value)) == identity(BASE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seeds", 1),
        ("seeds", [1, 0, 2]),
        ("data.patients", 10),
        ("data.seed", 1),
        ("split.seed", 1),
        ("geometry.views", 65),
        ("geometry.arc", -6.283185307179586),
        ("acquisition.dose", "low"),
        ("acquisition.electronic_noise", 0.0),
        ("reconstruction.window", "hann"),
        ("reconstruction.gradient", "reference"),
        ("training.epochs", 3),
        ("threat.budget.value", 5.0),
        ("threat.budget.value", [10.0, 20.0]),
        ("threat.access", "training-data"),
        ("threat.site", "counts"),
        ("attack", None),
        ("attack.mask", "none"),
        ("attack.kind", "frozen-noise"),
        ("controls", []),
        ("detail", ["unscanned-images"]),
    ],
)
def test_whatever_changes_numbers_changes_it(path: str, value: Any) -> None:
    assert identity(changed(path, value)) != identity(BASE)


def test_no_two_of_the_changes_collide() -> None:
    values = {identity(changed("seeds", [seed])) for seed in range(20)} | {
        identity(changed("data.seed", seed)) for seed in range(20)
    }
    assert len(values) == 40


def test_the_data_change_it() -> None:
    assert identity(BASE, "abd") != identity(BASE)


def test_the_version_of_a_component_changes_it() -> None:
    experiment = parse_experiment(BASE)
    raised = experiment.model_copy(update={"attack": experiment.attack.model_copy(update={"version": 10_000})})  # type: ignore[union-attr]
    assert raised.identity(MANIFEST) != experiment.identity(MANIFEST)


def test_the_numerics_version_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(BASE)
    monkeypatch.setattr("tomosec.experiment.NUMERICS_VERSION", 10_000)
    assert identity(BASE) != before


def test_an_experiment_survives_json_with_its_identity() -> None:
    experiment = parse_experiment(changed("attack.mask", "none"))
    again = Experiment.model_validate_json(experiment.model_dump_json())
    assert again == experiment
    assert again.identity(MANIFEST) == experiment.identity(MANIFEST)


def test_repr_rebuilds_the_fields() -> None:
    assert "small-cnn" not in repr(parse_experiment(BASE).training)
    assert canonical(parse_experiment(BASE))["data"] == {"kind": "chest-phantom", "version": 1, "patients": 8}


def test_digest_refuses_nan() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        digest({"x": float("nan")})


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("atack", "ltgm", r"unknown field 'atack' \(did you mean 'attack'\?\)"),
        ("attack.kind", "ltmg", r"attack: no attack of kind 'ltmg' \(did you mean 'ltgm'\?\)"),
        ("attack.maks", "none", r"attack.*unknown field 'maks' \(did you mean 'mask'\?\)"),
        ("threat.budget.vlaue", 3, r"threat\.budget: unknown field 'vlaue' \(did you mean 'value'\?\)"),
        ("network.kind", "os.system", "no network of kind 'os.system'"),
        ("data.kind", "os.system", "no dataset of kind 'os.system'"),
        ("reconstruction.window", "han", "window"),
        ("acquisition.dose", "standart", "did you mean 'standard'"),
        ("acquisition.dose", -3, "cannot be negative"),
        ("seeds", True, "seeds"),
        ("seeds", 0, "one or more different integers"),
        ("seeds", [1, 1], "different integers"),
        ("seeds", [-1], "from 0"),
        ("seeds", 10**9, "seeds"),
        ("seeds", "three", "seeds"),
        ("geometry.pixel_mm", float("nan"), r"geometry.*pixel_mm"),
        ("geometry.views", 0, "views"),
        ("threat.site", "image", "acts on measured data"),
        ("controls", ["white"], "controls"),
        ("network", None, "network"),
        ("data", 3, "a dataset is a mapping"),
        ("surrogate", "resnet18", r"surrogate: 'resnet18' would not be used, because threat\.knowledge is 'white-box'"),
        ("threat.knowledge", "surrogate", r"surrogate: this field is required where threat\.knowledge is 'surrogate'"),
        ("threat.knowledge", "black-box", "threat.knowledge.*'white-box' or 'surrogate'"),
        ("surrogate", "resnet81", r"surrogate: no network of kind 'resnet81' \(did you mean 'resnet18'\?\)"),
        ("surrogate", {"kind": "ltgm"}, "no network of kind 'ltgm'"),
    ],
)
def test_a_wrong_field_is_named_with_what_it_holds(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_experiment(changed(path, value), "my.yaml")
    assert "my.yaml" in str(error.value)


def test_a_surrogate_is_part_of_the_identity() -> None:
    known = {**BASE, "threat": {"knowledge": "surrogate"}}
    found = [identity({**known, "surrogate": kind}) for kind in ("small-cnn", "resnet18", {"kind": "small-cnn", "dropout": 0.2})]
    assert len({identity(BASE), *found}) == 4


@pytest.mark.parametrize("surrogate", [{}, {"surrogate": "small-cnn"}])
def test_a_surrogate_without_an_attack_is_refused(surrogate: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"threat\.knowledge 'surrogate' .* but attack is none"):
        parse_experiment({**BASE, "attack": None, "threat": {"knowledge": "surrogate"}, **surrogate})
    with pytest.raises(InputError, match=r"would not be used, because threat\.knowledge is 'white-box'"):
        parse_experiment({**BASE, "attack": None, "surrogate": "small-cnn"})


@pytest.mark.parametrize("name", ["data", "split", "geometry", "acquisition", "reconstruction", "network"])
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: this field is required"):
        parse_experiment({key: value for key, value in BASE.items() if key != name})


# --- overrides, presets, sweeps -----------------------------------------------------------------------------------------


def test_overrides_reach_nested_fields_and_bare_kinds() -> None:
    [found] = recipe().experiments(overrides={"reconstruction.window": "hann", "threat.budget.value": [2, 5], "seeds": 1})
    assert found.reconstruction.window == "hann"  # type: ignore[attr-defined]
    assert found.threat.budget.candidates == (2, 5)
    assert found.seeds == (0,)


def test_a_new_kind_drops_the_fields_of_the_old_one() -> None:
    fields = {**BASE, "attack": {"kind": "ltgm", "mask": "none"}}
    [found] = recipe(experiment=fields).experiments(overrides={"attack.kind": "frozen-noise"})
    assert found.attack.kind == "frozen-noise"  # type: ignore[union-attr]


def test_a_kind_set_later_drops_what_a_preset_set_for_another() -> None:
    presets = {"released": {"attack.kind": "ltgm", "attack.mask": "released"}}
    [found] = recipe(presets=presets).experiments(preset="released", overrides={"attack.kind": "frozen-noise"})
    assert found.attack.kind == "frozen-noise"  # type: ignore[union-attr]


def test_the_same_kind_again_keeps_the_fields() -> None:
    fields = {**BASE, "attack": {"kind": "ltgm", "mask": "none"}}
    [found] = recipe(experiment=fields).experiments(overrides={"attack.kind": "ltgm"})
    assert found.attack.mask == "none"  # type: ignore[union-attr]


def test_presets_change_fields_and_the_caller_has_the_last_word() -> None:
    made = recipe(presets={"quick": {"seeds": 1, "training.epochs": 1}})
    assert made.experiments(preset="quick")[0].seeds == (0,)
    assert made.experiments(preset="quick", overrides={"seeds": 2})[0].seeds == (0, 1)
    assert made.experiments()[0].seeds == (0, 1, 2)
    with pytest.raises(InputError, match=r"r\.yaml: no preset 'quik' \(did you mean 'quick'\?\); there are quick"):
        made.experiments(preset="quik")
    with pytest.raises(InputError, match="there are none"):
        recipe().experiments(preset="quick")


def test_a_sweep_is_the_product_of_axes_for_each_case() -> None:
    sweep = {
        "axes": {"threat.budget.value": [2, 5, 10], "seeds": [[0], [1]]},
        "cases": [{"attack": "ltgm"}, {"attack.mask": "none"}],
    }
    found = recipe(sweep=sweep).experiments()
    assert len(found) == 12
    assert len({item.identity(MANIFEST) for item in found}) == 12


def test_an_override_wins_over_an_axis() -> None:
    found = recipe(sweep={"axes": {"seeds": [[0], [1]]}}).experiments(overrides={"seeds": [7]})
    assert [item.seeds for item in found] == [(7,), (7,)]


def test_expanding_leaves_the_recipe_alone() -> None:
    made = recipe(sweep={"cases": [{"training.epochs": 1}, {}]})
    before = made.model_dump_json()
    first, second = made.experiments()
    assert first.training != second.training
    assert made.model_dump_json() == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"title.x": 1}, "title"),
        ({"seeds.x": 1}, "seeds holds 2, which has no fields"),
        ({"a..b": 1}, "a field is written a.b.c"),
        ({"": 1}, "a field is written a.b.c"),
        ({"geometry.view": 1}, "did you mean 'views'"),
        ({"nothing.at.all": 1}, "unknown field 'nothing'"),
    ],
)
def test_wrong_overrides_are_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(experiment={**BASE, "title": "words", "seeds": 2}).experiments(overrides=overrides)


def test_overrides_are_read_as_yaml() -> None:
    found = parse_overrides(["a.b=1", "c=[1, 2]", "d=null", "e=x=y", "f=", "g={k: 1}", " h =true"])
    assert found == {"a.b": 1, "c": [1, 2], "d": None, "e": "x=y", "f": None, "g": {"k": 1}, "h": True}


@pytest.mark.parametrize(
    ("item", "message"), [("a.b", "expected field=value"), ("a=[1", "not valid YAML"), ("a=!!python/none x", "not valid")]
)
def test_malformed_overrides(item: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_overrides([item])


# --- files --------------------------------------------------------------------------------------------------------------


def test_a_recipe_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", yaml.safe_dump({"experiment": BASE, "presets": {"quick": {"seeds": 1}}}))
    loaded = load_recipe(path)
    assert loaded.source == str(path)
    assert loaded.experiments()[0] == parse_experiment(BASE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiment: [1, 2", "not valid YAML"),
        ("experiment:\n\t- tab", "not valid YAML"),
        ("", "a recipe is a mapping with the key 'experiment', found NoneType"),
        ("- a\n- b", "found list"),
        ("just text", "found str"),
        ("experimnet: {}", r"'experiment' is missing \(did you mean 'experimnet'\?\)|key 'experiment' is missing"),
        ("experiment: {}\npreset: {}", r"unknown field 'preset' \(did you mean 'presets'\?\)"),
        ("experiment: 3", "experiment"),
        ("experiment: {}\nsweep: {axis: {}}", r"unknown field 'axis' \(did you mean 'axes'\?\)"),
        ("experiment: {}\nsweep: {axes: {seeds: 3}}", "axes.seeds"),
        ("? [a, b]\n: 1\nexperiment: {}", "not valid YAML|unknown field"),
        ("1: 2\nexperiment: {}", "unknown field '1'"),
        ("experiment: &a\n  data: *a", "contains itself"),
        ("[" * 3000, "nested too deeply|not valid YAML"),
    ],
)
def test_a_malformed_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(InputError, match=message) as error:
        load_recipe(path).experiments()
    assert "bad.yaml" in str(error.value)


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['touch {0}']", "!!python/name:os.system", "!!python/object/new:os.system ['touch {0}']"],
)
def test_yaml_runs_nothing(tmp_path: Path, tag: str) -> None:
    witness = tmp_path / "witness"
    path = write(tmp_path / "bad.yaml", f"experiment: {tag.format(witness)}")
    with pytest.raises(InputError, match="not valid YAML"):
        load_recipe(path)
    assert not witness.exists()


def test_values_that_only_yaml_knows_are_refused_by_field(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.yaml", yaml.safe_dump({"experiment": {**BASE, "title": "X"}}).replace("title: X", "title: 2026-01-01")
    )
    with pytest.raises(InputError, match="title"):
        load_recipe(path).experiments()


def test_a_yaml_alias_does_not_tie_two_fields_together(tmp_path: Path) -> None:
    text = yaml.safe_dump({"experiment": BASE}) + "  training: &t {epochs: 5}\n  victim_training: *t\n"
    [found] = load_recipe(write(tmp_path / "r.yaml", text)).experiments(overrides={"training.epochs": 2})
    assert found.training.epochs == 2
    assert found.victim_training is not None
    assert found.victim_training.epochs == 5


def test_missing_unreadable_and_binary_files(tmp_path: Path) -> None:
    write(tmp_path / "covid.yaml", "experiment: {}")
    with pytest.raises(InputError, match=r"no such file \(did you mean 'covid.yaml'\?\)"):
        load_recipe(tmp_path / "covd.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "image.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match=r"cannot be read|not valid YAML"):
        load_recipe(tmp_path / "image.yaml")


def test_bundled_recipes_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo") == recipe_folder() / "demo.yaml"
    with pytest.raises(InputError, match=r"demmo: no such file or bundled recipe \(did you mean 'demo'\?\)"):
        find_recipe("demmo")
    os.mkdir("demo")  # a folder of that name does not hide the recipe
    assert find_recipe("demo") == recipe_folder() / "demo.yaml"


def test_every_bundled_recipe_is_valid() -> None:
    for path in sorted(recipe_folder().glob("*.yaml")):
        loaded = load_recipe(path)
        for preset in [None, *loaded.presets]:
            assert loaded.experiments(preset=preset), path


# --- transfer settings --------------------------------------------------------------------------------------------------


def settings_of(settings: Any, **changes: Any) -> Experiment:
    return parse_experiment({**copy.deepcopy(BASE), "transfer": settings, **changes})


def test_a_setting_is_the_experiments_own_scan_with_changes() -> None:
    experiment = settings_of(
        [
            {"name": "low", "changes": {"acquisition.dose": "low", "geometry.views": 32}},
            {"name": "sirt", "changes": {"reconstruction.kind": "sirt"}},
            {"name": "own"},
            {"name": "whole", "acquisition": {"kind": "simulated", "dose": 3.0}},
        ],
        reconstruction={"kind": "fbp", "window": "hann"},
    )
    low, sirt, own, whole = (experiment.at(setting) for setting in experiment.transfer)
    assert low.acquisition.dose == "low"  # type: ignore[attr-defined]
    assert low.geometry.views == 32  # type: ignore[attr-defined]
    assert low.reconstruction == experiment.reconstruction
    assert sirt.reconstruction.kind == "sirt"  # type: ignore[attr-defined]
    assert sirt.geometry == experiment.geometry
    assert own == experiment.model_copy(update={"transfer": ()})
    assert whole.acquisition.dose == 3.0  # type: ignore[attr-defined]
    assert not low.transfer


def test_settings_are_in_the_identity_however_they_are_written() -> None:
    assert settings_of([]).identity(MANIFEST) == identity(BASE)
    dotted = settings_of([{"name": "a", "changes": {"acquisition.dose": "low"}}])
    spelled = settings_of([{"name": "a", "acquisition": {"kind": "simulated", "dose": "low"}, "geometry": BASE["geometry"]}])
    other = settings_of([{"name": "a", "changes": {"acquisition.dose": "standard"}}])
    assert dotted == spelled
    assert len({identity(BASE), dotted.identity(MANIFEST), other.identity(MANIFEST)}) == 3
    again = parse_experiment(json.loads(dotted.model_dump_json()))
    assert again == dotted
    assert again.identity(MANIFEST) == dotted.identity(MANIFEST)


def test_in_a_sweep_a_setting_is_the_same_scan_in_every_experiment() -> None:
    settings = [{"name": "base"}, {"name": "low", "changes": {"acquisition.dose": "low"}}]
    cases = [{"geometry.views": 32}, {"acquisition.dose": "low"}, {"reconstruction": "sirt"}]
    swept = recipe(sweep={"cases": cases}, presets={"p": {"transfer": settings, "geometry.views": 16}})
    for found in (swept.experiments(overrides={"transfer": settings}), swept.experiments(preset="p")):
        assert len({repr(experiment.transfer) for experiment in found}) == 1
        base, low = (found[0].at(setting) for setting in found[0].transfer)
        assert (base.acquisition.dose, low.acquisition.dose) == ("standard", "low")  # type: ignore[attr-defined]
        assert found[2].at(found[2].transfer[0]).reconstruction.kind == "fbp"  # type: ignore[attr-defined]
        assert found[1].at(found[1].transfer[1]) == found[1].model_copy(update={"transfer": ()})
    assert swept.experiments(preset="p")[1].transfer[0].geometry.views == 16  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([{"name": "a", "changes": {"acquisitoin.dose": "low"}}], "transfer.0.changes: 'acquisitoin.dose' .*mean 'acquisition'"),
        ([{"name": "a", "changes": {"acquisition.dos": "low"}}], r"transfer.0.acquisition: unknown field 'dos' .*mean 'dose'"),
        ([{"name": "a", "changes": {"acquisition.dose": "lwo"}}], r"transfer.0.acquisition.*no dose 'lwo' \(did you mean 'low'"),
        ([{"name": "a", "changes": {"reconstruction": "fpb"}}], r"transfer.0.reconstruction: no .*'fpb' \(did you mean 'fbp'"),
        ([{"name": "a", "changes": {"network.kind": "vgg11"}}], "'network.kind' is no field of the scan"),
        ([{"name": "a", "changes": {"geometry..views": 3}}], "transfer.0.changes geometry..views: a field is written a.b.c"),
        ([{"name": "a", "changes": ["x"]}], "transfer.0.changes: expected fields and values"),
        ([{"name": "a", "chnges": {}}], r"transfer.0: unknown field 'chnges' \(did you mean 'changes'"),
        ([{"name": "a b"}], "transfer.0.name"),
        ([{"changes": {"acquisition.dose": "low"}}], "transfer.0.name: this field is required"),
        ([{"name": "a"}, {"name": "a"}], "two settings are called 'a'"),
        ([{"name": "a", "changes": {"geometry.shape": [16, 16]}}], "'a' has geometry.shape 16 x 16, the experiment 32 x 32"),
        ([{"name": "a", "changes": {"geometry.pixel_mm": 6.0}}], "'a' has geometry.pixel_mm 6.0, the experiment 12.0"),
        ("base", "transfer: Input should be a valid tuple"),
    ],
)
def test_a_wrong_setting_is_named_when_it_is_read(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings_of(settings)
    with pytest.raises(InputError, match=message):
        recipe(sweep={"axes": {"acquisition.dose": ["low"]}}).experiments(overrides={"transfer": settings})
