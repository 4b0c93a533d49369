"""A whole experiment that takes seconds: few small patients, a coarse scan, a short training."""

from __future__ import annotations

import pytest
from tiny_runs import TINY

from tomosec.experiment import parse_experiment


@pytest.fixture
def tiny():
    """Return a function that makes the tiny experiment with some fields changed (top-level keys)."""

    def make(**changes):
        return parse_experiment({**TINY, **changes})

    return make
