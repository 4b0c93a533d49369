"""From detector counts to line integrals, p = −log((I − D)/(F − D)): raw scans with flat and dark fields in HDF5.

A bin that counts no more in the flat field than in the dark one is dead; a bin that sees no more than its dark value behind the
object has no logarithm. Neither is repaired unless the caller says how, and what was repaired is in the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tomosec.data.hdf5 import Hdf5
from tomosec.data.measured import Measurement
from tomosec.data.measurement_file import parse_geometry, require_fit
from tomosec.errors import InputError, nearest
from tomosec.geometry import FanBeam, ParallelBeam

DeadBins = Literal["refuse", "interpolate"]
_LISTED = 8  # places that a message names


def line_integrals(
    counts: NDArray[Any],
    flats: NDArray[Any],
    darks: NDArray[Any],
    *,
    where: str,
    dead_bins: DeadBins = "refuse",
    floor: float | None = None,
) -> tuple[NDArray[np.float32], dict[str, str | float]]:
    """Correct counts by their flat and dark fields and take the logarithm.

    Args:
        counts: (views, bins), real numbers.
        flats: (bins,), or (exposures, bins), which are averaged.
        darks: the same.
        where: names the scan in messages.
        dead_bins: whether a bin whose flat is not above its dark is an error, or takes the line integrals between its
            neighbors.
        floor: smallest transmission; what is lower, zero and negative counts included, becomes it. None refuses counts that are
            not above the dark field.

    Returns:
        (views, bins) float32, and what was done: ``flats`` and ``darks``, how many were averaged, ``deadBins``, their numbers
        from 0, and ``belowFloor``, how many counts the floor replaced.

    Raises:
        InputError: shapes that do not fit, values that are not finite, an impossible floor, dead bins, or counts that are not
            above the dark field.
    """
    if dead_bins not in get_args(DeadBins):
        raise InputError(
            f"dead_bins {dead_bins!r} is not one of refuse, interpolate{nearest(str(dead_bins), get_args(DeadBins))}"
        )
    if floor is not None and not 0 < floor < 1:
        raise InputError(f"floor {floor:g} is not a transmission between 0 and 1")
    if counts.ndim != 2 or min(counts.shape) < 1 or counts.dtype.kind not in "iuf":
        raise InputError(f"{where}: counts are {counts.dtype} of shape {counts.shape}; real numbers (views, bins) are needed")
    bins = counts.shape[1]
    flat, flat_count = _average(flats, bins, f"{where}: flats")
    dark, dark_count = _average(darks, bins, f"{where}: darks")
    signal = counts.astype(np.float64)
    if not np.isfinite(signal).all():
        view, bin_ = np.argwhere(~np.isfinite(signal))[0]
        raise InputError(f"{where}: counts: {signal[view, bin_]} at view {view}, bin {bin_} (counted from 0)")
    gain = flat - dark
    dead = gain <= 0
    if dead.any() and (dead_bins == "refuse" or dead.all()):
        raise InputError(
            f"{where}: {int(dead.sum())} of {bins} bins are dead, their flat field is not above their dark field: "
            f"{_list(np.flatnonzero(dead))}; dead_bins='interpolate' takes them from their neighbors"
        )
    transmission = (signal - dark) / np.where(dead, 1.0, gain)
    low = (transmission <= 0 if floor is None else transmission < floor) & ~dead
    if floor is None and low.any():
        view, bin_ = np.argwhere(low)[0]
        raise InputError(
            f"{where}: counts: {counts[view, bin_]} at view {view}, bin {bin_} (counted from 0) is not above its dark field, "
            f"{dark[bin_]:g} ({int(low.sum())} such of {counts.size}); floor gives the smallest transmission to take instead"
        )
    transmission[:, dead] = 1.0
    transmission[low] = floor
    values = -np.log(transmission)
    if dead.any():
        alive, places = np.flatnonzero(~dead), np.flatnonzero(dead)
        for row in values:
            row[places] = np.interp(places, alive, row[alive])
    facts: dict[str, str | float] = {"flats": float(flat_count), "darks": float(dark_count)}
    if dead.any():
        facts["deadBins"] = " ".join(map(str, np.flatnonzero(dead)))
    if floor is not None:
        facts["belowFloor"] = float(low.sum())
    return values.astype(np.float32), facts


def _average(values: NDArray[Any], bins: int, where: str) -> tuple[NDArray[np.float64], int]:
    exposures = np.atleast_2d(values)
    if exposures.ndim != 2 or exposures.shape[1] != bins or not len(exposures) or exposures.dtype.kind not in "iuf":
        raise InputError(
            f"{where} are {values.dtype} of shape {values.shape}; real numbers ({bins},) or (exposures, {bins}) are needed"
        )
    mean = exposures.astype(np.float64).mean(axis=0)
    if not np.isfinite(mean).all():
        raise InputError(f"{where}: {int((~np.isfinite(mean)).sum())} of {bins} bins are NaN or infinite")
    return mean, len(exposures)


def _list(places: NDArray[np.intp]) -> str:
    more = f" and {len(places) - _LISTED} more" if len(places) > _LISTED else ""
    return ", ".join(map(str, places[:_LISTED])) + more


def read_counts(
    path: str | Path,
    *,
    geometry: FanBeam | ParallelBeam | Mapping[str, Any] | None = None,
    counts: str = "counts",
    flats: str = "flats",
    darks: str = "darks",
    row: int | None = None,
    dead_bins: DeadBins = "refuse",
    floor: float | None = None,
) -> Measurement:
    """Read a raw scan in HDF5: counts with flat and dark fields, and the geometry.

    Args:
        path: an HDF5 file; needs h5py, the extra ``hdf5``.
        geometry: where the counts were measured; None is the file's attribute ``geometry``, JSON of a geometry component.
        counts: name of the dataset of counts, (views, bins), or (views, rows, bins) of a detector with several rows.
        flats: of the flat fields: without the axis of views, or with one of exposures in its place.
        darks: of the dark fields, the same.
        row: which row of a detector with several; only that row is read.
        dead_bins: see :func:`line_integrals`.
        floor: see :func:`line_integrals`.

    Returns:
        The line integrals. ``attributes`` holds the text and numbers among the file's attributes, and what was done to the
        counts.

    Raises:
        InputError: h5py is missing, the file or a dataset cannot be used, no geometry or one of another shape, a row that does
            not exist, flat or dark fields of another detector, and what :func:`line_integrals` raises.
    """
    path = Path(path)
    with Hdf5(path) as file:
        attributes = file.attributes()
        shape = _one_row(file, counts, (flats, darks), row)
        if geometry is None:
            if "geometry" not in attributes:
                raise InputError(
                    f"{path}: no attribute 'geometry', and none was given; it is JSON of a fan-beam or parallel-beam geometry"
                )
            geometry = parse_geometry(attributes["geometry"], f"{path}: geometry")
        elif isinstance(geometry, Mapping):
            geometry = parse_geometry(geometry, "geometry")
        require_fit(shape, geometry, f"{path}: {counts}")  # before the values are read: a file may claim any number of them
        raw, *corrections = (file.array(name, row) for name in (counts, flats, darks))
    values, facts = line_integrals(raw, *corrections, where=str(path), dead_bins=dead_bins, floor=floor)
    attributes.pop("geometry", None)
    if row is not None:
        facts["row"] = float(row)
    return Measurement(values, geometry, path.stem, attributes | facts)


def _one_row(file: Hdf5, counts: str, fields: Sequence[str], row: int | None) -> tuple[int, ...]:
    """Return the shape of the counts of one row, once it is clear what ``row`` means in each dataset.

    A field of the shape (rows, bins) looks like exposures (exposures, bins), so the counts have to tell which it is.
    """
    shape = file.header(counts)[0]
    if len(shape) != 3:
        if row is not None:
            raise InputError(
                f"{file.path}: row {row} chooses from (views, rows, bins), but {counts} has shape {shape}; give no row"
            )
        return shape
    rows = shape[1]
    if row is None:
        raise InputError(f"{file.path}: {counts} has shape {shape}, a detector with several rows; choose one with row")
    if not 0 <= row < rows:
        raise InputError(f"{file.path}: {counts} has the rows 0 to {rows - 1}, not {row}")
    for name in fields:
        found = file.header(name)[0]
        if len(found) not in (2, 3) or found[-2:] != shape[1:]:
            raise InputError(
                f"{file.path}: {name} has shape {found}; {counts} has {rows} rows of {shape[2]} bins, so ({rows}, {shape[2]}) or "
                f"(exposures, {rows}, {shape[2]}) is needed"
            )
    return shape[0], shape[2]
