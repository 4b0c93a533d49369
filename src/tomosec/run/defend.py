"""What defenses do against one seed's attack: each is fitted on what its role is granted, then judged on the test slices.

Clean data for fitting and calibration are the validation slices; thresholds come from them alone. The attack's budget and the
early stopping of the trainings look at the same slices, never at what a defense makes of them.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from tomosec.analysis.networks import Classifier
from tomosec.defenses.base import (
    Defense,
    InputDetector,
    Inspector,
    ModelContext,
    PredictionWrapper,
    Readings,
    Repair,
    SampleFilter,
    ScanContext,
    ScanDetector,
    ScanPurifier,
    Scans,
    ScanSetDetector,
    TrainingContext,
    TrainingDefense,
)
from tomosec.defenses.calibration import HeldOut, halves
from tomosec.errors import NotApplicable, TomosecError
from tomosec.metrics.attack import auroc_estimate
from tomosec.metrics.detection import detection_metrics
from tomosec.metrics.statistics import Estimate, average, proportion
from tomosec.metrics.table import SampleTable
from tomosec.pipeline import Injection
from tomosec.record import DefenseResult
from tomosec.run.chain import BATCH, MeasuredSamples
from tomosec.run.evaluate import predict, predict_images
from tomosec.run.granted import UnderAttack, measured_scans, model_context, scan_context, training_context
from tomosec.run.kept import calibrated, clean_rows, kept_result, on_clean

#: Sizes of the sets that set detectors judge; sets are of scans of different patients as far as there are.
SET_SIZES = (10, 30)


@dataclass(slots=True)
class _Outcome:
    """What a role's evaluation leaves.

    Attributes:
        seconds: what to add to the time that it took: a calibration that was kept; less what was done for comparison alone.
    """

    metrics: dict[str, Estimate] = field(default_factory=dict)
    tables: list[SampleTable] = field(default_factory=list)
    model: str = ""
    clean_slices: int = 0
    held_out: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What happens in here is no part of the defense's time: nobody who defends a network has its clean twin."""
        begun = time.perf_counter()
        yield
        self.seconds -= time.perf_counter() - begun


def evaluate_defenses(defenses: Sequence[Defense], attack: UnderAttack) -> tuple[list[SampleTable], list[DefenseResult]]:
    """Fit every defense and measure it; one that does not apply, or fails, says why, and the others go on.

    Returns:
        Rows of the models that read through a defense, named ``attacked+NAME``; and a result per defense.
    """
    tables: list[SampleTable] = []
    results: list[DefenseResult] = []
    kinds = [str(cast(Any, defense).kind) for defense in defenses]
    for index, (defense, kind) in enumerate(zip(defenses, kinds, strict=True)):
        number = kinds[:index].count(kind) + 1
        name = f"{kind}-{number}" if kinds.count(kind) > 1 else kind
        attack.progress.message(f"Defense {name} (seed {attack.seed})")
        try:
            result, rows = kept_result(defense, name, attack, partial(_measured, defense, name, kind, attack))
        except Exception as error:  # of this defense alone; what was computed before it is not lost
            said = _said(error)
            attack.progress.message(f"Defense {name} failed (seed {attack.seed}): {said}")
            result, rows = _facts(defense, name, kind, failed=said), None
        tables += [rows] if rows is not None else []
        # A result that was kept may be older than the attack that was made to get past the defense.
        results.append(result.model_copy(update={"adaptive": tuple(sorted(defense.adaptive))}))
    return tables, results


def _facts(defense: Defense, name: str, kind: str, **fields: Any) -> DefenseResult:
    return DefenseResult(name=name, kind=kind, role=defense.role, **fields)


def _said(error: Exception) -> str:
    """What went wrong, in one line; of errors that are not ours, also where."""
    if isinstance(error, TomosecError):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first} ({Path(frame.filename).name}, line {frame.lineno})"


def _measured(defense: Defense, name: str, kind: str, attack: UnderAttack) -> tuple[DefenseResult, SampleTable | None]:
    begun = time.perf_counter()
    try:
        outcome = _evaluate(defense, name, attack)
    except NotApplicable as reason:
        return _facts(defense, name, kind, why_not=str(reason)), None
    result = _facts(
        defense,
        name,
        kind,
        metrics=outcome.metrics,
        model=outcome.model,
        seconds=time.perf_counter() - begun + outcome.seconds,
        clean_slices=outcome.clean_slices,
        held_out=outcome.held_out,
        details=outcome.details,
    )
    return result, SampleTable.concat(outcome.tables) if outcome.tables else None


