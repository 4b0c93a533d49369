"""Hounsfield units: the one place that knows the attenuation of water.

HU appear at input, output, display and in metrics; everything between works in linear attenuation, 1/mm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Linear attenuation of water, 1/mm, at the effective energy of chest CT.
MU_WATER = 0.0192
#: What is left of a stored image before it is projected; the upper end is that of 12-bit CT.
HU_RANGE = (-1000.0, 3071.0)
#: Change of attenuation in 1/mm to change in HU.
HU_PER_MU = 1000.0 / MU_WATER


def hu_to_mu(hu: NDArray[np.floating] | float) -> NDArray[np.float32]:
    """Linear attenuation in 1/mm of Hounsfield units, after clipping to [-1000, 3071] HU; air is 0."""
    clipped = np.clip(np.asarray(hu, dtype=np.float32), *HU_RANGE)
    return (MU_WATER * (1.0 + clipped / 1000.0)).astype(np.float32)


def mu_to_hu(mu: NDArray[np.floating] | float) -> NDArray[np.float32]:
    """Hounsfield units of linear attenuation in 1/mm, unclipped."""
    return (np.asarray(mu, dtype=np.float32) * HU_PER_MU - 1000.0).astype(np.float32)
