"""Studies of defenses in the report: matrices of detection and repair, inspected networks, and sets of scans."""

from __future__ import annotations

import fabricated_runs as made
import pytest

from tomosec.metrics.statistics import Estimate
from tomosec.record import Condition, DefenseResult, Store
from tomosec.report.studies import blocks
from tomosec.study import ModelDetection, Study, write_study


def defense(name, role, *, adaptive=(), why_not="", **metrics):
    estimates = {key: value if isinstance(value, Estimate) else made.share(value) for key, value in metrics.items()}
    return DefenseResult(
        name=name, kind=name, role=role, metrics=estimates, why_not=why_not, adaptive=adaptive, held_out=100, seconds=2.0
    )


def cell(store, identity, defenses, conditions=(), **fields):
    setup = made.experiment(**{"threat__budget__value": 10.0, **fields})
    seed = made.seed_result(0)
    seed = seed.model_copy(update={"defenses": tuple(defenses), "conditions": (*seed.conditions, *conditions)})
    made.save(store, made.record(identity, seeds=(seed,), setup=setup))
    return identity


def block(store, kind, cells, **fields):
    write_study(store, Study(kind=kind, title=kind, recipe=f"{kind}.yaml", preset="quick", cells=tuple(cells), **fields))
    (found,) = blocks(store, list(store.records()))
    return found


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs", create=True)


def test_detection_is_a_matrix_and_says_what_was_not_adaptive(store):
    small = Estimate(value=None, n=90, patients=15, note="n too small: 18 calibration patients")
    seen = [
        defense("rays", "scan-detector", adaptive=("ltgm-symmetrized",), auroc=0.9, tpr_at_5=0.6, fpr_at_5=0.0, tpr_at_1=small),
        defense("wedge", "scan-detector", auroc=0.5, tpr_at_5=0.1, fpr_at_5=0.1, tpr_at_1=small),
        defense("pairs", "scan-detector", why_not="parallel beams have no pairs"),
    ]
    found = block(
        store, "detect", [cell(store, "aaaa", seen), cell(store, "bbbb", seen, attack={"kind": "frozen-noise", "version": 1})]
    )
    auroc = found.tables[0]
    assert auroc.head == ("Attack", "RMSE, body", "rays", "wedge", "pairs")
    assert [c.text for c in auroc.rows[0][2:]] == ["0.900", "0.500", "n/a [a]"]
    assert "Not adaptively evaluated: wedge, pairs." in auroc.notes[0]
    assert "100 held-out calibration patients" in auroc.notes[0]
    assert any("parallel beams have no pairs" in note for note in auroc.notes)
    assert len(found.figures) == 2


def test_adaptive_attacks_show_success_beside_the_best_detector(store):
    seen = [defense("rays", "scan-detector", auroc=0.7), defense("wedge", "scan-detector", auroc=0.8)]
    found = block(store, "adaptive", [cell(store, "aaaa", seen)])
    assert [c.text for c in found.tables[0].rows[0]][1:] == ["95.6%", "94.4%", "5.05\u00a0HU", "0.800"]
    assert found.tables[0].rows[0][-1].small == "wedge"


def test_repairs_show_what_is_left_and_what_it_costs(store):
    behind = [
        Condition(model="attacked+fine-tuning", input="triggered", metrics={"asr": made.share(0.2)}),
        Condition(model="attacked+fine-tuning", input="clean", metrics={"accuracy": made.share(0.9)}),
    ]
    results = [
        defense("fine-tuning", "repair", der=Estimate(value=0.87, n=1, patients=0)),
        defense("anp", "repair", why_not="needs a norm"),
    ]
    found = block(store, "repair", [cell(store, "aaaa", results, behind)])
    asr, accuracy, der = found.tables
    assert [c.text for c in asr.rows[0][1:]] == ["95.6%", "20.0%", "n/a [a]"]
    assert [c.text for c in accuracy.rows[0][1:]] == ["94.4%", "90.0%", "n/a [a]"]
    assert der.rows[0][1].text == "0.500"
    assert der.rows[0][2].text.startswith("0.87")
    assert "[a] needs a norm" in asr.notes


def test_inspected_networks_need_eight_of_each_for_a_roc(store):
    def inspected(score):
        values = {"score_clean": Estimate(value=1.0, n=1, patients=0), "score_attacked": Estimate(value=score, n=1, patients=0)}
        return [defense("neural-cleanse", "inspector", **values)]

    cells = [cell(store, f"{k:04d}", inspected(2.0 + k), attack__mask=f"m{k}") for k in range(2)]
    table = block(store, "repair", cells).tables[0]
    assert [[c.text for c in row] for row in table.rows] == [
        ["neural-cleanse", "clean", "1", "1"],
        ["neural-cleanse", "attacked", "2", "2, 3"],
    ]
    assert "there are fewer" in table.notes[0]
    told = ModelDetection(name="neural-cleanse", auroc=Estimate(value=0.9, n=16, patients=0, note="8 and 8"))
    assert "AUROC 0.900" in block(store, "repair", cells, inspections=(told,)).tables[0].notes[0]


def test_sets_of_scans_are_drawn_over_the_budget(store):
    def judged(share):
        metrics = {f"{rate}_at_5_of_{n}": value for n in (10, 30) for rate, value in (("tpr", share), ("fpr", 0.0))}
        return [defense("cross-scan-residual", "scan-set-detector", **metrics)]

    cells = [
        cell(store, f"{k:04d}", judged(share), threat__budget__value=b) for k, (b, share) in enumerate(((2.0, 0.1), (10.0, 1.0)))
    ]
    found = block(store, "screen-power", cells)
    assert found.tables[0].head[2:] == (
        "10 scans: flagged",
        "10 clean scans: flagged",
        "30 scans: flagged",
        "30 clean scans: flagged",
    )
    assert "ltgm, 10 scans: 2 HU 10.0%, 10 HU 100%" in str(found.figures[0].drawing)
