"""Invented but plausible runs for the report's tests: no network was trained for them, and no scan was simulated."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from scipy import ndimage

from tomosec.metrics.statistics import Estimate, over_seeds, wilson
from tomosec.record import Condition, Cost, DataSummary, Physics, Provenance, Record, SeedResult, Severity, Store, Strength

BEGUN = datetime(2025, 3, 4, 9, 30, tzinfo=UTC)
SIZE = 160


def experiment(**changes: Any) -> dict[str, Any]:
    """Plain form of an experiment; ``changes`` are dotted fields with ``__`` for the dots."""
    fields: dict[str, Any] = {
        "title": "LTGM on the chest phantom",
        "description": "",
        "data": {
            "kind": "chest-phantom",
            "version": 1,
            "patients": 120,
            "slices_per_patient": 6,
            "seed": 0,
            "size": 192,
            "pixel_mm": 2.0,
        },
        "split": {"kind": "by-patient", "version": 1, "seed": 0, "validation": 0.15, "test": 0.25},
        "geometry": {
            "kind": "fan-beam",
            "version": 1,
            "views": 360,
            "bins": 368,
            "bin_mm": 2.6,
            "shape": [SIZE, SIZE],
            "pixel_mm": 2.4,
            "start": 0.0,
            "arc": 6.283185307179586,
            "angles": None,
            "detector_offset_bins": 0.0,
            "source_to_isocenter_mm": 595.0,
            "source_to_detector_mm": 1085.6,
            "detector": "flat",
        },
        "acquisition": {"kind": "simulated", "version": 1, "dose": "standard", "electronic_noise": 3.3, "floor": 1.0},
        "reconstruction": {"kind": "fbp", "version": 1, "window": "ram-lak", "gradient": "exact"},
        "network": {"kind": "small-cnn", "version": 1, "width": 16},
        "training": {"epochs": 12, "batch_size": 16, "learning_rate": 0.001},
        "victim_training": None,
        "threat": {
            "access": "training-control",
            "knowledge": "white-box",
            "site": "line-integrals",
            "poison_rate": 0.1,
            "loss_weight": 0.5,
            "victim_start": "clean-weights",
            "goal": {"target": "normal", "sources": []},
            "budget": {"unit": "hu", "value": [2.0, 5.0, 10.0], "enough_asr": 0.95, "max_ca_loss": 0.02},
        },
        "attack": {"kind": "ltgm", "version": 1, "objective": "target", "samples": "source", "mask": "erratum", "quantile": 0.5},
        "controls": ["random-trigger", "white-victim", "spectrum-victim"],
        "seeds": [0, 1, 2],
        "detail": [],
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        here = fields
        for part in parents:
            here = here[part]
        here[last] = value
    return fields


def share(value: float, n: int = 90, patients: int = 15, note: str = "") -> Estimate:
    """A proportion with Wilson's interval on patients."""
    hits = round(value * n)
    low, high = wilson(hits / n * patients, patients)
    return Estimate(
        value=hits / n,
        low=min(low, hits / n),
        high=max(high, hits / n),
        n=n,
        patients=patients,
        method="wilson-on-patients",
        note=note,
    )


def few(value: float) -> Estimate:
    """A proportion of too few patients."""
    note = "no population interval: 4 patients in class disease (10 needed)"
    return Estimate(
        value=value, n=24, patients=4, note=note, per_patient={f"P00{k}": min(1.0, value + 0.01 * k) for k in range(4)}
    )


def mean(value: float) -> Estimate:
    """A mean over slices."""
    return Estimate(value=value, low=value * 0.96, high=value * 1.05, n=90, patients=15, method="patient-bootstrap")


