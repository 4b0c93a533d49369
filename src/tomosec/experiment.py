"""An experiment is a value with an identity; a recipe is a file that describes one, or a sweep of them. No torch here.

The identity hashes what the numbers depend on: every component's kind, version and non-default fields, the seeds, the
content of the data, and :data:`NUMERICS_VERSION`. Paths, devices, threads and titles are not in it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator, model_validator

from tomosec.analysis.plan import Training
from tomosec.component import Component, Value, canonical, describe_validation_error, of_family
from tomosec.errors import InputError, nearest
from tomosec.setting import SCAN_FIELDS, Setting, copied, set_field, settled
from tomosec.threat import ThreatModel
from tomosec.varying import DESCRIPTIVE

#: Raised when a change outside any one component moves the numbers (noise, metrics, the order of operations).
NUMERICS_VERSION = 2

#: More is a typing error; a list of them would not even fit in memory.
MOST_SEEDS = 1000

Control = Literal["random-trigger", "white-victim", "spectrum-victim"]
#: Questions that a sweep can answer; each has a table and a figure of its own in the report.
StudyKind = Literal[
    "stealth-frontier",
    "scan-parameters",
    "architectures",
    "poison-rate",
    "ablation",
    "cost",
    "detect",
    "repair",
    "adaptive",
    "screen-power",
]


class Experiment(Value):
    """One full-chain assessment.

    Attributes:
        title, description: for people; not part of the identity.
        data: where the slices come from. Its folder is given at run time.
        split: which patients train, validate and test; it has a seed of its own.
        geometry, acquisition, reconstruction: the scanner.
        network: the analysis network under attack.
        training: how the clean model is trained.
        victim_training: how victims are trained; as ``training`` when empty.
        threat: access, knowledge, goal and budget of the attacker.
        attack: None measures the clean chain alone.
        surrogate: the network that the attacker trains and takes gradients from, where ``threat.knowledge`` is ``surrogate``.
            It is trained as the clean model is, on the same training slices, with initial weights and an order of its own.
        controls: ``random-trigger`` shows a random trigger of equal budget to the attacked model; ``white-victim`` and
            ``spectrum-victim`` train a victim on a frozen random trigger of equal budget, white or with T's spectrum.
        defenses: what is measured against the attack; no defense sees the trigger or its success.
        seeds: initialisation, order, noise and trigger differ by seed; a count n stands for 0 .. n - 1.
        detail: also measure clean accuracy on ground-truth images that were never scanned, as the released LTGM code does.
        transfer: other scan settings, at which the clean and the attacked model read the test slices with the same trigger, at
            the same amplitude. The image grid stays the experiment's own, because the networks do.
    """

    title: str = ""
    description: str = ""
    data: Annotated[SerializeAsAny[Component], of_family("dataset")]
    split: Annotated[SerializeAsAny[Component], of_family("split")]
    geometry: Annotated[SerializeAsAny[Component], of_family("geometry")]
    acquisition: Annotated[SerializeAsAny[Component], of_family("acquisition")]
    reconstruction: Annotated[SerializeAsAny[Component], of_family("reconstruction")]
    network: Annotated[SerializeAsAny[Component], of_family("network")]
    training: Training = Training()
    victim_training: Training | None = None
    threat: ThreatModel = ThreatModel()
    attack: Annotated[SerializeAsAny[Component] | None, of_family("attack", optional=True)] = None
    surrogate: Annotated[SerializeAsAny[Component] | None, of_family("network", optional=True)] = None
    defenses: tuple[Annotated[SerializeAsAny[Component], of_family("defense")], ...] = ()
    controls: tuple[Control, ...] = ("random-trigger", "white-victim", "spectrum-victim")
    seeds: tuple[int, ...] = (0, 1, 2)
    detail: tuple[Literal["unscanned-images"], ...] = ()
    transfer: tuple[Setting, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _settle(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("transfer"):
            return {**data, "transfer": settled(data["transfer"], data)}
        return data

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_of_seeds(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("seeds are a count or a list of integers")
        if isinstance(value, int) and value > MOST_SEEDS:
            raise ValueError(f"{value} seeds; at most {MOST_SEEDS}. To name one seed, write a list: [{value}]")
        return tuple(range(value)) if isinstance(value, int) else value

    @field_validator("transfer")
    @classmethod
    def _whole(cls, settings: tuple[Setting, ...], info: ValidationInfo) -> tuple[Setting, ...]:
        """Fill in the experiment's own components, so that a setting reads the same wherever it is."""
        own = {name: info.data.get(name) for name in SCAN_FIELDS}
        return tuple(
            setting.model_copy(update={name: getattr(setting, name) or own[name] for name in SCAN_FIELDS}) for setting in settings
        )

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be one or more different integers from 0, got {list(self.seeds)}")
        # By name: the attack's own class is beyond this torch-free storey.
        kind, domain = getattr(self.attack, "kind", ""), getattr(self.attack, "domain", "")
        if domain == "image" and self.threat.site != "image":
            raise ValueError(f"attack {kind!r} acts on images, but threat.site is {self.threat.site!r}; set threat.site: image")
        if domain == "measurement" and self.threat.site == "image":
            raise ValueError(f"attack {kind!r} acts on measured data; threat.site must be counts or line-integrals")
        names = [setting.name for setting in self.transfer]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"transfer: two settings are called {twice[0]!r}; a name stands for one setting")
        for setting in self.transfer:
            for name in ("shape", "pixel_mm"):
                there, here = getattr(setting.geometry, name, None), getattr(self.geometry, name, None)
                if there != here:
                    raise ValueError(
                        f"transfer: setting {setting.name!r} has geometry.{name} {_shown(there)}, the experiment {_shown(here)}; "
                        "the networks read images of one grid, so views, bins and distances may differ, the grid may not"
                    )
        return self

    def at(self, setting: Setting) -> Experiment:
        """This experiment with the scan of ``setting``, and with no further settings to go to."""
        there = {name: part for name in SCAN_FIELDS if (part := getattr(setting, name)) is not None}
        return self.model_copy(update={**there, "transfer": ()})

    def identity(self, manifest: str) -> str:
        """Hash of everything the numbers depend on (16 hex digits).

        Args:
            manifest: content hash of the data, from ``OpenDataset.manifest_hash()``.
        """
        fields = {name: value for name, value in canonical(self).items() if name not in DESCRIPTIVE}
        return digest({"experiment": fields, "data": manifest, "numerics": NUMERICS_VERSION})

    @model_validator(mode="after")
    def _surrogate_fits_threat(self) -> Experiment:
        knowledge, kind = self.threat.knowledge, getattr(self.surrogate, "kind", "")
        if knowledge == "surrogate" and self.attack is None:
            raise ValueError("threat.knowledge 'surrogate' is about how an attack is made, but attack is none; leave it out")
        if knowledge == "surrogate" and self.surrogate is None:
            raise ValueError(
                "surrogate: this field is required where threat.knowledge is 'surrogate'; it holds the network that the attacker "
                "trains, such as surrogate: {kind: resnet18}"
            )
        if knowledge != "surrogate" and self.surrogate is not None:
            raise ValueError(
                f"surrogate: {kind!r} would not be used, because threat.knowledge is {knowledge!r}; "
                "set threat.knowledge: surrogate, or leave surrogate out"
            )
        return self


