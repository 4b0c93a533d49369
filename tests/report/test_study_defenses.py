"""Studies of defenses in the report: matrices of detection and repair, inspected networks, and sets of scans."""

from __future__ import annotations

import fabricated_runs as made
import pytest

from tomosec.metrics.statistics import Estimate, wilson
from tomosec.record import Condition, DefenseResult, Store
from tomosec.report.defenses import defenses_table
from tomosec.report.export import export_studies
from tomosec.report.studies import blocks
from tomosec.report.study_defenses import adaptive, detect, repair, screen_power
from tomosec.run.study import inspections
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
    assert auroc.head == ("Attack", "RMSE, body", "PSNR", "rays", "wedge", "pairs")
    assert [c.text for c in auroc.rows[0][3:]] == ["0.900", "0.500", "n/a [a]"]
    assert "Not adaptively evaluated: wedge, pairs." in auroc.notes[0]
    assert "100 held-out calibration patients" in auroc.notes[0]
    assert "95% interval over patients" in auroc.notes[0]
    assert any("parallel beams have no pairs" in note for note in auroc.notes)
    assert len(found.figures) == 2


def test_detection_over_budgets_is_a_curve_for_each_detector(store):
    records = [
        cell(
            store,
            name,
            [defense("rays", "scan-detector", auroc=auroc), defense("wedge", "scan-detector", auroc=0.5)],
            threat__budget__value=hu,
        )
        for name, hu, auroc in (("aaaa", 2.0, 0.6), ("bbbb", 10.0, 0.9))
    ]
    found = block(store, "detect", records)
    assert [row[0].text for row in found.tables[0].rows] == ["ltgm, 2 HU", "ltgm, 10 HU"]
    rays, wedge = found.figures
    assert "rays" in rays.caption
    assert "2 HU 60.0%, 10 HU 90.0%" in str(rays.drawing)
    assert "2 HU 50.0%, 10 HU 50.0%" in str(wedge.drawing)


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
        ["neural-cleanse", "clean", "1", "1", "–", "–"],
        ["neural-cleanse", "ltgm, mask m0", "1", "2", "–", "–"],
        ["neural-cleanse", "ltgm, mask m1", "1", "3", "–", "–"],
        ["neural-cleanse", "all attacks", "2", "–", "–", "–"],
    ]
    assert "there are fewer" in table.notes[0]
    assert table.notes[1] == "Not adaptively evaluated: neural-cleanse."
    told = tuple(
        ModelDetection(
            name="neural-cleanse",
            cell=cell,
            p_values=(0.1, 0.3),
            auroc=Estimate(value=value, low=0.3, high=1.0, n=16, patients=0, method="wilson"),
        )
        for cell, value in (("0001", 0.9), ("", 0.8))
    )
    table = block(store, "repair", cells, inspections=told).tables[0]
    rows = table.rows
    assert [row[-1].text for row in rows] == ["–", "–", "0.900", "0.800"]
    assert [row[-2].text for row in rows] == ["–", "–", "0.3, 0.1", "–"]
    assert rows[-1][-1].small == "95% interval 0.300 to 1.000"


def network(score_clean, score_attacked):
    values = {"score_clean": score_clean, "score_attacked": score_attacked}
    return defense("nc", "inspector", **{name: Estimate(value=v, n=1, patients=0) for name, v in values.items()})


def inspected_cell(store, identity, clean, attacked, **fields):
    pairs = zip(clean, attacked, strict=True)
    seeds = [made.seed_result(k).model_copy(update={"defenses": (network(*pair),)}) for k, pair in enumerate(pairs)]
    made.save(store, made.record(identity, seeds=tuple(seeds), setup=made.experiment(**fields)))


