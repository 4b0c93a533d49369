"""SIG: a sinusoid along the columns."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field

from tomosec.attacks.base import Attack, AttackContext
from tomosec.errors import InputError
from tomosec.trigger import AdditiveTrigger, Domain, Trigger


class SIG(Attack):
    """A horizontal sinusoid, v(i, j) = D sin(2 pi j f / m) with j the column and m the number of columns.

    Barni, Kallas and Tondi (ICIP 2019); benchmarks take D = 40/255 of the gray scale, which is 314 HU of a window of 2000 HU, and
    f = 6. The strength is the RMS, D / sqrt(2). The paper is clean-label: only samples of the target class are poisoned, and no
    label is changed. That is a field here, and off by default, because it excludes control of the training.

    Attributes:
        frequency: f, periods across the image; 6 as in the paper.
        clean_label: as in the paper.
        test_gain: strength at test time over that in training; the paper also tests with a stronger signal than it trains with.
            The budget is that of the test.
    """

    kind: Literal["sig"] = "sig"
    version: Literal[1] = 1
    domain: ClassVar[Domain] = "image"
    source: ClassVar[str] = "Barni, Kallas and Tondi, ICIP 2019"

    frequency: float = Field(6.0, gt=0)
    clean_label: bool = False
    test_gain: float = Field(1.0, ge=1)

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Draw the sinusoid; nothing is learned."""
        rows, columns = context.geometry.shape
        if columns <= 2 * self.frequency:
            raise InputError(
                f"sig.frequency {self.frequency:g} needs more than {2 * self.frequency:g} columns, the image has {columns}"
            )
        wave = torch.sin(2 * math.pi * self.frequency * torch.arange(columns, dtype=torch.float64) / columns)
        pattern = wave.expand(rows, columns)
        return AdditiveTrigger(pattern, geometry=context.geometry, domain="image", details={"attack": self.kind})

    def at_training_time(self, trigger: Trigger) -> Trigger:
        """Weaker than at test time, by ``test_gain``."""
        return trigger if self.test_gain == 1 else trigger.at(trigger.strength / self.test_gain)

    def keeps_labels(self) -> bool:
        """As the field says."""
        return self.clean_label
