"""Measuring the defenses that read measured data: detectors of scans and of sets, purifiers and votes."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import torch
from torch import Tensor

from tomosec.analysis.networks import Classifier
from tomosec.defenses.base import Defense, PredictionWrapper, Readings, ScanDetector, ScanPurifier, Scans, ScanSetDetector
from tomosec.metrics.statistics import Estimate, average, proportion
from tomosec.metrics.table import SampleTable
from tomosec.pipeline import Injection
from tomosec.run.chain import BATCH
from tomosec.run.evaluate import predict_images, rows_of
from tomosec.run.granted import UnderAttack, measured_scans, model_context, scan_context
from tomosec.run.kept import calibrated, clean_rows
from tomosec.run.outcome import Outcome, detection_of, require, require_measured, shown_inputs, source_positions, who

#: Sizes of the sets that set detectors judge; sets are of scans of different patients as far as there are.
SET_SIZES = (10, 30)


def scan_detector(defense: ScanDetector, name: str, attack: UnderAttack) -> Outcome:
    """AUROC and rates of a detector: test slices of the attacked classes with and without the trigger."""
    require_measured(attack)
    context, positions = scan_context(attack), source_positions(attack)
    detection, seconds = calibrated(defense, context, attack)
    judged: list[tuple[Tensor, Tensor | None]] = []
    for _, trigger in shown_inputs(attack):
        parts = [detection.judge(scans) for scans in measured_scans(attack.chain, attack.test, positions, trigger).batches(BATCH)]
        found = [part.p_value.cpu() for part in parts if part.p_value is not None]
        judged.append((torch.cat([part.score.cpu() for part in parts]), torch.cat(found) if len(found) == len(parts) else None))
    metrics = detection_of(attack, positions, judged, detection.held_out)
    return Outcome(metrics, clean_slices=len(context.clean), held_out=detection.held_out, seconds=seconds)


def scan_set_detector(defense: ScanSetDetector, name: str, attack: UnderAttack) -> Outcome:
    """Rates of flagged sets of test slices, with and without the trigger."""
    require_measured(attack)
    context = scan_context(attack)
    detection, seconds = calibrated(defense, context, attack)
    # One slice per patient first, so that a set is of as many patients as there are.
    seen: dict[str, int] = {}
    ranked = []
    for i in source_positions(attack):
        patient = attack.test.entries[i].patient
        ranked.append((seen.get(patient, 0), i))
        seen[patient] = seen.get(patient, 0) + 1
    ordered = [i for _, i in sorted(ranked)]
    sets: list[dict[str, Any]] = []
    for size in SET_SIZES:
        for start in range(0, len(ordered) - size + 1, size):
            chosen = tuple(ordered[start : start + size])
            for shown, trigger in (("clean", None), ("triggered", attack.trigger)):
                verdict = detection.judge(measured_scans(attack.chain, attack.test, chosen, trigger))
                said = {"score": verdict.score, "p_value": verdict.p_value, "reason": verdict.reason}
                sets.append({"scans": size, "judged": verdict.scans, "input": shown, **said})
    metrics = {}
    for size in SET_SIZES:
        for shown in ("clean", "triggered"):
            found = [item for item in sets if item["scans"] == size and item["input"] == shown and item["p_value"] is not None]
            flagged = [item["p_value"] <= 0.05 for item in found]
            value = sum(flagged) / len(flagged) if flagged else None
            rate = "tpr" if shown == "triggered" else "fpr"
            judged = [item["judged"] for item in found]
            note = _of_sets(judged, size) if found else "no verdict"
            metrics[f"{rate}_at_5_of_{size}"] = Estimate(value=value, n=sum(judged), patients=len(seen), note=note)
    return Outcome(metrics, clean_slices=len(context.clean), details={"sets": sets}, seconds=seconds)


def _of_sets(judged: Sequence[int], size: int) -> str:
    """Of how many sets, and how many scans of a set were judged where a detector takes one of each patient."""
    sets = f"{len(judged)} set{'s' if len(judged) != 1 else ''} of {size} scans"
    if min(judged) == size:
        return sets
    least, most = min(judged), max(judged)
    return f"{sets}, of which {least if least == most else f'{least} to {most}'} were judged, one of each patient"


def _scans(attack: UnderAttack, positions: Sequence[int], trigger: Injection | None) -> Scans:
    (scans,) = measured_scans(attack.chain, attack.test, positions, trigger).batches(len(positions))
    return scans


@torch.no_grad()
def scan_purifier(defense: ScanPurifier, name: str, attack: UnderAttack) -> Outcome:
    """What the networks read in scans that a purifier has changed."""
    require_measured(attack)
    context, outcome = scan_context(attack), Outcome(model=f"attacked+{name}")
    require(defense, context)
    purification, imaging = defense.fit(context), attack.chain.imaging

    def rows(network: Classifier, model: str, shown: str, trigger: Injection | None) -> SampleTable:
        def images(positions: list[int]) -> Tensor:
            return imaging.reconstruct(purification.purify(_scans(attack, positions, trigger)))

        return predict_images(attack.test, network, images, model=f"{model}+{name}", shown=shown)

    with outcome.beside():
        outcome.tables.append(clean_rows(defense, name, attack, lambda: rows(attack.clean, "clean", "clean", None)))
    outcome.tables += [rows(attack.attacked, "attacked", shown, trigger) for shown, trigger in shown_inputs(attack)]
    outcome.clean_slices = _used(defense, context.clean)
    return outcome


def prediction_wrapper(defense: PredictionWrapper, name: str, attack: UnderAttack) -> Outcome:
    """What the attacked network reads through a vote, and how well its disagreement and certificates tell."""
    require_measured(attack)
    context = model_context(attack, attack.attacked)
    require(defense, context)
    prediction = defense.fit(context)
    tables, said = [], []
    for shown, trigger in shown_inputs(attack):
        found: list[Readings] = []

        def predict(positions: list[int], trigger: Injection | None = trigger, found: list[Readings] = found) -> Tensor:
            found.append(prediction.predict(_scans(attack, positions, trigger)))
            return found[-1].probabilities

        tables.append(rows_of(attack.test, predict, model=f"attacked+{name}", shown=shown))
        said.append(found)
    metrics: dict[str, Estimate] = {}
    suspicion = [_joined([item.suspicion for item in found]) for found in said]
    if suspicion[0] is not None and suspicion[1] is not None:
        chosen = list(source_positions(attack))
        judged = [(item[chosen], None) for item in suspicion if item is not None]
        metrics["auroc"] = detection_of(attack, chosen, judged, held_out=0)["auroc"]
    radius = [_joined([item.radius for item in found]) for found in said]
    if radius[0] is not None and radius[1] is not None:
        labels = [torch.cat([item.labels.cpu() for item in found]) for found in said]
        metrics |= _certified(attack, (labels[0], radius[0]), (labels[1], radius[1]))
    return Outcome(metrics, tables, f"attacked+{name}", clean_slices=_used(defense, context.clean))


def _used(defense: Defense, clean: Sized) -> int:
    """How many clean slices or scans a defense reads."""
    return len(clean) if defense.needs & {"clean-samples", "calibration-scans"} else 0


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """(N,) of the batches, float64; None where a wrapper does not say it."""
    found = [part.double().cpu() for part in parts if part is not None]
    return torch.cat(found) if found and len(found) == len(parts) else None


def _certified(attack: UnderAttack, clean: tuple[Tensor, Tensor], triggered: tuple[Tensor, Tensor]) -> dict[str, Estimate]:
    """What certificates were worth, by labels and radii of all test slices: radii stand beside the size of the trigger."""
    names, chosen = attack.chain.classes, list(source_positions(attack))
    everyone, sources = who(attack, range(len(attack.test))), who(attack, chosen)
    right = (clean[0] == torch.tensor(everyone[1])) & (clean[1] > 0)
    wanted = ((triggered[0] == attack.chain.target) & (triggered[1] > 0))[chosen]
    sizes = []
    for start in range(0, len(chosen), BATCH):
        pair = [_scans(attack, chosen[start : start + BATCH], trigger).line_integrals for _, trigger in shown_inputs(attack)]
        sizes.append((pair[1] - pair[0]).double().flatten(1).norm(dim=1).cpu())
    return {
        "certified_accuracy": proportion(right.numpy(), *everyone, class_names=names),
        "abstained_fraction": proportion((clean[1] == 0).numpy(), *everyone, class_names=names),
        "certified_radius": average(clean[1].numpy(), *everyone, class_names=names),
        "certified_asr": proportion(wanted.numpy(), *sources, class_names=names),
        "trigger_norm": average(torch.cat(sizes).numpy(), *sources, class_names=names),
    }
