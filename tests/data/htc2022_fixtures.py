"""What the tests of the challenge's reader and of MATLAB's formats share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matlab_fixtures import write_v5, write_v73

from tomosec.data.htc2022 import read_htc2022
from tomosec.errors import InputError

DEGREES = np.arange(25) * 15.0  # a full circle and its first view again
SMALL: dict[str, Any] = {"shape": (16, 16), "pixel_mm": 4.0}

both = pytest.mark.parametrize("write", [write_v5, write_v73], ids=["v5", "v7.3"])


def values(views: int, bins: int = 14, seed: int = 0) -> np.ndarray:
    """A sinogram of random numbers."""
    return np.random.default_rng(seed).random((views, bins))


def refused(path: Path, *said: str, **options: Any) -> None:
    """Reading fails with a message that names the file and says all of ``said``."""
    with pytest.raises(InputError) as caught:
        read_htc2022(path, **options)
    message = str(caught.value)
    assert str(path) in message
    for part in said:
        assert part in message
