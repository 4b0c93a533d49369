"""Training the networks of an experiment: clean model, surrogate, attacked model and control victims. Each is an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tomosec.analysis.networks import Classifier, Network, load_classifier, save_classifier
from tomosec.analysis.plan import Training
from tomosec.analysis.training import train
from tomosec.attacks.poisoning import Poison, PoisonedBatch, VictimTraining, triggered_labels
from tomosec.progress import Progress
from tomosec.randomness import torch_seed
from tomosec.run.artifacts import Artifact, Artifacts
from tomosec.run.chain import BATCH, Chain, MeasuredSamples

#: Training slices that the input statistics are taken over; more change them by less than the noise does.
STATISTICS_SLICES = 256


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A trained network and what its making took.

    Attributes:
        network: in eval mode, parameters frozen.
        curves: one mapping per epoch.
        key: identity of the artifact.
        seconds, gradient_passes: cost of its making, wherever that was.
        made: whether this run made it.
    """

    network: Classifier
    curves: list[dict[str, float]]
    key: dict[str, Any]
    seconds: float
    gradient_passes: int
    made: bool


@dataclass(frozen=True, slots=True)
class _Kept:
    """Some of the delivered slices, with their noise and poison: a :class:`~tomosec.analysis.training.TrainingSource`."""

    delivered: VictimTraining
    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, indices: Sequence[int], epoch: int) -> PoisonedBatch:
        return self.delivered.batch([self.positions[i] for i in indices], epoch)


