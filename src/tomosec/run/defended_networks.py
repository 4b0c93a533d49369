"""Measuring the defenses of the network and its training: input detectors, inspectors, repairs, filters and training defenses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tomosec.analysis.networks import Classifier
from tomosec.defenses.base import InputDetector, Inspector, Repair, SampleFilter, TrainingDefense
from tomosec.defenses.calibration import HeldOut, halves
from tomosec.errors import NotApplicable
from tomosec.metrics.attack import auroc_estimate
from tomosec.metrics.statistics import Estimate
from tomosec.metrics.table import SampleTable
from tomosec.pipeline import Injection
from tomosec.randomness import generator
from tomosec.run.chain import BATCH, MeasuredSamples
from tomosec.run.evaluate import predict
from tomosec.run.granted import UnderAttack, model_context, training_context
from tomosec.run.kept import clean_rows, on_clean
from tomosec.run.outcome import Outcome, detection_of, require, shown_inputs, source_positions


def input_detector(defense: InputDetector, name: str, attack: UnderAttack) -> Outcome:
    """AUROC and rates of a detector that watches what the attacked network reads."""
    # Fitted on one half of the validation patients, p-values from the other, as detectors of scans are.
    dealt = halves([entry.patient for entry in attack.validation.entries], attack.seed, name)
    context = model_context(attack, attack.attacked, dealt.fit)
    require(defense, context)
    detection, positions = defense.fit(context), source_positions(attack)

    def score(samples: MeasuredSamples, chosen: Sequence[int], trigger: Injection | None) -> Tensor:
        out = []
        for start in range(0, len(chosen), BATCH):
            clean, triggered = samples.pair(chosen[start : start + BATCH], 0, trigger)
            out.append(detection.score(clean if triggered is None else triggered).double().cpu())
        return torch.cat(out)

    held_out = HeldOut(score(attack.validation, dealt.held_out, None), dealt.weights)
    clean, triggered = (score(attack.test, positions, trigger) for _, trigger in shown_inputs(attack))
    judged = [(scores, held_out.p_values(scores)) for scores in (clean, triggered)]
    return Outcome(
        detection_of(attack, positions, judged, held_out.patients), clean_slices=len(dealt.fit), held_out=held_out.patients
    )


def inspector(defense: Inspector, name: str, attack: UnderAttack) -> Outcome:
    """The scores of the clean and of the attacked network."""
    if attack.chain.experiment.threat.access == "inference-data":
        raise NotApplicable("the attack leaves the network as it is (threat.access inference-data)")
    outcome = Outcome()

    def inspected(network: Classifier) -> dict[str, Any]:
        context = model_context(attack, network)
        require(defense, context)
        found = defense.inspect(context)
        outcome.clean_slices = len(context.clean)
        return {"score": found.score, "by_class": list(found.by_class), **found.details}

    with outcome.beside():
        clean = on_clean(defense, name, attack, lambda folder: {"found": inspected(attack.clean)}).facts["found"]
    for model, found in (("clean", clean), ("attacked", inspected(attack.attacked))):
        # One network has one score; how well scores tell networks apart is a question of many, see the study.
        outcome.metrics[f"score_{model}"] = Estimate(value=found["score"], n=1, patients=0, note="one network")
        outcome.details[model] = {fact: value for fact, value in found.items() if fact != "score"}
    return outcome


def repair(defense: Repair, name: str, attack: UnderAttack) -> Outcome:
    """What the networks read after a repair."""
    outcome = Outcome(model=f"attacked+{name}")

    def repaired(network: Classifier) -> Classifier:
        context = model_context(attack, network)
        require(defense, context)
        outcome.clean_slices = len(context.clean)
        return defense.repair(context)

    def behind_it() -> SampleTable:
        return predict(attack.test, repaired(attack.clean), None, model=f"clean+{name}", shown="clean")

    with outcome.beside():
        outcome.tables.append(clean_rows(defense, name, attack, behind_it))
    outcome.tables += _network_rows(attack, outcome.model, repaired(attack.attacked))
    return outcome


def _network_rows(attack: UnderAttack, model: str, network: Classifier) -> list[SampleTable]:
    return [predict(attack.test, network, trigger, model=model, shown=shown) for shown, trigger in shown_inputs(attack)]


def sample_filter(defense: SampleFilter, name: str, attack: UnderAttack) -> Outcome:
    """How well a filter finds the poisoned training slices, and what a network reads that is trained without its finds."""
    context, training = training_context(attack)
    require(defense, context)
    if not training.poisoned:
        raise NotApplicable("needs poisoned slices to be measured on, and this run has none (poison_rate 0)")
    scores = defense.suspicion(context).double().cpu()
    poisoned = torch.tensor([i in training.poisoned for i in range(len(attack.train))])
    patients = [entry.patient for entry in attack.train.entries]
    labels = list(context.samples.targets)
    auroc = auroc_estimate(scores.numpy(), poisoned.tolist(), patients, labels, class_names=attack.chain.classes)
    count = int(poisoned.sum())
    share = Estimate(
        value=_precision(scores, poisoned),
        n=count,
        patients=len(set(patients)),
        note=f"among the {count} most suspicious of {len(scores)}",
    )
    kept = _least_suspicious(scores, defense.removed, attack.seed)
    if not kept:
        raise NotApplicable(f"removed {defense.removed:g} leaves none of {len(scores)} training slices")
    network = attack.train_again(kept)
    taken = torch.ones(len(scores), dtype=torch.bool)
    taken[kept] = False
    metrics = {"auroc": auroc, "precision_at_poisoned": share}
    for title, kind in (("poisoned", poisoned), ("clean", ~poisoned)):
        said = f"of the {title} training slices, {int(taken.sum())} slices taken out of all"
        value = float(taken[kind].double().mean()) if bool(kind.any()) else None
        metrics[f"removed_fraction_{title}"] = Estimate(value=value, n=int(kind.sum()), patients=len(set(patients)), note=said)
    tables = _network_rows(attack, f"attacked+{name}", network)
    return Outcome(metrics, tables, f"attacked+{name}", details={"poisoned": count, "kept": len(kept)})


def _least_suspicious(scores: Tensor, removed: float, seed: int) -> list[int]:
    """Positions of all but a fraction of the highest scores, ascending; equal scores are drawn among."""
    shuffled = torch.from_numpy(generator(seed, "sample-filter").permutation(len(scores)))
    ranked = shuffled[scores[shuffled].argsort(stable=True)]
    return sorted(ranked[: len(scores) - round(removed * len(scores))].tolist())


def _precision(scores: Tensor, poisoned: Tensor) -> float:
    """Share of poisoned slices among as many of the highest scores; equal scores count as if drawn among, not by their place."""
    count = int(poisoned.sum())
    last = scores.sort(descending=True).values[count - 1]
    above, tied = scores > last, scores == last
    share = (count - int(above.sum())) / int(tied.sum())
    return (int((above & poisoned).sum()) + share * int((tied & poisoned).sum())) / count


def training_defense(defense: TrainingDefense, name: str, attack: UnderAttack) -> Outcome:
    """What a network reads that is trained by a defense on the delivered slices."""
    context, _ = training_context(attack)
    require(defense, context)
    network = defense.train(context)
    return Outcome(tables=_network_rows(attack, f"attacked+{name}", network), model=f"attacked+{name}")
