"""What the report says, and what it says when something is missing or went wrong."""

from __future__ import annotations

import fabricated_runs as made
import pytest
from pages import ONE, report

from tomosec.errors import InputError
from tomosec.metrics.statistics import Estimate
from tomosec.record import SeedResult, Severity
from tomosec.report import narrative, overview, tables, wording
from tomosec.report.build import build_report
from tomosec.varying import differing

# --- what it says -------------------------------------------------------------------------------------------------------


def test_headline_says_level_data_split_seeds_and_n(one):
    text = one[2].text
    start = text[text.index("LTGM on the chest phantom") :][:700]
    assert "Critical With an image change of 5.0 HU RMSE" in start
    assert "Measured on 180 test slices of 30 patients from synthetic chest phantom, with 3 seeds (0, 1, 2)" in start
    assert "over the 90 slices of 15 patients that are not “normal”" in start
    assert "Split by patient (seed 0), stratified by class" in start


def test_cards_show_success_beside_its_floor_and_controls(one):
    cards = {card.label: card for card in narrative.cards(one[0].read(ONE))}
    success = cards["Attack success rate"]
    assert success.value == "95.2%"
    lines = " | ".join(success.lines)
    for part in (
        "per seed: 95.6% · 95.6% · 94.4%",
        "floor, clean model",
        "random trigger",
        "white noise",
        "same spectrum",
        "95% interval",
    ):
        assert part in lines
    assert "noise of the scan" in " ".join(cards["Change of the image"].lines)
    assert "chosen on 108\u00a0validation slices among 2\u00a0budgets" in cards["Budget of the trigger"].lines


def test_seeds_are_listed_and_never_pooled(one):
    table = tables.metrics_table(one[0].read(ONE), main=True)
    assert table.head == ("Metric", "Seed 0", "Seed 1", "Seed 2", "Mean and range over seeds")
    row = next(row for row in table.rows if row[0].text == "Attack success rate (ASR)")
    assert [cell.text for cell in row[1:]] == ["95.6%", "95.6%", "94.4%", "95.2%"]
    assert row[4].small == "range 94.4 to 95.6%"
    assert "n\u00a0=\u00a0" not in row[4].small
    assert all("n\u00a0=\u00a090\u00a0slices of 15\u00a0patients" in cell.small for cell in row[1:4])


def test_every_metric_of_the_record_is_in_the_full_table(one):
    record = one[0].read(ONE)
    table = tables.metrics_table(record, main=False)
    rows = [row for row in table.rows if len(row) > 1]
    assert len(rows) == sum(len(condition.metrics) for condition in record.seeds[0].conditions)


def test_sections_the_design_asks_for_are_there(one):
    text = one[2].text
    for part in (
        "What was done",
        "trigger enters here",
        "Clean scan",
        "With the trigger",
        "Difference",
        "lung window (width 1500, level −600 HU)",
        "Clean sinogram of the first example",
        "view angle",
        "detector bin",
        "s·R(T)",
        "Learning curves",
        "Controls: mean over 3 seeds",
        "RMSE inside the body",
        "Largest |ΔHU|",
        "PSNR, whole image, peak 2000 HU",
        "Trigger over noise sd",
        "Strength search on the validation slices",
        "Photons per bin",
        "linear: R(p + sT)",
        "Threat model",
        "Access",
        "gradient passes",
        "Peak memory",
        "made in this run",
        "reused",
        "table height differs",
        "real patients: the data are a procedural phantom",
        "Commit",
        "9f8e7d6c5b4a3210",
        ONE,
        "The whole experiment (YAML)",
    ):
        assert part in text, part


def test_readings_show_label_probability_and_whether_wrong(one):
    text = one[2].text
    assert "Attacked model: normal >99.9% ✗ wrong" in text
    assert "Clean model: disease 98.1% ✓" in text


@pytest.mark.parametrize(
    ("options", "words", "concern"),
    [
        ({"white": 0.97}, "A model trained on white noise of equal size does as well as the learned trigger", True),
        ({"random": 0.95}, "A random trigger of equal size, shown to the attacked model, does as well", True),
        ({"floor": 0.95}, "the backdoor adds nothing", True),
        ({"floor": 0.5}, "a good part of the success is not the backdoor", True),
        ({"white": 0.3}, "A model trained on white noise of equal size does worse than the learned trigger in every seed", False),
    ],
)
def test_controls_that_do_as_well_are_said_plainly(options, words, concern):
    verdicts = narrative.verdicts(made.record(ONE, seeds=made.three_seeds(**options)))
    found = [verdict for verdict in verdicts if words in verdict.text]
    assert [verdict.concern for verdict in found] == [concern]


