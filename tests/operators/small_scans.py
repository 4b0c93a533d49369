"""Small geometries of every kind, by name. COPIES: how many copies of an image the CPU path puts in a vector for each."""

from __future__ import annotations

import math

from tomosec.geometry import FanBeam, ParallelBeam

_ltgm = {"pixel_mm": 30.0, "source_to_isocenter_mm": 2000.0, "source_to_detector_mm": 5000.0}
_near = {"pixel_mm": 5.0, "source_to_isocenter_mm": 70.0, "source_to_detector_mm": 120.0, "bin_mm": 9.0}

EIGHTFOLD = {
    "ltgm": FanBeam(views=16, bins=24, bin_mm=64.0, shape=(16, 16), **_ltgm),
    "strongly diverging": FanBeam(views=24, bins=13, shape=(9, 9), **_near),
    "from 45 degrees": FanBeam(views=16, bins=11, bin_mm=100.0, shape=(7, 7), start=math.pi / 4, **_ltgm),
    "clockwise, from one step": FanBeam(views=24, bins=12, shape=(8, 8), start=math.pi / 12, arc=-2 * math.pi, **_near),
    "angles in another order": FanBeam(
        bins=12, shape=(8, 8), angles=tuple(math.pi / 8 * (3 * n % 16) for n in range(16)), **_near
    ),
    "image wider than the fan": FanBeam(views=16, bins=8, bin_mm=64.0, shape=(16, 16), **_ltgm),
    "curved, full circle": FanBeam(views=16, bins=12, shape=(8, 8), detector="curved", **_near),
    "curved, wide bins": FanBeam(views=24, bins=3, shape=(8, 8), detector="curved", **(_near | {"bin_mm": 45.0})),
    "parallel, full circle": ParallelBeam(views=16, bins=11, bin_mm=4.0, shape=(9, 9), pixel_mm=5.0, arc=2 * math.pi),
}
_parallel = {"bins": 11, "bin_mm": 4.0, "shape": (8, 8), "pixel_mm": 5.0}
LESS_SYMMETRIC = {
    "parallel, half a turn": ParallelBeam(views=8, **_parallel),
    "quarter offset, full circle": FanBeam(views=8, bins=12, shape=(8, 8), detector_offset_bins=0.25, **_near),
    "curved, quarter offset, start anywhere": FanBeam(
        views=12, bins=12, shape=(8, 8), detector="curved", detector_offset_bins=0.25, start=0.2, **_near
    ),
    "wide image, full circle": FanBeam(views=16, bins=14, shape=(6, 10), **_near),
    "high image, curved, clockwise": FanBeam(views=16, bins=14, shape=(10, 6), detector="curved", arc=-2 * math.pi, **_near),
    "odd views, curved": FanBeam(views=9, bins=12, shape=(8, 8), detector="curved", **_near),
    "odd views, from 90 degrees": FanBeam(views=7, bins=12, shape=(7, 9), start=math.pi / 2, **_near),
    "odd views, from 45 degrees": FanBeam(views=7, bins=12, shape=(8, 8), start=math.pi / 4, **_near),
    "parallel, repeated views": ParallelBeam(angles=(0.0, math.pi / 2, 0.0, 1.0, math.pi, math.pi / 2), **_parallel),
}
GENERAL = {
    "curved": FanBeam(views=10, bins=12, shape=(8, 8), detector="curved", **_near),
    "curved, shifted": FanBeam(views=8, bins=12, shape=(8, 8), detector="curved", detector_offset_bins=0.25, **_near),
    "flat, shifted": FanBeam(views=8, bins=12, shape=(8, 8), detector_offset_bins=-1.25, **_near),
    "axis off the central ray": FanBeam(views=8, bins=13, shape=(8, 8), axis_offset_mm=4.0, **_near),
    "curved, axis off the central ray": FanBeam(
        views=7, bins=13, shape=(8, 9), detector="curved", axis_offset_mm=-6.0, detector_offset_bins=0.25, start=0.7, **_near
    ),
    "odd views": FanBeam(views=9, bins=12, shape=(8, 8), **_near),
    "between the symmetric views": FanBeam(views=8, bins=12, shape=(8, 8), start=0.2, **_near),
    "short arc, clockwise": FanBeam(views=7, bins=12, shape=(8, 8), start=2.0, arc=-4.0, **_near),
    "wide image": FanBeam(views=8, bins=14, shape=(6, 11), **_near),
    "explicit angles": FanBeam(bins=12, shape=(8, 8), angles=(0.1, -2.0, 7.5, 3.0), **_near),
    "parallel": ParallelBeam(views=9, bins=11, bin_mm=4.0, shape=(8, 8), pixel_mm=5.0),
    "parallel, high image, shifted": ParallelBeam(
        views=8, bins=11, bin_mm=6.0, shape=(10, 7), pixel_mm=5.0, start=0.3, arc=-2 * math.pi, detector_offset_bins=0.5
    ),
}
SCANS = EIGHTFOLD | LESS_SYMMETRIC | GENERAL
COPIES = dict.fromkeys(EIGHTFOLD, 8) | {
    "parallel, half a turn": 4,
    "quarter offset, full circle": 4,
    "curved, quarter offset, start anywhere": 4,
    "wide image, full circle": 4,
    "high image, curved, clockwise": 4,
    "odd views, curved": 2,
    "odd views, from 90 degrees": 2,
    "odd views, from 45 degrees": 2,
    "explicit angles": 1,
}
