"""What every page of HTML has: one environment that escapes data, the style, the script and its hash for the page's policy."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tomosec.report import rasters, wording


def render(template: str, **values: Any) -> str:
    """Fill a template of this package; what comes from data is escaped."""
    environment = Environment(
        loader=PackageLoader("tomosec.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = _asset("report.js")
    environment.globals |= {
        "levels": wording.LEVELS,
        "marks": wording.LEVEL_MARKS,
        "gray_bar": rasters.gray_bar(),
        "signed_bar": rasters.signed_bar(),
        "windows": rasters.WINDOWS,
        "number": wording.number,
        "tick": wording.tick,
        # Both are files of this package: they are code, not data.
        "style": Markup(_asset("style.css")),  # noqa: S704
        "script": Markup(script),  # noqa: S704
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return environment.get_template(template).render(**values)


def _asset(name: str) -> str:
    return files("tomosec.report").joinpath("templates", name).read_text(encoding="utf-8").strip()