def test_a_clean_network_counts_once_and_equal_scores_are_several_networks(store):
    clean = [0.0] * 6 + [1.0, 2.0]
    inspected_cell(store, "aaaa", clean, [1.0] * 8)
    inspected_cell(store, "bbbb", clean, [3.0] * 8, attack__mask="other")
    inspected_cell(store, "cccc", [5.0] * 8, [6.0] * 8, network__width=8)
    told = {item.cell: item for item in inspections(store, ["aaaa", "bbbb", "cccc"])}
    found = {cell: item.auroc for cell, item in told.items()}
    assert list(found) == ["aaaa", "bbbb", "cccc", ""]
    # Each cell against the clean networks of its own chain: eight of each, six below, one as high, one above.
    assert found["aaaa"].value == pytest.approx((6 + 0.5) / 8)
    assert found["bbbb"].value == found["cccc"].value == 1.0
    assert (found["aaaa"].n, found[""].n) == (16, 16 + 24)
    low, high = wilson(8, 8)
    assert (found["bbbb"].low, found["bbbb"].high) == (pytest.approx(low), high)
    assert "of 8 seeds" in found[""].note
    # Of eight clean networks one scores as high as the attacked ones, and one higher.
    assert told["aaaa"].p_values == (pytest.approx(3 / 9),) * 8
    assert told["bbbb"].p_values == (pytest.approx(1 / 9),) * 8


def test_seven_networks_have_no_roc(store):
    inspected_cell(store, "aaaa", range(7), range(7))
    assert inspections(store, ["aaaa"]) == ()


def test_every_table_of_defenses_says_which_met_no_adaptive_attack(store):
    rates = {f"{rate}_at_5_of_10": 0.5 for rate in ("tpr", "fpr")}
    results = [
        defense("rays", "scan-detector", adaptive=("ltgm-symmetrized",), auroc=0.9, tpr_at_5=0.5, fpr_at_5=0.1, tpr_at_1=0.2),
        defense("wedge", "scan-detector", auroc=0.9, tpr_at_5=0.5, fpr_at_5=0.1, tpr_at_1=0.2),
        defense("cut", "repair", der=0.5),
        defense("project", "scan-purifier", adaptive=("ltgm-symmetrized",), der=0.5),
        defense("sets", "scan-set-detector", **rates),
        network(1.0, 2.0),
    ]
    records = [store.read(cell(store, "aaaa", results))]
    study = Study(kind="detect", title="", recipe="", cells=())
    naive = {"rays": False, "wedge": True, "cut": True, "project": False, "sets": True, "nc": True}
    for show, count in ((detect, 4), (adaptive, 5), (repair, 3 + 1 + 4), (screen_power, 1)):
        tables, _ = show(study, records)
        assert len(tables) == count
        for table in tables:
            said = " ".join(table.notes)
            named = said.partition("Not adaptively evaluated: ")[2].partition(".")[0].split(", ")
            assert named != [""], table.caption
            assert all(naive[name] for name in named)
            assert {name for name, is_naive in naive.items() if is_naive and name in table.head} <= set(named)


def test_filters_and_judges_of_scans_are_told_from_different_things(store):
    results = [defense("strip", "input-detector", auroc=0.9), defense("clusters", "sample-filter", auroc=0.8)]
    results[1] = results[1].model_copy(update={"held_out": 0})
    note = block(store, "detect", [cell(store, "aaaa", results)]).tables[0].notes[0]
    assert "p-values are from 100 held-out" in note
    assert "clusters: poisoned slices among all training slices" in note


