"""One verdict from several detectors that were calibrated on the same clean scans.

The half-Cauchy combination turns p-values into T = mean of cot(p π / 2), whose tail is half-Cauchy's whatever the dependence
between them, in the limit of small ones, as that of the Cauchy combination (Liu and Xie, J. Am. Stat. Assoc. 115, 2020) is
Cauchy's. The two differ in large p-values: there Cauchy's terms go to −∞, and detectors that find a scan calmer than all
clean ones, such as a smoothed one, would outvote the one that finds it far too quiet (the penalty that Fang, Chang, Park and
Tseng, arXiv 2103.12967, describe). Half-Cauchy's go to 0.

The limit of small p-values is not needed: T is a score like any other, and its p-value is its rank among the T of held-out
scans. To keep that exact, every scan's p-values are ranks among all n + 1 scans, the judged one included, and the held-out
scans are of as many patients, so that no scan is treated differently from the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tomosec.defenses.calibration import MIN_HELD_OUT


def half_cauchy_combination(p_values: Tensor) -> Tensor:
    """Return the combined p-value (...,) of p-values (..., K) in (0, 1], with equal weights."""
    # cot by sin and cos: tiny p-values keep all their digits.
    half = p_values.double().clamp(min=1e-300, max=1.0) * (math.pi / 2)
    total = (torch.cos(half) / torch.sin(half)).clamp_min(0).mean(-1)
    return torch.atan2(torch.ones_like(total), total) * (2 / math.pi)


def combine(scores: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor | None]:
    """Judge scans by several detectors together.

    Args:
        scores: (B, K) of the scans by K detectors.
        held_out: (n, K) of held-out clean scans of n patients, one of each (:attr:`Halves.one_each`), by the same detectors.

    Returns:
        (B,) scores, −log10 of the half-Cauchy combination, which go on rising where a detector's score has left all clean ones
        behind; and (B,) p-values, or None with too few patients.
    """
    found, p_values = [], []
    for own in scores.double():
        table = torch.cat([held_out.double(), own[None]])
        combined = -half_cauchy_combination(_ranks(table)).log10()
        found.append(combined[-1])
        p_values.append((combined >= combined[-1]).double().mean())
    score = torch.stack(found) if found else scores.new_zeros(0).double()
    if len(held_out) < MIN_HELD_OUT:
        return score, None
    return score, torch.stack(p_values) if p_values else scores.new_zeros(0).double()


def _ranks(table: Tensor) -> Tensor:
    """Each row's p-value among the others by column, (n, K) → (n, K), in (0, 1).

    Half of a row is taken off, so that the least suspicious one is not at 1. The first of a column, which has no
    rank to rise to, goes on falling as (1 + d / spread)⁻¹ with its distance d from the second, the spread being that of the
    others' upper quarter: so scores beyond all clean ones stay ordered.
    """
    out = torch.empty_like(table)
    for column, values in enumerate(table.T):
        above = (values[None, :] >= values[:, None]).sum(1)
        p = (above - 0.5) / len(values)
        first = int(values.argmax())
        if len(values) > 1 and int(above[first]) == 1:
            others = torch.cat([values[:first], values[first + 1 :]])
            quarter = torch.quantile(others, 0.75)
            spread = float((others[others >= quarter] - quarter).mean())
            distance = float(values[first] - others.max())
            p[first] = p[first] / (1 + distance / spread) if spread > 0 else p[first] / (1 + distance)
        out[:, column] = p
    return out
