"""At other scan settings: the same models, and the same trigger at the same amplitude, on the same test slices.

Nothing is learned or scaled anew there. What a setting adds to a record are the conditions ``clean@NAME`` and
``triggered@NAME`` of the clean and the attacked model, and how visible the trigger is at that setting.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tomosec.analysis.networks import Classifier
from tomosec.data.base import OpenDataset
from tomosec.errors import NotApplicable
from tomosec.metrics.image import image_stealth
from tomosec.metrics.statistics import average
from tomosec.metrics.table import SampleTable, input_at
from tomosec.pipeline import Injection
from tomosec.progress import Progress
from tomosec.record import TransferResult
from tomosec.resampling import at_geometry
from tomosec.run.artifacts import Artifacts
from tomosec.run.chain import BATCH, Chain, MeasuredSamples, build_chain, reconstructed_samples
from tomosec.trigger import Trigger


def build_settings(chain: Chain, opened: OpenDataset, artifacts: Artifacts, progress: Progress) -> dict[str, Chain]:
    """The chain at each of the experiment's transfer settings, by name.

    Data on the grid, split and whatever else two settings have in common are shared as artifacts; a dose is calibrated, and a
    learned reconstruction trained, at each setting by itself, as an experiment there would do it.
    """
    experiment = chain.experiment
    return {
        setting.name: build_chain(experiment.at(setting), opened, artifacts, progress, chain.device)
        for setting in experiment.transfer
    }


def read_at(
    name: str,
    chain: Chain,
    seed: int,
    networks: Mapping[str, Classifier],
    trigger: Trigger | None,
    artifacts: Artifacts,
    progress: Progress,
) -> tuple[list[SampleTable], TransferResult]:
    """Let networks read the test slices at one setting, clean and with the trigger.

    Args:
        name: of the setting.
        chain: the chain there.
        seed: names the noise.
        networks: by the name of the model.
        trigger: as it is applied at the experiment's own setting, with its strength; None shows clean scans alone.
        artifacts: where the reconstructed test slices are kept; an experiment that has this setting for its own shares them.
        progress: where progress goes.

    Returns:
        The rows of every condition; and the trigger's size at this setting, on test slices of the source classes, or why it
        cannot be applied there.
    """
    samples = reconstructed_samples(chain, "test", seed, artifacts, progress)
    injection: Injection | None = None
    note = ""
    if trigger is not None:
        try:
            injection = chain.imaging.inject(at_geometry(trigger, chain.imaging.geometry))
        except NotApplicable as reason:
            note = f"not applicable: {reason}"
            progress.message(f"Trigger at {name} (seed {seed}): {note}")
    reading = _Reading(chain, samples, networks, injection)
    progress.start(len(samples), f"Reading the test slices at {name}")
    for start in range(0, len(samples), BATCH):
        positions = list(range(start, min(start + BATCH, len(samples))))
        reading.add(positions)
        progress.advance(len(positions))
    return reading.result(name, note)


class _Reading:
    """Scores and stealth of one setting, a batch at a time: a triggered scan is reconstructed once for all networks."""

    def __init__(
        self, chain: Chain, samples: MeasuredSamples, networks: Mapping[str, Classifier], injection: Injection | None
    ) -> None:
        self._chain, self._samples, self._networks, self._injection = chain, samples, networks, injection
        self._scores: dict[tuple[str, str], list[torch.Tensor]] = {}
        self._stealth: dict[str, list[float]] = {}
        self._attacked: list[int] = []

    @torch.no_grad()
    def add(self, positions: list[int]) -> None:
        """Read the slices at some positions."""
        clean, triggered = self._samples.pair(positions, 0, self._injection)
        for shown, images in (("clean", clean), ("triggered", triggered)):
            if images is not None:
                for model, network in self._networks.items():
                    self._scores.setdefault((model, shown), []).append(network.predict(images)[1].double().cpu())
        rows = [row for row, i in enumerate(positions) if self._samples.targets[i] in self._chain.sources]
        if triggered is not None and rows:
            attacked = [positions[row] for row in rows]
            for name, column in image_stealth(clean[rows], triggered[rows], self._samples.body(attacked)).items():
                self._stealth.setdefault(name, []).extend(column.tolist())
            self._attacked += attacked

    def result(self, name: str, note: str) -> tuple[list[SampleTable], TransferResult]:
        """The rows, and the setting's result."""
        entries = self._samples.entries
        tables = [
            SampleTable.from_predictions(
                seed=self._samples.seed,
                model=model,
                input=input_at(shown, name),
                samples=[entry.key for entry in entries],
                patients=[entry.patient for entry in entries],
                targets=self._samples.targets,
                scores=torch.cat(scores).numpy(),
            )
            for (model, shown), scores in self._scores.items()
        ]
        patients = [entries[i].patient for i in self._attacked]
        targets = [entries[i].target for i in self._attacked]
        classes = self._chain.classes
        stealth = {key: average(column, patients, targets, class_names=classes) for key, column in self._stealth.items()}
        strength = None if self._injection is None else self._injection.trigger.strength
        return tables, TransferResult(setting=name, strength=strength, stealth=stealth, note=note)
