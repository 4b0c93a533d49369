"""Scan geometries: where the source, the detector bins and the pixels are. Lengths in mm, angles in rad, no torch.

Conventions, shared by every operator. The image has row 0 at the top, x to the right and y up, and its center is the
isocenter. In the view at angle t the detector axis is ``(cos t, sin t)``, a positive arc turns counter-clockwise, and

* a fan beam has its source at ``R (−sin t, cos t) − τ (cos t, sin t)``, so view 0 looks down from the top; τ is the distance by
  which the rotation axis misses the central ray, 0 on a centered scanner;
* a parallel beam has rays along ``(−sin t, cos t)``.

Bin d of D covers ``[(d − D/2 + offset), (d + 1 − D/2 + offset)] · pitch`` along the detector axis (along the arc for a
curved detector). Complementary rays of a centered fan beam agree: ``p(t, γ) = p(t + π + 2γ, −γ)``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tomosec.component import Component
from tomosec.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Count = Annotated[int, Field(ge=1)]
Length = Annotated[float, Field(gt=0)]

_ANGLE_TOLERANCE = 1e-9  # relative; 2π written with 10 digits in a recipe still is a full circle


class Geometry(Component):
    """What every two-dimensional scan has: views, bins and an image grid.

    Views are ``views`` equal steps of the signed ``arc`` (rad) from ``start`` (rad), or the explicit ``angles`` (rad).

    Attributes:
        views: Number of views; may be left out where ``angles`` is given.
        bins: Number of detector bins.
        bin_mm: Pitch of the bins at the detector.
        start: Angle of the first view.
        arc: Signed angle covered by all views together; the last view is one step before ``start + arc``.
        angles: Explicit angle of every view; excludes ``start`` and ``arc``.
        detector_offset_bins: Shift of the detector along its axis, in bins (0.25 is the usual quarter offset).
        shape: Rows and columns of the image.
        pixel_mm: Side of a square pixel.

    Raises:
        pydantic.ValidationError: A value out of range, or values that contradict each other, with the reason.
    """

    family: ClassVar[str] = "geometry"

    views: Count
    bins: Count
    bin_mm: Length
    shape: tuple[Count, Count]
    pixel_mm: Length
    start: float = 0.0
    arc: float = 2 * math.pi
    angles: tuple[float, ...] | None = None
    detector_offset_bins: float = 0.0

    @model_validator(mode="before")
    @classmethod
    def _count_explicit_angles(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("angles") is not None and "views" not in data:
            return {**data, "views": len(data["angles"])}
        return data

    @model_validator(mode="after")
    def _check_views(self) -> Self:
        if self.angles is not None:
            if len(self.angles) != self.views:
                raise ValueError(f"views is {self.views} but angles lists {len(self.angles)}; leave views out or make them agree")
            for name in ("start", "arc"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"angles already says where every view is; {name} contradicts it")
        if self.arc == 0 or abs(self.arc) > 2 * math.pi * (1 + _ANGLE_TOLERANCE):
            raise ValueError(
                f"arc is {self.arc:.6g} rad; it must be signed, not 0, and at most one turn (2π = {2 * math.pi:.6g})"
            )
        return self

    @property
    def view_angles(self) -> Floats:
        """Angle of every view, rad, shape (views,)."""
        if self.angles is not None:
            return np.asarray(self.angles, dtype=np.float64)
        return np.asarray(self.start + np.arange(self.views) * (self.arc / self.views), dtype=np.float64)

    @property
    def is_full_circle(self) -> bool:
        """Whether the views are equal steps around one whole turn, in either direction or any order."""
        return self._covers(2 * math.pi)

    def _covers(self, period: float) -> bool:
        if self.angles is None:
            return math.isclose(abs(self.arc), period, rel_tol=_ANGLE_TOLERANCE)
        ordered = np.sort(np.mod(self.view_angles, period))
        steps = np.diff(ordered, append=ordered[0] + period)
        return bool(np.allclose(steps, period / self.views, rtol=1e-6, atol=0))

    @property
    def sinogram_shape(self) -> tuple[int, int]:
        """(views, bins)."""
        return self.views, self.bins

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of the image."""
        return self.shape[0] * self.pixel_mm, self.shape[1] * self.pixel_mm

    @property
    def bin_edges_mm(self) -> Floats:
        """The bins + 1 edges along the detector, shape (bins + 1,)."""
        edges = np.arange(self.bins + 1) - self.bins / 2 + self.detector_offset_bins
        return np.asarray(edges * self.bin_mm, dtype=np.float64)

    @property
    def bin_centers_mm(self) -> Floats:
        """Bin centers along the detector, shape (bins,)."""
        edges = self.bin_edges_mm
        return (edges[1:] + edges[:-1]) / 2

    @property
    def bin_at_isocenter_mm(self) -> float:
        """Pitch of the bins scaled to the isocenter."""
        raise NotImplementedError

    @property
    def isocenter_edges_mm(self) -> Floats:
        """Where the rays through the bin edges cross the detector axis through the isocenter, shape (bins + 1,)."""
        raise NotImplementedError

    @property
    def fan_radius_mm(self) -> float:
        """Radius of the disc around the isocenter that every view sees whole; 0 where the detector misses the isocenter."""
        raise NotImplementedError

    @property
    def scan_radius_mm(self) -> float:
        """Radius of the disc that is both seen in every view and inside the image."""
        return min(self.fan_radius_mm, min(self.size_mm) / 2)

    def pixel_radii_mm(self) -> Floats:
        """Return how far each pixel's center is from the isocenter, shape (rows, columns)."""
        y, x = ((np.arange(count) - (count - 1) / 2) * self.pixel_mm for count in self.shape)
        return np.asarray(np.hypot(y[:, None], x[None, :]), dtype=np.float64)

    def scan_circle(self) -> NDArray[np.bool_]:
        """Return which pixel centers lie in the scan disc, shape (rows, columns)."""
        inside: NDArray[np.bool_] = self.pixel_radii_mm() <= self.scan_radius_mm
        return inside

    def _view_outline(self, angle: float) -> tuple[Floats, Floats]:
        """Return where the two outermost rays of a view start and the detector's line, (x, y) in mm, shapes (2, 2) and (n, 2)."""
        raise NotImplementedError

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the scan in mm: image, scan circle, source path, and the outermost rays and the detector of the first view.

        Parallel rays have no source and their detector no distance: they are drawn from one side of the image to the other.

        Args:
            ax: Matplotlib axes to draw on; None opens a figure.

        Returns:
            The axes. Every artist has a label that says what it is: ``image``, ``scan circle``, ``views``, ``first view``,
            ``detector``, and for equal steps an arrow along the ``rotation``.
        """
        from tomosec.scan_drawing import draw_scan

        return draw_scan(self, ax)

    def scaled(self, *, views: int | None = None, bins: int | None = None, shape: tuple[int, int] | None = None) -> Self:
        """Return the same scanner and field of view with another sampling.

        Bin pitch and pixel side follow, so that the detector and the image keep their sizes in mm.

        Args:
            views: New number of views over the same arc; None keeps it.
            bins: New number of bins over the same detector; None keeps it.
            shape: New rows and columns over the same image; None keeps it.

        Raises:
            InputError: ``shape`` has another aspect ratio, or ``views`` is asked of explicit angles.
        """
        change: dict[str, Any] = {}
        if views is not None and views != self.views:
            if self.angles is not None:
                raise InputError("scaled: explicit angles cannot be resampled; give the new angles instead of views")
            change["views"] = views
        if bins is not None:
            change |= {
                "bins": bins,
                "bin_mm": self.bin_mm * self.bins / bins,
                "detector_offset_bins": self.detector_offset_bins * bins / self.bins,
            }
        if shape is not None:
            if shape[0] * self.shape[1] != shape[1] * self.shape[0]:
                raise InputError(
                    f"scaled: shape {shape} has another aspect ratio than {self.shape}, so its pixels would not be square"
                )
            change |= {"shape": shape, "pixel_mm": self.pixel_mm * self.shape[0] / shape[0]}
        return type(self).model_validate(self.model_dump() | change)

    def views_at(self, index: Sequence[int] | slice) -> Self:
        """Return the same scanner at some of its views, as explicit angles in the order asked for.

        Args:
            index: Numbers of the views, negative ones from the end, or a slice: ``slice(k, None, n)`` is the k-th of n
                ordered subsets. ``sinogram[:, :, index]`` are the data that belong to it.

        Raises:
            InputError: no view, or one that does not exist.
        """
        count = self.views
        chosen = list(range(count)[index]) if isinstance(index, slice) else [operator.index(number) for number in index]
        beyond = [number for number in chosen if not -count <= number < count]
        if beyond or not chosen:
            found = f"view {beyond[0]} does not exist" if beyond else "no view is chosen"
            raise InputError(f"views_at: {found}; this scan has the views 0 to {count - 1}")
        angles = self.view_angles
        fields = self.model_dump(exclude={"views", "start", "arc", "angles"})
        return type(self).model_validate(fields | {"angles": tuple(float(angles[number]) for number in chosen)})

    def reduced(self, factor: int) -> Self:
        """Return the same scanner with ``factor`` times fewer views, bins, rows and columns.

        Raises:
            InputError: one of the four counts is not a multiple of ``factor``.
        """
        counts = {"views": self.views, "bins": self.bins, "rows": self.shape[0], "columns": self.shape[1]}
        for name, count in counts.items():
            if factor < 1 or count % factor:
                raise InputError(f"reduced: {name} = {count} is not a multiple of {factor}; use scaled() to choose each count")
        return self.scaled(
            views=self.views // factor, bins=self.bins // factor, shape=(self.shape[0] // factor, self.shape[1] // factor)
        )


class FanBeam(Geometry):
    """A point source that turns with a detector around the isocenter.

    Attributes:
        source_to_isocenter_mm: Radius R of the source's circle.
        source_to_detector_mm: Distance from the source to the middle of the detector axis.
        detector: ``flat``: bins equidistant on a line; ``curved``: bins equiangular on an arc centered at the source
            (``bin_mm`` is then measured along the arc).
        axis_offset_mm: How far the rotation axis lies off the central ray (the one from the source at a right angle to the
            detector), towards growing bins: the center-of-rotation shift of a misaligned scanner, at the isocenter.
    """

    kind: Literal["fan-beam"] = "fan-beam"
    version: Literal[1] = 1

    source_to_isocenter_mm: Length
    source_to_detector_mm: Length
    detector: Literal["flat", "curved"] = "flat"
    axis_offset_mm: float = 0.0

    @model_validator(mode="after")
    def _check_fan(self) -> Self:
        if self.source_to_detector_mm <= self.source_to_isocenter_mm:
            raise ValueError(
                f"source_to_detector_mm = {self.source_to_detector_mm:g} must exceed source_to_isocenter_mm = "
                f"{self.source_to_isocenter_mm:g}: the detector is behind the isocenter"
            )
        half_diagonal = math.hypot(*self.size_mm) / 2
        if self.source_to_isocenter_mm <= half_diagonal:
            raise ValueError(
                f"the source at {self.source_to_isocenter_mm:g} mm would cut through the image, whose corner is "
                f"{half_diagonal:g} mm from the isocenter; reduce shape or pixel_mm, or check the units (mm)"
            )
        widest = float(np.abs(self._edge_angles).max())
        if widest >= math.pi / 4:
            raise ValueError(
                f"the outermost ray is {math.degrees(widest):.1f}° off the central ray; the distance-driven operators need less "
                "than 45° (check bins, bin_mm and detector_offset_bins)"
            )
        return self

    @property
    def _edge_angles(self) -> Floats:
        ratio = self.bin_edges_mm / self.source_to_detector_mm
        return np.arctan(ratio) if self.detector == "flat" else ratio

    @property
    def fan_angles(self) -> Floats:
        """Angle γ between the ray to each bin center and the central ray, rad, shape (bins,); it grows with the bin."""
        ratio = self.bin_centers_mm / self.source_to_detector_mm
        return np.arctan(ratio) if self.detector == "flat" else ratio

    @property
    def bin_at_isocenter_mm(self) -> float:
        """Pitch of the bins scaled to the isocenter (along the arc for a curved detector)."""
        return self.bin_mm * self.source_to_isocenter_mm / self.source_to_detector_mm

    @property
    def isocenter_edges_mm(self) -> Floats:
        """Where the rays through the bin edges cross the detector axis through the isocenter, shape (bins + 1,)."""
        return self.source_to_isocenter_mm * np.tan(self._edge_angles) - self.axis_offset_mm

    @property
    def source_positions_mm(self) -> Floats:
        """The source of every view, (x, y), shape (views, 2)."""
        return self.source_at(self.view_angles)

    def source_at(self, angles: Floats) -> Floats:
        """Return the source, (x, y) in mm, in views at these angles in rad: shape (…) → (…, 2)."""
        cos, sin = np.cos(angles), np.sin(angles)
        radius, offset = self.source_to_isocenter_mm, self.axis_offset_mm
        return np.stack([-radius * sin - offset * cos, radius * cos - offset * sin], axis=-1)

    def _view_outline(self, angle: float) -> tuple[Floats, Floats]:
        across, along = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
        source = self.source_at(np.asarray(angle))
        first, last = self._edge_angles[[0, -1]]
        gamma = np.linspace(first, last, 64)[:, None]
        rays = np.sin(gamma) * across - np.cos(gamma) * along
        if self.detector == "flat":
            rays = rays / np.cos(gamma)
        return np.stack([source, source]), np.asarray(source + self.source_to_detector_mm * rays, dtype=np.float64)

    @property
    def fan_radius_mm(self) -> float:
        """Radius of the disc around the isocenter that every view sees whole; 0 where the detector misses the isocenter."""
        angles = self._edge_angles[[0, -1]]
        first, last = self.source_to_isocenter_mm * np.sin(angles) - self.axis_offset_mm * np.cos(angles)
        return max(0.0, float(min(-first, last)))

    @classmethod
    def ltgm(cls) -> FanBeam:
        """Return the simulated scan of LTGM (MICCAI 2024, options of its ``main_attack_pre.py``, converted from m to mm)."""
        return cls(
            views=1024,
            bins=768,
            bin_mm=2.0,
            shape=(256, 256),
            pixel_mm=1.88,
            source_to_isocenter_mm=2000.0,
            source_to_detector_mm=5000.0,
        )

    @classmethod
    def somatom_scope(cls, *, shape: tuple[int, int] = (512, 512), detector: Literal["flat", "curved"] = "curved") -> FanBeam:
        """Return a scan of the size of a Siemens SOMATOM Scope: 535 and 940 mm distances, 500 mm field of view.

        The scanner's DICOM files state the distances and the field of view. Its bins and views are not public: 736 bins
        that just cover the field and 1152 views a turn are plausible values of ours, not the vendor's.

        Args:
            shape: Rows and columns; the pixel side is 500 mm divided by the larger.
            detector: ``curved`` as in the scanner, or a ``flat`` one of equal pitch.
        """
        return cls(
            views=1152,
            bins=736,
            bin_mm=1.25 if detector == "curved" else 1.37,
            shape=shape,
            pixel_mm=500.0 / max(shape),
            source_to_isocenter_mm=535.0,
            source_to_detector_mm=940.0,
            detector=detector,
        )


class ParallelBeam(Geometry):
    """Parallel rays, half a turn by default. ``bin_mm`` is the distance between neighboring rays."""

    kind: Literal["parallel-beam"] = "parallel-beam"
    version: Literal[1] = 1

    arc: float = math.pi

    @property
    def is_half_circle(self) -> bool:
        """Whether the views are equal steps around half a turn, which sees every ray once."""
        return self._covers(math.pi)

    @property
    def bin_at_isocenter_mm(self) -> float:
        """Pitch of the bins; parallel rays do not magnify."""
        return self.bin_mm

    @property
    def isocenter_edges_mm(self) -> Floats:
        """The bin edges, shape (bins + 1,)."""
        return self.bin_edges_mm

    @property
    def fan_radius_mm(self) -> float:
        """Radius of the disc around the isocenter that every view sees whole; 0 where the detector misses the isocenter."""
        edges = self.bin_edges_mm
        return max(0.0, float(min(-edges[0], edges[-1])))

    def _view_outline(self, angle: float) -> tuple[Floats, Floats]:
        across, along = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
        edges = self.bin_edges_mm[[0, -1]]
        away = 1.25 * max(float(np.abs(edges).max()), math.hypot(*self.size_mm) / 2) * along
        return edges[:, None] * across + away, edges[:, None] * across - away
