"""The headline of a record, and the list of what it does not show. Rules, not models: a reader can check them by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tomosec.record import Record, SeedResult, Severity

#: From the worst down: attack success rate, loss of clean accuracy and image RMSE in HU (met within 2 %) that make a level.
LEVELS = (
    ("critical", 0.90, 0.03, 10.0),
    ("high", 0.50, 0.05, 20.0),
)
#: Below this balanced accuracy the clean model of two classes is too close to guessing for a verdict.
LEAST_BALANCED_ACCURACY = 0.70
#: An attack success rate this far above the clean model's own error counts as an effect of the backdoor.
ABOVE_FLOOR = 0.20


def severity(record: Record) -> Severity:
    """Judge a record by its worst seed: how often, at what loss of clean accuracy, and how visibly, the attack succeeds."""
    weak = [seed for seed in record.seeds if _value(seed, "clean", "clean", "balanced_accuracy") < LEAST_BALANCED_ACCURACY]
    if weak and record.experiment.get("attack") is not None:
        accuracy = min(_value(seed, "clean", "clean", "balanced_accuracy") for seed in weak)
        return Severity(
            level="unknown",
            reason=f"the clean model itself reaches only {accuracy:.0%} balanced accuracy, so an attack on it says little",
        )
    worst: tuple[float, SeedResult] | None = None
    for seed in record.seeds:
        found = seed.metric("attacked", "triggered", "asr")
        if found is not None and found.value is not None and (worst is None or found.value > worst[0]):
            worst = (found.value, seed)
    if worst is None:
        attacked = record.experiment.get("attack") is not None
        return Severity(
            level="unknown" if attacked else "none",
            reason="no attack success rate could be measured" if attacked else "no attack was run",
        )
    asr, seed = worst
    floor = _value(seed, "clean", "triggered", "asr")
    loss = _value(seed, "clean", "clean", "accuracy") - _value(seed, "attacked", "clean", "accuracy")
    change = f"a loss of {loss:.1%}" if loss >= 0 else f"a gain of {-loss:.1%}"
    rmse = seed.strength.rmse_hu if seed.strength is not None else float("inf")
    sentence = (
        f"with an image change of {rmse:.1f} HU RMSE, {asr:.0%} of the attacked slices are read as the target class"
        f" (clean model: {floor:.0%}) with {change} clean accuracy;"
        f" worst of {len(record.seeds)} seed{'s' if len(record.seeds) > 1 else ''}"
    )
    control = seed.metric("control-white", "triggered", "asr")
    if control is not None and control.value is not None:
        # What the learned trigger adds is the difference; how vulnerable the chain is does not depend on it.
        sentence += f"; a victim trained on a random trigger of equal size: {control.value:.0%}"
    for level, least_asr, most_loss, most_rmse in LEVELS:
        if asr >= least_asr and loss <= most_loss and rmse <= 1.02 * most_rmse and asr - floor >= ABOVE_FLOOR:
            return Severity.model_validate({"level": level, "reason": sentence})
    return Severity(level="moderate" if asr - floor >= ABOVE_FLOOR else "low", reason=sentence)


def untested(record: Record) -> tuple[str, ...]:
    """What a reader might take this record to show, and it does not."""
    experiment, out = record.experiment, []
    if record.data is not None and record.data.shares_patients:
        out.append(f"new patients: {record.data.split}")
    if record.data is not None and record.data.dataset == "chest-phantom":
        out.append("real patients: the data are a procedural phantom")
    settings = experiment.get("transfer", ())
    tested = "the one above and those of the transfer table" if settings else "the one above"
    out += [
        f"other scanners, kernels, doses and reconstructions than {tested}; a trigger may or may not carry over",
        _other_physics(experiment),
        *_defenses(record),
        "how visible the change is to a radiologist: HU, PSNR and SSIM are no reader study",
        _other_attackers(experiment),
    ]
    controls = set(experiment.get("controls", ()))
    if experiment.get("attack") is not None:
        names = {
            "random-trigger": "a random trigger shown to the attacked model",
            "white-victim": "a victim trained on a white random trigger",
            "spectrum-victim": "a victim trained on a random trigger with the same spectrum",
        }
        out += [f"control not run: {text}" for name, text in names.items() if name not in controls]
    if len(experiment.get("seeds", ())) < 3:
        out.append("variation over seeds: fewer than three were run")
    return tuple(out)


def _defenses(record: Record) -> list[str]:
    """Whether anybody looked, and with what no adaptive attacker was met."""
    everything = (result for seed in record.seeds for result in seed.defenses)
    results = {result.name: result for result in everything if not (result.why_not or result.failed)}
    if not results:
        return ["defenses: none was run, so nothing is said about whether anybody would notice"]
    attack = (record.experiment.get("attack") or {}).get("kind", "")
    naive = [name for name, result in results.items() if attack not in result.adaptive]
    return [f"attackers who adapt to {', '.join(naive)}: this attack was not made to get past them"] if naive else []


def _other_physics(experiment: Mapping[str, Any]) -> str:
    """What the simulation leaves out of a scan."""
    hardens = bool(experiment.get("acquisition", {}).get("beam_hardening"))
    beam = "with a beam that hardens by a polynomial, without scatter" if hardens else "with one energy, without scatter"
    return f"genuine measurements: the scans are simulated from images {beam}"


def _other_attackers(experiment: Mapping[str, Any]) -> str:
    """Which knowledge was assumed, and that others were not."""
    surrogate = experiment.get("surrogate")
    if experiment.get("attack") is None:
        return "any attack"
    if surrogate is not None:
        return (
            f"other attacks, and attackers who know the network or hold no training scans: this one had a surrogate of kind "
            f"{surrogate['kind']!r}, trained on the same scans as the network"
        )
    return "other attacks, and attackers who do not know the network: this one had the clean model itself (white-box)"


def _value(seed: SeedResult, model: str, shown: str, name: str) -> float:
    estimate = seed.metric(model, shown, name)
    return 0.0 if estimate is None or estimate.value is None else estimate.value
