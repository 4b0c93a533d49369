"""p-values by calibration."""

from __future__ import annotations

import torch
from torch import Tensor


def p_values(scores: Tensor, calibration: Tensor) -> Tensor:
    """(B,) chance of a clean score to be at least as high: (1 + number of calibration scores >= score) / (n + 1)."""
    above = (calibration.flatten()[None, :] >= scores.flatten()[:, None]).sum(1)
    return (1 + above).to(torch.float64) / (calibration.numel() + 1)
