"""A study from its recipe to its comparisons, with cells that take seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from tiny_runs import TINY

from tomosec.data.synthetic import ChestPhantom
from tomosec.errors import InputError
from tomosec.experiment import load_recipe, parse_experiment
from tomosec.metrics.table import SampleTable
from tomosec.record import Store
from tomosec.run import study as studies
from tomosec.run.executors import execute
from tomosec.run.study import compare, run_study
from tomosec.study import read_studies


def recipe(folder, **content):
    path = folder / "mine.yaml"
    base = {**TINY, "attack": {"kind": "frozen-noise"}, "controls": [], "training": {"epochs": 1, "batch_size": 8}}
    path.write_text(yaml.safe_dump({"study": "ablation", "experiment": base, **content}))
    return load_recipe(path)


SWEEP = {"once": [{"attack": None}], "cases": [{}, {"attack.kind": "constant-offset"}]}


def test_a_study_runs_its_cells_and_compares_them_slice_by_slice(tmp_path):
    read = recipe(tmp_path, sweep=SWEEP)
    records = run_study(read, read.experiments(), out=tmp_path / "runs")
    assert [record.status for record in records] == ["success"] * 3
    store = Store(tmp_path / "runs")
    (study,) = read_studies(store)
    assert study.cells == tuple(record.id for record in records)
    assert (study.kind, study.recipe, study.preset) == ("ablation", "mine.yaml", "")
    assert {(c.id, c.metric) for c in study.comparisons} == {(records[2].id, "asr"), (records[2].id, "accuracy")}
    for comparison in study.comparisons:
        shown = "triggered" if comparison.metric == "asr" else "clean"
        values = [record.seeds[0].metric("attacked", shown, comparison.metric).value for record in records[1:]]
        assert comparison.difference.value == pytest.approx(values[1] - values[0])
        assert comparison.seeds == (0,)


def test_data_are_opened_once_for_all_cells(tmp_path, monkeypatch):
    opened, open_ = [], ChestPhantom.open
    monkeypatch.setattr(ChestPhantom, "open", lambda self, root: (opened.append(1), open_(self, root))[1])
    read = recipe(tmp_path, sweep={"cases": [{"attack": None}, {"attack": None, "seeds": [1]}]})
    records = run_study(read, read.experiments(), out=tmp_path / "runs")
    assert [record.status for record in records] == ["success"] * 2
    assert len(opened) == 1


def test_a_known_difference_has_a_known_estimate(tmp_path, monkeypatch):
    read = recipe(tmp_path, sweep={"cases": [{}, {"attack.kind": "constant-offset"}]})
    records = run_study(read, read.experiments(), out=tmp_path / "runs")
    store = Store(tmp_path / "runs")

    def rows(store, record):
        # 30 patients of two slices each, all of the source class; the second cell fools one slice of each, the first none.
        label = record.data.classes.index("disease")
        hit = 1 - label if record.id == records[1].id else label
        scores = np.eye(2)[[hit if k % 2 else label for k in range(60)]]
        return SampleTable.from_predictions(
            seed=0,
            model="attacked",
            input="triggered",
            samples=[f"s{k}" for k in range(60)],
            patients=[f"p{k // 2}" for k in range(60)],
            targets=[label] * 60,
            scores=scores,
        )

    monkeypatch.setattr(studies, "_rows", rows)
    (found,) = compare(store, [record.id for record in records])
    assert (found.metric, found.difference.value, found.difference.patients) == ("asr", 0.5, 30)
    assert found.difference.low is None
    assert "every patient shows the same difference" in found.difference.note


def test_an_interrupted_study_keeps_its_cells_and_says_what_is_missing(tmp_path, monkeypatch):
    read = recipe(tmp_path, sweep=SWEEP)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "execute_identified", stop)
    with pytest.raises(KeyboardInterrupt):
        run_study(read, read.experiments(), out=tmp_path / "runs")
    (study,) = read_studies(Store(tmp_path / "runs"))
    assert len(study.cells) == 3
    assert study.comparisons == ()


def test_a_damaged_study_is_named(tmp_path):
    store = Store(tmp_path / "runs", create=True)
    (store.root / "studies").mkdir()
    path = store.root / "studies" / "x.json"
    for content, said in (
        ("{", "not a readable study"),
        (json.dumps({"schema_version": 9}), "study schema 9"),
        ('{"schema_version": 1}', "kind"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=said):
            read_studies(store)


def test_presets_may_replace_the_sweep(tmp_path):
    read = recipe(
        tmp_path,
        sweep={"axes": {"threat.budget.value": [5.0, 10.0]}},
        presets={"few": {"sweep": {"cases": [{"seeds": 2}]}, "title": "few"}},
    )
    assert [e.threat.budget.value for e in read.experiments()] == [5.0, 10.0]
    (few,) = read.experiments(preset="few")
    assert (few.seeds, few.title, few.threat.budget.value) == ((0, 1), "few", 20.0)


def test_cells_that_run_once_are_not_crossed_with_the_axes(tmp_path):
    read = recipe(tmp_path, sweep={"once": [{"attack": None}], "axes": {"threat.budget.value": [5.0, 10.0]}})
    assert [(e.attack is None, e.threat.budget.value) for e in read.experiments()] == [(True, 20.0), (False, 5.0), (False, 10.0)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"study": "ablatoin"}, "study"),
        ({"presets": {"few": {"sweep": {"axis": {}}}}}, "preset few, sweep: unknown field 'axis'"),
        ({"sweep": {"onces": []}}, "sweep: unknown field 'onces'"),
    ],
)
def test_wrong_keys_of_a_study_are_named(tmp_path, content, said):
    with pytest.raises(InputError, match=said):
        recipe(tmp_path, **content)


def test_a_budget_that_no_strength_reaches_is_not_applicable(tmp_path):
    experiment = parse_experiment(
        {**TINY, "attack": {"kind": "bpp"}, "threat": {"site": "image", "budget": {"value": 5000.0}}, "controls": []}
    )
    record = execute([experiment], out=tmp_path / "runs")[0]
    assert record.status == "not-applicable"
    assert "no strength of this trigger reaches" in record.error


def test_budgets_out_of_reach_leave_those_within(tmp_path):
    experiment = parse_experiment(
        {**TINY, "attack": {"kind": "bpp"}, "threat": {"site": "image", "budget": {"value": [20.0, 5000.0]}}, "controls": []}
    )
    record = execute([experiment], out=tmp_path / "runs")[0]
    assert record.status == "success"
    assert record.seeds[0].strength.budget == 20.0
