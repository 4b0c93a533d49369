"""Measured fan-beam data of the Helsinki Tomography Challenge 2022 (Meaney, Silva de Moura and Siltanen, Zenodo 6984868).

A file holds one sinogram of an acrylic disc (70 mm, with holes) from the central row of a cone-beam scanner with a flat
detector: a struct ``CtDataFull`` with 721 views of 560 bins over 360 degrees, or ``CtDataLimited`` with a part of them, in
version 5 or 7.3 of MATLAB's format. The values are line integrals, corrected and logged by the authors.

What was found on the published scan ``ta``, and how this reader takes it:

* With the bins in stored order, growing angles turn **clockwise**: tomosec's view angle is minus the listed one. The other
  direction doubles every edge. The image is then the challenge's own reference with its rows in reverse order (a threshold
  agrees with the published segmentation in 99.9 % of the pixels after ``numpy.flipud``).
* Row 720, at 360 degrees, measures view 0 again. It is not part of the circle, but a sample of the noise: sd 0.004 in air and
  0.009 on average, as from 5.8e4 photons a bin, with a drift of the level by -0.005.
* The bins are symmetric about the central ray. The best shift of the rotation axis, by the mismatch of complementary rays as
  well as by sharpness, is ``axis_offset_mm = -0.018`` (0.12 of a bin or of a default pixel), which lowers the mismatch from
  0.0153 to 0.0146, where the noise alone gives about 0.012. The files state no shift, and none is put in.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tomosec.component import describe_validation_error
from tomosec.data.matlab import Struct, describe, read_struct
from tomosec.data.measured import Measurement, require_finite
from tomosec.errors import InputError, nearest
from tomosec.geometry import FanBeam

StructName = Literal["CtDataFull", "CtDataLimited"]

#: Of a step: angles that deviate less from equal steps are rounded numbers.
_STEP_TOLERANCE = 1e-4


def read_htc2022(
    path: str | Path,
    *,
    struct: StructName | None = None,
    shape: tuple[int, int] = (512, 512),
    pixel_mm: float | None = None,
) -> Measurement:
    """Read one scan of the Helsinki Tomography Challenge 2022.

    Equal steps become ``start`` and a signed ``arc``, anything else explicit ``angles``. Where the last listed angle is a whole
    turn from the first, that view is left out of the line integrals, which makes equal steps a full circle, and is found in
    ``Measurement.repeats[0]``.

    Args:
        path: a ``.mat`` file, version 5 or 7.3 (which needs h5py, the extra ``hdf5``).
        struct: which scan to read; None is the only one there or, where a file holds both, ``CtDataFull``.
        shape: rows and columns of the image to reconstruct.
        pixel_mm: its pixel; None is the file's ``effectivePixelSizePost``, 0.148 mm.

    Returns:
        The line integrals as float32, ``key`` being the file's name without suffix. ``attributes`` holds the parameters under
        the file's names, text as text, as well as ``struct`` and, where a view was left out, ``repeatedView``.

    Raises:
        InputError: the file cannot be used; the message names it, the field, what was found and what is allowed.
    """
    path = Path(path)
    if struct is not None and struct not in get_args(StructName):
        raise InputError(
            f"struct {struct!r} is not one of {', '.join(get_args(StructName))}{nearest(struct, get_args(StructName))}"
        )
    name, data = read_struct(path, get_args(StructName) if struct is None else [struct])
    parameters = data.struct("parameters")
    _require_text(data, "type", "2d")
    _require_text(parameters, "geometryType", "Cone")
    _require_text(parameters, "distanceUnit", "mm")
    angles = _angles(parameters)
    values = _line_integrals(data, parameters, len(angles))

    attributes: dict[str, str | float] = {"struct": name}
    repeats = {}
    if _closes(angles):
        last = len(angles) - 1
        attributes["repeatedView"] = f"view {last} ({angles[-1]:g} degrees) repeats view 0 and is kept apart"
        repeats[0] = values[-1].copy()
        values = values[:-1]
    for field, value in parameters.fields.items():
        if field != "angles":
            attributes[field] = _fact(value)
    try:
        geometry = FanBeam(
            views=len(values),
            bins=values.shape[1],
            bin_mm=_positive(parameters, "pixelSizePost"),
            source_to_isocenter_mm=_positive(parameters, "distanceSourceOrigin"),
            source_to_detector_mm=_positive(parameters, "distanceSourceDetector"),
            shape=shape,
            pixel_mm=_positive(parameters, "effectivePixelSizePost") if pixel_mm is None else pixel_mm,
            **_view_angles(angles),
        )
    except ValidationError as error:
        raise InputError(describe_validation_error(error, f"{path}: the geometry of {name}")) from error
    return Measurement(values, geometry, path.stem, attributes, repeats)


def _require_text(struct: Struct, name: str, wanted: str) -> None:
    found = struct.text(name)
    if found.casefold() != wanted.casefold():
        raise struct.wrong(name, f"found {found!r}; only {wanted!r} is read")


def _positive(parameters: Struct, name: str) -> float:
    value = parameters.number(name)
    if value <= 0:
        raise parameters.wrong(name, f"found {value:g}; a positive number is needed")
    return value


def _angles(parameters: Struct) -> NDArray[np.float64]:
    """Return the listed angles in degrees, shape (n,), n ≥ 1."""
    found = parameters.array("angles")
    if found.size == 0 or max(found.shape) != found.size:
        raise parameters.wrong("angles", f"a vector is needed, one angle for each view; found {describe(found)}")
    angles = found.ravel().astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(angles))
    if len(bad):
        raise parameters.wrong("angles", f"{angles[bad[0]]} for view {bad[0]} (counted from 0); angles are finite numbers")
    return angles


def _line_integrals(data: Struct, parameters: Struct, views: int) -> NDArray[np.float32]:
    bins = _positive(parameters, "numDetectorsPost")
    if bins != int(bins):
        raise parameters.wrong("numDetectorsPost", f"found {bins:g}; a whole number is needed")
    found = data.array("sinogram")
    if found.dtype.kind != "f":
        raise data.wrong("sinogram", f"found {found.dtype}, which are counts; line integrals are double or single")
    if found.shape != (views, bins):
        raise data.wrong(
            "sinogram",
            f"shape {found.shape}, but parameters.angles lists {views} views and parameters.numDetectorsPost is {bins:g}; "
            "(views, bins) is needed",
        )
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is reported as that
        values = found.astype(np.float32, order="C")
    require_finite(values, f"{data.where}.sinogram")
    return values


def _closes(angles: NDArray[np.float64]) -> bool:
    """Whether the last view is the first one again, after exactly one turn."""
    if len(angles) < 3:
        return False
    turn = abs(angles[-1] - angles[0])
    return math.isclose(turn, 360, abs_tol=_STEP_TOLERANCE * 360 / (len(angles) - 1), rel_tol=0)


def _view_angles(angles: NDArray[np.float64]) -> dict[str, Any]:
    """Return the fields of a geometry for listed angles in degrees, clockwise; the view that closes a circle is left out."""
    count = len(angles)
    closes = _closes(angles)
    step = (angles[-1] - angles[0]) / max(count - 1, 1)
    equal = count > 1 and np.allclose(angles, angles[0] + step * np.arange(count), rtol=0, atol=_STEP_TOLERANCE * abs(step))
    start = 0.0 - math.radians(angles[0])
    if equal and closes:
        return {"start": start, "arc": -math.copysign(2 * math.pi, step)}
    if equal and step != 0 and abs(step) * count <= 360 * (1 + 1e-9):
        return {"start": start, "arc": -math.radians(step * count)}
    return {"angles": tuple(float(angle) for angle in -np.radians(angles[:-1] if closes else angles))}


def _fact(value: Any) -> str | float:
    """Return a parameter as a header fact: text as text, a number as a number, anything else described."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "iuf":
        return float(value.item())
    return describe(value)
