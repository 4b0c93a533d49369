"""Values of DICOM elements, decoded from their raw bytes and text.

pydicom's types are not used, because archives hold identifiers and decimals that break the standard (the identifiers of
COVID-CT-MD are GUIDs), and private elements whose type a file does not say; nothing here depends on them being valid.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from tomosec.errors import InputError

#: A keyword of the standard, or the group and number of a private element.
Element: TypeAlias = str | tuple[int, int]


def raw_of(data: Any, element: Element) -> Any:
    """Return the value as pydicom holds it before any conversion, mostly bytes; None where it is missing."""
    found = data.get_item(element)
    return None if found is None else found.value


def text_of(data: Any, element: Element) -> str:
    """Return a value as text without its padding; empty where it is missing."""
    value = raw_of(data, element)
    if isinstance(value, bytes):
        # Only ASCII facts are compared; a name in another character set must not stop the scan.
        value = value.decode("latin-1")
    if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        value = "\\".join(map(str, value))
    return "" if value is None else str(value).strip(" \0")


def numbers_of(data: Any, element: Element) -> list[float]:
    """Return decimals written as text (DS, IS); empty where it is missing or one of them is no finite number."""
    out = []
    for part in text_of(data, element).split("\\"):
        try:
            value = float(part)
        except ValueError:
            return []
        if not math.isfinite(value):
            return []
        out.append(value)
    return out


def number_of(data: Any, element: Element) -> float | None:
    """Return the first of :func:`numbers_of`, or None."""
    values = numbers_of(data, element)
    return values[0] if values else None


def integer_of(data: Any, element: Element) -> int | None:
    """Return a value of type US or SS as an unsigned number."""
    value = raw_of(data, element)
    if isinstance(value, bytes):
        little = data.original_encoding[1] is not False
        return int.from_bytes(value[:2], "little" if little else "big") if len(value) >= 2 else None
    return None if value is None or value == "" else int(value) & 0xFFFF


def floats_of(data: Any, element: Element) -> list[float]:
    """Return values of type FL, whatever type the file or a dictionary gives them; empty where they are missing or too short."""
    value = raw_of(data, element)
    if isinstance(value, bytes):
        order = "<" if data.original_encoding[1] is not False else ">"
        return [float(item) for item in np.frombuffer(value[: len(value) // 4 * 4], dtype=f"{order}f4")]
    if value is None:
        return []
    several = isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue"
    return [float(item) for item in (value if several else [value])]


def load_file(path: Path, *, pixels: bool) -> Any:
    """Read a DICOM file.

    Raises:
        InputError: not DICOM, unreadable, or damaged; the message names the file.
    """
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except InvalidDicomError as error:
        raise InputError(f"{path}: not a DICOM file (no 'DICM' after the preamble)") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # pydicom meets damage with many types; all of them mean this file
        raise InputError(f"{path}: damaged or truncated DICOM file ({type(error).__name__}: {error})") from error


def syntax_of(data: Any) -> UID | None:
    """Return the transfer syntax, or None where it is missing or is none that DICOM knows."""
    value = data.file_meta.get("TransferSyntaxUID")
    return value if isinstance(value, UID) and value.is_transfer_syntax and not value.is_private else None
