"""Running experiments: artifacts that are made once, the runner, executors and provenance.

The package can be called: ``tomosec.run(experiment)`` is :func:`tomosec.run.runner.run`. The public verb and this room have
one name, and Python binds a subpackage to its parent whenever anything in it is imported, so the name must serve as both.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tomosec.experiment import Experiment
    from tomosec.progress import Progress
    from tomosec.record import Record


class _Callable(ModuleType):
    def __call__(
        self,
        experiment: Experiment,
        *,
        data: str | Path | None = None,
        out: str | Path = Path("runs"),
        device: str = "auto",
        progress: Progress | None = None,
    ) -> Record:
        """Run one experiment and return its record; see :func:`tomosec.run.runner.run`."""
        from tomosec.run.runner import run

        folder = None if data is None else Path(data)
        return run(experiment, data=folder, out=Path(out), device=device, progress=progress)


sys.modules[__name__].__class__ = _Callable