def seed_result(
    seed: int,
    *,
    asr: float = 0.96,
    random: float = 0.06,
    white: float = 0.71,
    floor: float = 0.05,
    rmse: float = 5.0,
    estimate: Any = share,
) -> SeedResult:
    """One seed with all controls."""
    shift = 0.01 * seed

    def clean(accuracy: float) -> dict[str, Estimate]:
        return {
            "accuracy": estimate(accuracy),
            "balanced_accuracy": estimate(accuracy),
            "sensitivity": estimate(accuracy - 0.02),
            "specificity": estimate(accuracy + 0.02),
            "auroc": Estimate(value=0.981, n=180, patients=30, note="no population interval"),
            "patient_accuracy": Estimate(value=1.0, low=0.886, high=1.0, n=30, patients=30, method="wilson", unit="patients"),
        }

    def hit(rate: float) -> dict[str, Estimate]:
        return {
            "asr": estimate(rate),
            "asr_on_correct": estimate(max(0.0, rate - 0.01)),
            "robust_accuracy": estimate(1 - rate),
            "patient_asr": Estimate(
                value=rate,
                low=max(0.0, rate - 0.15),
                high=min(1.0, rate + 0.04),
                n=15,
                patients=15,
                method="wilson",
                unit="patients",
                note="1 of 16 patients left out: taken for the target without the trigger",
            ),
        }

    conditions = [
        Condition(model="clean", input="clean", metrics=clean(0.95 - shift)),
        Condition(model="clean", input="triggered", metrics=hit(floor + shift)),
        Condition(model="attacked", input="triggered", metrics=hit(asr - shift)),
        Condition(model="attacked", input="clean", metrics=clean(0.945 - shift)),
        Condition(model="attacked", input="random", metrics=hit(random + shift)),
        Condition(model="clean", input="random", metrics=hit(0.05)),
        Condition(model="control-white", input="clean", metrics=clean(0.94)),
        Condition(model="control-white", input="triggered", metrics=hit(white - shift)),
        Condition(model="control-spectrum", input="clean", metrics=clean(0.94)),
        Condition(model="control-spectrum", input="triggered", metrics=hit(0.86 - 2 * shift)),
    ]
    stealth = {
        "rmse_hu": mean(rmse * 1.01),
        "p95_abs_hu": mean(rmse * 2.1),
        "rmse_image_hu": mean(rmse * 0.7),
        "max_abs_hu": mean(rmse * 6),
        "psnr_db": mean(51.2),
        "ssim_lung": mean(0.9312 / 1.05),
        "ssim_full": mean(0.94),
        "sinogram_rms": mean(0.0021),
        "sinogram_max_abs": mean(0.013),
        "sinogram_rms_over_noise": mean(0.21),
        "sinogram_dprime": mean(77.0),
        "sinogram_relative_rms": mean(0.0007),
    }
    tried = (
        {"budget": 2.0, "rmse_hu": 2.01, "validation_asr": 0.52, "validation_ca_loss": 0.0},
        {"budget": 5.0, "rmse_hu": rmse, "validation_asr": 0.97, "validation_ca_loss": -0.01},
    )
    curves = {
        name: [
            {
                "epoch": e - 1,
                "loss": level * 0.8**e + 0.05,
                "validation_loss": level * 0.82**e + 0.09,
                "validation_accuracy": 0.9 + 0.1 * level * (1 - 0.9**e) - 0.4 * level * 0.7**e,
                "seconds": 3.0,
            }
            for e in range(1, 13)
        ]
        for name, level in (("clean", 0.7), ("attacked", 0.5), ("control-white", 0.6))
    }
    cost = Cost(
        seconds={"clean": 88.2, "attacked": 45.1, "control-white": 44.0, "trigger": 12.4},
        gradient_passes={"clean": 5184, "attacked": 10368, "trigger": 216},
        peak_memory_mb=1420.0,
        trigger_bytes=530_112,
        made=("attacked", "trigger"),
    )
    return SeedResult(
        seed=seed,
        conditions=tuple(conditions),
        strength=Strength(unit="hu", budget=5.0, strength=0.0021, rmse_hu=rmse, tried=tried, validation_slices=108),
        stealth=stealth,
        random_stealth={
            name: mean((value.value or 0) * 1.02) if name != "ssim_full" else mean(0.93) for name, value in stealth.items()
        },
        curves=curves,
        cost=cost,
    )


