"""One seed of an experiment: clean model, surrogate, trigger, strength, victims, controls, and what the test slices show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from tomosec.analysis.networks import Classifier
from tomosec.attacks.base import Attack, AttackContext
from tomosec.attacks.noise import random_phases, white_pattern
from tomosec.attacks.poisoning import Poison
from tomosec.component import canonical
from tomosec.defenses.base import Defense
from tomosec.errors import InputError, NotApplicable
from tomosec.metrics.attack import attack_success_rate
from tomosec.metrics.table import SampleTable
from tomosec.pipeline import Injection, Pipeline
from tomosec.progress import Progress
from tomosec.record import Cost, DefenseResult, SeedResult, Strength, TransferResult
from tomosec.run.artifacts import Artifact, Artifacts
from tomosec.run.chain import Chain, reconstructed_samples
from tomosec.run.defend import evaluate_defenses
from tomosec.run.evaluate import Examples, examples, predict, predict_images, stealth
from tomosec.run.granted import UnderAttack
from tomosec.run.memory import StageMemory, peak_memory_mb
from tomosec.run.score import conditions, with_effectiveness
from tomosec.run.strength import Scaled, Scaler
from tomosec.run.transfer import read_at
from tomosec.run.victims import TrainedModel, Trainer
from tomosec.tensorfile import read_tensors, write_tensors
from tomosec.trigger import AdditiveTrigger, Trigger, load_trigger
from tomosec.varying import DESCRIPTIVE

#: Fields of an experiment that say nothing about what a defense meets in one seed.
UNSEEN_BY_DEFENSES = DESCRIPTIVE | {"defenses", "seeds", "controls", "transfer", "detail"}


@dataclass(slots=True)
class SeedRun:
    """What one seed leaves: its result, its rows, its trigger as shown at test time, and its example images."""

    result: SeedResult
    table: SampleTable
    trigger: Trigger | None = None
    why_not_linear: str = ""
    examples: Examples = field(default_factory=Examples)


class SeedRunner:
    """Runs one seed on a prepared chain; ``settings`` has the chains at the experiment's transfer settings, by name."""

    def __init__(
        self, chain: Chain, seed: int, artifacts: Artifacts, progress: Progress, settings: Mapping[str, Chain] | None = None
    ) -> None:
        self._chain, self._seed, self._artifacts, self._progress = chain, seed, artifacts, progress
        self._experiment = chain.experiment
        self._validation = reconstructed_samples(chain, "validation", seed, artifacts, progress)
        self._test = reconstructed_samples(chain, "test", seed, artifacts, progress)
        self._trainer = Trainer(chain, seed, self._validation, artifacts, progress)
        self._scaler = Scaler(chain, seed)
        self._settings = settings or {}
        self._transfer: list[TransferResult] = []
        self._defenses: list[DefenseResult] = []
        self._tables: list[SampleTable] = []
        self._models: dict[str, TrainedModel] = {}
        self._trigger_artifact: Artifact | None = None
        self._trigger_key: dict[str, Any] = {}

    def run(self) -> SeedRun:
        """Train, attack, control and measure."""
        self._models["clean"] = clean = self._trainer.clean()
        self._show(clean.network, None, model="clean", shown="clean")
        if "unscanned-images" in self._experiment.detail:
            self._show_unscanned(clean.network)
        if self._experiment.attack is None:
            self._read_at_settings(None)
            return SeedRun(self._result(), SampleTable.concat(self._tables))
        trigger, key = self._unit_trigger(clean)
        chosen, tried = self._choose(self._inject(trigger, key), key, clean)
        at_test = self._at_test(chosen.injection)
        attacked = self._models["attacked"].network
        self._show(attacked, None, model="attacked", shown="clean")
        for model in ("clean", "surrogate", "attacked"):
            if model in self._models:
                self._show(self._models[model].network, at_test, model=model, shown="triggered")
        random = self._controls(chosen, clean)
        self._read_at_settings(at_test.trigger)
        self._defend(chosen.injection, at_test)
        return self._measured(chosen, tried, at_test, random)

    def _measured(self, chosen: Scaled, tried: list[dict[str, float]], at_test: Injection, random: Injection) -> SeedRun:
        """Stealth, examples and the result."""
        table = SampleTable.concat(self._tables)
        sources = [i for i, target in enumerate(self._test.targets) if target in self._chain.sources]
        strength = Strength(
            unit=self._experiment.threat.budget.unit,
            budget=chosen.budget,
            strength=chosen.injection.trigger.strength,
            rmse_hu=chosen.rmse_hu,
            tried=tuple(tried),
            validation_slices=len(self._validation),
        )
        result = self._result(
            strength=strength,
            stealth=stealth(self._chain, self._test, sources, at_test),
            random_stealth=stealth(self._chain, self._test, sources, random),
        )
        networks = {"clean model": self._models["clean"].network, "attacked model": self._models["attacked"].network}
        shown = examples(self._chain, self._test, table, networks, at_test, random)
        return SeedRun(result, table, at_test.trigger, at_test.why_not_linear, shown)

    def _show(self, network: Classifier, trigger: Injection | None, *, model: str, shown: str) -> None:
        """Let a network read the test slices."""
        self._tables.append(predict(self._test, network, trigger, model=model, shown=shown))

    def _show_unscanned(self, network: Classifier) -> None:
        """Ground truth that was never scanned: what the released code measures clean accuracy on."""
        circle = self._chain.imaging.circle
        images = predict_images(
            self._test, network, lambda positions: self._test.attenuation(positions) * circle, model="clean", shown="unscanned"
        )
        self._tables.append(images)

    def _defend(self, trained: Injection, at_test: Injection) -> None:
        """Measure the experiment's defenses against this seed's attack."""
        if not self._experiment.defenses:
            return
        fields = {name: value for name, value in canonical(self._experiment).items() if name not in UNSEEN_BY_DEFENSES}
        victim, poison = self._models["attacked"], Poison.of(cast(Attack, self._experiment.attack), trained)
        attack = UnderAttack(
            key={"experiment": fields, "data": self._chain.manifest, "seed": self._seed},
            clean_key=self._models["clean"].key,
            chain=self._chain,
            seed=self._seed,
            train=self._chain.samples("train", self._seed),
            validation=self._validation,
            test=self._test,
            clean=self._models["clean"].network,
            attacked=victim.network,
            trigger=at_test,
            poison=poison,
            train_again=lambda kept: self._trainer.again(victim, poison, kept).network,
            artifacts=self._artifacts,
            progress=self._progress,
        )
        tables, self._defenses = evaluate_defenses(cast(Sequence[Defense], self._experiment.defenses), attack)
        self._tables += tables

    def _read_at_settings(self, trigger: Trigger | None) -> None:
        """Let the clean and the attacked model read the test slices at the transfer settings."""
        networks = {name: model.network for name, model in self._models.items() if name in ("clean", "attacked")}
        for name, chain in self._settings.items():
            tables, result = read_at(name, chain, self._seed, networks, trigger, self._artifacts, self._progress)
            self._tables += tables
            self._transfer.append(result)

    def _unit_trigger(self, clean: TrainedModel) -> tuple[Trigger, dict[str, Any]]:
        """The attack's trigger with unit RMS; an artifact of its own, whatever strength it is used at.

        Its gradients are those of the clean model or, where the attacker does not know it, of the surrogate.
        """
        attack, threat = cast(Attack, self._experiment.attack), self._experiment.threat
        missing = self._missing(attack)
        if missing:
            raise NotApplicable(f"attack {getattr(attack, 'kind', '')!r}: needs {missing}")
        if threat.access not in attack.allowed_access():
            allowed = " or ".join(sorted(attack.allowed_access()))
            raise NotApplicable(f"attack {getattr(attack, 'kind', '')!r}: as defined it needs threat.access {allowed}")
        known = clean if threat.knowledge == "white-box" else self._surrogate()
        key = self._trigger_key = {**known.key, "attack": attack, "goal": threat.goal}

        def make(folder: Path) -> dict[str, Any]:
            context = AttackContext(
                geometry=self._chain.imaging.geometry,
                samples=self._chain.samples("train", self._seed),
                pipeline=Pipeline(self._chain.imaging, known.network).requires_grad_(False),
                target=self._chain.target,
                sources=self._chain.sources,
                seed=self._seed,
                progress=self._progress,
                device=self._chain.device,
            )
            self._progress.message(f"Making the trigger (seed {self._seed})")
            memory = StageMemory(self._chain.device)
            path = attack.make_trigger(context).save(folder / "trigger.safetensors")
            used = memory.used_mb()
            return {"gradient_passes": context.gradient_passes, "bytes": path.stat().st_size, "memory_mb": used}

        self._trigger_artifact = artifact = self._artifacts.get("trigger", key, make)
        return load_trigger(artifact.folder / "trigger.safetensors").at(1.0, site=threat.site), key

    def _inject(self, trigger: Trigger, key: Mapping[str, Any]) -> Injection:
        """A trigger on this chain; R(T) is an artifact, so that cells that differ in strength alone reconstruct nothing."""
        imaging = self._chain.imaging
        if trigger.domain == "image":
            return imaging.inject(trigger)

        def effect() -> Tensor:
            def make(folder: Path) -> dict[str, Any]:
                assert isinstance(trigger, AdditiveTrigger)
                write_tensors(folder / "effect.safetensors", {"effect": imaging.trigger_image(trigger).cpu()}, {})
                return {}

            artifact = self._artifacts.get("effect", {**key, "reconstruction": self._experiment.reconstruction}, make)
            return read_tensors(artifact.folder / "effect.safetensors")[0]["effect"]

        return imaging.inject(trigger, effect)

    def _surrogate(self) -> TrainedModel:
        """The attacker's own network, and how it reads clean scans."""
        self._models["surrogate"] = surrogate = self._trainer.surrogate()
        self._show(surrogate.network, None, model="surrogate", shown="clean")
        return surrogate

    def _missing(self, attack: Attack) -> str:
        """What the attack needs and this chain does not have, or an empty string."""
        reconstructor = self._chain.imaging.reconstructor
        lacking = {
            "differentiable-reconstruction": not reconstructor.is_differentiable,
            "linear-reconstruction": not reconstructor.is_linear,
            "three-classes": len(self._chain.classes) < 3,
        }
        return ", ".join(need for need in sorted(attack.needs) if lacking.get(need, False))

    def _at_test(self, injection: Injection) -> Injection:
        """The trigger as it is shown at test time."""
        return injection.at(cast(Attack, self._experiment.attack).at_test_time(injection.trigger).strength)

    def _choose(self, injection: Injection, key: Mapping[str, Any], clean: TrainedModel) -> tuple[Scaled, list[dict[str, float]]]:
        """Try the budgets from the smallest and keep one, by validation alone."""
        attack, budget = cast(Attack, self._experiment.attack), self._experiment.threat.budget
        if len(budget.candidates) > 1 and not len(self._validation):
            raise InputError("threat.budget: several values are chosen from on the validation slices, and this split has none")
        tried: list[dict[str, float]] = []
        results: list[tuple[bool, float, Scaled, TrainedModel]] = []
        for value in budget.candidates:
            try:
                scaled = self._scaler.to_budget(injection, value)
            except NotApplicable as reason:
                if not results:
                    raise
                self._progress.message(f"Budget {value:g} {budget.unit} (seed {self._seed}): {reason}")
                break  # a larger one is out of reach as well
            model = self._trainer.victim("attacked", Poison.of(attack, scaled.injection), key, clean)
            asr, loss = self._validate(model.network, clean.network, self._at_test(scaled.injection))
            if len(self._validation):
                tried.append({"budget": value, "rmse_hu": scaled.rmse_hu, "validation_asr": asr, "validation_ca_loss": loss})
                self._progress.message(
                    f"Budget {value:g} {budget.unit} (seed {self._seed}): "
                    f"validation ASR {asr:.0%}, loss of clean accuracy {loss:.1%}"
                )
            keeps = loss <= budget.max_ca_loss
            results.append((keeps, asr, scaled, model))
            if keeps and asr >= budget.enough_asr:
                break
        # The first that is good enough ended the loop; otherwise the most successful among those that keep accuracy.
        _, _, scaled, model = results[-1] if keeps and asr >= budget.enough_asr else max(results, key=lambda item: item[:2])
        self._models["attacked"] = model
        return scaled, tried

    def _validate(self, victim: Classifier, clean: Classifier, trigger: Injection) -> tuple[float, float]:
        """ASR and loss of clean accuracy on the validation slices; ``(0, 0)`` where there are none."""
        if not len(self._validation):
            return 0.0, 0.0

        def accuracy(network: Classifier) -> float:
            rows = predict(self._validation, network, None, model="any", shown="clean")
            return float((rows.prediction == rows.target).mean())

        rows = predict(self._validation, victim, trigger, model="any", shown="triggered")
        asr = attack_success_rate(rows, self._chain.target, self._chain.sources).value
        return asr or 0.0, accuracy(clean) - accuracy(victim)

    def _controls(self, chosen: Scaled, clean: TrainedModel) -> Injection:
        """Run the controls; return the white random trigger of equal budget."""
        controls, trigger = self._experiment.controls, chosen.injection.trigger
        patterns = {"white": white_pattern(trigger.shape, self._seed, "control")}
        if isinstance(trigger, AdditiveTrigger):
            patterns["spectrum"] = random_phases(trigger.pattern.cpu(), self._seed, "control")
        scaled: dict[str, Injection] = {}
        for name, pattern in patterns.items():
            unit = AdditiveTrigger(pattern, geometry=trigger.geometry, domain=trigger.domain, site=trigger.site)
            # White noise depends on the scan and the seed alone; a scrambled trigger on the trigger too.
            kept = {"control": name, "seed": self._seed, **(self._trigger_key if name == "spectrum" else self._chain.key)}
            scaled[name] = self._scaler.to_rmse(self._inject(unit, kept), chosen.rmse_hu).injection
        if "random-trigger" in controls:
            self._show(clean.network, scaled["white"], model="clean", shown="random")
            self._show(self._models["attacked"].network, scaled["white"], model="attacked", shown="random")
        for name, injection in scaled.items():
            if f"{name}-victim" not in controls or self._experiment.threat.access == "inference-data":
                continue
            role = f"control-{name}"
            of = self._experiment.attack if name == "spectrum" else "white"
            poison = Poison(injection, keeps_labels=cast(Attack, self._experiment.attack).keeps_labels())
            victim = self._trainer.victim(role, poison, {"control": name, "domain": trigger.domain, "of": of}, clean)
            self._models[role] = victim
            self._show(victim.network, None, model=role, shown="clean")
            self._show(victim.network, injection, model=role, shown="triggered")
        return scaled["white"]

    def _result(self, **fields: Any) -> SeedResult:
        chain = self._chain
        measured = conditions(SampleTable.concat(self._tables), chain.classes, chain.target, chain.sources)
        return SeedResult(
            seed=self._seed,
            conditions=measured,
            curves={role: model.curves for role, model in self._models.items()},
            cost=self._cost(),
            transfer=tuple(self._transfer),
            defenses=with_effectiveness(self._defenses, measured),
            **fields,
        )

    def _cost(self) -> Cost:
        """What the stages took when they were made."""
        made = [role for role, model in self._models.items() if model.made]
        seconds = {role: model.seconds for role, model in self._models.items()}
        passes = {role: model.gradient_passes for role, model in self._models.items()}
        fit = self._chain.reconstruction_fit
        if fit is not None:  # one training for all seeds, shown with each
            seconds["reconstruction"], passes["reconstruction"] = fit.facts["seconds"], fit.facts["gradient_passes"]
            made += ["reconstruction"] if fit.made else []
        trigger_bytes, memory = 0, {}
        if self._trigger_artifact is not None:
            facts = self._trigger_artifact.facts
            seconds["trigger"], passes["trigger"] = facts["seconds"], facts["gradient_passes"]
            trigger_bytes = facts["bytes"]
            if facts.get("memory_mb") is not None:
                memory["trigger"] = facts["memory_mb"]
            made += ["trigger"] if self._trigger_artifact.made else []
        return Cost(
            seconds=seconds,
            gradient_passes=passes,
            memory_mb=memory,
            peak_memory_mb=peak_memory_mb(self._chain.device),
            trigger_bytes=trigger_bytes,
            made=tuple(made),
        )
