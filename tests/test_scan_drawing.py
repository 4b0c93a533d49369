"""The picture of a scan: what is drawn where, in mm."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.operators.check import ellipse_integrals

FAN = {
    "views": 8,
    "bins": 12,
    "bin_mm": 9.0,
    "shape": (8, 6),
    "pixel_mm": 5.0,
    "source_to_isocenter_mm": 70.0,
    "source_to_detector_mm": 120.0,
}
SCANS = {
    "flat": FanBeam(**FAN),
    "curved": FanBeam(**FAN, detector="curved"),
    "offsets": FanBeam(**FAN, axis_offset_mm=4.0, detector_offset_bins=1.0, start=0.5, arc=-4.0),
    "explicit": FanBeam(**{**FAN, "views": 3}, angles=(1.0, 0.2, 5.0)),
    "parallel": ParallelBeam(views=5, bins=12, bin_mm=4.0, shape=(8, 6), pixel_mm=5.0, detector_offset_bins=0.5, start=0.7),
}


def drawn(scan):
    ax = scan.plot(Figure().subplots())
    return {artist.get_label(): artist for artist in [*ax.lines, *ax.patches]}


@pytest.mark.parametrize("name", SCANS)
def test_every_part_is_at_its_place(name):
    scan = SCANS[name]
    artists = drawn(scan)
    assert set(artists) == {"image", "scan circle", "views", "first view", "detector"} | (
        set() if name == "explicit" else {"rotation"}
    )
    image, circle = artists["image"], artists["scan circle"]
    assert (*image.get_xy(), image.get_width(), image.get_height()) == (-15, -20, 30, 40)
    assert circle.center == (0, 0)
    assert circle.radius == scan.scan_radius_mm
    path, detector = artists["views"].get_xydata(), artists["detector"].get_xydata()
    assert len(path) == scan.views
    if isinstance(scan, FanBeam):
        assert path == pytest.approx(scan.source_positions_mm)
    # The outermost rays join the two ends of the detector with the source, or run side by side.
    first, start, other_start, last = artists["first view"].get_xydata()
    assert first == pytest.approx(detector[0])
    assert last == pytest.approx(detector[-1])
    assert (start + other_start) / 2 == pytest.approx(path[0])
    distances = [(a[0] * b[1] - a[1] * b[0]) / math.dist(a, b) for a, b in ((start, first), (other_start, last))]
    edges = scan.isocenter_edges_mm[[0, -1]]
    if isinstance(scan, FanBeam):
        offset = scan.axis_offset_mm
        gamma = np.arctan((edges + offset) / scan.source_to_isocenter_mm)
        edges = scan.source_to_isocenter_mm * np.sin(gamma) - offset * np.cos(gamma)
    assert np.abs(distances) == pytest.approx(np.abs(edges))


def test_the_first_view_of_a_centered_fan_looks_down():
    flat, curved = (drawn(SCANS[name])["detector"].get_xydata() for name in ("flat", "curved"))
    assert flat[[0, -1]] == pytest.approx(np.array([[-54, -50], [54, -50]]))
    assert np.hypot(curved[:, 0], curved[:, 1] - 70) == pytest.approx(120)
    assert curved[-1] == pytest.approx([120 * math.sin(54 / 120), 70 - 120 * math.cos(54 / 120)])


def test_a_shifted_detector_is_drawn_where_it_measures():
    """A small disc is seen by the bin that the drawing puts behind it."""
    scan = SCANS["offsets"].scaled(bins=240)
    place = 0.5 * scan.scan_radius_mm
    seen = np.argmax(ellipse_integrals(scan, ellipses=((1.0, 0.05, 0.05, 0.5, 0.0, 0.0),))[0])
    detector, source = drawn(scan)["detector"].get_xydata(), scan.source_positions_mm[0]
    part = (seen + 0.5) / 240
    bin_center = detector[0] + part * (detector[-1] - detector[0])
    to_bin, to_disc = bin_center - source, np.array([place, 0]) - source
    angle = math.atan2(to_bin[0] * to_disc[1] - to_bin[1] * to_disc[0], to_bin @ to_disc)
    assert abs(angle) < 2 * scan.bin_mm / scan.source_to_detector_mm


@pytest.mark.parametrize(("name", "sign"), [("flat", 1), ("offsets", -1), ("parallel", 1)])
def test_the_arrow_follows_the_rotation(name, sign):
    artists = drawn(SCANS[name])
    start, end = (np.array(place) for place in artists["rotation"]._posA_posB)
    assert start == pytest.approx(artists["views"].get_xydata()[0])
    assert np.sign(start[0] * end[1] - start[1] * end[0]) == sign


def test_without_axes_a_figure_is_opened():
    with pyplot.rc_context():
        pyplot.switch_backend("agg")
        ax = SCANS["flat"].plot()
        assert pyplot.get_fignums() == [ax.figure.number]
        assert ax.get_xlabel() == "x (mm)"
        pyplot.close(ax.figure)


def test_geometry_alone_loads_no_matplotlib():
    code = "import sys, tomosec.geometry; sys.exit(bool({'matplotlib', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
