"""Named tensors and one JSON header in a safetensors file: written all or nothing, checked when read. Never a pickle."""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tomosec.errors import TomosecError
from tomosec.files import replacing

HEADER = "tomosec"


class UnreadableFileError(TomosecError):
    """A file that is damaged or was not written by :func:`write_tensors`; the message says which and names it."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a header of plain data; a reader finds the old file or the new one.

    Args:
        path: its folder is made where missing.
        tensors: any device and memory format; they are stored contiguous.
        header: JSON-serialisable; ``crc32`` is added.

    Raises:
        TomosecError: the disk is full or the folder cannot be written; the message names the path, and what was there stays.
    """
    # A copy each, because safetensors refuses tensors that share memory.
    stored = {name: _own_copy(tensor) for name, tensor in tensors.items()}
    text = json.dumps({**header, "crc32": _checksum(stored)}, sort_keys=True, allow_nan=False)
    # Not save_file: it writes under a temporary name of its own, which a killed process would leave behind for good.
    with replacing(path) as temporary:
        temporary.write_bytes(save(stored, metadata={HEADER: text}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote, on the CPU.

    Raises:
        UnreadableFileError: the file is truncated, altered or of another kind.
        FileNotFoundError: there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
            if text is None:
                raise UnreadableFileError(f"{path}: a safetensors file, but not one of tomosec's")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a handle is not a mapping)
        header: dict[str, Any] = json.loads(text)
        expected = header.pop("crc32")
    except (SafetensorError, OSError, KeyError, AttributeError, ValueError) as error:
        raise UnreadableFileError(f"{path}: not a readable safetensors file ({error})") from error
    if _checksum(tensors) != expected:
        raise UnreadableFileError(f"{path}: the content does not match its checksum")
    return tensors, header


def _own_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 over names and bytes: safetensors checks sizes only, and a damaged weight is still a number."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        # As bytes, because numpy has no bfloat16.
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value
