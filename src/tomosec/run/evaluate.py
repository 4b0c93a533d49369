"""Showing test slices to networks: the per-sample table, how visible a trigger is, and example images for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tomosec.analysis.networks import Classifier
from tomosec.hounsfield import HU_PER_MU, mu_to_hu
from tomosec.metrics.image import image_stealth, sinogram_stealth
from tomosec.metrics.statistics import Estimate, average
from tomosec.metrics.table import SampleTable
from tomosec.pipeline import Injection
from tomosec.run.chain import BATCH, Chain, MeasuredSamples
from tomosec.trigger import AdditiveTrigger

#: Example slices kept with a record. They are images of the user's patients.
EXAMPLES = 4


@torch.no_grad()
def predict(samples: MeasuredSamples, network: Classifier, trigger: Injection | None, *, model: str, shown: str) -> SampleTable:
    """One row per sample: what ``network`` reads on draw-0 images, with ``trigger`` or without.

    ``model`` and ``shown`` name the condition: the table's columns ``model`` and ``input``.
    """

    def images(positions: list[int]) -> Tensor:
        clean, triggered = samples.pair(positions, 0, trigger)
        return clean if triggered is None else triggered

    return predict_images(samples, network, images, model=model, shown=shown)


@torch.no_grad()
def predict_images(
    samples: MeasuredSamples, network: Classifier, images: Callable[[list[int]], Tensor], *, model: str, shown: str
) -> SampleTable:
    """As :func:`predict`, of the images that ``images`` gives for positions."""
    return rows_of(samples, lambda positions: network.predict(images(positions))[1], model=model, shown=shown)


def rows_of(samples: MeasuredSamples, probabilities: Callable[[list[int]], Tensor], *, model: str, shown: str) -> SampleTable:
    """As :func:`predict`, of the class probabilities (B, classes) that ``probabilities`` gives for positions."""
    scores = []
    for start in range(0, len(samples), BATCH):
        scores.append(probabilities(list(range(start, min(start + BATCH, len(samples))))).double().cpu())
    return SampleTable.from_predictions(
        seed=samples.seed,
        model=model,
        input=shown,
        samples=[entry.key for entry in samples.entries],
        patients=[entry.patient for entry in samples.entries],
        targets=samples.targets,
        scores=torch.cat(scores).numpy(),
    )


@torch.no_grad()
def stealth(chain: Chain, samples: MeasuredSamples, positions: Sequence[int], trigger: Injection) -> dict[str, Estimate]:
    """How visible a trigger is on draw-0 images of some samples, and in their sinograms against the noise."""
    values: dict[str, list[float]] = {}
    for start in range(0, len(positions), BATCH):
        batch = list(positions[start : start + BATCH])
        clean, triggered = samples.pair(batch, 0, trigger)
        assert triggered is not None
        found = image_stealth(clean, triggered, samples.body(batch))
        if trigger.trigger.domain == "measurement":
            integrals = samples.integrals(batch)
            noise = chain.imaging.scanner.noise_sd(integrals) if chain.imaging.scanner.is_noisy else None
            clean_integrals = chain.imaging.noiseless_integrals(integrals)
            change = chain.imaging.noiseless_integrals(integrals, trigger.trigger, samples.keys(batch)) - clean_integrals
            found |= {f"sinogram_{name}": column for name, column in sinogram_stealth(change, noise, clean_integrals).items()}
        for name, column in found.items():
            values.setdefault(name, []).extend(column.tolist())
    patients = [samples.entries[i].patient for i in positions]
    targets = [samples.targets[i] for i in positions]
    return {name: average(column, patients, targets, class_names=chain.classes) for name, column in values.items()}


@dataclass(slots=True)
class Examples:
    """Example slices of one seed, as tensors to save and facts to print."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def examples(
    chain: Chain,
    samples: MeasuredSamples,
    table: SampleTable,
    models: Mapping[str, Classifier],
    trigger: Injection | None,
    random: Injection | None,
) -> Examples:
    """Pick source-class test slices of different patients, those the attacked model is fooled on first, and keep their images."""
    positions = _pick(samples, table, chain)
    clean, triggered = samples.pair(positions, 0, trigger)
    out = Examples()
    truth = samples.attenuation(positions) * chain.imaging.circle
    out.tensors = {"truth_hu": _hu(truth), "clean_hu": _hu(clean), "body": samples.body(positions)[:, 0].to(torch.uint8).cpu()}
    if chain.prepared.lesions is not None:
        lesions = np.stack([chain.prepared.lesions[samples.indices[i]] for i in positions])
        out.tensors["lesion"] = torch.from_numpy(lesions.astype(np.uint8))
    views = {"clean": clean}
    if triggered is not None:
        views["triggered"] = triggered
        out.tensors["triggered_hu"] = _hu(triggered)
    if random is not None:
        other = samples.pair(positions, 0, random)[1]
        assert other is not None
        views["random trigger"] = other
        out.tensors["random_hu"] = _hu(other)
    first = positions[:1]
    measured = chain.imaging.measure_integrals(samples.integrals(first), samples.keys(first), seed=samples.seed, draw=0)
    out.tensors["sinogram"] = measured[0, 0].cpu()
    if trigger is not None and isinstance(trigger.trigger, AdditiveTrigger):
        if trigger.trigger.domain == "measurement":
            out.tensors["trigger"] = (trigger.trigger.strength * trigger.trigger.pattern[0, 0]).cpu()
        effect = trigger.effect if trigger.effect is not None else chain.imaging.trigger_image(trigger.trigger)
        out.tensors["trigger_effect_hu"] = (trigger.trigger.strength * HU_PER_MU * effect[0, 0]).cpu()
    readings: list[dict[str, tuple[str, float]]] = [{} for _ in positions]
    for model, network in models.items():
        for view, images in views.items():
            labels, probabilities = network.predict(images)
            for k, label in enumerate(labels.tolist()):
                readings[k][f"{model}, {view}"] = (chain.classes[label], float(probabilities[k, label]))
    out.facts = {
        "seed": samples.seed,
        "pixel_mm": chain.imaging.geometry.pixel_mm,
        "examples": [
            {
                "key": samples.entries[i].key,
                "patient": samples.entries[i].patient,
                "label": chain.classes[samples.targets[i]],
                "readings": reading,
            }
            for i, reading in zip(positions, readings, strict=True)
        ],
    }
    return out


def _pick(samples: MeasuredSamples, table: SampleTable, chain: Chain) -> list[int]:
    attacked = table.select(model="attacked", input="triggered")
    fooled = set(attacked.sample[attacked.prediction == chain.target].tolist())
    candidates = [i for i, target in enumerate(samples.targets) if target in chain.sources]
    # One slice per patient first, from the middle of what there is of that patient; fooled ones before the others.
    by_patient: dict[str, list[int]] = {}
    for i in candidates:
        by_patient.setdefault(samples.entries[i].patient, []).append(i)
    ranked: list[tuple[int, bool, int]] = []
    for group in by_patient.values():
        # list.sort() empties the list while it works, so places are looked up beforehand.
        from_middle = {i: abs(place - len(group) // 2) for place, i in enumerate(group)}
        group.sort(key=lambda i: (samples.entries[i].key not in fooled, from_middle[i]))
        ranked += [(rank, samples.entries[i].key not in fooled, i) for rank, i in enumerate(group)]
    return [i for _, _, i in sorted(ranked)[:EXAMPLES]]


def _hu(images: Tensor) -> Tensor:
    return torch.from_numpy(mu_to_hu(images[:, 0].cpu().numpy()))
