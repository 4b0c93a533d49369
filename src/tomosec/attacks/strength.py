"""From a budget to a trigger's strength: one search for every trigger, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable

from tomosec.errors import TomosecError
from tomosec.hounsfield import MU_WATER
from tomosec.threat import BudgetUnit

#: The reached budget may differ from the asked one by this fraction.
TOLERANCE = 0.02
#: Line integrals of ours per unit of the released code's, whose images are (HU + 1024) / 3072 and whose lengths are metres.
REFERENCE_SCALE = 3072 * MU_WATER
#: The released code takes the mean loss over batches of eight, so its trigger is this much smaller than a sum per sample.
REFERENCE_BATCH = 8


def strength_for(effect: Callable[[float], float], wanted: float, *, guess: float = 1.0) -> tuple[float, float]:
    """Find the strength whose effect is ``wanted`` within 2 %, for an effect that grows with strength from 0.

    Args:
        effect: measured effect of a strength, for instance the image RMSE in HU.
        wanted: the budget; 0 gives strength 0.
        guess: a first strength; an effect that is proportional to strength is found in two evaluations.

    Returns:
        (strength, effect reached).

    Raises:
        TomosecError: no strength reaches the budget (a trigger that does nothing, or that saturates below it).
    """
    if wanted == 0:
        return 0.0, 0.0
    low, high, strength = 0.0, float("inf"), guess
    reached = 0.0
    for _ in range(60):
        reached = effect(strength)
        if abs(reached - wanted) <= TOLERANCE * wanted:
            # One proportional step more is exact for a linear effect and stays within the tolerance for others.
            refined = strength * wanted / reached
            better = effect(refined)
            return (refined, better) if abs(better - wanted) < abs(reached - wanted) else (strength, reached)
        if reached < wanted:
            low = strength
        else:
            high = strength
        proportional = strength * wanted / reached if reached > 0 else strength * 10
        inside = low < proportional < high
        strength = proportional if inside else ((low + high) / 2 if high != float("inf") else strength * 2)
    raise TomosecError(f"no strength of this trigger reaches a budget of {wanted:g}: strength {strength:g} gives {reached:g}")


def fixed_strength(unit: BudgetUnit, value: float, *, sinogram_rms: float, raw_rms: float | None) -> float:
    """Strength (RMS of the added line integrals) of a budget that is not defined by its effect on the image.

    Args:
        unit: ``relative-rms`` or ``reference-mu``.
        value: the budget.
        sinogram_rms: RMS of the noiseless training sinograms.
        raw_rms: RMS of the mean per-sample gradient before normalisation, in line integrals; ``reference-mu`` needs it.

    Raises:
        TomosecError: ``reference-mu`` for a trigger that is no gradient.
    """
    if unit == "relative-rms":
        return value * sinogram_rms
    if raw_rms is None:
        raise TomosecError(
            "a budget in reference-mu scales a raw gradient, and this attack's trigger is none; use hu or relative-rms"
        )
    # dp = scale * dp_ref, dp_ref = mu * T_ref, and T_ref = dL/dp_ref = scale * dL/dp.
    return value * REFERENCE_SCALE**2 * raw_rms / REFERENCE_BATCH