def test_overlapping_ranges_over_seeds_show_no_difference():
    seeds = tuple(made.seed_result(seed, asr=0.9 - 0.15 * seed, white=(0.5, 0.9, 0.5)[seed]) for seed in range(3))
    texts = [verdict.text for verdict in narrative.verdicts(made.record(ONE, seeds=seeds)) if "white noise" in verdict.text]
    assert len(texts) == 1
    assert "ranges over seeds overlap" in texts[0]


@pytest.mark.parametrize(
    ("estimate", "white", "words", "concern"),
    [
        (made.share, 0.1, "intervals apart, but one seed alone", False),
        (made.share, 0.8, "no clear difference is shown", True),
        (made.few, 0.1, "no clear difference is shown", True),
    ],
)
def test_one_seed_alone_proves_little(estimate, white, words, concern):
    record = made.record(ONE, seeds=(made.seed_result(0, white=white, estimate=estimate),))
    found = [verdict for verdict in narrative.verdicts(record) if "white noise" in verdict.text]
    assert [verdict.concern for verdict in found] == [concern]
    assert words in found[0].text


def test_a_weak_network_is_called_weak():
    good = narrative.verdicts(made.record(ONE, seeds=(made.seed_result(0),)))
    assert not any("this weak" in verdict.text for verdict in good)
    seed = made.seed_result(0, estimate=lambda value: made.share(0.6))
    weak = narrative.verdicts(made.record(ONE, seeds=(seed,)))
    assert weak[0].concern
    assert "reads only 60.0% correctly, classes weighted alike (guessing: 50.0%)" in weak[0].text


def test_strength_that_misses_the_rule_is_said():
    kept = made.seed_result(0)
    assert kept.strength is not None
    tried = ({"budget": 5.0, "rmse_hu": 5.0, "validation_asr": 0.4, "validation_ca_loss": 0.0},)
    short = kept.model_copy(update={"strength": kept.strength.model_copy(update={"tried": tried})})
    for seed, said in ((kept, False), (short, True)):
        table = tables.strength_table(made.record(ONE, seeds=(seed,)))
        assert table is not None
        assert any("For seed 0 no budget met the rule" in note for note in table.notes) is said


def test_a_change_that_is_stronger_around_the_patient_is_said():
    inside = made.seed_result(0)
    outside = inside.model_copy(update={"stealth": {**inside.stealth, "rmse_image_hu": made.mean(9.0)}})
    for seed, said in ((inside, False), (outside, True)):
        notes = tables.stealth_table(made.record(ONE, seeds=(seed,))).notes
        assert any("in the air around the patient" in note for note in notes) is said


def test_too_few_patients_gives_values_per_patient_and_no_interval(store):
    _, page = report(made.save(store, made.record(ONE, seeds=(made.seed_result(0, estimate=made.few),))))
    assert "no population interval: 4 patients in class disease (10 needed)" in page.text
    assert "Values per patient" in page.text
    assert "P003" in page.text


def test_undefined_metric_says_why(store):
    seed = made.seed_result(0)
    nothing = Estimate(value=None, n=0, patients=0, note="no source slices")
    first = seed.conditions[0].model_copy(update={"metrics": {"accuracy": nothing}})
    seed = seed.model_copy(update={"conditions": (first, *seed.conditions[1:])})
    _, page = report(made.save(store, made.record(ONE, seeds=(seed,))))
    assert "not defined [a]" in page.text
    assert "[a] no source slices" in page.text


def test_clean_chain_without_an_attack(store):
    setup = made.experiment(attack=None, title="Clean chain")
    clean = made.seed_result(0)
    seed = SeedResult(seed=0, conditions=clean.conditions[:1], curves={"clean": clean.curves["clean"]})
    record = made.record(ONE, seeds=(seed,), setup=setup, severity=Severity(level="none", reason="no attack was run"))
    _, page = report(made.save(store, record, tensors=False))
    assert "No attack was run" in page.text
    assert "trigger enters here" not in page.text
    assert "Attack success rate" not in page.text


