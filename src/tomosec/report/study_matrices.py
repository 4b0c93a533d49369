"""Studies whose result is a matrix: surrogate by victim, and scan by scan."""

from __future__ import annotations

from collections.abc import Sequence

from tomosec.metrics.table import input_at
from tomosec.record import Record
from tomosec.report import wording
from tomosec.report.study_cells import (
    ASR,
    CA,
    CLEAN_CA,
    FLOOR,
    RANDOM,
    Figure,
    Shown,
    Source,
    attack_of,
    interval_note,
    mean_of,
    metric_cell,
    misread_cell,
)
from tomosec.report.study_figures import matrix_plot
from tomosec.report.tables import Cell, Footnotes, Table
from tomosec.report.transfer import own_setting
from tomosec.study import Study


def architectures(study: Study, records: Sequence[Record]) -> Shown:
    """Success by the network that gave the gradients and the network that was attacked."""
    attacked = [record for record in records if record.experiment.get("attack") is not None]
    if not attacked:
        return (), ()
    white_box = "victim itself"

    def surrogate(record: Record) -> str:
        learned = any(seed.cost.gradient_passes.get("trigger") for seed in record.seeds)
        return (wording.kind(record.experiment, "surrogate") or white_box) if learned else wording.DASH

    victims = list(dict.fromkeys(wording.kind(record.experiment, "network") for record in attacked))
    surrogates = [name for name in dict.fromkeys(surrogate(record) for record in attacked) if name != wording.DASH]
    notes, rows = Footnotes(), list[tuple[Cell, ...]]()
    for record in records:
        has_attack = record.experiment.get("attack") is not None
        rows.append(
            (
                Cell(wording.kind(record.experiment, "network"), link=f"run-{record.id}"),
                Cell(surrogate(record) if has_attack else "no attack"),
                Cell(attack_of(record)),
                metric_cell(record, ASR, notes, strong=True) if has_attack else misread_cell(record, notes),
                metric_cell(record, FLOOR, notes),
                metric_cell(record, RANDOM, notes),
                metric_cell(record, CA if has_attack else CLEAN_CA, notes),
                metric_cell(record, CLEAN_CA, notes),
            )
        )
    head = ("Victim", "Gradients from", "Attack", "ASR", "Floor: clean model", "Random trigger", "Clean accuracy, attacked")
    table = Table(
        "Surrogate and victim", (*head, "Clean accuracy, clean"), tuple(rows), (interval_note(attacked), *notes.lines())
    )
    place = {
        (surrogate(r), wording.kind(r.experiment, "network")): mean_of(r, ASR)
        for r in reversed(attacked)
        if surrogate(r) != wording.DASH
    }
    values = [[place.get((row, column)) for column in victims] for row in surrogates]
    said = "; ".join(f"{row} to {column} {wording.share(value)}" for (row, column), value in place.items())
    drawing = matrix_plot(
        surrogates,
        victims,
        values,
        row_label="gradients from",
        column_label="victim",
        alt=f"Attack success rate: {said}",
        name=f"{study.name}-matrix",
    )
    return (table,), (Figure("Attack success in percent, mean over the seeds; rows: where the trigger was learned.", drawing),)


def transfer(study: Study, records: Sequence[Record]) -> Shown:
    """Success and accuracy by the scan where a trigger was learned and the scan where it is applied."""
    attacked = [record for record in records if record.experiment.get("attack") is not None]
    names = list(dict.fromkeys(setting["name"] for record in attacked for setting in record.experiment.get("transfer", ())))
    if not names:
        return (), ()
    tables, figures = [], []
    wanted = (
        ("Attack success", "attacked", "triggered", "asr"),
        ("Clean accuracy of the attacked model", "attacked", "clean", "accuracy"),
        ("Clean accuracy of the clean model", "clean", "clean", "accuracy"),
    )
    for title, model, shown, metric in wanted:
        notes, rows, learned = Footnotes(), list[tuple[Cell, ...]](), dict[str, list[float | None]]()
        for record in records:
            own, has_attack = own_setting(record), record in attacked
            label = (own if attack_of(record) == "ltgm" else "") or record.title or attack_of(record)
            sources: list[Source] = [(model if has_attack else "clean", input_at(shown, name), metric) for name in names]
            if metric == "asr" and not has_attack:
                cells = [misread_cell(record, notes, input_at("clean", name)) for name in names]
            else:
                cells = [
                    metric_cell(record, source, notes, strong=name == own) for name, source in zip(names, sources, strict=True)
                ]
            rows.append((Cell(label, link=f"run-{record.id}"), *cells))
            if has_attack:
                learned[label] = [mean_of(record, source) for source in sources]
        said = (
            interval_note(attacked),
            "Set off: where the trigger was learned. A dash: the trigger cannot be carried to that scan.",
        )
        tables.append(Table(f"{title}, by where it is applied", ("Learned at", *names), tuple(rows), (*said, *notes.lines())))
        alt = "; ".join(
            f"{row}: " + ", ".join(f"{name} {wording.share(value)}" for name, value in zip(names, line, strict=True))
            for row, line in learned.items()
        )
        drawing = matrix_plot(
            list(learned),
            names,
            list(learned.values()),
            row_label="learned at",
            column_label="applied at",
            alt=alt,
            name=f"{study.name}-{model}-{metric}",
        )
        figures.append(Figure(f"{title} in percent, mean over the seeds; rows: where the trigger was learned.", drawing))
    return tuple(tables), tuple(figures)
