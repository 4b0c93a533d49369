"""How much memory a stage takes. Linux can start the peak of a process anew; elsewhere only the peak so far is known."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: Largest peak before any of them was started anew, MB.
_before = 0.0


class StageMemory:
    """Peak memory of a stage above what was held when it began, in MB.

    Args:
        device: where the stage works; on a GPU, it is the GPU's memory that counts.
    """

    def __init__(self, device: torch.device) -> None:
        global _before
        _before = peak_memory_mb(torch.device("cpu"))
        self._device, self._held = device, None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._held = torch.cuda.memory_allocated(device) / 2**20
        else:
            try:
                _CLEAR.write_text("5")  # the peak starts anew from what is held now
                self._held = _status("VmRSS")
            except OSError:
                return

    def used_mb(self) -> float | None:
        """Peak since the beginning above what was held then; None where the system cannot tell."""
        if self._held is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20 - self._held
        peak = _status("VmHWM")
        return None if peak is None else max(0.0, peak - self._held)


def _status(name: str) -> float | None:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1]) / 1024
    return None


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory in MB so far: of the GPU where there is one, else of this process; 0 where the system cannot tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return 0.0
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(_before, kilobytes / 2**20 if sys.platform == "darwin" else kilobytes / 2**10)
