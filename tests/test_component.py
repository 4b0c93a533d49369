"""Components: found by kind alone, frozen, closed, and reduced to an identity that only what matters changes."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from tomosec import component
from tomosec.component import FAMILIES, Component, Value, canonical, component_class, components, parse_component
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam

PARALLEL = {"kind": "parallel-beam", "views": 8, "bins": 8, "bin_mm": 1.0, "shape": [8, 8], "pixel_mm": 1.0}


class Inner(Value):
    a: int = 1
    b: float = 2.0


class Outer(Value):
    inner: Inner = Inner()
    items: tuple[int, ...] = ()
    table: dict[str, Inner] = Field(default_factory=dict)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register components without leaving them behind."""
    monkeypatch.setattr(component, "_registered", {family: dict(kinds) for family, kinds in component._registered.items()})
    monkeypatch.setattr(component, "_complete", set(component._complete))


def test_builtin_geometries_are_found_by_kind() -> None:
    assert components("geometry") == {"fan-beam": FanBeam, "parallel-beam": ParallelBeam}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_listed(family: str) -> None:
    assert all(cls.family == family for cls in components(family).values())


@pytest.mark.parametrize("kind", ["os.system", "tomosec.geometry.FanBeam", "../x", "__import__('os')", ""])
def test_a_kind_is_never_a_path_or_an_expression(kind: str) -> None:
    with pytest.raises(InputError, match="no geometry of kind"):
        component_class("geometry", kind)


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"no geometry of kind 'fanbeam' \(did you mean 'fan-beam'\?\); there are fan-beam, parallel"
    ):
        component_class("geometry", "fanbeam")


def test_unknown_family_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'attack'"):
        components("atack")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "a geometry is a mapping with a 'kind', got int"),
        ({"views": 3}, "a geometry needs a 'kind': one of fan-beam, parallel-beam"),
        ({"kind": ["fan-beam"]}, "no geometry of kind"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_component(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_component("geometry", value)


def test_a_component_of_another_family_is_refused() -> None:
    with pytest.raises(ValueError, match="ParallelBeam is a geometry, not a attack"):
        parse_component("attack", ParallelBeam.model_validate(PARALLEL))


def test_components_are_frozen_and_closed() -> None:
    geometry = ParallelBeam.model_validate(PARALLEL)
    with pytest.raises(ValidationError, match="frozen"):
        geometry.views = 9  # type: ignore[misc]
    with pytest.raises(ValidationError, match=r"unknown field 'view' \(did you mean 'views'\?\)"):
        ParallelBeam.model_validate({**PARALLEL, "view": 9})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_no_values(bad: float) -> None:
    with pytest.raises(ValidationError):
        ParallelBeam.model_validate({**PARALLEL, "pixel_mm": bad})


def test_repr_shows_what_differs_and_rebuilds_the_value() -> None:
    value = Outer(inner=Inner(a=5))
    assert repr(value) == "Outer(inner=Inner(a=5))"
    assert eval(repr(value)) == value
    geometry = ParallelBeam.model_validate(PARALLEL)
    assert eval(repr(geometry)) == geometry


def test_canonical_form_has_kind_version_and_what_differs() -> None:
    assert canonical(Outer()) == {}
    assert canonical(Outer(inner=Inner(a=1, b=2))) == {}
    assert canonical(Outer(inner=Inner(b=3))) == {"inner": {"b": 3.0}}
    assert canonical(Outer(table={"x": Inner(), "y": Inner(a=2)})) == {"table": {"x": {}, "y": {"a": 2}}}
    found = canonical(ParallelBeam.model_validate(PARALLEL))
    assert found == {"kind": "parallel-beam", "version": 1, **{key: PARALLEL[key] for key in PARALLEL if key != "kind"}}


def test_two_classes_cannot_have_one_kind(registry: None) -> None:
    with pytest.raises(TypeError, match="the geometry kind 'fan-beam' is already"):

        class Impostor(Component):
            family: ClassVar[str] = "geometry"
            kind: Literal["fan-beam"] = "fan-beam"


def test_a_family_must_exist(registry: None) -> None:
    with pytest.raises(TypeError, match="family 'scanner' is not one of"):

        class Lost(Component):
            family: ClassVar[str] = "scanner"
            kind: Literal["lost"] = "lost"


def test_other_distributions_add_components_by_entry_point(
    registry: None, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "some_plugin.py").write_text(
        "from typing import Literal\n"
        "from tomosec.geometry import ParallelBeam\n"
        "class Helical(ParallelBeam):\n"
        "    '''A plug-in.'''\n"
        "    kind: Literal['some-plugin'] = 'some-plugin'\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    point = EntryPoint("helical", "some_plugin:Helical", "tomosec.geometry")
    monkeypatch.setattr(component, "entry_points", lambda group: [point] if group == "tomosec.geometry" else [])
    component._complete.discard("geometry")
    assert parse_component("geometry", {**PARALLEL, "kind": "some-plugin"}).kind == "some-plugin"


def test_reading_geometries_loads_no_torch() -> None:
    code = "import sys; from tomosec.component import components; components('geometry'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
