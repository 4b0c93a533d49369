"""Structs in MATLAB files: version 5 through SciPy, version 7.3 (HDF5) through h5py, both as the same plain values.

What MATLAB stores otherwise than it shows is undone here: HDF5 holds arrays transposed and text as UTF-16 codes, and an empty
array as its size. Only numbers, text and nested structs are read; nothing in a file is evaluated, and no file leads to another.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat, whosmat
from scipy.io.matlab import MatReadWarning

from tomosec.data._matlab5 import matlab5_fault
from tomosec.errors import InputError, nearest

_HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512  # bytes of MATLAB's text header before the HDF5 file itself
_NUMERIC = frozenset(
    {"double", "single", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "logical", ""}
)
_DEEPEST = 4  # structs in structs; a damaged HDF5 file may contain itself

Value: TypeAlias = "str | NDArray[Any] | Struct | Unread"


@dataclass(frozen=True, slots=True)
class Unread:
    """A value of a type that is not read, such as a cell array; ``description`` says which."""

    description: str


@dataclass(frozen=True, slots=True, eq=False)
class Struct:
    """One MATLAB struct. The accessors name file and field when a value is not what is asked for.

    Attributes:
        where: file and name, for messages.
        fields: text, arrays as MATLAB shows them (at least two axes), structs, and :class:`Unread` for all else.
    """

    where: str
    fields: Mapping[str, Value]

    def wrong(self, name: str, problem: str) -> InputError:
        """Return the error for a field, to be raised."""
        return InputError(f"{self.where}.{name}: {problem}")

    def _value(self, name: str) -> Value:
        if name not in self.fields:
            there = ", ".join(self.fields) or "none"
            raise self.wrong(name, f"no such field{nearest(name, self.fields)}; the fields are {there}")
        return self.fields[name]

    def _mismatch(self, name: str, wanted: str) -> InputError:
        return self.wrong(name, f"{wanted} is needed, found {describe(self.fields[name])}")

    def struct(self, name: str) -> Struct:
        """Return a nested struct, or raise InputError: missing, or something else."""
        value = self._value(name)
        if not isinstance(value, Struct):
            raise self._mismatch(name, "a struct")
        return value

    def text(self, name: str) -> str:
        """Return text without surrounding blanks, or raise InputError: missing, or something else."""
        value = self._value(name)
        if not isinstance(value, str):
            raise self._mismatch(name, "text")
        return value.strip()

    def array(self, name: str) -> NDArray[Any]:
        """Return an array of real numbers in its own type, or raise InputError: missing, or something else."""
        value = self._value(name)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
            raise self._mismatch(name, "an array of real numbers")
        return value

    def number(self, name: str) -> float:
        """Return a finite number, stored as a number or as text.

        Raises:
            InputError: missing, not one number, not a number, or not finite.
        """
        value = self._value(name)
        number = math.nan
        if isinstance(value, str):
            with suppress(ValueError):
                number = float(value)
        else:
            array = self.array(name)
            if array.size != 1:
                raise self._mismatch(name, "one number")
            number = float(array.item())
        if not math.isfinite(number):
            raise self._mismatch(name, "a finite number")
        return number


def describe(value: Value) -> str:
    """Return a value as short text: a number or text as it is, a short vector as its numbers, anything else as its type."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, Struct):
        return "a struct"
    if isinstance(value, Unread):
        return value.description
    if 0 < value.size <= 8 and value.dtype.kind in "iufb":
        return " ".join(str(item) for item in value.ravel())
    return f"a {' x '.join(map(str, value.shape))} array of {value.dtype}"


def read_struct(path: Path, names: Sequence[str]) -> tuple[str, Struct]:
    """Read the first of ``names`` that a MATLAB file has, whatever else is in it.

    Args:
        path: a file saved with ``-v6``, ``-v7`` (both version 5) or ``-v7.3``; its content decides, not its name.
        names: names of variables, the preferred one first.

    Returns:
        The name that was found, and the struct.

    Raises:
        InputError: no such file or a folder, no MATLAB file, a damaged one, none of ``names`` in it, a variable that is not
            one struct, or a version 7.3 file without h5py.
    """
    load = {"v5": _load_v5, "v7.3": _load_hdf5}[_version(path)]
    try:
        found, there = load(path, names)
    except InputError:
        raise
    except Exception as error:  # SciPy and h5py meet damage with many types; all of them mean this file
        raise InputError(f"{path}: damaged or truncated MATLAB file ({type(error).__name__}: {error})") from error
    for name in names:
        if name in found:
            value = found[name]
            if not isinstance(value, Struct):
                raise InputError(f"{path}: {name} must be a struct, found {describe(value)}")
            return name, value
    listed = ", ".join(there) or "none"
    raise InputError(f"{path}: no variable {' or '.join(names)}{nearest(names[0], there)}; the variables are {listed}")