def test_image_domain_trigger_is_drawn_after_reconstruction(store):
    record = made.record(ONE, seeds=(made.seed_result(0),), setup=made.experiment(threat__site="image"))
    _, page = report(made.save(store, record))
    text = page.text
    assert text.index("Reconstruction") < text.index("+ trigger enters here") < text.index("Network a small")


def test_shared_patients_are_printed_beside_the_numbers(store):
    record = made.record(ONE, seeds=(made.seed_result(0),))
    assert record.data is not None
    record = record.model_copy(update={"data": record.data.model_copy(update={"shares_patients": True})})
    _, page = report(made.save(store, record))
    assert "Training and test share patients" in page.text
    assert "none of them used in training" not in page.text


# --- what is missing or went wrong --------------------------------------------------------------------------------------


def test_missing_tensors_are_reported(store):
    _, page = report(made.save(store, made.record(ONE, seeds=(made.seed_result(0),)), tensors=False))
    assert "This run left no example images" in page.text


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", None])
def test_damaged_tensors_are_reported_and_the_rest_is_kept(store, damage):
    made.save(store, made.record(ONE, seeds=(made.seed_result(0),)))
    path = store.folder(ONE) / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1000] if damage is None else damage)
    _, page = report(store)
    assert "cannot be read (tensors.safetensors" in page.text
    assert "95.6%" in page.text


def test_states_other_than_success_show_their_message(sweep):
    text = sweep[2].text
    for part in (
        "This run failed MemoryError: 12 GB wanted",
        "Not finished This run was under way",
        "its last sign of life was at 2025-03-04 11:10 UTC",
        "Not applicable ltgm: needs differentiable-reconstruction",
        "11 records: 8 complete, 1 failed, 1 not finished, 1 not applicable.",
    ):
        assert part in text, part


def test_empty_store_and_unknown_run_are_input_errors(store, tmp_path):
    with pytest.raises(InputError, match="no runs to report on"):
        build_report(store, tmp_path / "out.html")
    made.save(store, made.record(ONE, seeds=(made.seed_result(0),)), tensors=False)
    with pytest.raises(InputError, match="no such run"):
        build_report(store, tmp_path / "out.html", ids=["0" * 16])
    assert not (tmp_path / "out.html").exists()


# --- several records ----------------------------------------------------------------------------------------------------


def test_overview_is_made_of_what_differs():
    records = made.sweep()
    names = differing([record.experiment for record in records])
    assert set(names) == {"threat.budget.value", "acquisition.dose"}
    table = overview.overview_table(records, names)
    assert "Budget" in table.head
    assert "Dose" in table.head
    assert len(table.rows) == 11
    assert table.rows[2][table.head.index("Budget")].sort == 10.0


def test_sweep_draws_success_over_budget_with_a_line_per_dose(sweep):
    records = made.sweep()
    figure, _ = overview.budget_figure(records, differing([record.experiment for record in records]))
    assert figure is not None
    for part in ("attacked model, dose standard", "attacked model, dose low", "clean model (floor)", "20: 97.8%"):
        assert part in figure, part
    assert figure in sweep[1]


def test_worst_record_heads_the_report(sweep):
    assert "This is the worst of the records, “LTGM, 10 HU, standard dose”." in sweep[2].text


def test_ids_choose_and_order_the_records(sweep):
    store = sweep[0]
    wanted = ["1" + "0" + "ab" * 7, "0" + "1" + "ab" * 7]
    _, page = report(store, ids=wanted)
    assert [attrs["id"] for attrs in page.all("details") if attrs.get("class") == "run"] == [f"run-{name}" for name in wanted]


def test_mixed_machines_are_said(store):
    records = [made.record(name * 16, seeds=(made.seed_result(0),)) for name in "ab"]
    records[1] = records[1].model_copy(update={"provenance": records[1].provenance.model_copy(update={"device": "NVIDIA X"})})
    _, page = report(made.save(store, *records, tensors=False))
    assert "made with different devices (2)" in page.text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "100%"), (0.9996, ">99.9%"), (0.0, "0%"), (0.0001, "<0.1%"), (0.5, "50.0%"), (-0.012, "−1.2%"), (None, "–")],
)
def test_shares_never_round_to_a_false_0_or_100(value, text):
    assert wording.share(value) == text