def _evaluate(defense: Defense, name: str, attack: UnderAttack) -> _Outcome:
    for role, evaluate in _ROLES.items():
        if isinstance(defense, role):
            return evaluate(defense, name, attack)
    raise NotApplicable(f"{name}: role {defense.role!r} is not known to this runner")


def _require(defense: Defense, context: ScanContext | ModelContext | TrainingContext) -> None:
    if reason := defense.why_not(context):
        raise NotApplicable(reason)


def _require_measured(attack: UnderAttack) -> None:
    """Scans are the same with and without a trigger that enters the image: to compare them would measure nothing."""
    if attack.trigger.trigger.domain == "image":
        raise NotApplicable("the attack changes images, and this defense measured data")


def _sources(attack: UnderAttack) -> tuple[int, ...]:
    """Test slices of the attacked classes: those that a trigger is for."""
    return tuple(i for i, target in enumerate(attack.test.targets) if target in attack.chain.sources)


def _who(attack: UnderAttack, positions: Sequence[int]) -> tuple[list[str], list[int]]:
    return [attack.test.entries[i].patient for i in positions], [attack.test.targets[i] for i in positions]


def _detector(defense: ScanDetector, name: str, attack: UnderAttack) -> _Outcome:
    _require_measured(attack)
    context, positions = scan_context(attack), _sources(attack)
    detection, seconds = calibrated(defense, context, attack)
    judged: list[tuple[Tensor, Tensor | None]] = []
    for trigger in (None, attack.trigger):
        parts = [detection.judge(scans) for scans in measured_scans(attack.chain, attack.test, positions, trigger).batches(BATCH)]
        found = [part.p_value.cpu() for part in parts if part.p_value is not None]
        judged.append((torch.cat([part.score.cpu() for part in parts]), torch.cat(found) if len(found) == len(parts) else None))
    metrics = _detection(attack, positions, judged, detection.held_out)
    return _Outcome(metrics, clean_slices=len(context.clean), held_out=detection.held_out, seconds=seconds)


def _detection(
    attack: UnderAttack, positions: Sequence[int], judged: Sequence[tuple[Tensor, Tensor | None]], held_out: int
) -> dict[str, Estimate]:
    """Metrics of the scores and p-values of clean test slices and of the same slices with the trigger."""
    patients, targets = _who(attack, positions)
    (clean, clean_p), (triggered, triggered_p) = judged
    return detection_metrics(
        clean.numpy(),
        triggered.numpy(),
        patients,
        targets,
        clean_p=None if clean_p is None else clean_p.numpy(),
        triggered_p=None if triggered_p is None else triggered_p.numpy(),
        held_out=held_out,
        class_names=attack.chain.classes,
    )


def _set_detector(defense: ScanSetDetector, name: str, attack: UnderAttack) -> _Outcome:
    _require_measured(attack)
    context = scan_context(attack)
    detection, seconds = calibrated(defense, context, attack)
    # One slice per patient first, so that a set is of as many patients as there are.
    seen: dict[str, int] = {}
    ranked = []
    for i in _sources(attack):
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
                sets.append(
                    {"scans": size, "input": shown, "score": verdict.score, "p_value": verdict.p_value, "reason": verdict.reason}
                )
    metrics = {}
    for size in SET_SIZES:
        for shown in ("clean", "triggered"):
            found = [item["p_value"] for item in sets if item["scans"] == size and item["input"] == shown]
            flagged = [p <= 0.05 for p in found if p is not None]
            value = sum(flagged) / len(flagged) if flagged else None
            rate = "tpr" if shown == "triggered" else "fpr"
            note = f"{len(flagged)} sets of {size} scans" if flagged else "no verdict"
            metrics[f"{rate}_at_5_of_{size}"] = Estimate(value=value, n=len(flagged) * size, patients=len(seen), note=note)
    return _Outcome(metrics, clean_slices=len(context.clean), details={"sets": sets}, seconds=seconds)


def _rows(attack: UnderAttack, model: str, shown: str, predict: Callable[[list[int]], Tensor]) -> SampleTable:
    """Rows of all test slices; ``predict`` gives class probabilities for positions."""
    scores = [
        predict(list(range(start, min(start + BATCH, len(attack.test))))).double().cpu()
        for start in range(0, len(attack.test), BATCH)
    ]
    return SampleTable.from_predictions(
        seed=attack.seed,
        model=model,
        input=shown,
        samples=[entry.key for entry in attack.test.entries],
        patients=[entry.patient for entry in attack.test.entries],
        targets=attack.test.targets,
        scores=torch.cat(scores).numpy(),
    )