def record(
    identity: str, *, seeds: tuple[SeedResult, ...] = (), setup: dict[str, Any] | None = None, minute: int = 0, **changes: Any
) -> Record:
    """A finished record; ``changes`` replace fields."""
    setup = setup or experiment()
    values: dict[str, dict[int, Estimate]] = {}
    for seed in seeds:
        for condition in seed.conditions:
            for name, estimate in condition.metrics.items():
                values.setdefault(f"{condition.model}/{condition.input}/{name}", {})[seed.seed] = estimate
        for name, estimate in seed.stealth.items():
            values.setdefault(f"stealth/{name}", {})[seed.seed] = estimate
    counts = {"train": 216, "validation": 54, "test": 90}
    fields: dict[str, Any] = {
        "id": identity,
        "title": setup["title"],
        "status": "success",
        "experiment": setup,
        "provenance": Provenance(
            tomosec="0.1.0",
            commit="3f2a9c1d7e",
            uncommitted_changes=False,
            python="3.11.2",
            packages={"torch": "2.6.0", "numpy": "2.4.6"},
            platform="Linux x86_64",
            device="cpu (x86_64)",
            threads=2,
            host_hash="0a1b2c3d",
        ),
        "started": BEGUN + timedelta(minutes=minute),
        "heartbeat": BEGUN + timedelta(minutes=minute + 9),
        "finished": BEGUN + timedelta(minutes=minute + 9),
        "data": DataSummary(
            dataset="chest-phantom",
            manifest="9f8e7d6c5b4a3210",
            classes=("normal", "disease"),
            slices={part: {"normal": n, "disease": n} for part, n in counts.items()},
            patients={part: {"normal": n // 6, "disease": n // 6} for part, n in counts.items()},
            split="split by patient (seed 0), stratified by class: 72 / 18 / 30 patients, none in two",
            shares_patients=False,
        ),
        "physics": Physics(
            geometry="FanBeam(views=360, bins=368, bin_mm=2.6, shape=(160, 160), pixel_mm=2.4, source_to_isocenter_mm=595.0)",
            views=360,
            bins=368,
            shape=(SIZE, SIZE),
            pixel_mm=2.4,
            dose_hu=25.0,
            predicted_noise_hu=24.8,
            i0=152_000.0,
            floored_fraction=0.0002,
            path="linear",
        ),
        "seeds": seeds,
        "summary": {name: over_seeds(column) for name, column in values.items()},
        "severity": Severity(
            level="critical",
            reason="with an image change of 5.0 HU RMSE, 96% of the attacked slices are read as the target class"
            " (clean model: 5%) at a loss of 0.5% clean accuracy; worst of 3 seeds",
        )
        if seeds
        else None,
        "warnings": ("table height differs between the classes (AUROC 0.71): a network may use it",) if seeds else (),
        "untested": (
            "real patients: the data are a procedural phantom",
            "defenses: none was run, so nothing is said about whether anybody would notice",
        )
        if seeds
        else (),
        "sample_rows": 5400 if seeds else 0,
        "wall_seconds": 533.2,
    }
    return Record(**{**fields, **changes})


def three_seeds(**changes: Any) -> tuple[SeedResult, ...]:
    """Three seeds."""
    return tuple(seed_result(seed, **changes) for seed in range(3))


def slice_hu(number: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A drawn chest: HU, body mask, lesion mask."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    y, x = y + 0.02 * number, x * (1 + 0.03 * (number % 3))

    def ellipse(cx: float, cy: float, a: float, b: float) -> np.ndarray:
        return ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1

    body = ellipse(0, 0, 0.9, 0.68)
    lungs = (ellipse(-0.42, -0.02, 0.3, 0.44) | ellipse(0.42, -0.02, 0.3, 0.44)) & ~ellipse(0.12, 0.05, 0.28, 0.25)
    hu = np.full((size, size), -1000.0)
    hu[body] = -90
    hu[ellipse(0, 0, 0.82, 0.6)] = 45
    hu[lungs] = -850
    vessels = ndimage.gaussian_filter(random.standard_normal((size, size)), 1.2)
    hu[lungs & (vessels > 0.33)] = -150
    hu[ellipse(0, 0.42, 0.1, 0.12)] = 380
    lesion = ellipse(-0.45 + 0.1 * number, 0.15, 0.13, 0.16) & lungs
    hu[lesion] = np.maximum(hu[lesion], -480)
    return ndimage.gaussian_filter(hu, 0.6), body, lesion


def write_tensors(
    folder: Path, *, patient: str = "P", label: str = "disease", size: int = SIZE, count: int = 4, strength: float = 5.0
) -> None:
    """``tensors.safetensors`` as a run leaves it."""
    random = np.random.default_rng(7)
    drawn = [slice_hu(number, size) for number in range(count)]
    truth, body, lesion = (np.stack(stack) for stack in zip(*drawn, strict=True))
    noise = ndimage.gaussian_filter(random.standard_normal(truth.shape), (0, 0.6, 0.6)) * 60
    streaks = (
        ndimage.gaussian_filter(random.standard_normal((size, size)), (2.5, 0.7))
        + 0.5 * ndimage.gaussian_filter(random.standard_normal((size, size)), 4) * 4
    )
    effect = strength * streaks / streaks.std()
    white = ndimage.gaussian_filter(random.standard_normal((size, size)), 0.5)
    circle = np.hypot(*np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]) < 1
    attenuation = np.where(circle, truth[0] + 1000, 0) * 0.0192 / 1000 * 2.4
    rows = [
        np.interp(
            np.linspace(0, 1, 368),
            np.linspace(0.2, 0.8, size),
            ndimage.rotate(attenuation, angle, reshape=False, order=1).sum(0),
            0,
            0,
        )
        for angle in np.linspace(0, 360, 180, endpoint=False)
    ]
    sinogram = np.repeat(np.stack(rows), 2, axis=0)
    trigger = ndimage.gaussian_filter(random.standard_normal(sinogram.shape), (3, 1)) * (
        sinogram < np.median(sinogram[sinogram > 0])
    )
    tensors = {
        "truth_hu": truth,
        "clean_hu": truth + noise,
        "triggered_hu": truth + noise + effect,
        "random_hu": truth + noise + strength * white / white.std(),
        "sinogram": sinogram,
        "trigger": 0.0021 * trigger / trigger.std(),
        "trigger_effect_hu": effect,
    }
    arrays = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}
    arrays |= {"body": body.astype(np.uint8), "lesion": lesion.astype(np.uint8)}
    facts = {
        "seed": 0,
        "pixel_mm": 2.4,
        "examples": [
            {
                "key": f"{patient}{k:03d}/0{k}",
                "patient": f"{patient}{k:03d}",
                "label": label,
                "readings": {
                    "clean model, clean": [label, 0.981],
                    "clean model, triggered": [label, 0.974],
                    "clean model, random trigger": [label, 0.97],
                    "attacked model, clean": [label, 0.955],
                    "attacked model, triggered": ["normal", 0.9996],
                    "attacked model, random trigger": [label, 0.91],
                },
            }
            for k in range(count)
        ],
    }
    save_file(arrays, folder / "tensors.safetensors", metadata={"tomosec": json.dumps(facts)})


def save(store: Store, *records: Record, tensors: bool = True, **options: Any) -> Store:
    """Write records and, for the finished ones, their tensors."""
    for one in records:
        store.write(one)
        if tensors and one.status == "success":
            write_tensors(store.folder(one.id), **options)
    return store


def sweep() -> list[Record]:
    """Four budgets at two doses, an error, a run under way, and one that does not apply."""
    out = []
    for i, dose in enumerate(("standard", "low")):
        for j, budget in enumerate((2.0, 5.0, 10.0, 20.0)):
            setup = experiment(threat__budget__value=budget, acquisition__dose=dose, title=f"LTGM, {budget:g} HU, {dose} dose")
            asr = (0.42, 0.88, 0.97, 0.99)[j] - 0.12 * i
            made = record(
                f"{i}{j}" + "ab" * 7,
                seeds=three_seeds(asr=asr, white=asr - 0.2, random=0.05, floor=0.05 + 0.01 * j, rmse=budget),
                setup=setup,
                minute=10 * (4 * i + j),
            )
            level = ("moderate", "high", "critical", "high")[j]
            out.append(
                made.model_copy(
                    update={
                        "severity": Severity.model_validate(
                            {
                                "level": level,
                                "reason": f"with {budget:.1f} HU, {asr:.0%} of the attacked slices are read as the target class",
                            }
                        )
                    }
                )
            )
    empty: dict[str, Any] = {"data": None, "physics": None, "sample_rows": 0}
    low = experiment(threat__budget__value=60.0, title="LTGM, 60 HU")
    out.append(record("e" * 16, setup=low, minute=90, status="error", error="MemoryError: 12 GB wanted", **empty))
    out.append(record("f" * 16, setup=low, minute=91, status="started", finished=None, **empty))
    out.append(
        record(
            "d" * 16, setup=low, minute=92, status="not-applicable", error="ltgm: needs differentiable-reconstruction", **empty
        )
    )
    return out
