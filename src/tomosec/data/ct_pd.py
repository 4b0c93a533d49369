"""Projections of clinical scanners in DICOM-CT-PD, as in the TCIA collection LDCT-and-Projection-data (Chen et al. 2015).

A folder holds one file for each projection of one axial or helical scan. What comes out are fan beams of single slices, with the
curved detector, the angles and the central element that the files state.

**Directions.** Seen from the patient table, the format's angle runs counter-clockwise from 12 o'clock, the source is at
(−ρ sin φ, ρ cos φ), and column 1 is on the left while the detector is at 6 o'clock: tomosec's own frame. PatientPosition says how
the patient lies in it, and images come out as from every other reader, row 0 anterior and column 0 on the patient's right: a
patient feet first is seen from the head, so that left and right change places (view angle −φ, columns reversed).

**What the format alone leaves open.** Positions are the format's z, (7031,1002), whether or not it grows towards the head. For
GE, a public audit of two scans against the scanner's own images found the central column to be the number of columns minus the
stated one (443.25 for 444.75 of 888); nothing is changed here, pass it as ``central_column``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tomosec.component import describe_validation_error
from tomosec.data.ct_pd_header import ANGLE, AXIAL_POSITION, View, name_of, read_projection, read_view
from tomosec.data.dicom import find_files, name_order
from tomosec.data.measured import Measurement
from tomosec.data.rebinning import Detector, FocalSpot, fill_from_complements, rebin_view, turn_views
from tomosec.errors import InputError, nearest
from tomosec.geometry import FanBeam

PatientPosition = Literal["HFS", "HFP", "FFS", "FFP"]

#: Of a step between views: angles that deviate less from equal steps are rounded numbers.
_STEP_TOLERANCE = 0.05
#: Views of an axial scan that are further apart along the axis belong to different table positions, mm.
_SAME_POSITION_MM = 0.05


@dataclass(frozen=True, slots=True)
class _Window:
    """The views that measure one slice, by index into the scan's views: ``first`` to ``stop``, without it."""

    z_mm: float
    first: int
    stop: int