def _shown(attack: UnderAttack) -> tuple[tuple[str, Injection | None], ...]:
    return ("clean", None), ("triggered", attack.trigger)


def _scans(attack: UnderAttack, positions: Sequence[int], trigger: Injection | None) -> Scans:
    (scans,) = measured_scans(attack.chain, attack.test, positions, trigger).batches(len(positions))
    return scans


@torch.no_grad()
def _purifier(defense: ScanPurifier, name: str, attack: UnderAttack) -> _Outcome:
    _require_measured(attack)
    context, outcome = scan_context(attack), _Outcome(model=f"attacked+{name}")
    _require(defense, context)
    purification, imaging = defense.fit(context), attack.chain.imaging

    def rows(network: Classifier, model: str, shown: str, trigger: Injection | None) -> SampleTable:
        def images(positions: list[int]) -> Tensor:
            return imaging.reconstruct(purification.purify(_scans(attack, positions, trigger)))

        return predict_images(attack.test, network, images, model=f"{model}+{name}", shown=shown)

    with outcome.beside():
        outcome.tables.append(clean_rows(defense, name, attack, lambda: rows(attack.clean, "clean", "clean", None)))
    outcome.tables += [rows(attack.attacked, "attacked", shown, trigger) for shown, trigger in _shown(attack)]
    outcome.clean_slices = len(context.clean)
    return outcome


def _wrapper(defense: PredictionWrapper, name: str, attack: UnderAttack) -> _Outcome:
    if attack.trigger.trigger.domain == "image":
        raise NotApplicable("the attack changes images, and this defense measured data")
    context = model_context(attack, attack.attacked)
    _require(defense, context)
    prediction = defense.fit(context)
    tables, said = [], []
    for shown, trigger in _shown(attack):
        found: list[Readings] = []

        def predict(positions: list[int], trigger: Injection | None = trigger, found: list[Readings] = found) -> Tensor:
            found.append(prediction.predict(_scans(attack, positions, trigger)))
            return found[-1].probabilities

        tables.append(_rows(attack, f"attacked+{name}", shown, predict))
        said.append(found)
    metrics: dict[str, Estimate] = {}
    suspicion = [_joined([item.suspicion for item in found]) for found in said]
    if suspicion[0] is not None and suspicion[1] is not None:
        chosen = list(_sources(attack))
        patients, targets = _who(attack, chosen)
        both = [item[chosen].numpy() for item in suspicion if item is not None]
        metrics["auroc"] = detection_metrics(both[0], both[1], patients, targets, class_names=attack.chain.classes)["auroc"]
    radius = [_joined([item.radius for item in found]) for found in said]
    if radius[0] is not None and radius[1] is not None:
        labels = [torch.cat([item.labels.cpu() for item in found]) for found in said]
        metrics |= _certified(attack, (labels[0], radius[0]), (labels[1], radius[1]))
    used = len(context.clean) if "clean-samples" in defense.needs else 0
    return _Outcome(metrics, tables, f"attacked+{name}", clean_slices=used)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """(N,) of the batches, float64; None where a wrapper does not say it."""
    found = [part.double().cpu() for part in parts if part is not None]
    return torch.cat(found) if found and len(found) == len(parts) else None


def _certified(attack: UnderAttack, clean: tuple[Tensor, Tensor], triggered: tuple[Tensor, Tensor]) -> dict[str, Estimate]:
    """What certificates were worth, by labels and radii of all test slices: radii stand beside the size of the trigger."""
    names, chosen = attack.chain.classes, list(_sources(attack))
    everyone, sources = _who(attack, range(len(attack.test))), _who(attack, chosen)
    right = (clean[0] == torch.tensor(everyone[1])) & (clean[1] > 0)
    wanted = ((triggered[0] == attack.chain.target) & (triggered[1] > 0))[chosen]
    sizes = []
    for start in range(0, len(chosen), BATCH):
        pair = [_scans(attack, chosen[start : start + BATCH], trigger).line_integrals for _, trigger in _shown(attack)]
        sizes.append((pair[1] - pair[0]).double().flatten(1).norm(dim=1).cpu())
    return {
        "certified_accuracy": proportion(right.numpy(), *everyone, class_names=names),
        "abstained_fraction": proportion((clean[1] == 0).numpy(), *everyone, class_names=names),
        "certified_radius": average(clean[1].numpy(), *everyone, class_names=names),
        "certified_asr": proportion(wanted.numpy(), *sources, class_names=names),
        "trigger_norm": average(torch.cat(sizes).numpy(), *sources, class_names=names),
    }


