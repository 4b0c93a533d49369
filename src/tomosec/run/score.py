"""From a seed's sample table to the metrics of every condition in it; what `rescore` repeats without a network."""

from __future__ import annotations

from collections.abc import Sequence

from tomosec.metrics.attack import attack_success_rate, classification_metrics
from tomosec.metrics.table import SampleTable
from tomosec.record import Condition

#: Inputs that carry a trigger, real or random; everything else is clean.
TRIGGERED_INPUTS = ("triggered", "random")
