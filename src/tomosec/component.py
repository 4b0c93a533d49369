"""Components are values: frozen pydantic models that are found by ``family`` and ``kind``, never by a dotted path.

A family is a role in the chain (``geometry``, ``dataset``, ``attack``, ...). Built-in components live in the one module or
package that :data:`FAMILIES` names for their family, so adding a component is adding a file there; other distributions add
theirs with an entry point in the group ``tomosec.<family>``. A family is imported when one of its kinds is asked for, so
that reading a record or printing help never imports torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from tomosec.errors import InputError, nearest

#: Where the built-in components of each family are. A package is listed, not imported, until a kind of it is wanted.
FAMILIES: dict[str, str] = {
    "geometry": "tomosec.geometry",
    "dataset": "tomosec.data",
    "split": "tomosec.data.splits",
    "acquisition": "tomosec.acquisition",
    "reconstruction": "tomosec.reconstruction",
    "network": "tomosec.analysis.architectures",
    "attack": "tomosec.attacks",
    "defense": "tomosec.defenses",
}

_registered: dict[str, dict[str, type[Component]]] = {family: {} for family in FAMILIES}
_complete: set[str] = set()


class Value(BaseModel):
    """A frozen, closed record: unknown fields are errors, equal contents are equal values."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        """Name the nearest field; pydantic's own error for an unknown one does not."""
        if isinstance(data, Mapping):
            unknown = [str(key) for key in data if key not in cls.model_fields]
            if unknown:
                allowed = [name for name in cls.model_fields if name != "version"]
                raise ValueError(f"unknown field {unknown[0]!r}{nearest(unknown[0], allowed)}; allowed: {', '.join(allowed)}")
        return data

    def __repr_args__(self) -> Any:
        """Show only what differs from the defaults, so that ``repr`` stays readable and still rebuilds the value."""
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if info.is_required() or value != info.get_default(call_default_factory=True):
                yield name, value


class Component(Value):
    """Base of every configurable part of a chain.

    A concrete subclass sets ``kind: Literal["my-kind"] = "my-kind"`` and ``version: Literal[1] = 1``; the family comes from
    its family base class. ``version`` is raised whenever the same fields may give other numbers, including a changed
    default: it enters the identity of every experiment that uses the component.
    """

    family: ClassVar[str] = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        kind = cls.model_fields.get("kind")
        if kind is None or not isinstance(kind.default, str):
            return
        if cls.family not in FAMILIES:
            raise TypeError(f"{cls.__name__}: family {cls.family!r} is not one of {', '.join(FAMILIES)}")
        known = _registered[cls.family].get(kind.default)
        if known is not None and known.__module__ != cls.__module__:
            raise TypeError(
                f"{cls.__name__}: the {cls.family} kind {kind.default!r} is already {known.__module__}.{known.__name__}"
            )
        _registered[cls.family][kind.default] = cls


def _import_family(family: str) -> None:
    if family in _complete:
        return
    module = importlib.import_module(FAMILIES[family])
    if hasattr(module, "__path__"):
        for info in pkgutil.iter_modules(module.__path__):
            if not info.name.startswith("_"):
                importlib.import_module(f"{module.__name__}.{info.name}")
    for point in entry_points(group=f"tomosec.{family}"):
        point.load()
    _complete.add(family)


def components(family: str) -> dict[str, type[Component]]:
    """Return every component class of ``family`` by kind, in alphabetical order."""
    if family not in FAMILIES:
        raise InputError(f"no component family {family!r}{nearest(family, FAMILIES)}; there are {', '.join(FAMILIES)}")
    _import_family(family)
    return dict(sorted(_registered[family].items()))


def component_class(family: str, kind: str) -> type[Component]:
    """Return the class registered for ``kind``.

    Raises:
        InputError: no such kind; the message lists the kinds there are and the nearest one.
    """
    known = components(family)
    if kind not in known:
        raise InputError(f"no {family} of kind {kind!r}{nearest(kind, known)}; there are {', '.join(known)}")
    return known[kind]


def parse_component(family: str, value: Any) -> Any:
    """Turn ``{"kind": ..., ...}``, or a bare kind, into a component of ``family``; instances pass."""
    if isinstance(value, Component):
        if value.family != family:
            raise ValueError(f"{type(value).__name__} is a {value.family}, not a {family}")
        return value
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"a {family} is a mapping with a 'kind', got {type(value).__name__}")
    if "kind" not in value:
        raise ValueError(f"a {family} needs a 'kind': one of {', '.join(components(family))}")
    return component_class(family, str(value["kind"])).model_validate(dict(value))


def of_family(family: str, *, optional: bool = False) -> Any:
    """Return the annotation of a field that holds a component of ``family``, to be used with ``Annotated``.

    Args:
        family: the component family.
        optional: whether the field may be None.
    """

    def parse(value: Any) -> Any:
        return None if optional and value is None else parse_component(family, value)

    return BeforeValidator(parse)


def canonical(value: Any) -> Any:
    """Reduce a value to what its identity is made of: kind, version and the fields that differ from their defaults.

    Adding a field with a default therefore changes no identity; changing a default must raise the component's version.
    """
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        out: dict[str, Any] = {name: canonical(getattr(value, name)) for name in ("kind", "version") if name in fields}
        for name, info in fields.items():
            item = getattr(value, name)
            if name not in out and (info.is_required() or item != info.get_default(call_default_factory=True)):
                out[name] = canonical(item)
        return out
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    return value


def describe_validation_error(error: ValidationError, source: str) -> str:
    """Say which fields of ``source`` are wrong and what they hold, a line each."""
    lines = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"])
        where = f"{source}: {path}" if path else source
        if item["type"] == "missing":
            lines.append(f"{where}: this field is required")
            continue
        got = repr(item["input"])
        plain = not isinstance(item["input"], Mapping | BaseModel)
        shown = f" (got {got if len(got) < 120 else got[:117] + '...'})" if plain else ""
        lines.append(f"{where}: {item['msg'].removeprefix('Value error, ')}{shown}")
    return "\n".join(lines)
