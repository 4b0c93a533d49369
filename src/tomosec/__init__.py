"""How vulnerable is a CT chain to backdoors planted in its measured data, and would anyone notice?

The public names are imported when they are first used, so ``import tomosec`` costs nothing and loads no torch::

    import tomosec as ts

    [experiment] = ts.load_recipe("demo").experiments()
    record = ts.run(experiment)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tomosec.data.htc2022 import read_htc2022
    from tomosec.data.measured import Measurement
    from tomosec.errors import InputError, NotApplicable, TomosecError
    from tomosec.experiment import Experiment, load_recipe
    from tomosec.geometry import FanBeam, ParallelBeam
    from tomosec.operators import Backprojector, Projector
    from tomosec.pipeline import ImagingChain, Pipeline
    from tomosec.reconstruction.fbp import FBP
    from tomosec.record import Record, Store
    from tomosec.report.build import build_report
    from tomosec.run.runner import run
    from tomosec.threat import Budget, Goal, ThreatModel
    from tomosec.trigger import AdditiveTrigger, Trigger, load_trigger

    __version__: str

__all__ = [
    "FBP",
    "AdditiveTrigger",
    "Backprojector",
    "Budget",
    "Experiment",
    "FanBeam",
    "Goal",
    "ImagingChain",
    "InputError",
    "Measurement",
    "NotApplicable",
    "ParallelBeam",
    "Pipeline",
    "Projector",
    "Record",
    "Store",
    "ThreatModel",
    "TomosecError",
    "Trigger",
    "__version__",
    "build_report",
    "load_recipe",
    "load_trigger",
    "read_htc2022",
    "run",
]

_HOME = {
    "FBP": "tomosec.reconstruction.fbp",
    "AdditiveTrigger": "tomosec.trigger",
    "Backprojector": "tomosec.operators",
    "Budget": "tomosec.threat",
    "Experiment": "tomosec.experiment",
    "FanBeam": "tomosec.geometry",
    "Goal": "tomosec.threat",
    "ImagingChain": "tomosec.pipeline",
    "InputError": "tomosec.errors",
    "Measurement": "tomosec.data.measured",
    "NotApplicable": "tomosec.errors",
    "ParallelBeam": "tomosec.geometry",
    "Pipeline": "tomosec.pipeline",
    "Projector": "tomosec.operators",
    "Record": "tomosec.record",
    "Store": "tomosec.record",
    "ThreatModel": "tomosec.threat",
    "TomosecError": "tomosec.errors",
    "Trigger": "tomosec.trigger",
    "build_report": "tomosec.report.build",
    "load_recipe": "tomosec.experiment",
    "load_trigger": "tomosec.trigger",
    "read_htc2022": "tomosec.data.htc2022",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("tomosec")
        except PackageNotFoundError:
            return "unknown"
    if name == "run":
        # The package that runs experiments has the same name; Python puts it here on any import of it, so it is callable.
        return importlib.import_module("tomosec.run")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
