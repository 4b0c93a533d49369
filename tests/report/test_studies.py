"""Studies in the report and as files: every kind has its table and figure, and says how far it was run."""

from __future__ import annotations

import re

import fabricated_runs as made
import pytest
from pages import report

from tomosec.metrics.statistics import Estimate
from tomosec.record import Condition, Store
from tomosec.report.export import export_studies
from tomosec.report.studies import blocks
from tomosec.study import Comparison, Study, read_studies, write_study


def cell(store, identity, *, title="", seeds=None, **fields):
    """Save one record whose experiment differs in ``fields``."""
    setup = made.experiment(**{"threat__budget__value": 10.0, **fields})
    setup["title"] = title
    seeds = (made.seed_result(0),) if seeds is None else seeds
    made.save(store, made.record(identity, seeds=seeds, setup=setup))
    return identity


def without_attack(store, identity):
    clean = [c for c in made.seed_result(0).conditions if (c.model, c.input) == ("clean", "clean")]
    bare = made.seed_result(0).model_copy(
        update={"conditions": tuple(clean), "strength": None, "stealth": {}, "random_stealth": {}}
    )
    return cell(store, identity, attack=None, seeds=(bare,))


def study(store, kind, cells, **fields):
    written = Study(kind=kind, title=kind, recipe=f"{kind}.yaml", preset="quick", cells=tuple(cells), **fields)
    write_study(store, written)
    return written


def one_block(store):
    (block,) = blocks(store, list(store.records()))
    return block


def texts(table):
    return [[c.text for c in row] for row in table.rows]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs", create=True)


def test_frontier_groups_by_domain_and_keeps_the_controls(store):
    cells = [
        without_attack(store, "aaaa"),
        cell(store, "bbbb"),
        cell(store, "cccc", attack={"kind": "fresh-noise", "version": 1}),
        cell(store, "dddd", attack={"kind": "badnets", "version": 1}, threat__site="image"),
        cell(store, "eeee", attack={"kind": "projected", "version": 1, "attack": {"kind": "badnets", "version": 1}}),
    ]
    study(store, "stealth-frontier", [*cells, "ffff"])
    block = one_block(store)
    assert [row[0] for row in texts(block.tables[0])] == [
        "Control",
        "no attack",
        "fresh-noise",
        "Measurement domain",
        "ltgm",
        "Image domain",
        "badnets",
        "Image pattern carried into the sinogram",
        "projected: badnets",
    ]
    rows = {row[0].text: row for row in block.tables[0].rows}
    head = block.tables[0].head
    assert rows["ltgm"][head.index("ASR")].text == "95.6%"
    assert rows["ltgm"][head.index("Floor: clean model")].text == "4.4%"
    # Sensitivity of the clean model on 90 slices is 84/90, so 6 of 90 are misread with nothing done to them.
    assert rows["no attack"][head.index("ASR")].text == "6.7%"
    assert "no trigger" in rows["no attack"][head.index("ASR")].small
    assert "5 of 6\u00a0cells complete; the same command goes on with the rest." in block.progress
    assert "Recipe stealth-frontier.yaml, preset quick." in block.about
    assert "180\u00a0test slices of 30\u00a0patients" in block.about
    assert len(block.figures) == 2


def test_frontier_of_several_budgets_has_a_panel_per_attack(store):
    cells = [cell(store, f"aa{k}", threat__budget__value=float(budget)) for k, budget in enumerate((2, 10, 60))]
    cells += [
        cell(store, f"bb{k}", attack={"kind": "sinogram-patch", "version": 1}, threat__budget__value=float(b))
        for k, b in enumerate((2, 10))
    ]
    study(store, "stealth-frontier", cells)
    block = one_block(store)
    assert "Budget" in block.tables[0].head
    drawing = str(block.figures[0].drawing)
    assert "ltgm: 2 HU 95.6%, 10 HU 95.6%, 60 HU 95.6%; sinogram-patch: 2 HU 95.6%" in drawing
    assert "at a budget of 60 HU" in block.figures[1].caption


def test_poison_rate_says_of_what_the_rate_is(store):
    cells = [
        cell(store, f"aa{k}", threat__access="training-data", threat__poison_rate=rate, threat__poison_rate_of="candidates")
        for k, rate in enumerate((0.0, 0.1, 1.0))
    ]
    carried = {"kind": "projected", "version": 1, "attack": {"kind": "sig", "version": 1, "clean_label": True}}
    last = cell(store, "kept", attack=carried, threat__access="training-data", threat__poison_rate=0.1)
    study(store, "poison-rate", [*cells, last])
    block = one_block(store)
    assert texts(block.tables[0])[-1][:2] == ["projected: sig, labels kept", "10 % of the training set"]
    assert [row[1] for row in texts(block.tables[0])[:-1]] == [
        "0 % of the candidates",
        "10 % of the candidates",
        "100 % of the candidates",
    ]
    assert len(block.figures) == 2
    assert "over the poison rate" in block.figures[0].caption


