"""Which code, packages and machine made a number."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import tomosec
from tomosec.record import Provenance, host_hash

PACKAGES = ("torch", "numpy", "numba", "scipy", "monai", "torchmetrics", "pydantic", "pydicom", "safetensors")


def provenance(device: torch.device) -> Provenance:
    """Collect the provenance of this process."""
    commit, changed = _git()
    return Provenance(
        tomosec=_version("tomosec") or "unknown",
        commit=commit,
        uncommitted_changes=changed,
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _version(name))},
        platform=f"{platform.system()} {platform.machine()}",
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.processor() or platform.machine()})",
        threads=torch.get_num_threads(),
        host_hash=host_hash(),
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _git() -> tuple[str, bool | None]:
    """Commit of the checkout that tomosec is imported from, and whether it was changed; ("", None) for an installed package."""
    folder = Path(tomosec.__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return "", None
    try:
        return _run_git(folder, "rev-parse", "HEAD"), bool(_run_git(folder, "status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):
        return "", None


def _run_git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 (fixed arguments)
    return done.stdout.strip()