class ProjectionScan:
    """One scan in a folder, with the headers read; made by :func:`open_ct_pd`.

    Attributes:
        folder: where it is.
        views: one for each file, in the order of acquisition.
        helical: whether the table moved during the scan.
        views_per_turn: views of a full circle.
        facts: text and numbers that all files share.
    """

    def __init__(self, folder: Path, views: Sequence[View]) -> None:
        self.folder = folder
        self.views = tuple(views)
        first = views[0]
        for view in views:
            _require_equal(first, view)
        self.facts = dict(first.facts)
        self.helical = self.facts["TypeofProjectionData"] == "HELICAL"
        self._z = np.array([view.z_mm for view in views])
        self._groups = [(0, len(views))] if self.helical else _table_positions(self._z)
        self._angles = np.concatenate([np.unwrap([view.angle for view in views[low:high]]) for low, high in self._groups])
        steps = np.concatenate([np.diff(self._angles[low:high]) for low, high in self._groups])
        if not len(steps):
            raise InputError(f"{folder}: one projection at each position; a scan has views all around")
        self._step = float(np.median(steps))
        self._require_steps()
        self.views_per_turn = round(2 * math.pi / abs(self._step))
        if abs(self.views_per_turn - first.steps) > 0.01 * first.steps:
            raise InputError(
                f"{first.path}: NumberofSourceAngularSteps (7033,1013) is {first.steps}, but the angles of the views step by a "
                f"{self.views_per_turn}th of a turn"
            )
        if self.helical:
            feeds = np.diff(self._z)
            if not (np.all(feeds > 0) or np.all(feeds < 0)):
                bad = int(np.argmin(feeds * np.sign(np.median(feeds) or 1)))
                raise InputError(
                    f"{views[bad + 1].path}: {name_of(AXIAL_POSITION)} is {self._z[bad + 1]:g} mm after {self._z[bad]:g} mm; the "
                    "table of a helical scan moves steadily in one direction"
                )

    def _require_steps(self) -> None:
        """Raise where a view is missing: two neighbors are further apart, or nearer, than half a step from a step."""
        if self._step == 0:
            raise InputError(f"{self.folder}: {name_of(ANGLE)} is the same in most files; the views of a scan turn")
        for low, high in self._groups:
            odd = np.flatnonzero(np.abs(np.diff(self._angles[low:high]) / self._step - 1) > 0.5)
            if len(odd):
                at = low + int(odd[0])
                raise InputError(
                    f"{self.views[at + 1].path}: {name_of(ANGLE)} is {self.views[at + 1].angle:.5f} after "
                    f"{self.views[at].angle:.5f} in {self.views[at].path.name}, the usual step is {self._step:.5f} rad: a file "
                    f"is missing or out of order ({len(odd)} such places)"
                )

    @property
    def turns(self) -> float:
        """How many turns the scan has, of all table positions together."""
        return len(self.views) / self.views_per_turn

    @property
    def feed_mm(self) -> float:
        """Signed table feed a turn, by the positions and angles of the views; 0 for an axial scan."""
        if not self.helical:
            return 0.0
        return float((self._z[-1] - self._z[0]) / (len(self.views) - 1) * self.views_per_turn)

    @property
    def positions_mm(self) -> tuple[float, ...]:
        """Table positions of an axial scan; the two ends of the slices that a full turn of a helical one measures."""
        if not self.helical:
            return tuple(float(self._z[low:high].mean()) for low, high in self._groups)
        half = self.views_per_turn // 2
        if len(self.views) < self.views_per_turn + 1:
            return ()
        return float(self._z[half]), float(self._z[len(self.views) - 1 - half])

    def window(self, z_mm: float) -> _Window:
        """Choose the views that measure the slice at ``z_mm``: a full turn, or what an axial position has of one.

        Raises:
            InputError: the scan has no views around that slice.
        """
        where = f"{self.folder}: a slice at {z_mm:g} mm"
        ends = self.positions_mm
        count = self.views_per_turn
        if self.helical:
            if not ends:
                raise InputError(f"{where}: the scan has {len(self.views)} views, fewer than the {count + 1} of a full turn")
            if not min(ends) - 1e-6 <= z_mm <= max(ends) + 1e-6:
                raise InputError(f"{where} has no full turn around it; {min(ends):g} to {max(ends):g} mm have")
            order = slice(None, None, 1 if self._z[-1] > self._z[0] else -1)
            middle = float(np.interp(z_mm, self._z[order], np.arange(len(self.views))[order]))
            first = min(max(round(middle) - count // 2, 0), len(self.views) - count)
            return _Window(z_mm, first, first + count)
        nearest_one = int(np.argmin([abs(z_mm - end) for end in ends]))
        low, high = self._groups[nearest_one]
        return _Window(z_mm, low, min(high, low + count))


def open_ct_pd(folder: str | Path) -> ProjectionScan:
    """Read the header of every projection of one scan in a folder and put them in order, by InstanceNumber where all have one.

    Raises:
        InputError: no folder, no DICOM-CT-PD file in it, files of several scans or detectors, or a view that is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    views = [read_view(path) for path in find_files(folder)]
    if not views:
        raise InputError(f"{folder}: no DICOM file in it; a DICOM-CT-PD scan has one for each projection")
    numbers = [view.number for view in views]
    if None not in numbers:
        views.sort(key=lambda view: view.number or 0)
        twice = [view for before, view in pairwise(views) if before.number == view.number]
        if twice:
            raise InputError(f"{twice[0].path}: InstanceNumber {twice[0].number} occurs twice; a folder holds one scan")
    else:
        views.sort(key=lambda view: name_order(view.path))
    return ProjectionScan(folder, views)


def read_ct_pd(
    folder: str | Path | ProjectionScan,
    *,
    positions_mm: Sequence[float] | None = None,
    shape: tuple[int, int] = (512, 512),
    pixel_mm: float | None = None,
    patient_position: PatientPosition | None = None,
    central_column: float | None = None,
) -> Iterator[Measurement]:
    """Read fan-beam measurements of single slices, by single-slice rebinning (see :mod:`tomosec.data.rebinning`).

    A slice of a helical scan takes the full turn of views around it. Its rays that the rows of the detector do not reach, as
    happens at a high pitch, are measured from their other end; where neither end was measured, the pitch is too high. Every file
    is read once, and the memory is that of the slices whose turns overlap.

    Args:
        folder: of one scan, or what :func:`open_ct_pd` made of it.
        positions_mm: z of the wanted slices, as in (7031,1002). None is the table positions of an axial scan; a helical scan has
            to be told.
        shape: rows and columns of the image to reconstruct.
        pixel_mm: its pixel; None divides DataCollectionDiameter (0018,0090) by the larger side.
        patient_position: how the patient lies; None is PatientPosition (0018,5100).
        central_column: column on the line through focal center and isocenter, counted from 1; None is the files' own.

    Yields:
        A measurement of each slice, in the order of acquisition. ``attributes`` holds the shared facts of the files under their
        DICOM names and ``positionMm``, ``feedMm``, ``firstFile``, ``PhotonStatistics`` (its mean over the slice, where the files
        have it) and ``complementaryRays`` (how many rays were measured from their other end).

    Raises:
        InputError: what :func:`open_ct_pd` raises, an unknown patient position, no pixel, a position that was not scanned, a
            geometry that is impossible, or rays that were not measured.
    """
    scan = folder if isinstance(folder, ProjectionScan) else open_ct_pd(folder)
    if positions_mm is None:
        if scan.helical:
            ends = scan.positions_mm
            between = f" between {min(ends):g} and {max(ends):g} mm" if ends else ""
            raise InputError(f"{scan.folder}: a helical scan; give the slices that are wanted as positions_mm{between}")
        positions_mm = scan.positions_mm
    windows = sorted((scan.window(float(z)) for z in positions_mm), key=lambda window: window.first)
    position = patient_position or scan.facts.get("PatientPosition", "none")
    if position not in get_args(PatientPosition):
        raise InputError(
            f"{scan.folder}: PatientPosition (0018,5100) is {position}; {', '.join(get_args(PatientPosition))} are read, and "
            f"patient_position says which{nearest(str(position), get_args(PatientPosition))}"
        )
    if pixel_mm is None:
        diameter = scan.facts.get("DataCollectionDiameter")
        if not isinstance(diameter, float) or diameter <= 0:
            raise InputError(f"{scan.folder}: DataCollectionDiameter (0018,0090) is {diameter}; give pixel_mm")
        pixel_mm = diameter / max(shape)
    detector = scan.views[0].detector
    if central_column is not None:
        detector = replace(detector, central_column=central_column)
    makers = [_SliceMaker(scan, window, detector, str(position), shape, pixel_mm) for window in windows]
    return _sweep(scan, makers)


def _sweep(scan: ProjectionScan, makers: Sequence[_SliceMaker]) -> Iterator[Measurement]:
    """Read each file once, hand it to the slices that it measures, and give out a slice when its last view was read."""
    waiting = list(makers)
    active: list[_SliceMaker] = []
    index = 0
    while waiting or active:
        if not active:
            index = waiting[0].window.first
        while waiting and waiting[0].window.first <= index:
            active.append(waiting.pop(0))
        values = read_projection(scan.views[index])
        for maker in active:
            maker.add(index, values)
        index += 1
        done = [maker for maker in active if maker.window.stop <= index]
        active = [maker for maker in active if maker.window.stop > index]
        for maker in done:
            yield maker.finish()


class _SliceMaker:
    """Collects the fan of one slice."""

    def __init__(
        self, scan: ProjectionScan, window: _Window, detector: Detector, position: str, shape: tuple[int, int], pixel_mm: float
    ) -> None:
        self.scan, self.window, self._detector, self._position = scan, window, detector, position
        self._views = scan.views[window.first : window.stop]
        self._angles = scan._angles[window.first : window.stop]
        self._fan: NDArray[np.float32] | None = None
        count = len(self._views)
        self._circle = count == scan.views_per_turn
        self._step = math.copysign(2 * math.pi / count, scan._step) if self._circle else scan._step
        deviation = self._angles - self._angles[0] - self._step * np.arange(count)
        # The best start, not the first angle, which is rounded like all of them.
        self._start = float(self._angles[0] + deviation.mean())
        self._equal = bool(np.ptp(deviation) <= 2 * _STEP_TOLERANCE * abs(self._step))
        # Rounded to less than any effect, because stored numbers of one focal spot may differ in their last bits.
        shifts = [(round(view.angle_shift, 6), round(view.radial_shift_mm, 3)) for view in self._views]
        self._spots = {shift: FocalSpot(detector, *shift) for shift in dict.fromkeys(shifts)}
        self._shifts = shifts
        self.geometry = self._make_geometry(shape, pixel_mm)

    def _make_geometry(self, shape: tuple[int, int], pixel_mm: float) -> FanBeam:
        detector = self._detector
        # The place of column c, (c - central) pitches, is that of tomosec's bin c - 1 with this offset.
        offset = detector.columns / 2 + 0.5 - detector.central_column
        # From the scanner's frame, seen from the table, to the patient's; see the module.
        sign, turn = {"HFS": (1, 0.0), "HFP": (1, math.pi), "FFS": (-1, 0.0), "FFP": (-1, math.pi)}[self._position]
        self._reverse = sign < 0
        steps: dict[str, Any] = {
            "views": len(self._views),
            "start": turn + sign * self._start,
            "arc": sign * self._step * len(self._views),
        }
        if not self._equal:
            steps = {"angles": tuple(float(turn + sign * angle) for angle in self._angles)}
        try:
            return FanBeam(
                bins=detector.columns,
                bin_mm=detector.column_mm,
                source_to_isocenter_mm=detector.radius_mm,
                source_to_detector_mm=detector.distance_mm,
                detector="curved" if detector.curved else "flat",
                detector_offset_bins=-offset if self._reverse else offset,
                shape=shape,
                pixel_mm=pixel_mm,
                **steps,
            )
        except ValidationError as error:
            raise InputError(describe_validation_error(error, f"{self.scan.folder}: the geometry")) from error

    def add(self, index: int, values: NDArray[np.float32]) -> None:
        """Put in the view ``index`` of the scan."""
        if self._fan is None:
            self._fan = np.empty((len(self._views), self._detector.columns), dtype=np.float32)
        at = index - self.window.first
        view = self._views[at]
        self._fan[at] = rebin_view(
            self._detector, self._spots[self._shifts[at]], values, view.z_mm, view.z_mm + view.z_shift_mm, self.window.z_mm
        )

    def finish(self) -> Measurement:
        """Sort the rays and return the measurement; what was collected is given up."""
        assert self._fan is not None
        fan, self._fan = self._fan.astype(np.float64), None
        scan, where = self.scan, f"{self.scan.folder}: the slice at {self.window.z_mm:g} mm"
        period = self._period(where)
        if period:
            fan = turn_views(self._detector, fan, [self._spots[shift] for shift in self._shifts[:period]], self._step)
        filled = 0
        if self._circle and self._equal:
            fan, filled = fill_from_complements(self._detector, fan, self._step)
        missing = int(np.isnan(fan).sum())
        if missing:
            height = self._detector.rows * self._detector.row_mm * self._detector.radius_mm / self._detector.distance_mm
            raise InputError(
                f"{where}: {missing} of {fan.size} rays were measured from neither end; a turn moves the table by "
                f"{scan.feed_mm:.4g} mm, and the {self._detector.rows} rows of the detector cover {height:.4g} mm at the axis"
            )
        photons = [view.photons for view in self._views]
        attributes: dict[str, str | float] = dict(scan.facts)
        attributes |= {"positionMm": self.window.z_mm, "feedMm": scan.feed_mm, "firstFile": self._views[0].path.name}
        attributes |= {"PatientPosition": self._position, "complementaryRays": float(filled)}
        if not any(map(math.isnan, photons)):
            attributes["PhotonStatistics"] = float(np.mean(photons))
        values = np.ascontiguousarray(fan[:, ::-1] if self._reverse else fan, dtype=np.float32)
        return Measurement(values, self.geometry, f"{scan.folder.name}/{self.window.z_mm:.3f}", attributes)

    def _period(self, where: str) -> int:
        """Return after how many views the focal spots repeat, 0 where all are the focal center.

        Raises:
            InputError: spots beside the focal center that do not take turns, or not in equal steps around a full circle.
        """
        if all(spot.is_centered for spot in self._spots.values()):
            return 0
        period = len(self._spots)
        regular = all(shift == self._shifts[i % period] for i, shift in enumerate(self._shifts))
        if not (regular and len(self._shifts) % period == 0 and self._circle and self._equal):
            raise InputError(
                f"{where}: {period} focal spots beside the detector's focal center (FlyingFocalSpotMode "
                f"{self.scan.facts.get('FlyingFocalSpotMode', 'none')}); they are read where they take turns in equal steps "
                "around a full circle"
            )
        return period


def _table_positions(z: NDArray[np.float64]) -> list[tuple[int, int]]:
    breaks = [0, *(np.flatnonzero(np.abs(np.diff(z)) > _SAME_POSITION_MM) + 1).tolist(), len(z)]
    return list(pairwise(breaks))


def _require_equal(first: View, view: View) -> None:
    for what, one, other in (
        ("detector", first.detector, view.detector),
        ("facts", first.facts, view.facts),
        ("views per turn", first.steps, view.steps),
    ):
        if one != other:
            raise InputError(
                f"{view.path}: its {what} ({other}) differ from those of {first.path.name} ({one}); a folder holds one scan "
                "of one source and spectrum"
            )
