"""One seed of an experiment: clean model, trigger, strength, victims, controls, and what is measured on the test slices."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from tomosec.attacks.base import Attack, AttackContext
from tomosec.attacks.noise import random_phases, white_pattern
from tomosec.errors import NotApplicable
from tomosec.metrics.attack import attack_success_rate
from tomosec.metrics.statistics import Estimate, mean_estimate
from tomosec.metrics.table import SampleTable
from tomosec.pipeline import Injection, Pipeline
from tomosec.progress import Progress
from tomosec.record import Cost, SeedResult, Strength
from tomosec.run.artifacts import Artifacts
from tomosec.run.chain import Chain, reconstructed_samples
from tomosec.run.evaluate import Examples, append, examples, predictions, stealth
from tomosec.run.score import conditions
from tomosec.run.strength import Scaled, Scaler
from tomosec.run.victims import TrainedModel, Trainer
from tomosec.trigger import AdditiveTrigger, Trigger, load_trigger


@dataclass(slots=True)
class SeedRun:
    """What one seed leaves: its result, its rows, its trigger and its example images."""

    result: SeedResult
    table: SampleTable
    trigger: Trigger | None = None
    why_not_linear: str = ""
    examples: Examples = field(default_factory=Examples)


class SeedRunner:
    """Runs one seed on a prepared chain."""

    def __init__(self, chain: Chain, seed: int, artifacts: Artifacts, progress: Progress) -> None:
        self._chain, self._seed, self._artifacts, self._progress = chain, seed, artifacts, progress
        self._experiment = chain.experiment
        self._validation = reconstructed_samples(chain, "validation", seed, artifacts, progress)
        self._test = reconstructed_samples(chain, "test", seed, artifacts, progress)
        self._trainer = Trainer(chain, seed, self._validation, artifacts, progress)
        self._scaler = Scaler(chain, seed)
        self._table = SampleTable()
        self._models: dict[str, TrainedModel] = {}
        self._trigger_cost: dict[str, Any] = {}

    def run(self) -> SeedRun:
        """Train, attack, control and measure."""
        self._models["clean"] = clean = self._trainer.clean()
        predictions(self._table, self._test, clean.network, None, model="clean", input="clean")
        if "unscanned-images" in self._experiment.detail:
            self._unscanned(clean)
        if self._experiment.attack is None:
            return SeedRun(self._result(None, {}, {}), self._table)
        trigger, key = self._unit_trigger(clean)
        chosen, tried = self._choose(self._chain.imaging.inject(trigger), key, clean)
        attacked = self._models["attacked"]
        at_test = self._at_test(chosen.injection)
        for model, network in (("clean", clean.network), ("attacked", attacked.network)):
            predictions(self._table, self._test, network, at_test, model=model, input="triggered")
        predictions(self._table, self._test, attacked.network, None, model="attacked", input="clean")
        random = self._controls(chosen, clean)
        sources = [i for i, target in enumerate(self._test.targets) if target in self._chain.sources]
        visible = self._stealth(sources, at_test)
        random_visible = self._stealth(sources, random) if random is not None else {}
        budget = self._experiment.threat.budget
        strength = Strength(
            unit=budget.unit,
            budget=chosen.budget,
            strength=chosen.injection.trigger.strength,
            rmse_hu=chosen.rmse_hu,
            tried=tuple(tried),
            validation_slices=len(self._validation),
        )
        networks = {"clean model": clean.network, "attacked model": attacked.network}
        shown = examples(self._chain, self._test, self._table, networks, at_test, random)
        return SeedRun(
            self._result(strength, visible, random_visible), self._table, at_test.trigger, at_test.why_not_linear, shown
        )

    def _unit_trigger(self, clean: TrainedModel) -> tuple[Trigger, dict[str, Any]]:
        """The attack's trigger with unit RMS; an artifact of its own, whatever strength it is used at."""
        attack, goal = cast(Attack, self._experiment.attack), self._experiment.threat.goal
        key = {**self._trainer.clean_key, "attack": attack, "goal": goal}

        def make(folder: Path) -> dict[str, Any]:
            chain = self._chain
            pipeline = Pipeline(chain.imaging, clean.network).requires_grad_(False)
            context = AttackContext(
                geometry=chain.imaging.geometry,
                samples=chain.samples("train", self._seed),
                pipeline=pipeline,
                target=chain.target,
                sources=chain.sources,
                seed=self._seed,
                progress=self._progress,
                device=chain.device,
            )
            missing = self._missing(attack)
            if missing:
                raise NotApplicable(f"{attack.kind}: needs {missing}")  # type: ignore[attr-defined]
            self._progress.message(f"Making the trigger (seed {self._seed})")
            path = attack.make_trigger(context).save(folder / "trigger.safetensors")
            return {"gradient_passes": context.gradient_passes, "bytes": path.stat().st_size}

        artifact = self._artifacts.get("trigger", key, make)
        self._trigger_cost = {**artifact.facts, "made": artifact.made}
        return load_trigger(artifact.folder / "trigger.safetensors").at(1.0, site=self._site()), key

    def _site(self) -> Any:
        return self._experiment.threat.site

    def _missing(self, attack: Attack) -> str:
        reconstructor = self._chain.imaging.reconstructor
        lacking = {
            "differentiable-reconstruction": not reconstructor.is_differentiable,
            "linear-reconstruction": not reconstructor.is_linear,
            "three-classes": len(self._chain.classes) < 3,
        }
        return ", ".join(need for need in sorted(attack.needs) if lacking.get(need, False))

    def _at_test(self, injection: Injection) -> Injection:
        """The trigger as it is shown at test time."""
        trigger = cast(Attack, self._experiment.attack).at_test_time(injection.trigger)
        return injection.at(trigger.strength)

    def _choose(self, injection: Injection, key: Mapping[str, Any], clean: TrainedModel) -> tuple[Scaled, list[dict[str, float]]]:
        """Try the budgets from the smallest and keep one, by validation alone."""
        budget, tried, results = self._experiment.threat.budget, [], []
        validation = SampleTable()
        if len(self._validation):
            predictions(validation, self._validation, clean.network, None, model="clean", input="clean")
        for value in budget.candidates:
            scaled = self._scaler.to_budget(injection, value)
            model = self._trainer.victim("attacked", scaled.injection, key, clean)
            asr = loss = float("nan")
            if len(self._validation):
                predictions(validation, self._validation, model.network, None, model=f"at {value}", input="clean")
                predictions(
                    validation,
                    self._validation,
                    model.network,
                    self._at_test(scaled.injection),
                    model=f"at {value}",
                    input="triggered",
                )
                asr = _value(
                    attack_success_rate(
                        validation.select(model=f"at {value}", input="triggered"), self._chain.target, self._chain.sources
                    )
                )
                loss = (
                    validation.select(model="clean", input="clean").accuracy()
                    - validation.select(model=f"at {value}", input="clean").accuracy()
                )
                tried.append({"budget": value, "rmse_hu": scaled.rmse_hu, "validation_asr": asr, "validation_ca_loss": loss})
            results.append((scaled, model, asr, loss))
            if asr >= budget.enough_asr and loss <= budget.max_ca_loss:
                break
        # The first that is good enough ended the loop; otherwise the strongest effect among those that keep accuracy.
        scaled, model, _, _ = max(results, key=lambda item: (item[3] <= budget.max_ca_loss, item[2]))
        self._models["attacked"] = model
        return scaled, tried

    def _controls(self, chosen: Scaled, clean: TrainedModel) -> Injection | None:
        """Run the controls; return the random trigger of equal budget, where there is one."""
        controls, trigger = self._experiment.controls, chosen.injection.trigger
        patterns = {"white": white_pattern(trigger.shape, self._seed, "control")}
        if isinstance(trigger, AdditiveTrigger):
            patterns["spectrum"] = random_phases(trigger.pattern.cpu(), self._seed, "control")
        scaled = {}
        for name, pattern in patterns.items():
            unit = AdditiveTrigger(
                pattern, geometry=trigger.geometry, domain=trigger.domain, site=trigger.site, details={"control": name}
            )
            scaled[name] = self._scaler.to_rmse(self._chain.imaging.inject(unit), chosen.rmse_hu)
        if "random-trigger" in controls:
            predictions(
                self._table,
                self._test,
                self._models["attacked"].network,
                scaled["white"].injection,
                model="attacked",
                input="random",
            )
            predictions(self._table, self._test, clean.network, scaled["white"].injection, model="clean", input="random")
        for name, control in (("white", "white-victim"), ("spectrum", "spectrum-victim")):
            if control not in controls or name not in scaled or self._experiment.threat.access == "inference-data":
                continue
            role, injection = f"control-{name}", scaled[name].injection
            key = {
                "control": name,
                "domain": trigger.domain,
                "spectrum-of": self._experiment.attack if name == "spectrum" else "white",
            }
            self._models[role] = self._trainer.victim(role, injection, key, clean)
            predictions(self._table, self._test, self._models[role].network, None, model=role, input="clean")
            predictions(self._table, self._test, self._models[role].network, injection, model=role, input="triggered")
        return scaled["white"].injection

    def _unscanned(self, clean: TrainedModel) -> None:
        """Clean accuracy on ground truth that was never scanned: how the released code measures it."""
        for i in range(len(self._test)):
            append(
                self._table,
                self._test,
                clean.network,
                self._test.attenuation([i]) * self._chain.imaging.circle,
                [i],
                model="clean",
                input="unscanned",
            )

    def _stealth(self, positions: list[int], trigger: Injection) -> dict[str, Estimate]:
        found = stealth(self._chain, self._test, positions, trigger)
        return {name: mean_estimate(values, patients) for name, (values, patients) in found.items()}

    def _result(self, strength: Strength | None, visible: dict[str, Estimate], random: dict[str, Estimate]) -> SeedResult:
        chain = self._chain
        goal = self._experiment.threat.goal
        models = {"trigger": self._trigger_cost} if self._trigger_cost else {}
        cost = Cost(
            seconds={role: model.seconds for role, model in self._models.items()}
            | {name: facts["seconds"] for name, facts in models.items()},
            gradient_passes={role: model.gradient_passes for role, model in self._models.items()}
            | {name: facts["gradient_passes"] for name, facts in models.items()},
            peak_memory_mb=peak_memory_mb(chain.device),
            trigger_bytes=self._trigger_cost.get("bytes", 0),
            made=tuple(role for role, model in self._models.items() if model.made)
            + tuple(name for name, facts in models.items() if facts["made"]),
        )
        curves = {role: model.curves for role, model in self._models.items()}
        return SeedResult(
            seed=self._seed,
            conditions=conditions(self._table, chain.classes, goal.target, goal.sources),
            strength=strength,
            stealth=visible,
            random_stealth=random,
            curves=curves,
            cost=cost,
        )


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory in MB: of the GPU where there is one, else of this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return 0.0  # the standard library cannot tell there; 0 is shown as unknown
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 2**20 if sys.platform == "darwin" else kilobytes / 2**10


def _value(estimate: Estimate) -> float:
    return float("nan") if estimate.value is None else estimate.value
