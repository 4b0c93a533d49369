"""Raw fan-beam scans of 2DeteCT (Kiss et al., Scientific Data 10:576, 2023), one slice in one mode: counts in TIFF files.

A folder ``slice00001/mode2`` holds ``sinogram.tif`` (3601 views, 1912 pixels), ``dark.tif``, ``flat1.tif`` and ``flat2.tif``,
16 bit. The steps are those of the authors' published code: the flat fields are averaged, pairs of pixels summed, counts corrected
and logged, a transmission below 1e-6 replaced by it, and in the first part of the slices the detector is taken to be one bin off.
View 3600, at a whole turn, repeats view 0. Their angles are ASTRA's for ``fanflat``, whose view at t has its source at
(sin t, −cos t) and its detector along (cos t, sin t): tomosec's view at t + π with the bins reversed.
"""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tomosec.data.counts import DeadBins, line_integrals
from tomosec.data.measured import Measurement
from tomosec.errors import InputError
from tomosec.geometry import FanBeam

SOURCE_TO_ISOCENTER_MM = 431.019989
SOURCE_TO_DETECTOR_MM = 529.000488
PIXEL_MM = 0.0748
#: Smallest transmission in the authors' code.
FLOOR = 1e-6
_VIEWS, _PIXELS = 3601, 1912
#: Slices, first and last, whose detector the authors shift by one bin.
_SHIFTED = ((1, 2830), (5521, 5870))


def read_two_detect(
    folder: str | Path,
    *,
    slice_number: int | None = None,
    shape: tuple[int, int] = (1024, 1024),
    pixel_mm: float | None = None,
    dead_bins: DeadBins = "refuse",
    floor: float | None = FLOOR,
) -> Measurement:
    """Read one slice in one mode.

    Args:
        folder: ``slice00001/mode2``.
        slice_number: which slice it is, on which the place of the detector depends; None reads it from the folder's name.
        shape: rows and columns of the image to reconstruct.
        pixel_mm: its pixel; None divides the width that the detector sees at the isocenter, 116.5 mm, by the larger side.
        dead_bins: see :func:`tomosec.data.counts.line_integrals`.
        floor: see there; the default is the authors'.

    Returns:
        3600 views of 956 bins; view 3600 is ``repeats[0]``.

    Raises:
        InputError: a missing or other file, another size, an unknown slice, or counts that have no logarithm.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if slice_number is None:
        named = re.fullmatch(r"slice(\d{5})", folder.absolute().parent.name)
        if named is None:
            raise InputError(f"{folder}: the folder above is not named like slice00001; give slice_number")
        slice_number = int(named[1])
    if not (1 <= slice_number <= 5000 or 5521 <= slice_number <= 6370):
        raise InputError(f"{folder}: slice {slice_number}; 2DeteCT has the slices 1 to 5000 and 5521 to 6370")
    counts = _pairs(folder / "sinogram.tif", _VIEWS)
    flats = np.concatenate([_pairs(folder / name, 1) for name in ("flat1.tif", "flat2.tif")])
    darks = _pairs(folder / "dark.tif", 1)
    values, facts = line_integrals(counts, flats, darks, where=str(folder), dead_bins=dead_bins, floor=floor)
    values = np.ascontiguousarray(values[:, ::-1])
    bins = values.shape[1]
    shifted = any(low <= slice_number <= high for low, high in _SHIFTED)
    geometry = FanBeam(
        views=_VIEWS - 1,
        bins=bins,
        bin_mm=2 * PIXEL_MM,
        source_to_isocenter_mm=SOURCE_TO_ISOCENTER_MM,
        source_to_detector_mm=SOURCE_TO_DETECTOR_MM,
        start=math.pi,
        # The authors read their bin d at d + 1; reversed, the bins move the other way.
        detector_offset_bins=1.0 if shifted else 0.0,
        shape=shape,
        pixel_mm=bins * 2 * PIXEL_MM * SOURCE_TO_ISOCENTER_MM / SOURCE_TO_DETECTOR_MM / max(shape)
        if pixel_mm is None
        else pixel_mm,
    )
    attributes = facts | {"slice": float(slice_number), "mode": folder.absolute().name}
    key = f"slice{slice_number:05d}/{folder.absolute().name}"
    return Measurement(np.ascontiguousarray(values[:-1]), geometry, key, attributes, {0: values[-1].copy()})


def _pairs(path: Path, rows: int) -> NDArray[Any]:
    """Read one image of counts and sum pairs of columns, (rows, 956)."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; a scan is sinogram.tif, dark.tif, flat1.tif and flat2.tif")
    try:
        with warnings.catch_warnings(), Image.open(path, formats=["TIFF"]) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            mode, values = image.mode, np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path}: cannot be read as TIFF, it is damaged or another format ({error})") from error
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 2 or values.shape != (rows, _PIXELS):
        raise InputError(f"{path}: found {mode} of shape {values.shape}; 16-bit counts of shape ({rows}, {_PIXELS}) are needed")
    wide = values.astype(np.float64)
    return np.asarray(wide[:, 0::2] + wide[:, 1::2])
