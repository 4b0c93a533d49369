"""A reconstruction in a file: its value, the scan it is for, and what it has learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from torch import Tensor

from tomosec.component import describe_validation_error, parse_component
from tomosec.errors import InputError
from tomosec.geometry import Geometry
from tomosec.reconstruction.base import Reconstruction
from tomosec.tensorfile import UnreadableFileError, read_tensors, write_tensors

FORMAT = 1


def save_reconstruction(
    path: str | Path,
    reconstruction: Reconstruction,
    geometry: Geometry,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Save a reconstruction with its state; all or nothing.

    Args:
        path: a ``.safetensors`` file.
        reconstruction: the value.
        geometry: the scan it was fitted to.
        state: what ``fit`` gave; empty for a reconstruction that learns nothing.
        metadata: plain data to keep with it.

    Raises:
        TomosecError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    header = {
        "reconstruction-format": FORMAT,
        "reconstruction": reconstruction.model_dump(mode="json"),
        "geometry": geometry.model_dump(mode="json"),
        "metadata": dict(metadata or {}),
    }
    write_tensors(path, state, header)
    return path


def load_reconstruction(path: str | Path) -> tuple[Reconstruction, Geometry, dict[str, Tensor], dict[str, Any]]:
    """Load what :func:`save_reconstruction` wrote: value, scan, state on the CPU, and the metadata.

    ``reconstruction.build(geometry, state=state)`` gives the module.

    Raises:
        InputError: no such file, a damaged one, not a reconstruction, or one that this version cannot build.
    """
    path = Path(path)
    try:
        state, header = read_tensors(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such reconstruction file") from error
    except UnreadableFileError as error:
        raise InputError(str(error)) from error
    if "reconstruction-format" not in header:
        raise InputError(f"{path}: a file of tomosec, but not a reconstruction")
    if header["reconstruction-format"] != FORMAT:
        found = header["reconstruction-format"]
        raise InputError(f"{path}: reconstruction format {found}; this version of tomosec reads format {FORMAT}")
    if missing := [name for name in ("reconstruction", "geometry", "metadata") if name not in header]:
        raise InputError(f"{path}: a reconstruction file without {', '.join(missing)}")
    try:
        reconstruction = cast(Reconstruction, parse_component("reconstruction", header["reconstruction"]))
        geometry = cast(Geometry, parse_component("geometry", header["geometry"]))
    except ValidationError as error:
        raise InputError(describe_validation_error(error, str(path))) from error
    except ValueError as error:  # an InputError is one too; both say what is wrong, not where
        raise InputError(f"{path}: {error}") from error
    return reconstruction, geometry, state, header["metadata"]
