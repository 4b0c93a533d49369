"""What the report says of transfer to other scan settings."""

from __future__ import annotations

from typing import Any

import fabricated_runs as made
import pytest
from pages import ONE, report

from tomosec.metrics.statistics import over_seeds
from tomosec.record import Condition, Record, TransferResult
from tomosec.report import wording
from tomosec.report.transfer import own_setting, transfer_table

NOTE = "not applicable: a warp is not one additive pattern of rays"


def setting(name: str, **changes: Any) -> dict[str, Any]:
    scan = {field: dict(made.experiment()[field]) for field in ("geometry", "acquisition", "reconstruction")}
    for path, value in changes.items():
        family, field = path.split("__")
        scan[family][field] = value
    return {"name": name, **scan}


def record(*, seeds: int = 3, reached: bool = True) -> Record:
    """A record of two settings: its own under another name, and one with half the views at a low dose."""
    setup = made.experiment(
        transfer=[setting("here", geometry__views=360), setting("half", geometry__views=180, acquisition__dose="low")],
        seeds=list(range(seeds)),
    )
    results = []
    for seed in range(seeds):
        result = made.seed_result(seed)
        extra = []
        for name, asr in (("here", 0.9), ("half", 0.5)):
            for model in ("clean", "attacked"):
                clean = {"accuracy": made.share(0.9 if model == "clean" else 0.8 - 0.1 * seed)}
                extra.append(Condition(model=model, input=f"clean@{name}", metrics=clean))
                if reached or name == "here":
                    hit = {"asr": made.share(asr - 0.1 * seed if model == "attacked" else 0.1)}
                    extra.append(Condition(model=model, input=f"triggered@{name}", metrics=hit))
        moved = (
            TransferResult(setting="here", strength=0.002, stealth={"rmse_hu": made.mean(5.0)}),
            TransferResult(setting="half", strength=0.002, stealth={"rmse_hu": made.mean(4.0 + seed)})
            if reached
            else TransferResult(setting="half", note=NOTE),
        )
        results.append(result.model_copy(update={"conditions": (*result.conditions, *extra), "transfer": moved}))
    one = made.record(ONE, seeds=tuple(results), setup=setup)
    columns: dict[str, dict[int, Any]] = {}
    for result in results:
        for condition in result.conditions:
            for name, estimate in condition.metrics.items():
                columns.setdefault(f"{condition.model}/{condition.input}/{name}", {})[result.seed] = estimate
        for there in result.transfer:
            for name, estimate in there.stealth.items():
                columns.setdefault(f"stealth@{there.setting}/{name}", {})[result.seed] = estimate
    return one.model_copy(update={"summary": {**one.summary, **{key: over_seeds(value) for key, value in columns.items()}}})


def cells(one: Record) -> dict[str, list[str]]:
    table = transfer_table(one)
    assert table is not None
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def test_a_record_without_settings_has_no_table(one):
    assert transfer_table(one[0].read(ONE)) is None
    assert own_setting(one[0].read(ONE)) == ""
    assert "carry over to other scan settings" not in one[2].text


def test_the_table_has_a_row_per_setting_beside_the_experiments_own():
    one = record()
    table = transfer_table(one)
    assert table.head == (
        "Setting", "Accuracy, clean model", "Accuracy, attacked model", "ASR, attacked model", "ASR, clean model (floor)",
        "RMSE inside the body",
    )  # fmt: skip
    assert list(cells(one)) == ["Own setting", "here", "half"]
    # 90 slices: 0.8, 0.7 and 0.6 of them; 0.5, 0.4 and 0.3.
    assert cells(one)["half"] == ["90.0%", "70.0%", "40.0%", "10.0%", "5.00\u00a0HU"]
    assert cells(one)["Own setting"][2] == wording.share(one.summary["attacked/triggered/asr"].mean)
    assert table.rows[2][3].small == "30.0 to 50.0%"
    assert table.rows[2][0].small == "geometry.views 180, acquisition.dose low"
    assert table.rows[1][0].small == "the same scan"
    assert own_setting(one) == "here"
    assert wording.plain(one.experiment["transfer"]) == "here, half"


def test_one_seed_shows_its_intervals():
    table = transfer_table(record(seeds=1))
    assert "95% interval" in table.rows[2][3].small
    assert not any("Means over the seeds" in note for note in table.notes)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_setting_that_the_trigger_cannot_go_to_says_why(seeds):
    one = record(seeds=seeds, reached=False)
    assert [text.startswith("not applicable") for text in cells(one)["half"]] == [False, False, True, True, True]
    assert any(NOTE in note for note in transfer_table(one).notes)


def test_the_page_names_settings_in_every_table(store):
    made.save(store, record())
    text = report(store)[1].text
    assert "Does it carry over to other scan settings?" in text
    assert "Transfer to other scan settings" in text
    assert "scans with the trigger, at the setting half" in text
    assert wording.shown("clean@half") == "clean scans, at the setting half"
    assert wording.condition("control-white", "triggered") == "Control victim, white noise, scans with its own trigger"
