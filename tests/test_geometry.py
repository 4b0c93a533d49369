"""Geometries as values: what they derive, what they refuse, and that they can be written down and read back."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tomosec.component import components, parse_component
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam

FAN = {
    "views": 8,
    "bins": 12,
    "bin_mm": 9.0,
    "shape": (8, 8),
    "pixel_mm": 5.0,
    "source_to_isocenter_mm": 70.0,
    "source_to_detector_mm": 120.0,
}
PARALLEL = {"views": 8, "bins": 12, "bin_mm": 9.0, "shape": (6, 8), "pixel_mm": 5.0}


def test_geometry_of_ltgm():
    scan = FanBeam.ltgm()
    assert scan.sinogram_shape == (1024, 768)
    assert scan.bin_at_isocenter_mm == pytest.approx(0.8)
    assert scan.size_mm == pytest.approx((481.28, 481.28))
    assert scan.fan_radius_mm == pytest.approx(303.64, abs=0.01)
    assert scan.scan_radius_mm == pytest.approx(240.64)
    assert scan.is_full_circle
    assert scan.scan_circle().mean() == pytest.approx(math.pi / 4, rel=1e-3)


def test_somatom_scope_covers_its_field():
    for detector in ("curved", "flat"):
        scan = FanBeam.somatom_scope(detector=detector)
        assert scan.size_mm == pytest.approx((500, 500))
        assert 250 <= scan.fan_radius_mm < 255
        assert scan.scan_radius_mm == pytest.approx(250)


@pytest.mark.parametrize(
    "scan",
    [
        FanBeam.ltgm(),
        FanBeam.somatom_scope(),
        FanBeam(**{**FAN, "start": 0.5, "arc": -3.0}),
        FanBeam(**{**{k: v for k, v in FAN.items() if k != "views"}, "angles": (0.0, 0.5, 2.0)}),
        ParallelBeam(**PARALLEL),
        ParallelBeam(**PARALLEL, detector_offset_bins=0.25),
    ],
)
def test_values_rebuild_from_repr_json_and_recipe(scan):
    assert eval(repr(scan)) == scan
    assert type(scan).model_validate_json(scan.model_dump_json()) == scan
    assert parse_component("geometry", scan.model_dump(mode="json")) == scan
    assert hash(scan) == hash(eval(repr(scan)))


def test_both_kinds_are_registered():
    assert set(components("geometry")) >= {"fan-beam", "parallel-beam"}


def test_views_follow_start_and_signed_arc():
    assert FanBeam(**FAN).view_angles == pytest.approx(np.arange(8) * math.pi / 4)
    assert FanBeam(**FAN, start=1.0, arc=-2.0).view_angles == pytest.approx(1.0 - np.arange(8) / 4)
    assert ParallelBeam(**PARALLEL).view_angles == pytest.approx(np.arange(8) * math.pi / 8)


def test_full_and_half_circles_are_recognized_in_any_order():
    assert FanBeam(**FAN, arc=-2 * math.pi).is_full_circle
    assert not FanBeam(**FAN, arc=3.0).is_full_circle
    no_views = {k: v for k, v in FAN.items() if k != "views"}
    assert FanBeam(**no_views, angles=tuple(7.0 + math.pi / 2 * n for n in (2, 0, 3, 1))).is_full_circle
    assert not FanBeam(**no_views, angles=(0.0, 1.0, 2.0)).is_full_circle
    assert ParallelBeam(**PARALLEL).is_half_circle
    assert not ParallelBeam(**PARALLEL).is_full_circle
    assert not ParallelBeam(**PARALLEL, arc=-2 * math.pi).is_half_circle


def test_bins_of_flat_and_curved_detectors():
    flat, curved = FanBeam(**FAN), FanBeam(**FAN, detector="curved")
    assert flat.bin_edges_mm[[0, 6, 12]] == pytest.approx([-54, 0, 54])
    assert flat.isocenter_edges_mm == pytest.approx(flat.bin_edges_mm * 70 / 120)
    assert np.diff(curved.fan_angles) == pytest.approx(9 / 120)
    assert curved.isocenter_edges_mm == pytest.approx(70 * np.tan(curved.bin_edges_mm / 120))
    assert flat.fan_angles == pytest.approx(np.arctan(flat.bin_centers_mm / 120))
    shifted = FanBeam(**FAN, detector_offset_bins=0.25)
    assert shifted.bin_centers_mm == pytest.approx(flat.bin_centers_mm + 0.25 * 9)
    assert shifted.fan_radius_mm < flat.fan_radius_mm


def test_an_axis_off_the_central_ray_moves_the_source_and_narrows_the_disc():
    scan, shifted = FanBeam(**FAN), FanBeam(**FAN, axis_offset_mm=3.0)
    assert shifted.source_positions_mm[0] == pytest.approx([-3.0, 70.0])
    assert shifted.source_positions_mm[2] == pytest.approx([-70.0, -3.0])  # a quarter turn later
    assert shifted.isocenter_edges_mm == pytest.approx(scan.isocenter_edges_mm - 3.0)
    last = math.atan(54 / 120)
    assert shifted.fan_radius_mm == pytest.approx(70 * math.sin(last) - 3 * math.cos(last))
    with pytest.raises(ValidationError, match="the source at 28 mm would cut"):  # its plane, however far aside it is
        FanBeam(**{**FAN, "source_to_isocenter_mm": 28.0}, axis_offset_mm=50.0)


def test_a_detector_that_misses_the_isocenter_sees_no_disc():
    scan = ParallelBeam(**PARALLEL, detector_offset_bins=20)
    assert scan.fan_radius_mm == 0
    assert not scan.scan_circle().any()


def test_scan_circle_is_inside_the_smaller_side():
    mask = ParallelBeam(**{**PARALLEL, "shape": (6, 12)}).scan_circle()
    assert mask.shape == (6, 12)
    assert not mask[:, :3].any()
    assert mask[2:4, 3:9].all()
    assert (mask == mask[::-1, ::-1]).all()


@given(st.integers(1, 6), st.integers(1, 400), st.integers(1, 400))
def test_scaling_keeps_the_scanner(factor, views, bins):
    scan = FanBeam.ltgm()
    other = scan.scaled(views=views, bins=bins, shape=(32 * factor, 32 * factor))
    assert other.size_mm == pytest.approx(scan.size_mm)
    assert other.fan_radius_mm == pytest.approx(scan.fan_radius_mm)
    assert other.sinogram_shape == (views, bins)
    assert other.source_to_isocenter_mm == scan.source_to_isocenter_mm


@pytest.mark.parametrize(("index", "numbers"), [([3, 0, -1], [3, 0, 7]), (slice(1, None, 4), [1, 5]), (range(8), range(8))])
@pytest.mark.parametrize("scan", [FanBeam(**FAN, start=0.3, axis_offset_mm=2.0), ParallelBeam(**PARALLEL, arc=-1.0)])
def test_some_views_are_the_same_scanner_at_their_angles(scan, index, numbers):
    part = scan.views_at(index)
    assert (part.view_angles == scan.view_angles[list(numbers)]).all()
    assert part.views == len(numbers)
    assert part.model_dump(exclude={"views", "start", "arc", "angles"}) == scan.model_dump(
        exclude={"views", "start", "arc", "angles"}
    )
    assert part.views_at(range(part.views)) == part


def test_views_that_do_not_exist_are_refused():
    for index, found in (([0, 8], "view 8"), ([-9], "view -9"), ([], "no view is chosen"), (slice(8, None), "no view")):
        with pytest.raises(InputError, match=f"views_at: {found}.*0 to 7"):
            FanBeam(**FAN).views_at(index)


def test_reduced_divides_every_count():
    scan = FanBeam.ltgm().reduced(4)
    assert (scan.views, scan.bins, scan.shape, scan.pixel_mm, scan.bin_mm) == (256, 192, (64, 64), 7.52, 8.0)
    with pytest.raises(InputError, match="bins = 12 is not a multiple of 5; use scaled"):
        FanBeam(**{**FAN, "views": 10}).reduced(5)


def test_scaling_that_would_change_the_scanner_is_refused():
    with pytest.raises(InputError, match="aspect ratio"):
        FanBeam.ltgm().scaled(shape=(64, 32))
    with pytest.raises(InputError, match="explicit angles"):
        ParallelBeam(**{k: v for k, v in PARALLEL.items() if k != "views"}, angles=(0.0, 1.0)).scaled(views=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": 0}, "greater than or equal to 1"),
        ({"bin_mm": -1.0}, "greater than 0"),
        ({"pixel_mm": 0.0}, "greater than 0"),
        ({"pixel_mm": math.nan}, "finite"),
        ({"shape": (8,)}, "Field required"),
        ({"arc": 0.0}, "not 0"),
        ({"arc": 7.0}, "at most one turn"),
        ({"angles": (0.0, 1.0)}, "views is 8 but angles lists 2"),
        ({"views": 2, "angles": (0.0, 1.0), "start": 1.0}, "start contradicts"),
        ({"source_to_detector_mm": 60.0}, "behind the isocenter"),
        ({"source_to_isocenter_mm": 25.0}, "cut through the image, whose corner is 28.28"),
        ({"bin_mm": 21.0}, "46.4° off the central ray"),
        ({"detector": "round"}, "'flat' or 'curved'"),
        ({"pitch": 1.0}, "pitch"),
    ],
)
def test_contradictions_are_refused_with_the_reason(change, message):
    with pytest.raises(ValidationError, match=message):
        FanBeam(**{**FAN, **change})


def test_no_torch_is_imported():
    code = "import sys, tomosec.geometry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
