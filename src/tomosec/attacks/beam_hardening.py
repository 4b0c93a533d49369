"""A wrong beam-hardening correction: line integrals go through a polynomial."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import field_validator
from torch import Tensor

from tomosec.attacks.base import Attack, AttackContext, Need
from tomosec.errors import InputError
from tomosec.trigger import Domain, Trigger


class BeamHardening(Attack):
    """A wrong water correction, p' = p + s (c2 p^2 + c3 p^3 + ...): cupping or its opposite in the image.

    Attributes:
        coefficients: c2, c3, ...; (1,) is p + s p^2, an overcorrection; (-1,) leaves beam hardening in.
    """

    kind: Literal["beam-hardening"] = "beam-hardening"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "measurement"
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram"})
    source: ClassVar[str] = "baseline (calibration error); polynomial as in Herman, Phys. Med. Biol. 1979"

    coefficients: tuple[float, ...] = (1.0,)

    @field_validator("coefficients")
    @classmethod
    def _changes_something(cls, coefficients: tuple[float, ...]) -> tuple[float, ...]:
        if not any(coefficients):
            raise ValueError("at least one coefficient must differ from 0, or nothing would change")
        return coefficients

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Keep the polynomial."""
        return PolynomialTrigger(
            torch.tensor(self.coefficients, dtype=torch.float64),
            geometry=context.geometry,
            domain="measurement",
            details={"attack": "beam-hardening"},
        )


class PolynomialTrigger(Trigger):
    """``p + s (c2 p^2 + c3 p^3 + ...)``.

    Args:
        coefficients: (n,) c2, c3, ...
    """

    kind: ClassVar[str] = "polynomial"

    def __init__(self, coefficients: Tensor, **common: Any) -> None:
        super().__init__(**common)
        if coefficients.ndim != 1 or not bool(torch.isfinite(coefficients).all()) or not bool(coefficients.any()):
            raise InputError(f"polynomial trigger: coefficients must be finite and not all 0, got {coefficients.tolist()}")
        self.coefficients = coefficients.detach().double()

    def _apply(self, data: Tensor) -> Tensor:
        # Horner's rule on c2 + c3 p + ..., then p^2 in front.
        series = torch.zeros_like(data)
        for coefficient in reversed(self.coefficients.tolist()):
            series = series * data + coefficient
        return data + self.strength * series * data * data

    def tensors(self) -> dict[str, Tensor]:
        """The coefficients, (n,) float64."""
        return {"coefficients": self.coefficients}

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> PolynomialTrigger:
        """Inverse of :meth:`tensors`."""
        return cls(tensors["coefficients"], **common)