def _version(path: Path) -> Literal["v5", "v7.3"]:
    if path.is_dir():
        raise InputError(f"{path}: a folder; a MATLAB file is needed")
    try:
        with path.open("rb") as file:
            header = file.read(_USER_BLOCK + len(_HDF5))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if header.startswith(b"MATLAB 7.3") and header[_USER_BLOCK:] == _HDF5:
        return "v7.3"
    if header[124:128] in (b"\x00\x01IM", b"\x01\x00MI"):
        return "v5"
    if header.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git LFS pointer in place of the file; fetch the file itself with 'git lfs pull'")
    found = "a truncated MATLAB file, or one" if header.startswith(b"MATLAB") else "no MATLAB file, or one"
    raise InputError(f"{path}: {found} of a version that is not read; 5 (saved with -v6 or -v7) and 7.3 are")


def _load_v5(path: Path, names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    fault = matlab5_fault(path.read_bytes())
    if fault:
        raise InputError(f"{path}: damaged or truncated MATLAB file ({fault})")
    with warnings.catch_warnings():
        # SciPy warns and goes on where a variable is damaged or there twice, which leaves text or the wrong one in its place.
        warnings.simplefilter("error", MatReadWarning)
        loaded = loadmat(
            path, appendmat=False, variable_names=list(names), struct_as_record=True, squeeze_me=False, chars_as_strings=True
        )
        found = {name: _from_v5(loaded[name], f"{path}: {name}", 0) for name in names if name in loaded}
        return found, list(found) or [name for name, _, _ in whosmat(path, appendmat=False)]


def _from_v5(value: Any, where: str, depth: int) -> Value:
    if not isinstance(value, np.ndarray):
        return Unread(f"a value of type {type(value).__name__}")
    if value.dtype.names is not None:
        if value.size != 1 or depth == _DEEPEST or type(value) is not np.ndarray:
            return Unread(f"a {' x '.join(map(str, value.shape))} array of structs or objects")
        record = value.reshape(-1)[0]
        return Struct(where, {name: _from_v5(record[name], f"{where}.{name}", depth + 1) for name in value.dtype.names})
    if value.dtype.kind == "U":
        return "\n".join(value.ravel())
    if value.dtype.kind not in "iufbc":
        return Unread(f"a {' x '.join(map(str, value.shape))} cell array or object")
    return value


def _load_hdf5(path: Path, names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f'{path}: a MATLAB 7.3 file is HDF5, and h5py is not installed; pip install "tomosec[hdf5]", or save it with -v7'
        ) from error
    with h5py.File(path, "r") as file:
        there = [name for name in file if not name.startswith("#")]
        return {name: _member(h5py, file, name, f"{path}: {name}", 0) for name in names if name in there}, there


def _member(h5py: Any, group: Any, name: str, where: str, depth: int) -> Value:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise InputError(f"{where}: a link to another place or file; MATLAB writes none")
    return _from_hdf5(h5py, group[name], where, depth)


def _from_hdf5(h5py: Any, item: Any, where: str, depth: int) -> Value:
    kind = item.attrs.get("MATLAB_class", "")
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
    if isinstance(item, h5py.Group):
        if kind != "struct" or depth == _DEEPEST:
            return Unread(f"a value of class {kind or 'unknown'}")
        return Struct(where, {name: _member(h5py, item, name, f"{where}.{name}", depth + 1) for name in item})
    shape = " x ".join(map(str, reversed(item.shape)))
    if item.external is not None or item.is_virtual:
        raise InputError(f"{where}: its values lie in another file; MATLAB writes none so")
    if not kind and h5py.check_ref_dtype(item.dtype) is h5py.Reference and item.size == 1 and depth < _DEEPEST:
        # How the fields of an array of structs are stored, here of one.
        return _from_hdf5(h5py, item.file[item[()].item()], where, depth + 1)
    if kind != "char" and (kind not in _NUMERIC or item.dtype.kind not in "iufb"):
        return Unread(f"a {shape} array of class {kind or item.dtype}")
    if item.attrs.get("MATLAB_empty", 0):
        return "" if kind == "char" else np.zeros(tuple(item[()].ravel()), dtype=np.float64)
    values = np.asarray(item[()]).T
    if kind == "char":
        return "\n".join(row.astype("<u2").tobytes().decode("utf-16-le") for row in np.atleast_2d(values))
    return np.ascontiguousarray(values)