def test_architectures_are_a_matrix(store):
    cells = []
    for victim in ("small-cnn", "vgg11"):
        for surrogate in (None, {"kind": "resnet18", "version": 1}):
            fields = {"network": {"kind": victim, "version": 1}, "surrogate": surrogate}
            cells.append(cell(store, f"{victim[0]}{'w' if surrogate is None else 's'}", **fields))
    study(store, "architectures", cells)
    block = one_block(store)
    assert {tuple(row[:2]) for row in texts(block.tables[0])} == {
        ("small-cnn", "victim itself"),
        ("small-cnn", "resnet18"),
        ("vgg11", "victim itself"),
        ("vgg11", "resnet18"),
    }
    assert "resnet18 to vgg11 95.6%" in str(block.figures[0].drawing)


def test_scan_parameters_are_a_transfer_matrix(store):
    def seed(asr):
        base = made.seed_result(0)
        extra = [
            Condition(model="attacked", input=f"triggered@{name}", metrics={"asr": made.share(value)})
            for name, value in (("base", 0.9), ("low", asr))
        ]
        extra.append(Condition(model="attacked", input="clean@low", metrics={"accuracy": made.share(0.5)}))
        extra.append(Condition(model="clean", input="clean@low", metrics={"sensitivity": made.share(0.8)}))
        return (base.model_copy(update={"conditions": (*base.conditions, *extra)}),)

    standard = made.experiment()["acquisition"]
    transfer = [{"name": "base", "acquisition": standard}, {"name": "low", "acquisition": {**standard, "dose": "low"}}]
    cells = [
        cell(store, "none", title="No attack", attack=None, transfer=transfer, seeds=seed(0.0)),
        cell(store, "aaaa", title="first", transfer=transfer, seeds=seed(0.5)),
        cell(store, "bbbb", title="second", acquisition__dose="low", transfer=transfer, seeds=seed(0.8)),
    ]
    study(store, "scan-parameters", cells)
    success, attacked, _ = one_block(store).tables
    assert success.head == ("Learned at", "base", "low")
    assert texts(success) == [["No attack", "–", "20.0%"], ["base", "90.0%", "50.0%"], ["low", "90.0%", "80.0%"]]
    assert [c.strong for c in success.rows[2]] == [False, False, True]
    assert texts(attacked)[1] == ["base", "–", "50.0%"]
    figures = one_block(store).figures
    assert len(figures) == 3
    assert "low: base 90.0%, low 80.0%" in str(figures[0].drawing)


def test_ablation_shows_differences_with_their_intervals(store):
    cells = [cell(store, "aaaa", title="base"), cell(store, "bbbb", title="no mask", attack__mask="none")]
    wins = Estimate(value=-0.1, low=-0.2, high=-0.02, n=90, patients=15, method="patient-bootstrap")
    open_ = Estimate(value=0.01, low=-0.02, high=0.04, n=180, patients=30, method="patient-bootstrap")
    comparisons = (
        Comparison(id="bbbb", metric="asr", seeds=(0,), difference=wins),
        Comparison(id="bbbb", metric="accuracy", seeds=(0,), difference=open_),
    )
    study(store, "ablation", cells, comparisons=comparisons)
    block = one_block(store)
    ((variant, asr, accuracy),) = block.tables[1].rows
    assert (variant.text, asr.text, asr.small, asr.strong) == ("no mask", "−10.0", "−20.0 to −2.0", True)
    assert (accuracy.text, accuracy.small, accuracy.strong) == ("+1.0", "−2.0 to +4.0", False)
    assert "not about other trainings" in " ".join(block.tables[1].notes)


def test_cost_lists_seconds_passes_memory_and_bytes(store):
    cells = [cell(store, "aaaa"), cell(store, "bbbb", attack={"kind": "frozen-noise", "version": 1})]
    study(store, "cost", cells)
    block = one_block(store)
    row = next(row for row in block.tables[0].rows if row[0].text == "ltgm")
    assert [c.text for c in row[1:]] == ["12 s", "216", "–", "530 kB", "45 s", "88 s"]
    assert "2\u00a0threads" in " ".join(block.tables[0].notes)


def test_a_study_without_results_is_shown_as_such(store):
    made.save(store, made.record("aaaa", status="error", error="it broke"))
    study(store, "ablation", ["aaaa", "bbbb"])
    block = one_block(store)
    assert (block.tables, block.figures) == ((), ())
    assert "0 of 2\u00a0cells complete" in block.progress


def test_the_page_shows_studies_before_the_records(store):
    cells = [cell(store, "aaaa", title="<base>"), cell(store, "bbbb", title="no mask", attack__mask="none")]
    study(store, "ablation", cells)
    page = report(store)[1]
    assert page.text.index("What each part of LTGM buys") < page.text.index("All records")


def test_exported_files_stand_alone(store, tmp_path):
    cells = [cell(store, "aaaa", title="a | b"), cell(store, "bbbb", title="<i>x</i>", attack__mask="none")]
    written = export_studies(store, tmp_path / "out") if study(store, "ablation", cells) else []
    names = [path.name for path in written]
    assert len(names) == 2
    assert all(path.is_file() for path in written)
    svg, text = written[0].read_text(), written[-1].read_text()
    assert "var(--" not in svg
    assert svg.startswith("<svg")
    assert f"]({names[0]})" in text
    assert r"a \| b" in text
    assert "<i>" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_only_the_studies_of_the_asked_runs_are_shown(store):
    study(store, "ablation", [cell(store, "aaaa")])
    cell(store, "bbbb")
    assert blocks(store, [store.read("bbbb")]) == []
    assert len(read_studies(store)) == 1
