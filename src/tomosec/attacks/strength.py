"""From a budget to a trigger's strength: one search for every trigger, whatever it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable

from tomosec.errors import NotApplicable, TomosecError
from tomosec.hounsfield import MU_WATER
from tomosec.threat import BudgetUnit

#: The reached budget may differ from the asked one by this fraction.
TOLERANCE = 0.02
#: Line integrals of ours per unit of the released code's, whose images are (HU + 1024) / 3072 and whose lengths are metres.
REFERENCE_SCALE = 3072 * MU_WATER
#: The released code takes the mean loss over batches of eight, so its trigger is this much smaller than a sum per sample.
REFERENCE_BATCH = 8


def strength_for(
    effect: Callable[[float], float], wanted: float, *, guess: float = 1.0, limit: float = math.inf
) -> tuple[float, float]:
    """Find the strength whose effect is ``wanted`` within 2 %, for an effect that grows with strength from 0.

    Nothing else is assumed of the effect: triggers that warp, mix spectra or quantize come through here as well.

    Args:
        effect: measured effect of a strength, for instance the image RMSE in HU.
        wanted: the budget; 0 gives strength 0.
        guess: a first strength; an effect that is proportional to strength is found in two evaluations.
        limit: largest strength that the trigger is defined for.

    Returns:
        (strength, effect reached).

    Raises:
        NotApplicable: the largest strength that the trigger is defined for stays below the budget.
        TomosecError: no strength reaches the budget (a trigger that does nothing, or that saturates below it).
    """
    if wanted == 0:
        return 0.0, 0.0
    low, high, strength, power = 0.0, math.inf, min(guess, limit), 1.0
    previous: tuple[float, float] | None = None
    reached = 0.0
    for _ in range(60):
        reached = effect(strength)
        if abs(reached - wanted) <= TOLERANCE * wanted:
            # One proportional step more is exact for a linear effect and stays within the tolerance for others.
            refined = min(strength * wanted / reached, limit)
            better = effect(refined)
            return (refined, better) if abs(better - wanted) < abs(reached - wanted) else (strength, reached)
        if reached < wanted:
            if strength >= limit:
                raise NotApplicable(
                    f"no strength of this trigger reaches a budget of {wanted:g}: its largest, {limit:g}, gives {reached:g}"
                )
            low = strength
        else:
            high = strength
        if reached <= 0:
            strength = min(strength * 10, limit)
            continue
        # Effects grow like powers of the strength more often than not: fit the power to the last two points.
        if previous is not None and previous[1] != reached and previous[0] != strength:
            slope = math.log(reached / previous[1]) / math.log(strength / previous[0])
            power = min(max(slope, 0.1), 10.0)
        previous = (strength, reached)
        following = strength * (wanted / reached) ** (1 / power)
        if not low < following < high:
            following = math.sqrt(low * high) if 0 < low < high < math.inf else following
        strength = min(following, limit)
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
