"""Other settings of a scanner, written as changes of plain fields. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny

from tomosec.component import Component, Value, of_family
from tomosec.errors import InputError, nearest

#: What may differ between an experiment's own scan and a setting that its trigger and its models are taken to.
SCAN_FIELDS = ("geometry", "acquisition", "reconstruction")


class Setting(Value):
    """Another setting of the scanner, at which the trigger and the models of an experiment are tested.

    In a recipe it is written as ``{name: low-dose, changes: {acquisition.dose: low}}``: dotted fields that differ from the
    experiment's own scan, or whole components. In a sweep they start from the experiment as it is before the sweep, so that a
    setting is the same scan in every experiment of it. An experiment keeps its settings as whole components.

    Attributes:
        name: what reports and metrics call it.
        geometry, acquisition, reconstruction: the scanner there; None stands for the experiment's own.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=32)
    geometry: Annotated[SerializeAsAny[Component] | None, of_family("geometry", optional=True)] = None
    acquisition: Annotated[SerializeAsAny[Component] | None, of_family("acquisition", optional=True)] = None
    reconstruction: Annotated[SerializeAsAny[Component] | None, of_family("reconstruction", optional=True)] = None


def settled(settings: Any, own: Mapping[str, Any], whole: Collection[str] = ()) -> Any:
    """Transfer settings with their ``changes`` carried out on the scan of ``own``.

    Args:
        settings: the plain list of settings, as a recipe has it; anything else is left to validation.
        own: the plain fields of the experiment that the settings are changes of.
        whole: components that are taken from ``own`` even where a setting changes nothing of them.

    Raises:
        ValueError: ``changes`` that are no mapping of dotted fields of the scan.
    """
    if not isinstance(settings, (list, tuple)):
        return settings
    return [
        _settled(item, own, whole, f"transfer.{place}") if isinstance(item, Mapping) else item
        for place, item in enumerate(settings)
    ]


def _settled(setting: Mapping[str, Any], own: Mapping[str, Any], whole: Collection[str], where: str) -> dict[str, Any]:
    allowed = ("name", "changes", *SCAN_FIELDS)
    for key in setting:
        if key not in allowed:
            raise ValueError(f"{where}: unknown field {key!r}{nearest(str(key), allowed)}; allowed: {', '.join(allowed)}")
    fields: dict[str, Any] = {key: value for key, value in setting.items() if key != "changes"}

    def take(name: str) -> None:
        if fields.get(name) is None and name in own:
            part = own[name]
            fields[name] = copied(part.model_dump() if isinstance(part, Component) else part)

    for name in whole:
        take(name)
    changes = setting.get("changes", {})
    if not isinstance(changes, Mapping):
        raise ValueError(f"{where}.changes: expected fields and values, such as {{acquisition.dose: low}}, got {changes!r}")
    for path, value in changes.items():
        first = str(path).partition(".")[0]
        if first not in SCAN_FIELDS:
            raise ValueError(
                f"{where}.changes: {path!r} is no field of the scan{nearest(first, SCAN_FIELDS)}; "
                f"a setting changes fields of {', '.join(SCAN_FIELDS)}"
            )
        take(first)
        set_field(fields, str(path), copied(value), source=f"{where}.changes")
    return fields


def set_field(fields: dict[str, Any], path: str, value: Any, *, source: str = "--set") -> None:
    """Set ``a.b.c`` in nested mappings, in place; a component written as a bare kind becomes a mapping first.

    A new ``kind`` drops the other fields of that component, which belonged to the old one. ``source`` is who asked.
    """
    *parents, last = path.split(".")
    if not all([*parents, last]):
        raise InputError(f"{source} {path}: a field is written a.b.c")
    here = fields
    for part in parents:
        below = here.get(part)
        if isinstance(below, str):
            below = {"kind": below}
        elif below is None:
            below = {}
        elif not isinstance(below, dict):
            raise InputError(f"{source} {path}: {part} holds {below!r}, which has no fields")
        here[part] = below
        here = below
    if last == "kind" and here.get("kind") != value:
        here.clear()
    here[last] = value


def copied(value: Any) -> Any:
    """Copy plain data so that no part is shared: a YAML alias must not let one override change two fields."""
    if isinstance(value, dict):
        return {str(key): copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value
