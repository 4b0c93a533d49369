"""A scan in a neutral file: line integrals and the geometry that they were measured in, as NPZ or HDF5; only reading.

An NPZ file holds the arrays ``line_integrals``, (views, bins) real numbers, and ``geometry``, text: the JSON of a geometry
component, what ``geometry.model_dump_json()`` gives. Optional are ``attributes``, JSON of text and numbers by name, and ``key``,
the scan's name, else that of the file. HDF5 has the same: a dataset ``line_integrals``, and ``geometry`` and everything else as
attributes of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tomosec.component import describe_validation_error, parse_component
from tomosec.data.hdf5 import Hdf5
from tomosec.data.measured import Measurement, require_finite
from tomosec.data.npz import Npz
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam

NPZ = ".npz"
HDF5 = frozenset({".h5", ".hdf5", ".nxs"})


def parse_geometry(value: object, where: str) -> FanBeam | ParallelBeam:
    """Return a geometry from its JSON or from a mapping.

    Args:
        value: JSON text, or a mapping with ``kind`` and the fields.
        where: names it in messages.

    Raises:
        InputError: no JSON, no geometry, or fields that are wrong.
    """
    if isinstance(value, str):
        value = _json(value, where)
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: found {type(value).__name__}; a geometry is an object with a kind, fan-beam or parallel-beam")
    try:
        geometry = parse_component("geometry", value)
    except ValidationError as error:
        raise InputError(describe_validation_error(error, where)) from error
    except ValueError as error:  # an InputError is one too; both say what is wrong, not where
        raise InputError(f"{where}: {error}") from error
    if not isinstance(geometry, FanBeam | ParallelBeam):
        raise InputError(f"{where}: a geometry of kind {geometry.kind}; fan-beam and parallel-beam are read")
    return geometry


def read_measurement(path: str | Path, *, geometry: FanBeam | ParallelBeam | None = None) -> Measurement:
    """Read a scan from ``.npz``, ``.h5`` or ``.hdf5``; see the module for what is in it.

    Args:
        path: the file.
        geometry: of a file that states none; the file's own goes first.

    Raises:
        InputError: another kind of file, a missing or damaged array, values that are not finite real numbers, text that is no
            JSON, or a geometry of another shape.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == NPZ:
        npz = Npz(path)
        npz.require(["line_integrals"] if geometry is not None else ["line_integrals", "geometry"])
        texts = {
            name: _text(npz.array(name), f"{path}: {name}") for name in ("geometry", "attributes", "key") if name in npz.names
        }
        attributes = _attributes(texts.get("attributes", "{}"), f"{path}: attributes")
        # Before the values are read: a file may claim any number of them.
        scan = _fitting_geometry(texts.get("geometry", geometry), *npz.header("line_integrals"), path)
        found, key = npz.array("line_integrals"), texts.get("key", path.stem)
    elif suffix in HDF5:
        with Hdf5(path) as file:
            attributes = file.attributes()
            header = file.header("line_integrals")
            stated = attributes.pop("geometry", geometry)
            if stated is None:
                raise InputError(f"{path}: no attribute 'geometry'; it is JSON of a fan-beam or parallel-beam geometry")
            scan = _fitting_geometry(stated, *header, path)
            found = file.array("line_integrals")
        key = str(attributes.pop("key", path.stem))
    else:
        raise InputError(f"{path}: a measurement is a .npz, .h5 or .hdf5 file, found {suffix or 'no suffix'!r}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is reported as that
        values = found.astype(np.float32, order="C")
    require_finite(values, f"{path}: line_integrals")
    return Measurement(values, scan, key, attributes)


def _fitting_geometry(stated: object, shape: tuple[int, ...], dtype: np.dtype[Any], path: Path) -> FanBeam | ParallelBeam:
    """The geometry, itself or as JSON, of line integrals of that shape and type."""
    if len(shape) != 2 or dtype.kind not in "iuf":
        raise InputError(f"{path}: line_integrals is {dtype} of shape {shape}; real numbers (views, bins) are needed")
    geometry = stated if isinstance(stated, FanBeam | ParallelBeam) else parse_geometry(stated, f"{path}: geometry")
    require_fit(shape, geometry, f"{path}: line_integrals")
    return geometry


def require_fit(shape: tuple[int, ...], geometry: FanBeam | ParallelBeam, where: str) -> None:
    """Raise InputError where an array of that shape has not the (views, bins) of a geometry."""
    if shape != geometry.sinogram_shape:
        raise InputError(f"{where} has shape {shape}, and the geometry has {geometry.sinogram_shape} (views, bins)")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from error


def _text(value: NDArray[Any], where: str) -> str:
    if value.dtype.kind != "U" or value.size != 1:
        raise InputError(f"{where} is {value.dtype} of shape {value.shape}; one text is needed")
    return str(value.reshape(-1)[0])


def _attributes(text: str, where: str) -> dict[str, str | float]:
    found = _json(text, where)
    if not isinstance(found, dict):
        raise InputError(f"{where}: found {type(found).__name__}; an object of text and numbers by name is needed")
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InputError(f"{where}: {name} is {type(value).__name__}; text and numbers are read")
    return {name: value if isinstance(value, str) else float(value) for name, value in found.items()}