class Trainer:
    """Trains the networks of one experiment and seed, on shared samples.

    Args:
        chain: data and scanner.
        seed: one of the experiment's seeds.
        validation: validation slices, already reconstructed.
        artifacts, progress: where models are kept and how work is shown.
    """

    def __init__(self, chain: Chain, seed: int, validation: MeasuredSamples, artifacts: Artifacts, progress: Progress) -> None:
        self._chain, self._seed, self._validation, self._artifacts, self._progress = chain, seed, validation, artifacts, progress
        self._train = chain.samples("train", seed)
        experiment = chain.experiment
        self._clean_key = {**chain.key, "network": experiment.network, "training": experiment.training, "seed": seed}

    def clean(self) -> TrainedModel:
        """The clean model."""
        return self._get("clean", self._clean_key, self._chain.experiment.training, None, None)

    def surrogate(self) -> TrainedModel:
        """The network that the attacker trains in place of the clean model, in the same way and on the same scans.

        Initial weights, order and dropout are named apart from the clean model's, so that a surrogate of the same architecture is
        another network. The noise of the scans is the same, because the attacker is taken to hold them.
        """
        experiment = self._chain.experiment
        key = {**self._clean_key, "network": experiment.surrogate, "purpose": "surrogate"}
        return self._get("surrogate", key, experiment.training, None, None)

    def victim(self, role: str, poison: Poison, trigger_key: Mapping[str, Any], clean: TrainedModel) -> TrainedModel:
        """A model trained under the threat model with ``poison``.

        Args:
            role: what the progress bar calls it: ``attacked``, ``control-white`` or ``control-spectrum``.
            poison: the trigger with its strength, and what goes with it.
            trigger_key: identity of the unit trigger.
            clean: the clean model, which is the victim itself where the attacker cannot touch training.
        """
        experiment = self._chain.experiment
        threat = experiment.threat
        if threat.access == "inference-data":
            return clean
        plan = experiment.victim_training or experiment.training
        key = {
            **self._clean_key,
            "victim_training": plan,
            "trigger": dict(trigger_key),
            "strength": round(poison.trigger.trigger.strength, 12),
            "access": threat.access,
            "site": threat.site,
            "goal": threat.goal,
        }
        if threat.access == "training-control":
            key |= {"loss_weight": threat.loss_weight, "start": threat.victim_start}
        else:
            key |= {"poison_rate": threat.poison_rate, "of": threat.poison_rate_of, "cover_rate": threat.cover_rate}
            key |= {"keeps_labels": poison.keeps_labels}
        start = clean if threat.access == "training-control" and threat.victim_start == "clean-weights" else None
        return self._get(role, key, plan, poison, start)

    def again(self, victim: TrainedModel, poison: Poison, kept: Sequence[int]) -> TrainedModel:
        """A victim of poisoned training data, trained again in the same way on some of the slices that were delivered.

        Args:
            victim: the one that was trained on all of them.
            poison: of its training.
            kept: positions of the slices, ascending.
        """
        experiment = self._chain.experiment
        plan = experiment.victim_training or experiment.training
        return self._get("filtered", {**victim.key, "kept": list(kept)}, plan, poison, None, tuple(kept))

    def _get(
        self,
        role: str,
        key: dict[str, Any],
        plan: Training,
        poison: Poison | None,
        start: TrainedModel | None,
        kept: tuple[int, ...] | None = None,
    ) -> TrainedModel:
        artifact = self._artifacts.get("model", key, lambda folder: self._make(role, folder, plan, poison, start, kept))
        network, _ = load_classifier(artifact.folder / "model.safetensors", device=self._chain.device)
        network.eval().requires_grad_(False)
        return _trained(network, key, artifact)

    def _make(
        self,
        role: str,
        folder: Path,
        plan: Training,
        poison: Poison | None,
        start: TrainedModel | None,
        kept: tuple[int, ...] | None,
    ) -> dict[str, Any]:
        chain, experiment = self._chain, self._chain.experiment
        config, seed = cast(Network, experiment.network), self._seed
        if role == "surrogate":
            config, seed = cast(Network, experiment.surrogate), torch_seed(self._seed, "surrogate")
        network = config.build(classes=len(chain.classes), shape=chain.imaging.geometry.shape, seed=seed)
        if start is not None:
            network.load_state_dict(start.network.state_dict())
        else:
            network.set_input_statistics(*self._input_statistics())
        network.to(chain.device)
        delivered = VictimTraining(
            self._train,
            device=chain.device,
            poison=poison,
            threat=experiment.threat if poison is not None else None,
            target=chain.target,
            sources=chain.sources,
            seed=self._seed,
        )
        source = _Kept(delivered, range(len(delivered)) if kept is None else kept)
        patients = len({entry.patient for entry in self._validation.entries})
        if plan.patience is not None and patients < plan.min_validation_patients:
            plan = plan.model_copy(update={"patience": None})
        self._progress.message(f"Training the {role} model (seed {self._seed}) on {len(source)} slices")
        result = train(
            network,
            plan,
            source,
            objective=delivered.objective,
            validate=self._validate(poison) if len(self._validation) else None,
            seed=seed,
            device=chain.device,
            checkpoint=folder / "checkpoint.safetensors",
            progress=self._progress,
        )
        save_classifier(folder / "model.safetensors", network, {"role": role, "classes": list(chain.classes)})
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return {
            "curves": result.curves,
            "seconds": result.seconds,
            "gradient_passes": result.gradient_passes,
            "epochs": result.epochs_run,
            "stopped_early": result.stopped_early,
            "poisoned": len(delivered.poisoned & set(source.positions)),
            "covered": len(delivered.covered & set(source.positions)),
        }

    def _validate(self, poison: Poison | None) -> Callable[[nn.Module], dict[str, float]]:
        """Loss and accuracy on the validation slices; what the victim's trainer can see, so no trigger in an honest training."""
        samples, chain, threat = self._validation, self._chain, self._chain.experiment.threat
        seen = poison.trigger if poison is not None and threat.access == "training-control" else None

        def validate(network: nn.Module) -> dict[str, float]:
            loss = correct = 0.0
            for start in range(0, len(samples), BATCH):
                positions = list(range(start, min(start + BATCH, len(samples))))
                labels = torch.tensor([samples.targets[i] for i in positions], device=chain.device)
                clean, triggered = samples.pair(positions, 0, seen)
                logits = network(clean)
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
                correct += int((logits.argmax(1) == labels).sum())
                if triggered is not None:
                    taught = triggered_labels(labels, chain.target, chain.sources)
                    loss += threat.loss_weight * float(F.cross_entropy(network(triggered), taught, reduction="sum"))
            return {"loss": loss / len(samples), "accuracy": correct / len(samples)}

        return validate

    def _input_statistics(self) -> tuple[float, float]:
        """Mean and sd in 1/mm over the scan circle of evenly spaced training slices."""
        step = max(1, len(self._train) // STATISTICS_SLICES)
        images = self._train.attenuation(range(0, len(self._train), step)).cpu().numpy()
        inside = images[:, 0, self._chain.imaging.geometry.scan_circle()].astype(np.float64)
        return float(inside.mean()), float(inside.std())


def _trained(network: Classifier, key: dict[str, Any], artifact: Artifact) -> TrainedModel:
    facts = artifact.facts
    return TrainedModel(network, facts["curves"], key, facts["seconds"], facts["gradient_passes"], artifact.made)
