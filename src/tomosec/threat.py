"""What the attacker can reach, knows and wants, and how much change is allowed. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from tomosec.component import Value

Access = Literal["inference-data", "training-data", "training-control"]
Knowledge = Literal["white-box", "surrogate"]
Site = Literal["counts", "line-integrals", "image"]
BudgetUnit = Literal["hu", "relative-rms", "reference-mu"]


class Budget(Value):
    """How strong a trigger may be.

    Attributes:
        unit: ``hu`` is the RMSE of R(p') - R(p) over the body, mean over non-target training samples of the noiseless chain;
            ``relative-rms`` is the RMS of the trigger over the RMS of the sinograms; ``reference-mu`` is the raw mu of the
            published LTGM code, in its own units.
        value: one number, or several. Several are tried from the smallest; the first that reaches ``enough_asr`` on the
            validation split without losing more than ``max_ca_loss`` there is kept, else the one with the highest ASR.
        enough_asr: attack success rate on validation at which the search stops.
        max_ca_loss: loss of clean accuracy on validation that an accepted strength may cost.
    """

    unit: BudgetUnit = "hu"
    value: float | tuple[float, ...] = 10.0
    enough_asr: float = Field(0.95, ge=0, le=1)
    max_ca_loss: float = Field(0.02, ge=0, le=1)

    @model_validator(mode="after")
    def _positive(self) -> Budget:
        if not self.candidates or min(self.candidates) < 0:
            raise ValueError("a budget is zero or more, and at least one is needed")
        return self

    @property
    def candidates(self) -> tuple[float, ...]:
        """The strengths to try, smallest first."""
        return tuple(sorted(self.value)) if isinstance(self.value, tuple) else (self.value,)


class Goal(Value):
    """What the backdoor should do: make scans of the source classes read as the target class.

    Attributes:
        target: name of the class that a triggered scan should be read as.
        sources: class names that are attacked; all but the target when empty.
    """

    target: str = "normal"
    sources: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Goal:
        if self.target in self.sources:
            raise ValueError(f"the target class {self.target!r} cannot be a source class as well")
        return self

    def indices(self, classes: Sequence[str]) -> tuple[int, tuple[int, ...]]:
        """Index of the target and those of the sources in a dataset's class names, which must hold them."""
        target = classes.index(self.target)
        sources = tuple(classes.index(name) for name in self.sources)
        return target, sources or tuple(k for k in range(len(classes)) if k != target)


class ThreatModel(Value):
    """Access, knowledge, goal and budget of the attacker.

    Attributes:
        access: ``inference-data`` changes scans at test time only; ``training-data`` also poisons a fraction of the measured
            scans and their labels, and the victim trains honestly on them; ``training-control`` sets the victim's loss to
            CE(clean) + ``loss_weight`` CE(triggered, target), as the published LTGM code does.
        knowledge: whose gradients the attacker has. ``white-box``: those of the victim's own clean model. ``surrogate``: those
            of a network that the attacker trained on the same training scans, the experiment's ``surrogate``. Scanner and
            reconstruction are known in both cases.
        site: where the trigger enters: ``counts`` (after quantum noise, before electronic noise and log), ``line-integrals``
            (after the log) or ``image``. An image-domain trigger needs ``image``, or is carried into the sinogram.
        poison_rate: fraction of the training slices that are poisoned; 0 is an honest training on clean data, the row that every
            other is compared with. They are of the source classes; of the target class in a clean-label attack.
            ``training-data`` only.
        poison_rate_of: ``training-set``: the rate is of all training slices; ``candidates``: of those that may be poisoned, so
            that 1 poisons all of them. ``training-data`` only.
        cover_rate: fraction of all training slices that carry a trigger and keep their label. None is the attack's own ratio
            to the poisoned ones, and no more than there are slices left. Attacks with a covering trigger of their own cover
            slices of every class; otherwise the trigger itself covers classes that are neither target nor source, which makes
            the backdoor specific to its sources (Tang et al., USENIX Security 2021). ``training-data`` only.
        loss_weight: lambda; ``training-control`` only.
        victim_start: ``clean-weights`` fine-tunes the clean model, ``scratch`` trains anew; ``training-control`` only.
    """

    access: Access = "training-control"
    knowledge: Knowledge = "white-box"
    goal: Goal = Goal()
    budget: Budget = Budget()
    site: Site = "line-integrals"
    poison_rate: float = Field(0.1, ge=0, le=1)
    poison_rate_of: Literal["training-set", "candidates"] = "training-set"
    cover_rate: float | None = Field(None, ge=0, le=1)
    loss_weight: float = Field(0.5, gt=0)
    victim_start: Literal["clean-weights", "scratch"] = "clean-weights"

    @model_validator(mode="after")
    def _fields_fit_access(self) -> ThreatModel:
        owners = dict.fromkeys(("poison_rate", "poison_rate_of", "cover_rate"), "training-data")
        owners |= dict.fromkeys(("loss_weight", "victim_start"), "training-control")
        for name, access in owners.items():
            if (
                name in self.model_fields_set
                and self.access != access
                and getattr(self, name) != type(self).model_fields[name].default
            ):
                raise ValueError(f"{name} belongs to access {access!r}, but access is {self.access!r}")
        return self
