"""What tells experiments apart: the dotted fields in which their plain forms differ. For terminals, reports and progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Fields that name an experiment to people and change no number.
DESCRIPTIVE = frozenset({"title", "description"})
#: Fields that are measured on a chain and an attack without changing them.
OBSERVING = frozenset({"defenses"})


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted fields of an experiment's plain form; lists stay whole."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    out: dict[str, Any] = {}
    for name, item in value.items():
        out |= flatten(item, f"{prefix}.{name}" if prefix else str(name))
    return out


def differing(experiments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields that tell experiments apart, in their order; titles do not count.

    A field of a component counts where it differs among components of the same kind: what only one kind has follows from the
    kind, which is a field itself. A component that is missing in some counts by its kind. Defenses, long as they are, count
    only where nothing else tells some of the experiments apart.
    """
    flat = [flatten(experiment) for experiment in experiments]
    names = dict.fromkeys(name for fields in flat for name in fields)
    parents = {".".join(parts[:k]) for name in names if (parts := name.split(".")) for k in range(1, len(parts))}
    found = [name for name in names if name not in parents and name.split(".")[0] not in DESCRIPTIVE and _differs(name, flat)]
    without = [name for name in found if name not in OBSERVING]
    return without if _distinct(without, flat) == _distinct(found, flat) else found


def _distinct(names: Sequence[str], flat: Sequence[Mapping[str, Any]]) -> int:
    """How many of the experiments some fields tell apart."""
    return len({repr([fields.get(name) for name in names]) for fields in flat})


def _differs(name: str, flat: Sequence[Mapping[str, Any]]) -> bool:
    parts = name.split(".")
    above = [".".join([*parts[:k], "kind"]) for k in range(1, len(parts))]
    groups: dict[str, set[str]] = {}
    for fields in flat:
        kinds = [repr(fields.get(kind)) for kind in above if kind != name]
        groups.setdefault(" ".join(kinds), set()).add(repr(fields.get(name)))
    return any(len(values) > 1 for values in groups.values())


def labels(experiments: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short text per experiment that says what sets it apart from the others; empty where nothing does."""
    names = differing(experiments)
    out = []
    for experiment in experiments:
        fields = flatten(experiment)
        # A component that is missing is said; what a missing one would carry is not.
        shown = [name for name in names if name in fields or (name.endswith(".kind") and name.count(".") == 1)]
        parts = [f"{name.removesuffix('.kind')} {_plain(fields.get(name))}" for name in shown]
        out.append(", ".join(parts))
    return out


def _plain(value: Any) -> str:
    if isinstance(value, Mapping) and "kind" in value:
        return str(value["kind"])
    return "none" if value is None else ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)
