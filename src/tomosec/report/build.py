"""From records on disk to one HTML file that opens anywhere: no network, no fonts, one script of our own, hashed in the CSP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from markupsafe import Markup

from tomosec.errors import InputError
from tomosec.files import write_text
from tomosec.record import Record, Severity, Store
from tomosec.report import defenses, examples, narrative, overview, settings, studies, tables, transfer, wording
from tomosec.report.figures import Point, Row, interval_plot, learning_curve
from tomosec.report.page import render
from tomosec.report.tables import Table
from tomosec.varying import differing

#: Of the worst result first; a report on several records is headed by the worst of them.
_WORST = ("critical", "high", "moderate", "low", "unknown", "none")
#: Learning-curve columns that are no quantity of their own.
_NO_CURVE = frozenset({"epoch", "seconds", "step", "lr", "learning_rate"})

_QUANTITIES = {"loss": "training loss"}


@dataclass(frozen=True, slots=True)
class Section:
    """Everything the templates need about one record."""

    record: Record
    title: str
    status: str
    target: str
    sources: str
    basis: str
    cards: list[narrative.Card]
    story: list[str]
    verdicts: list[narrative.Verdict]
    pictures: examples.Pictures
    success_figure: Markup | None
    curve_figures: list[Markup]
    curves_seed: int | None
    main_metrics: Table | None
    all_metrics: Table | None
    patients: Table | None
    controls: Table | None
    transfer: Table | None
    defenses: Table | None
    stealth: Table | None
    strength: Table | None
    data: Table | None
    physics: Table | None
    threat: Table | None
    cost: Table | None
    provenance: Table
    experiment: str
    site: str
    network: str
    reconstruction: str


def build_report(store: Store, path: str | Path, *, ids: Sequence[str] | None = None) -> Path:
    """Write a report on one record or several.

    Args:
        store: the folder of runs.
        path: the HTML file to write; replaced whole or not at all.
        ids: which records, in this order; all of the store, by start time, if not given.

    Returns:
        ``path``, as a Path.

    Raises:
        InputError: no records, one that does not exist, or one that cannot be read.
        TomosecError: the file cannot be written.
    """
    path = Path(path)
    records = [store.read(name) for name in dict.fromkeys(ids)] if ids is not None else list(store.records())
    if not records:
        raise InputError(f"{store.root}: no runs to report on yet")
    # A sweep shows one example a record, so that the file stays small enough to send.
    most = 4 if len(records) == 1 else 1
    sections = [_section(record, store.folder(record.id), number, most) for number, record in enumerate(records)]
    write_text(path, _render(records, sections, studies.blocks(store, records)))
    return path


def _render(records: Sequence[Record], sections: Sequence[Section], found: Sequence[studies.Block]) -> str:
    names = differing([record.experiment for record in records]) if len(records) > 1 else []
    figure, why_no_figure = overview.budget_figure(records, names) if len(records) > 1 else (None, "")
    worst = _worst(records)
    return render(
        "page.html",
        mixed=narrative.mixed(records),
        sections=sections,
        several=len(sections) > 1,
        studies=found,
        severity=worst[0],
        worst=worst[1],
        title=sections[0].title if len(sections) == 1 else f"{len(sections)} experiments",
        states=overview.states(records),
        worst_basis=narrative.basis(worst[1]) if worst[1] is not None else "",
        overview=overview.overview_table(records, names) if len(records) > 1 else None,
        figure=figure,
        why_no_figure=why_no_figure,
        versions=sorted({record.provenance.tomosec for record in records}),
    )


def _worst(records: Sequence[Record]) -> tuple[Severity | None, Record | None]:
    judged = [(record.severity, record) for record in records if record.severity is not None]
    return min(judged, key=lambda item: _WORST.index(item[0].level)) if judged else (None, None)


def _section(record: Record, folder: Path, number: int, most: int) -> Section:
    attacked = record.experiment.get("attack") is not None
    scored = bool(record.seeds)
    return Section(
        record=record,
        title=record.title or f"Experiment {record.id}",
        status=wording.STATUS[record.status],
        target=narrative.target_of(record),
        sources=narrative.sources_of(record),
        basis=narrative.basis(record) if scored else "",
        cards=narrative.cards(record) if scored else [],
        story=narrative.story(record),
        verdicts=narrative.verdicts(record) if scored and attacked else [],
        pictures=examples.load(folder, record.experiment, most=most) if record.status == "success" else examples.Pictures(),
        success_figure=_success(record, f"r{number}s") if scored and attacked else None,
        curve_figures=_curves(record, f"r{number}c") if scored else [],
        curves_seed=record.seeds[0].seed if scored else None,
        main_metrics=tables.metrics_table(record, main=True) if scored else None,
        all_metrics=tables.metrics_table(record, main=False) if scored else None,
        patients=tables.patients_table(record),
        controls=tables.controls_table(record) if scored and attacked else None,
        transfer=transfer.transfer_table(record),
        defenses=defenses.defenses_table(record),
        stealth=tables.stealth_table(record) if any(seed.stealth for seed in record.seeds) else None,
        strength=tables.strength_table(record),
        data=settings.data_table(record),
        physics=settings.physics_facts(record),
        threat=settings.threat_facts(record) if attacked else None,
        cost=tables.cost_table(record) if scored else None,
        provenance=settings.provenance_facts(record),
        experiment=yaml.safe_dump(record.experiment, sort_keys=False, allow_unicode=True, width=110),
        site=str(wording.field(record.experiment, "threat.site", "")) if attacked else "",
        network=wording.component(record.experiment, "network"),
        reconstruction=wording.component(record.experiment, "reconstruction"),
    )


def _success(record: Record, name: str) -> Markup | None:
    """ASR of the attack beside its controls, every seed with its interval."""
    wanted = (
        ("attacked", "triggered", "Attacked model,\nits trigger"),
        ("clean", "triggered", "Clean model,\nsame trigger (floor)"),
        ("surrogate", "triggered", "Surrogate,\nsame trigger"),
        ("attacked", "random", "Attacked model,\nrandom trigger"),
        ("control-white", "triggered", "Control victim, white\nnoise, its trigger"),
        ("control-spectrum", "triggered", "Control victim, same\nspectrum, its trigger"),
    )
    rows = []
    for model, shown, label in wanted:
        found = [estimate for seed in record.seeds if (estimate := seed.metric(model, shown, "asr")) is not None]
        points = [Point(estimate.value, estimate.low, estimate.high) for estimate in found if estimate.value is not None]
        if points:
            rows.append(Row(label, points, group=int(model == "attacked" and shown == "triggered")))
    if not rows:
        return None
    said = "; ".join(
        f"{row.label.replace(chr(10), ' ')} {', '.join(wording.share(point.value) for point in row.points)}" for row in rows
    )
    return interval_plot(rows, x_label="attack success rate", alt=f"Attack success rate by seed: {said}", name=name)


def _curves(record: Record, name: str) -> list[Markup]:
    """Learning curves of the first seed, a figure per quantity."""
    quantities: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for model, points in record.seeds[0].curves.items():
        for index, point in enumerate(points):
            for quantity, value in point.items():
                if quantity not in _NO_CURVE:
                    line = quantities.setdefault(_QUANTITIES.get(quantity, quantity.replace("_", " ")), {}).setdefault(
                        wording.model(model), []
                    )
                    line.append((point.get("epoch", index) + 1.0, float(value)))
    out = []
    for index, (quantity, lines) in enumerate(quantities.items()):
        ends = "; ".join(f"{label} ends at {wording.value(quantity, points[-1][1])}" for label, points in lines.items())
        out.append(learning_curve(quantity, lines, alt=f"{quantity} over epochs: {ends}", name=f"{name}{index}"))
    return out