def _shown(value: Any) -> str:
    return " x ".join(str(part) for part in value) if isinstance(value, tuple) else str(value)


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of a value's canonical JSON: sorted keys, no spaces."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Sweep(Value):
    """Which fields vary.

    Attributes:
        axes: dotted field to its values; every combination is run.
        cases: mappings of dotted field to value; each is run at every combination of the axes.
        once: mappings that are run by themselves, before the others, such as the row without an attack.
    """

    axes: dict[str, list[Any]] = Field(default_factory=dict)
    cases: list[dict[str, Any]] = Field(default_factory=list)
    once: list[dict[str, Any]] = Field(default_factory=list)

    def overrides(self) -> list[dict[str, Any]]:
        """One mapping of dotted field to value per experiment."""
        grid = [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]
        return [*self.once, *({**case, **cell} for case in (self.cases or [{}]) for cell in grid)]


class Recipe(Value):
    """A YAML file: an experiment, presets that change some of its fields, and an optional sweep.

    Attributes:
        experiment: the base of every cell.
        presets: name to dotted fields; the key ``sweep`` in one replaces the recipe's sweep.
        sweep: what varies.
        study: the question that the sweep answers; the report draws its table and figure.
        source: the file, for messages.
    """

    experiment: dict[str, Any]
    presets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    sweep: Sweep | None = None
    study: StudyKind | None = None
    source: str = "recipe"

    @field_validator("presets")
    @classmethod
    def _sweeps_of_presets(cls, presets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, fields in presets.items():
            if "sweep" in fields:
                try:
                    Sweep.model_validate(fields["sweep"])
                except ValidationError as error:
                    raise ValueError(describe_validation_error(error, f"preset {name}, sweep")) from error
        return presets

    @property
    def title(self) -> str:
        """Title of the base experiment."""
        return str(self.experiment.get("title") or Path(self.source).stem)

    def experiments(self, *, preset: str | None = None, overrides: Mapping[str, Any] | None = None) -> list[Experiment]:
        """Expand to experiments: the base, then the preset, then each cell of the sweep, then the caller's overrides.

        Raises:
            InputError: an unknown preset or field, or a value that is not allowed; the message names the field.
        """
        changes: dict[str, Any] = {}
        if preset is not None:
            if preset not in self.presets:
                there = ", ".join(self.presets) or "none"
                raise InputError(f"{self.source}: no preset {preset!r}{nearest(preset, self.presets)}; there are {there}")
            changes = dict(self.presets[preset])
        sweep = Sweep.model_validate(changes.pop("sweep")) if "sweep" in changes else self.sweep
        cells = sweep.overrides() if sweep is not None else [{}]
        unswept = self._with(changes, overrides or {})
        return [self._parsed(self._with(changes, cell, overrides or {}), unswept) for cell in cells]

    def _parsed(self, fields: dict[str, Any], unswept: Mapping[str, Any]) -> Experiment:
        """Parse one experiment; its transfer settings are changes of the experiment before the sweep."""
        if fields.get("transfer"):
            try:
                swept = [name for name in SCAN_FIELDS if fields.get(name) != unswept.get(name)]
                fields["transfer"] = settled(fields["transfer"], unswept, swept)
            except ValueError as error:
                raise InputError(f"{self.source}: {error}") from error
        return parse_experiment(fields, self.source)

    def _with(self, *layers: Mapping[str, Any]) -> dict[str, Any]:
        # One layer after the other: a kind that a later layer changes must drop what an earlier one set for the old kind.
        fields: dict[str, Any] = copied(self.experiment)
        for changes in layers:
            for path, value in changes.items():
                set_field(fields, path, copied(value))
        return fields


def parse_experiment(fields: Mapping[str, Any], source: str = "experiment") -> Experiment:
    """Validate plain data as an experiment.

    Raises:
        InputError: the message names the file, each wrong field, what it holds, and the nearest allowed name.
    """
    try:
        return Experiment.model_validate(dict(fields))
    except ValidationError as error:
        raise InputError(describe_validation_error(error, source)) from error


def recipe_folder() -> Path:
    """Folder of the bundled recipes: inside an installed package, beside ``src`` in a checkout."""
    package = Path(__file__).resolve().parent
    inside, beside = package / "recipes", package.parent.parent / "recipes"
    return inside if inside.is_dir() else beside


def find_recipe(name: str | Path) -> Path:
    """Return ``name`` where it is a file, else the bundled recipe of that name.

    Raises:
        InputError: neither; the message names the nearest bundled recipe.
    """
    path = Path(name)
    bundled = {item.stem: item for item in sorted(recipe_folder().glob("*.yaml"))}
    if path.is_file() or str(name) not in bundled:
        if not path.exists() and path.suffix == "" and len(path.parts) == 1:
            there = ", ".join(bundled) or "none"
            raise InputError(f"{name}: no such file or bundled recipe{nearest(str(name), bundled)}; bundled are {there}")
        return path
    return bundled[str(name)]


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe, or a plain experiment, from YAML.

    Args:
        path: a file, or the name of a bundled recipe such as ``demo``.

    Raises:
        InputError: no such file, not YAML, or a wrong field.
    """
    path = find_recipe(path)
    try:
        content = copied(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        beside = [item.name for item in path.parent.glob("*.y*ml")]
        raise InputError(f"{path}: no such file{nearest(path.name, beside)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply, or a part that contains itself") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a recipe is a mapping with the key 'experiment', found {type(content).__name__}")
    if "experiment" not in content:
        hint = nearest("experiment", content)
        raise InputError(f"{path}: the key 'experiment' is missing{hint}; allowed: experiment, presets, sweep, study")
    try:
        return Recipe.model_validate({**content, "source": str(path)})
    except ValidationError as error:
        raise InputError(describe_validation_error(error, str(path))) from error


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """Turn ``["a.b=1", ...]`` into a mapping; values are read as YAML scalars, lists or mappings."""
    out: dict[str, Any] = {}
    for item in items:
        path, equals, text = item.partition("=")
        if not equals:
            raise InputError(f"--set {item}: expected field=value, such as --set training.epochs=5")
        try:
            out[path.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {item}: the value is not valid YAML ({error})") from error
    return out
