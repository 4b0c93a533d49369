"""Counter-based random numbers: every draw is named, so it does not depend on batch, order, worker or device.

``generator(seed, "noise", sample_key, draw)`` gives the same numbers whenever and wherever it is asked for, which makes a
clean and a triggered scan share their noise, and an interrupted training end where an uninterrupted one does.
"""

from __future__ import annotations

import hashlib

import numpy as np


def _digest(key: tuple[str | int, ...]) -> bytes:
    # The parts are length-prefixed so that ("ab", "c") and ("a", "bc") differ.
    text = b"".join(f"{type(part).__name__}:{len(str(part))}:{part}|".encode() for part in key)
    return hashlib.sha256(text).digest()


def generator(*key: str | int) -> np.random.Generator:
    """Return a Philox generator whose stream is a function of ``key`` alone."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(key)[:16], "little")))


def torch_seed(*key: str | int) -> int:
    """Return a seed for ``torch.manual_seed`` (63 bit), for what only torch can draw: initial weights and dropout."""
    return int.from_bytes(_digest(key)[:8], "little") >> 1
