"""Small format-true files of the Helsinki Tomography Challenge 2022: the bytes that MATLAB writes, with scans made here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.io import savemat


def htc_scan(sinogram: np.ndarray, angles: np.ndarray, /, **changes: Any) -> dict[str, Any]:
    """The fields of a CtDataFull or CtDataLimited; ``changes`` go to the parameters, None removes one.

    The scanner is the challenge's with ``bins`` bins over the same detector, and numbers are text where the challenge has text.
    """
    bins = sinogram.shape[1]
    parameters = {
        "projectName": "htc2022_tz_",
        "scanner": "University of Helsinki Industrial Mathematics Computed Tomography Laboratory",
        "measurers": "Alexander Meaney, Tommi Heikkilä",
        "date": "20220616",
        "geometryType": "Cone",
        "distanceSourceOrigin": 410.66,
        "distanceSourceDetector": 553.74,
        "distanceUnit": "mm",
        "geometricMagnification": 553.74 / 410.66,
        "numberImages": np.uint16(len(angles)),
        "angles": np.asarray(angles, dtype=np.float64)[None],
        "exposureTime": "1200",
        "voltage": "45",
        "freeRayAtDetector": np.array([[1, 128, 1, 128]], dtype=np.uint8),
        "pixelSizePost": 0.2 * 560 / bins,
        "effectivePixelSizePost": 0.2 * 410.66 / 553.74,
        "numDetectorsPost": np.uint16(bins),
    } | changes
    kept = {name: value for name, value in parameters.items() if value is not None}
    return {"type": "2d", "sinogram": np.asarray(sinogram), "parameters": kept}


def write_v5(path: Path, *, compressed: bool = True, **variables: Any) -> Path:
    """Write variables as MATLAB's ``-v7`` does, or its ``-v6`` where not compressed: both version 5."""
    savemat(path, variables, appendmat=False, do_compression=compressed)
    return path


def write_v73(path: Path, **variables: Any) -> Path:
    """Write variables as MATLAB's ``-v7.3`` does: HDF5 after a text header, arrays transposed, text as UTF-16 codes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        empty = file.create_group("#refs#").create_dataset("a", data=np.zeros(2, dtype=np.uint64))
        empty.attrs["MATLAB_class"] = np.bytes_("canonical empty")
        empty.attrs["MATLAB_empty"] = np.uint8(1)
        for name, value in variables.items():
            _write(file, name, value)
    text = b"MATLAB 7.3 MAT-file, Platform: PCWIN64, Created on: Thu Oct 27 11:24:20 2022 HDF5 schema 1.00 ."
    with path.open("r+b") as file:
        file.write(text.ljust(116) + bytes(8) + b"\x00\x02IM")
    return path


def _write(group: h5py.Group, name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        item = group.create_group(name)
        item.attrs["MATLAB_class"] = np.bytes_("struct")
        names = np.empty(len(value), dtype=object)
        names[:] = [np.frombuffer(field.encode(), dtype="S1") for field in value]
        item.attrs.create("MATLAB_fields", names, dtype=h5py.vlen_dtype(np.dtype("S1")))
        for field, inner in value.items():
            _write(item, field, inner)
    elif isinstance(value, list):  # a cell array: references to what lies in #refs#
        references = np.empty((len(value), 1), dtype=h5py.ref_dtype)
        for index, inner in enumerate(value):
            hidden = f"{name}{index}"
            _write(group.file["#refs#"], hidden, inner)
            references[index, 0] = group.file["#refs#"][hidden].ref
        group.create_dataset(name, data=references, dtype=h5py.ref_dtype).attrs["MATLAB_class"] = np.bytes_("cell")
    elif isinstance(value, str):
        if value:
            codes = np.frombuffer(value.encode("utf-16-le"), dtype="<u2")[:, None]
            item = group.create_dataset(name, data=codes)
        else:
            item = group.create_dataset(name, data=np.zeros(2, dtype=np.uint64))
            item.attrs["MATLAB_empty"] = np.uint8(1)
        item.attrs["MATLAB_class"] = np.bytes_("char")
        item.attrs["MATLAB_int_decode"] = np.int32(2)
    else:
        array = np.atleast_2d(value)
        packed = {"compression": "gzip"} if array.size > 1000 else {}
        item = group.create_dataset(name, data=array.T, **packed)
        kind = {"float64": "double", "float32": "single", "bool": "logical"}.get(array.dtype.name, array.dtype.name)
        item.attrs["MATLAB_class"] = np.bytes_(kind)
