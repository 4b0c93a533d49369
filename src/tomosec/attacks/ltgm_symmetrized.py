"""LTGM symmetrized over complementary rays: an adaptive attack on the test that compares a ray with its reverse."""

from __future__ import annotations

from typing import ClassVar, Literal

from tomosec.attacks.base import AttackContext
from tomosec.attacks.gradients import MaskedGradient
from tomosec.errors import NotApplicable
from tomosec.operators.complementary import symmetrize, why_not_complementary
from tomosec.trigger import AdditiveTrigger, Trigger


class SymmetrizedLTGM(MaskedGradient):
    """(T + C T) / 2 of LTGM's T, where C takes every ray to the same line measured from the other side.

    Of a fan beam C T(t, g) = T(t + pi + 2g, -g), so the result passes any test of that symmetry. It needs every line measured
    twice and mirrored bins: equal steps around a whole turn, fan or parallel, no detector or axis offset.

    Attributes:
        objective, samples, network_mode: the loss, see LTGM.
        mask, quantile, mask_input, mask_scope, mask_statistics: the mask, see LTGM.
    """

    kind: Literal["ltgm-symmetrized"] = "ltgm-symmetrized"
    version: Literal[2] = 2
    source: ClassVar[str] = "adaptive variant of Yang et al., MICCAI 2024; complementary rays as in Parker, Med. Phys. 1982"

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Learn LTGM's trigger and make it even under C.

        Raises:
            NotApplicable: the geometry has no complementary bin for every bin.
        """
        if reason := why_not_complementary(context.geometry):
            raise NotApplicable(f"ltgm-symmetrized: {reason}")
        learned = self.unit_trigger(context)
        pattern = symmetrize(context.geometry, learned.pattern.double())
        details = {"attack": "ltgm-symmetrized", "kept_energy": float(pattern.pow(2).mean())}
        return AdditiveTrigger(pattern.float(), geometry=context.geometry, domain="measurement", details=details)