def test_a_failed_defense_is_shown_as_failed_and_some_seeds_do_not_hide_others(store):
    broken = defense("rays", "scan-detector").model_copy(update={"failed": "ZeroDivisionError: division by zero (x.py, line 3)"})
    cell(store, "aaaa", [broken, defense("wedge", "scan-detector", auroc=0.5)])
    study = Study(kind="detect", title="", recipe="", cells=())
    (auroc,), _ = detect(study, [store.read("aaaa")])
    assert auroc.rows[0][3].text == "failed [a]"
    assert any("ZeroDivisionError" in note for note in auroc.notes)
    pairs = [defense("pairs", "scan-detector", why_not="none"), defense("pairs", "scan-detector", auroc=0.7)]
    seeds = [made.seed_result(k).model_copy(update={"defenses": (result,)}) for k, result in enumerate(pairs)]
    made.save(store, made.record("bbbb", seeds=tuple(seeds)))
    (auroc,), _ = detect(study, [store.read("bbbb")])
    assert auroc.rows[0][3].text == "0.700"
    single = defenses_table(store.read("bbbb"))
    assert single.rows[0][0].text == "pairs [a]"
    assert "[a] 1 of 2 seeds: none" in single.notes


def test_a_column_without_any_value_is_a_remark(store):
    small = Estimate(value=None, n=90, patients=15, note="n too small: 18 calibration patients")
    cell(
        store,
        "aaaa",
        [defense("rays", "scan-detector", auroc=0.9, tpr_at_5=small, tpr_at_1=small), defense("cut", "repair", der=0.7)],
    )
    table = defenses_table(store.read("aaaa"))
    assert table.head[:3] == ("Defense", "Adaptive attack", "AUROC")
    assert not any("false alarms" in title for title in table.head)
    assert {len(row) for row in table.rows} == {len(table.head)}
    assert any("Detected at 5% false alarms and Detected at 1% false alarms (n too small: 18" in note for note in table.notes)
    cell(store, "bbbb", [defense("rays", "scan-detector", auroc=0.9, tpr_at_5=0.4, tpr_at_1=small)])
    table = defenses_table(store.read("bbbb"))
    assert "Detected at 5% false alarms" in table.head
    assert "Detected at 1% false alarms" not in table.head


def test_robust_accuracy_has_a_table_where_it_is_not_one_minus_asr(store):
    conditions = [
        Condition(model="attacked+cut", input="triggered", metrics={"asr": made.share(0.2), "robust_accuracy": made.share(0.5)}),
        Condition(model="attacked+cut", input="clean", metrics={"accuracy": made.share(0.9)}),
    ]
    cell(store, "aaaa", [defense("cut", "repair").model_copy(update={"model": "attacked+cut"})], conditions)
    assert "Robust" not in "".join(table.caption for table in block(store, "repair", ["aaaa"]).tables)
    record = store.read("aaaa")
    three = record.data.model_copy(update={"classes": ("a", "b", "c")})
    made.save(store, record.model_copy(update={"data": three}))
    (table,) = [table for table in block(store, "repair", ["aaaa"]).tables if table.caption.startswith("Robust")]
    assert table.rows[0][-1].text == "50.0%"
    single = defenses_table(store.read("aaaa"))
    assert single.rows[0][single.head.index("Robust accuracy behind it")].text == "50.0%"


def test_exported_markdown_escapes_the_names_of_files(store, tmp_path):
    cell(store, "aaaa", [defense("rays", "scan-detector", auroc=0.9)])
    write_study(store, Study(kind="detect", title="x", recipe="my_*own*_<b>.yaml", cells=("aaaa",)))
    (path,) = [path for path in export_studies(store, tmp_path / "out") if path.suffix == ".md"]
    text = path.read_text(encoding="utf-8")
    assert r"my\_\*own\*\_\<b\>.yaml" in text
    assert "Not adaptively evaluated: rays" in text


def test_sets_of_scans_are_drawn_over_the_budget(store):
    def judged(share):
        def of_sets(value, n):
            return made.share(value).model_copy(update={"note": f"4 sets of {n} scans"})

        metrics = {f"{rate}_at_5_of_{n}": of_sets(value, n) for n in (10, 30) for rate, value in (("tpr", share), ("fpr", 0.0))}
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
    assert "Judged for each rate and seed: 4 sets of 10 scans; 4 sets of 30 scans." in found.tables[0].notes
    assert "ltgm, 10 scans: 2 HU 10.0%, 10 HU 100%" in str(found.figures[0].drawing)
