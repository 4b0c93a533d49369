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
#: Value representations of numbers written as text.
_TEXT_NUMBERS = ("DS", "IS")


def raw_of(data: Any, element: Element) -> Any:
    """Return the value as pydicom holds it before any conversion, mostly bytes; None where it is missing."""
    found = data.get_item(element)
    return None if found is None else found.value


def _type_of(data: Any, element: Element) -> str:
    """Return the value representation that the file states, empty where it states none: implicit coding has only values."""
    found = data.get_item(element)
    return str(getattr(found, "VR", None) or "")


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
    """Return a value of type US or SS as an unsigned number; None where it is missing or of a type that is no number."""
    value, kind = raw_of(data, element), _type_of(data, element)
    if kind in _TEXT_NUMBERS:
        number = number_of(data, element)
        return int(number) if number is not None and number.is_integer() and number >= 0 else None
    if isinstance(value, bytes):
        size = 4 if kind in ("UL", "SL") else 2
        little = data.original_encoding[1] is not False
        known = kind in ("", "UN", "US", "SS", "US or SS", "UL", "SL", "OW")
        return int.from_bytes(value[:size], "little" if little else "big") if known and len(value) >= size else None
    return None if value is None or value == "" else int(value) & 0xFFFF


def floats_of(data: Any, element: Element) -> list[float]:
    """Return real numbers: FL, which a file may also call unknown, or what another program made of it: FD, DS or IS.

    Empty where they are missing, too short, or of a type that is no number, whose bytes would make a wrong one.
    """
    value, kind = raw_of(data, element), _type_of(data, element)
    if kind in _TEXT_NUMBERS:
        return numbers_of(data, element)
    if isinstance(value, bytes):
        if kind not in ("", "UN", "FL", "OF", "FD", "OD"):
            return []
        size = 8 if kind in ("FD", "OD") else 4
        order = "<" if data.original_encoding[1] is not False else ">"
        return [float(item) for item in np.frombuffer(value[: len(value) // size * size], dtype=f"{order}f{size}")]
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
