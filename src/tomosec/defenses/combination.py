"""One verdict from several detectors that were calibrated on the same clean scans.

The Cauchy combination (Liu and Xie, J. Am. Stat. Assoc. 115, 2020) turns p-values into T = mean of tan((1/2 − p) π), whose tail
is Cauchy's whatever the dependence between the p-values, in the limit of small ones. Here that limit is not needed: T is a score
like any other, and its p-value is its rank among the T of the held-out scans. To keep that exact, every scan's p-values are
ranks among all n + 1 scans, the judged one included, so that no scan is treated differently from the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tomosec.defenses.calibration import MIN_HELD_OUT


def cauchy_combination(p_values: Tensor) -> Tensor:
    """Return the combined p-value (...,) of p-values (..., K) in (0, 1], by Liu and Xie with equal weights."""
    # tan((1/2 - p) pi) = cot(p pi); written by sin and cos, tiny p-values keep all their digits.
    p = p_values.double().clamp(min=1e-300, max=1 - 1e-15)
    total = (torch.cos(math.pi * p) / torch.sin(math.pi * p)).mean(-1)
    return torch.atan2(torch.ones_like(total), total) / math.pi


def combine(scores: Tensor, held_out: Tensor, weights: Tensor) -> tuple[Tensor, Tensor | None]:
    """Judge scans by several detectors together.

    Args:
        scores: (B, K) of the scans by K detectors.
        held_out: (n, K) of the held-out clean scans by the same detectors.
        weights: (n,) one over the number of held-out scans of the same patient.

    Returns:
        (B,) scores, −log10 of the Cauchy combination, which go on rising where a detector's score has left all clean ones behind;
        and (B,) p-values, or None with too few patients.
    """
    patients = round(float(weights.sum()))
    every = torch.cat([weights, weights.new_ones(1)])
    found, p_values = [], []
    for own in scores.double():
        table = torch.cat([held_out.double(), own[None]])
        combined = -cauchy_combination(_ranks(table, every)).log10()
        found.append(combined[-1])
        p_values.append((every[combined >= combined[-1]]).sum() / (patients + 1))
    score = torch.stack(found) if found else scores.new_zeros(0).double()
    if patients < MIN_HELD_OUT:
        return score, None
    return score, torch.stack(p_values).clamp(max=1.0) if p_values else scores.new_zeros(0).double()


def _ranks(table: Tensor, weights: Tensor) -> Tensor:
    """Each row's p-value among the others by column, (n, K) → (n, K), in (0, 1).

    Half of a row's own weight is taken off, so that the least suspicious row is not at 1. The first of a column, which has no
    rank to rise to, goes on falling as (1 + d / spread)⁻¹ with its distance d from the second, the spread being that of the
    others' upper quarter: so scores beyond all clean ones stay ordered.
    """
    total = float(weights.sum())
    out = torch.empty_like(table)
    for column in range(table.shape[1]):
        values = table[:, column]
        order, place = torch.unique(values, return_inverse=True)
        mass = torch.zeros_like(order).index_add_(0, place, weights)
        above = mass.flip(0).cumsum(0).flip(0)[place]
        p = (above - weights / 2) / total
        first = int(values.argmax())
        if len(order) > 1 and int((values == values[first]).sum()) == 1:
            others = torch.cat([values[:first], values[first + 1 :]])
            quarter = torch.quantile(others, 0.75)
            spread = float((others[others >= quarter] - quarter).mean())
            distance = float(values[first] - others.max())
            p[first] = p[first] / (1 + distance / spread) if spread > 0 else p[first] / (1 + distance)
        out[:, column] = p
    return out
