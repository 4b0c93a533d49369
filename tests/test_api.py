"""The public names: few, stable, and free until they are used."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import tomosec as ts

SURFACE = Path(__file__).with_name("api_surface.json")


def parameters(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters, ``=`` where there is a default, ``*`` where only the keyword is allowed."""
    marks = {inspect.Parameter.KEYWORD_ONLY: "*", inspect.Parameter.VAR_POSITIONAL: "*args ", inspect.Parameter.VAR_KEYWORD: "**"}
    return [
        marks.get(item.kind, "") + item.name + ("" if item.default is inspect.Parameter.empty else "=")
        for item in inspect.signature(function).parameters.values()
        if item.name != "self"
    ]


def described(value: Any) -> Any:
    """What of a public name users may rely on."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, type):
        return parameters(value)
    if issubclass(value, Exception):
        return [base.__name__ for base in value.__mro__[1:-1]]
    ours = [base for base in value.__mro__ if base.__module__.startswith("tomosec")]
    own = {name for base in ours for name in vars(base) if not name.startswith("_")}
    if issubclass(value, BaseModel):
        fields = [name + ("" if info.is_required() else "=") for name, info in value.model_fields.items()]
        model = own - set(value.model_fields) - {"model_config", "family", "model_post_init"}
        return {"fields": fields, "members": sorted(model)}
    return {"parameters": parameters(value), "members": sorted(own)}


def surface() -> dict[str, Any]:
    return {name: described(getattr(ts, name)) for name in sorted(ts.__all__)}


def test_the_public_surface_changes_only_on_purpose() -> None:
    """After a deliberate change: ``python tests/test_api.py`` writes the file anew; say so in CHANGELOG.md."""
    assert surface() == json.loads(SURFACE.read_text())


def test_every_public_name_is_documented() -> None:
    undocumented = [name for name in ts.__all__ if not name.startswith("__") and not inspect.getdoc(getattr(ts, name))]
    assert not undocumented


def test_dir_shows_the_public_names_and_nothing_of_the_machinery() -> None:
    assert {name for name in dir(ts) if not name.startswith("__")} == {name for name in ts.__all__ if not name.startswith("__")}


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'tomosec' has no attribute 'nothing'"):
        _ = ts.nothing


def in_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_warns_of_nothing_and_loads_no_torch() -> None:
    code = """
import sys
import tomosec as ts
assert not [name for name in ("torch", "numpy", "pydantic", "rich") if name in sys.modules]
ts.FanBeam.ltgm(), ts.ThreatModel()
ts.Experiment, ts.Record, ts.Store, ts.load_recipe, ts.build_report, ts.InputError, ts.__version__
assert "torch" not in sys.modules
"""
    assert in_new_process(code) == ""


def test_using_everything_warns_of_nothing() -> None:
    assert in_new_process("from tomosec import *; print(Projector.__name__)") == "Projector\n"


@pytest.mark.parametrize("first", ["", "import tomosec.run.runner"])
def test_run_is_callable_whatever_was_imported_before(first: str) -> None:
    code = f"""
{first}
import tomosec as ts
from tomosec import run
assert run is ts.run and callable(run)
import tomosec.run.artifacts as artifacts
assert artifacts.Artifacts and ts.run is run
"""
    in_new_process(code)


def test_run_as_a_verb_has_the_parameters_of_the_runner() -> None:
    from tomosec.run.runner import run

    assert parameters(ts.run) == parameters(run)


if __name__ == "__main__":
    SURFACE.write_text(json.dumps(surface(), indent=1) + "\n")