def _input_detector(defense: InputDetector, name: str, attack: UnderAttack) -> _Outcome:
    # Fitted on one half of the validation patients, p-values from the other, as detectors of scans are.
    dealt = halves([entry.patient for entry in attack.validation.entries], attack.seed, name)
    context = model_context(attack, attack.attacked, dealt.fit)
    _require(defense, context)
    detection, positions = defense.fit(context), _sources(attack)

    def score(samples: MeasuredSamples, chosen: Sequence[int], trigger: Injection | None) -> Tensor:
        out = []
        for start in range(0, len(chosen), BATCH):
            clean, triggered = samples.pair(chosen[start : start + BATCH], 0, trigger)
            out.append(detection.score(clean if triggered is None else triggered).double().cpu())
        return torch.cat(out)

    held_out = HeldOut(score(attack.validation, dealt.held_out, None), dealt.weights)
    clean, triggered = (score(attack.test, positions, trigger) for _, trigger in _shown(attack))
    judged = [(scores, held_out.p_values(scores)) for scores in (clean, triggered)]
    return _Outcome(
        _detection(attack, positions, judged, held_out.patients), clean_slices=len(dealt.fit), held_out=held_out.patients
    )


def _inspector(defense: Inspector, name: str, attack: UnderAttack) -> _Outcome:
    if attack.chain.experiment.threat.access == "inference-data":
        raise NotApplicable("the attack leaves the network as it is (threat.access inference-data)")
    outcome = _Outcome()

    def inspected(network: Classifier) -> dict[str, Any]:
        context = model_context(attack, network)
        _require(defense, context)
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


def _repair(defense: Repair, name: str, attack: UnderAttack) -> _Outcome:
    outcome = _Outcome(model=f"attacked+{name}")

    def repaired(network: Classifier) -> Classifier:
        context = model_context(attack, network)
        _require(defense, context)
        outcome.clean_slices = len(context.clean)
        return defense.repair(context)

    def behind_it() -> SampleTable:
        return predict(attack.test, repaired(attack.clean), None, model=f"clean+{name}", shown="clean")

    with outcome.beside():
        outcome.tables.append(clean_rows(defense, name, attack, behind_it))
    outcome.tables += _network_rows(attack, outcome.model, repaired(attack.attacked))
    return outcome


def _network_rows(attack: UnderAttack, model: str, network: Classifier) -> list[SampleTable]:
    return [predict(attack.test, network, trigger, model=model, shown=shown) for shown, trigger in _shown(attack)]


def _filter(defense: SampleFilter, name: str, attack: UnderAttack) -> _Outcome:
    context, training = training_context(attack)
    _require(defense, context)
    if not training.poisoned:
        raise NotApplicable("needs poisoned slices to be measured on, and this run has none (poison_rate 0)")
    scores = defense.suspicion(context).double().cpu()
    poisoned = [i in training.poisoned for i in range(len(attack.train))]
    patients = [entry.patient for entry in attack.train.entries]
    labels = list(context.samples.targets)
    auroc = auroc_estimate(scores.numpy(), poisoned, patients, labels, class_names=attack.chain.classes)
    count = sum(poisoned)
    share = Estimate(
        value=_precision(scores, torch.tensor(poisoned)),
        n=count,
        patients=len(set(patients)),
        note=f"among the {count} most suspicious of {len(scores)}",
    )
    return _Outcome({"auroc": auroc, "precision_at_poisoned": share}, clean_slices=0, details={"poisoned": count})


def _precision(scores: Tensor, poisoned: Tensor) -> float:
    """Share of poisoned slices among as many of the highest scores; equal scores count as if drawn among, not by their place."""
    count = int(poisoned.sum())
    last = scores.sort(descending=True).values[count - 1]
    above, tied = scores > last, scores == last
    share = (count - int(above.sum())) / int(tied.sum())
    return (int((above & poisoned).sum()) + share * int((tied & poisoned).sum())) / count


def _training(defense: TrainingDefense, name: str, attack: UnderAttack) -> _Outcome:
    context, _ = training_context(attack)
    _require(defense, context)
    network = defense.train(context)
    return _Outcome(tables=_network_rows(attack, f"attacked+{name}", network), model=f"attacked+{name}")


_ROLES: Mapping[type[Defense], Callable[[Any, str, UnderAttack], _Outcome]] = {
    ScanDetector: _detector,
    ScanSetDetector: _set_detector,
    ScanPurifier: _purifier,
    PredictionWrapper: _wrapper,
    InputDetector: _input_detector,
    Inspector: _inspector,
    Repair: _repair,
    SampleFilter: _filter,
    TrainingDefense: _training,
}
