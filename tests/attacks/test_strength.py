"""The shared search for a trigger's strength."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomosec.attacks.strength import REFERENCE_SCALE, fixed_strength, strength_for
from tomosec.errors import NotApplicable, TomosecError


@given(wanted=st.floats(0.01, 1e3), gain=st.floats(1e-3, 1e5), power=st.floats(0.3, 3))
@settings(max_examples=100, deadline=None)
def test_any_monotone_effect_is_met_within_two_percent(wanted, gain, power):
    strength, reached = strength_for(lambda s: gain * s**power, wanted, guess=1e-3)
    assert reached == pytest.approx(wanted, rel=0.02)
    assert gain * strength**power == pytest.approx(reached)


def test_a_proportional_effect_takes_three_evaluations():
    calls = []

    def effect(strength):
        calls.append(strength)
        return 40.0 * strength

    assert strength_for(effect, 10.0, guess=1e-3) == (pytest.approx(0.25), pytest.approx(10.0))
    assert len(calls) <= 3


def test_zero_budget_is_zero_strength():
    assert strength_for(lambda s: 1 / 0, 0.0) == (0.0, 0.0)


@pytest.mark.parametrize("effect", [lambda s: 0.0, lambda s: min(s, 1.0)])
def test_a_budget_that_cannot_be_reached_is_an_error(effect):
    with pytest.raises(TomosecError, match="no strength of this trigger reaches"):
        strength_for(effect, 5.0)


@given(wanted=st.floats(0.5, 50), power=st.floats(0.3, 3))
@settings(max_examples=50, deadline=None)
def test_a_strength_never_exceeds_its_limit(wanted, power):
    tried = []

    def effect(strength):
        tried.append(strength)
        return 100 * strength**power

    _, reached = strength_for(effect, wanted, guess=1e-3, limit=1.0)
    assert reached == pytest.approx(wanted, rel=0.02)
    assert max(tried) <= 1.0


def test_a_budget_beyond_the_limit_says_what_the_limit_gives():
    calls = []

    def effect(strength):
        calls.append(strength)
        return 3 * strength

    with pytest.raises(NotApplicable, match="a budget of 5: its largest, 1, gives 3"):
        strength_for(effect, 5.0, guess=1e-3, limit=1.0)
    assert len(calls) <= 3


def test_an_effect_that_wavers_is_met():
    # Quantization: the error grows with the step, but not at every step.
    _, reached = strength_for(lambda s: 0.3 * s * (1 + 0.4 * math.sin(40 * s)), 2.0, guess=1e-3)
    assert reached == pytest.approx(2.0, rel=0.02)


def test_fixed_units():
    assert fixed_strength("relative-rms", 0.01, sinogram_rms=2.5, raw_rms=None) == pytest.approx(0.025)
    assert pytest.approx(59, rel=0.01) == REFERENCE_SCALE
    assert fixed_strength("reference-mu", 2.0, sinogram_rms=1.0, raw_rms=8.0) == pytest.approx(2 * REFERENCE_SCALE**2)
    with pytest.raises(TomosecError, match="raw gradient"):
        fixed_strength("reference-mu", 2.0, sinogram_rms=1.0, raw_rms=None)
