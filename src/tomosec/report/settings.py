"""Under which settings a record was made: threat model, scan, data and provenance, as tables."""

from __future__ import annotations

from typing import Any

from tomosec.record import Record
from tomosec.report import wording
from tomosec.report.narrative import sources_of, target_of
from tomosec.report.tables import Cell, Table, facts


def threat_facts(record: Record) -> Table:
    """The threat model."""

    def get(path: str) -> Any:
        return wording.field(record.experiment, f"threat.{path}")

    access, unit = str(get("access") or ""), str(get("budget.unit") or "")
    details = {
        "training-data": f"poisons {wording.share(get('poison_rate'))} of the training slices"
        + (" that may be poisoned" if get("poison_rate_of") == "candidates" else "")
        + (f", covers {wording.share(get('cover_rate'))}" if get("cover_rate") is not None else ""),
        "training-control": f"loss weight {wording.plain(get('loss_weight'))}, start: {wording.plain(get('victim_start'))}",
    }
    return facts(
        "Threat model",
        [
            ("Access", f"{access}: {wording.ACCESS.get(access, '')}"),
            ("Means", details.get(access, "")),
            ("Knowledge", f"{get('knowledge')}: {wording.knowledge(record.experiment)}"),
            ("Surrogate", wording.plain(record.experiment["surrogate"]) if record.experiment.get("surrogate") else ""),
            ("Attacked classes", sources_of(record)),
            ("Target class", target_of(record)),
            ("Enters at", wording.SITES.get(str(get("site")), str(get("site")))),
            ("Budget", f"{wording.plain(get('budget.value'))} {wording.UNITS.get(unit, unit)}"),
            ("Enough success, on validation", wording.share(get("budget.enough_asr"))),
            ("Allowed loss of clean accuracy, on validation", wording.share(get("budget.max_ca_loss"))),
            ("Attack", wording.plain(record.experiment.get("attack"))),
        ],
        ("Item", "Setting"),
    )


def physics_facts(record: Record) -> Table | None:
    """The scan as simulated."""
    physics, experiment = record.physics, record.experiment
    if physics is None:
        return None
    dose = wording.field(experiment, "acquisition.dose")
    path = (
        "linear: R(p + sT) = R(p) + s R(T), so the trigger was reconstructed once"
        if physics.path == "linear"
        else "the trigger enters after reconstruction, so nothing was reconstructed for it"
        if wording.field(experiment, "threat.site") == "image"
        else f"long: every triggered scan was reconstructed ({physics.why_not_linear or 'no reason recorded'})"
    )
    asked, reached = wording.number(physics.dose_hu, "HU"), wording.number(physics.predicted_noise_hu, "HU")
    noise = f"{asked} asked for, {reached} in the calibration (sd, water disc of 30 cm, ram-lak)"
    return facts(
        "Scan and reconstruction",
        [
            ("Geometry", physics.geometry),
            ("Views × bins", f"{physics.views} × {physics.bins}"),
            ("Image", f"{physics.shape[0]} × {physics.shape[1]} pixels of {physics.pixel_mm:g} mm"),
            (
                "Dose",
                f"{dose} ({wording.DOSES[dose]})" if isinstance(dose, str) and dose in wording.DOSES else wording.plain(dose),
            ),
            ("Noise", noise if physics.dose_hu > 0 else "none"),
            ("Photons per bin, I₀", wording.number(physics.i0) if physics.i0 is not None else "infinite (no noise)"),
            ("Rays set to the photon floor", wording.share(physics.floored_fraction)),
            ("Acquisition", wording.plain(experiment.get("acquisition"))),
            ("Reconstruction", wording.plain(experiment.get("reconstruction"))),
            ("Path of computation", path),
        ],
        ("Item", "Setting"),
    )


def data_table(record: Record) -> Table | None:
    """Slices and patients by part and class."""
    data = record.data
    if data is None:
        return None
    rows = []
    for part in dict.fromkeys((*data.slices, *data.patients)):
        cells = [
            Cell(f"{data.slices.get(part, {}).get(name, 0)} slices", f"{data.patients.get(part, {}).get(name, 0)} patients")
            for name in data.classes
        ]
        rows.append((Cell(part), *cells))
    notes = [
        wording.sentence(data.split),
        f"Left out of every part: {wording.plural(data.dropped, 'slice')}.",
        f"Content hash of the data: {data.manifest}.",
    ]
    if data.shares_patients:
        notes.insert(0, "Patients are shared between the parts: nothing is shown about new patients.")
    return Table("Data", ("Part", *data.classes), tuple(rows), tuple(notes))


def provenance_facts(record: Record) -> Table:
    """Code, packages and machine."""
    made = record.provenance
    commit = (
        made.commit + (" with uncommitted changes" if made.uncommitted_changes else "")
        if made.commit
        else "not recorded (installed package)"
    )
    stamp = "%Y-%m-%d %H:%M UTC"
    return facts(
        "Provenance",
        [
            ("Experiment id", record.id),
            ("Data manifest", record.data.manifest if record.data else ""),
            ("tomosec", made.tomosec),
            ("Commit", commit),
            ("Python", made.python),
            ("Packages", ", ".join(f"{name} {version}" for name, version in sorted(made.packages.items()))),
            ("Platform", made.platform),
            ("Device", f"{made.device}, {wording.plural(made.threads, 'thread')}"),
            ("Machine (hash)", made.host_hash),
            ("Started", record.started.strftime(stamp)),
            ("Finished", record.finished.strftime(stamp) if record.finished else ""),
            ("Wall time", wording.duration(record.wall_seconds) if record.wall_seconds else ""),
            ("Rows in the sample table", str(record.sample_rows or "")),
        ],
        ("Item", "Value"),
    )
