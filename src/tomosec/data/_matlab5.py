"""Whether the elements of a MATLAB 5 file fit together, checked before SciPy reads it.

SciPy looks up the type of an element without asking whether there is one, and makes room for an array before asking whether
its values are there: a damaged file ends the whole process or fills the memory. Format: The MathWorks, MAT-File Format,
chapter 1, where a file is a row of elements, each a tag (type and size) and data, and an array is made of further elements.
"""

from __future__ import annotations

import math
import struct
import zlib
from itertools import pairwise

_HEADER = 128
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED, _UTF8 = 1, 5, 6, 14, 15, 16
#: Bytes of a value by type: integers, single, double, and text in UTF-8, UTF-16 and UTF-32.
_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, _UTF8: 1, 17: 2, 18: 4}
_CELL, _STRUCT, _OBJECT, _CHAR, _SPARSE = 1, 2, 3, 4, 5
_NUMERIC, _OTHER = range(6, 16), (16, 17)  # other: functions and objects of newer kinds, which are not read
_IS_COMPLEX = 0x0800
_DEEPEST = 32

_Element = tuple[int, memoryview]


def matlab5_fault(content: bytes) -> str:
    """Return why the elements of a MATLAB 5 file do not fit together, or an empty string.

    Args:
        content: the whole file, whose header has been recognized.
    """
    order = "<" if content[126:128] == b"IM" else ">"
    try:
        for element in _elements(memoryview(content)[_HEADER:], order, align=1):
            parts = [element] if element[0] != _COMPRESSED else _elements(memoryview(zlib.decompress(element[1])), order, align=1)
            if [kind for kind, _ in parts] != [_MATRIX]:
                return "a variable is no array"
            _check_array(parts[0][1], order, 0)
    except zlib.error as error:
        return str(error)
    except (ValueError, struct.error) as error:
        return f"its elements do not fit together: {error}"
    return ""


def _elements(data: memoryview, order: str, *, align: int) -> list[_Element]:
    """Split data into the types and contents of its elements, which start at multiples of ``align`` bytes."""
    found, at = [], 0
    while at < len(data):
        (kind,) = struct.unpack_from(f"{order}I", data, at)
        if kind >> 16:  # a short element: size and type share four bytes, and four bytes of data follow
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            if size > 4:
                raise ValueError(f"a short one of {size} bytes")
        else:
            (size,) = struct.unpack_from(f"{order}I", data, at + 4)
            start = at + 8
            end = start + size + -size % align
        if start + size > len(data):
            raise ValueError(f"one of {size} bytes where {len(data) - start} are left")
        found.append((kind, data[start : start + size]))
        at = end
    return found


def _check_array(data: memoryview, order: str, depth: int) -> None:
    """Raise ValueError unless an array's flags, dimensions, name, values and inner arrays fit together."""
    if not data:  # an empty array
        return
    if depth == _DEEPEST:
        raise ValueError(f"arrays in arrays, {depth} deep")
    parts = _elements(data, order, align=8)
    for kind, inner in parts:
        if kind != _MATRIX and (kind not in _BYTES or len(inner) % _BYTES[kind]):
            raise ValueError(f"one of type {kind} and {len(inner)} bytes")
    if [kind for kind, _ in parts[:3]] != [_UINT32, _INT32, _INT8] or len(parts[0][1]) != 8:
        raise ValueError("an array without flags, dimensions and name")
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    dimensions = struct.unpack(f"{order}{len(parts[1][1]) // 4}i", parts[1][1])
    if not 2 <= len(dimensions) <= 32 or min(dimensions) < 0:
        raise ValueError(f"an array of dimensions {dimensions}")
    count, kind, rest = math.prod(dimensions), flags & 0xFF, parts[3:]
    if kind in _NUMERIC:
        _check_values(rest, count, 2 if flags & _IS_COMPLEX else 1)
    elif kind == _CHAR:
        if [part[0] for part in rest] == [_UTF8]:
            if not count <= len(rest[0][1]) <= 4 * count:
                raise ValueError(f"{len(rest[0][1])} bytes of text of {count} characters")
        else:
            _check_values(rest, count, 1)
    elif kind in (_CELL, _STRUCT, _OBJECT):
        _check_members(rest, count, kind, order, depth)
    elif kind == _SPARSE:
        _check_sparse(rest, dimensions, 2 if flags & _IS_COMPLEX else 1, order)
    elif kind not in _OTHER:
        raise ValueError(f"an array of class {kind}")


def _check_values(parts: list[_Element], count: int, times: int) -> None:
    if len(parts) != times or any(kind == _MATRIX or len(data) // _BYTES[kind] != count for kind, data in parts):
        raise ValueError(f"values that are not {times} times {count}")


def _check_sparse(parts: list[_Element], dimensions: tuple[int, ...], times: int, order: str) -> None:
    if len(dimensions) != 2 or len(parts) != 2 + times or [kind for kind, _ in parts[:2]] != [_INT32, _INT32]:
        raise ValueError("a sparse array without rows and columns")
    rows, starts = (struct.unpack(f"{order}{len(data) // 4}i", data) for _, data in parts[:2])
    fits = len(starts) == dimensions[1] + 1 and starts[0] == 0 and all(a <= b for a, b in pairwise(starts))
    if not fits or starts[-1] > len(rows) or any(not 0 <= row < dimensions[0] for row in rows[: starts[-1]]):
        raise ValueError("a sparse array whose entries lie outside")
    if any(kind == _MATRIX or len(data) // _BYTES[kind] < starts[-1] for kind, data in parts[2:]):
        raise ValueError("a sparse array without its values")


def _check_members(parts: list[_Element], count: int, kind: int, order: str, depth: int) -> None:
    if kind == _OBJECT:  # the name of its class comes first
        parts = parts[1:]
    if kind != _CELL:
        if [part[0] for part in parts[:2]] != [_INT32, _INT8] or len(parts[0][1]) != 4:
            raise ValueError("a struct without names of its fields")
        (length,) = struct.unpack(f"{order}i", parts[0][1])
        if length < 1 or len(parts[1][1]) % length:
            raise ValueError(f"names of fields with {length} bytes each")
        count, parts = count * (len(parts[1][1]) // length), parts[2:]
    if len(parts) != count or any(part[0] != _MATRIX for part in parts):
        raise ValueError(f"{len(parts)} members of a cell array or struct of {count}")
    for _, inner in parts:
        _check_array(inner, order, depth + 1)
