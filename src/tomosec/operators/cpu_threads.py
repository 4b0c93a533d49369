"""Sharing a kernel's work among threads, and memory that starts on a cache line."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 64  # bytes; a vector across two cache lines costs 10-20 %


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an uninitialized array that starts on a cache line."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, dtype=np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="tomosec-cpu")


# A forked child inherits the executor but not its threads, and would wait for them forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def share(
    job: Callable[[int, int, Any], None], count: int, step: int, threads: int, scratch: Callable[[], Any] = lambda: None
) -> None:
    """Run ``job(start, stop, scratch)`` over ranges of ``step`` out of ``count``, in this thread and ``threads − 1`` others.

    Whoever is free takes the next range, so a busy core delays its own range only. Not Numba's ``prange``: its default
    threading layer may not be entered by two Python threads at once.

    Args:
        job: Releases the GIL; ranges may run in any order and at the same time.
        count: Size of the whole range.
        step: Size of a part.
        threads: How many threads work, this one included.
        scratch: Called once by each of them; what it returns is passed to its jobs.
    """
    starts = iter(range(0, count, step))  # next() on it is atomic

    def work() -> None:
        mine = scratch()
        for start in starts:
            job(start, min(start + step, count), mine)

    helpers = min(threads, -(-count // step)) - 1
    if helpers < 1:
        work()
        return
    waiting = [_pool(threads).submit(work) for _ in itertools.repeat(None, helpers)]
    try:
        work()
    finally:
        for future in waiting:
            future.result()
