"""Every ray counts once: the weights of short and long arcs, and the angle that each view stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tomosec.errors import InputError, LimitedAngleWarning
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.reconstruction.redundancy import coverage, is_limited, measure_weights, needed_arc, parker_weights

FAN = FanBeam(views=40, bins=24, bin_mm=9.0, shape=(8, 8), pixel_mm=5.0, source_to_isocenter_mm=70.0, source_to_detector_mm=140.0)
PARALLEL = ParallelBeam(views=40, bins=24, bin_mm=4.0, shape=(8, 8), pixel_mm=5.0)


def at(scan, *degrees, **change):
    fields = scan.model_dump(exclude={"views", "start", "arc", "angles"})
    return type(scan)(**(fields | change), angles=tuple(math.radians(angle) for angle in degrees))


@given(st.floats(math.pi / 2, 2 * math.pi * 0.999), st.floats(0, 1), st.floats(-0.75, 0.75))
def test_the_measurements_of_a_ray_share_one(arc, place, alpha):
    beta = place * arc
    total = float(parker_weights(beta, alpha, arc))
    for partner in (beta + math.pi + 2 * alpha, beta - math.pi + 2 * alpha):
        if 0 < partner < arc:
            total += float(parker_weights(partner, -alpha, arc))
    assert total == pytest.approx(1, abs=1e-9)


def test_the_partner_is_the_same_ray():
    """The rule behind the weights, off center too: the partner passes the isocenter on the same line the other way round."""
    scan = FAN.model_copy(update={"axis_offset_mm": 6.0})
    center = math.atan2(6.0, 70.0)

    def line(angle, gamma):  # its direction and its signed distance from the isocenter, from source and direction
        source = np.array([-70 * math.sin(angle) - 6 * math.cos(angle), 70 * math.cos(angle) - 6 * math.sin(angle)])
        along = np.array([math.sin(angle + gamma), -math.cos(angle + gamma)])
        return along, source[0] * along[1] - source[1] * along[0]

    for gamma in scan.fan_angles:
        alpha = gamma - center
        way, distance = line(0.4, gamma)
        back, other = line(0.4 + math.pi + 2 * alpha, center - alpha)
        assert back == pytest.approx(-way)
        assert other == pytest.approx(-distance)


@pytest.mark.parametrize("clockwise", [False, True])
def test_for_the_shortest_arc_the_weights_are_those_of_parker(clockwise):
    fan = 0.3
    arc = math.pi + 2 * fan
    for alpha in np.linspace(-0.29, 0.29, 7):
        for beta in np.linspace(0.01, arc - 0.01, 50):
            # Parker 1982, equation 12, whose fan angle grows against the rotation.
            gamma = alpha if clockwise else -alpha
            if beta < 2 * fan + 2 * gamma:
                expected = math.sin(math.pi / 4 * beta / (fan + gamma)) ** 2
            elif beta < math.pi + 2 * gamma:
                expected = 1.0
            else:
                expected = math.sin(math.pi / 4 * (math.pi + 2 * fan - beta) / (fan - gamma)) ** 2
            position = arc - beta if clockwise else beta
            assert parker_weights(position, alpha, arc) == pytest.approx(expected, abs=1e-12)


def test_weights_follow_the_axis_and_the_direction_of_rotation():
    arc = math.pi + 1.2
    weights = measure_weights(FAN.model_copy(update={"arc": arc}))
    backwards = measure_weights(FAN.model_copy(update={"start": arc * (1 - 1 / 40), "arc": -arc}))
    shifted = measure_weights(FAN.model_copy(update={"arc": arc, "start": arc / 80}))
    assert backwards[::-1] == pytest.approx(shifted)
    assert weights == pytest.approx(shifted)  # where an arc starts does not matter
    # The bin through the isocenter is seen by views half a turn apart.
    offset = FAN.model_copy(update={"arc": arc, "axis_offset_mm": 70 * float(np.tan(FAN.fan_angles[14]))})
    center = measure_weights(offset)[:, 14] / (arc / 40)
    beta = (np.arange(40) + 0.5) * arc / 40
    assert center == pytest.approx(parker_weights(beta, 0.0, arc))


@pytest.mark.parametrize(
    ("scan", "shares", "closed"),
    [
        (at(FAN, 0, 90, 180, 270), [90, 90, 90, 90], True),
        (at(FAN, 270, 0, -180, 450), [90, 90, 90, 90], True),
        (at(FAN, 0, 60, 180, 240, 300), [60, 90, 90, 60, 60], True),  # one view of six is missing
        (at(FAN, 100, 20, 40, 80), [20, 20, 30, 30], False),
        (at(FAN, 350, 10, 370, 30), [20, 10, 10, 20], False),  # one direction twice, across zero
        (at(PARALLEL, 0, 60, 120), [60, 60, 60], True),
        (at(PARALLEL, 0, 240, 120), [60, 60, 60], True),
        (at(PARALLEL, 0, 60, 120, 180, 240, 300), [30, 30, 30, 30, 30, 30], True),
        (at(PARALLEL, 0, 10, 25, 180), [5, 12.5, 15, 5], False),
    ],
)
def test_each_view_stands_for_half_the_way_to_its_neighbors(scan, shares, closed):
    found = coverage(scan)
    assert found.closed == closed
    assert np.degrees(found.shares) == pytest.approx(shares, abs=1e-9)
    assert found.shares.sum() == pytest.approx(found.arc)


def test_positions_count_from_half_a_step_before_the_first_view():
    assert np.degrees(coverage(at(FAN, 100, 20, 40, 80)).positions) == pytest.approx([90, 10, 30, 70])
    assert np.degrees(coverage(at(FAN, 350, 10, 370, 30)).positions) == pytest.approx([10, 30, 30, 50])


@pytest.mark.parametrize("arc", [2.0, -2.0, 5.0, -5.0])
def test_equal_steps_and_the_same_explicit_angles_agree(arc):
    scan = FAN.model_copy(update={"arc": arc, "start": 0.3})
    same = at(FAN, *np.degrees(scan.view_angles))
    for mine, other in zip(coverage(scan)[:3], coverage(same)[:3], strict=True):
        assert mine == pytest.approx(other)


def test_the_arc_that_is_needed_is_that_of_the_scan_circle():
    assert needed_arc(PARALLEL) == math.pi
    assert FAN.scan_radius_mm == 20  # of the image; the detector sees more
    assert needed_arc(FAN) == pytest.approx(math.pi + 2 * math.asin(20 / 70))
    narrow = FAN.model_copy(update={"bins": 4})
    assert needed_arc(narrow) == pytest.approx(math.pi + 2 * math.atan(18 / 140))
    off = FAN.model_copy(update={"axis_offset_mm": 24.0})
    assert needed_arc(off) == pytest.approx(math.pi + 2 * math.asin(20 / 74))


def test_limited_angles_are_told_from_short_scans():
    short = FAN.model_copy(update={"arc": needed_arc(FAN)})
    assert not is_limited(short)
    assert is_limited(FAN.model_copy(update={"arc": needed_arc(FAN) - 0.01}))
    assert not is_limited(PARALLEL)
    assert is_limited(PARALLEL.model_copy(update={"arc": 3.0}))
    two_arcs = at(FAN, *range(0, 61, 2), *range(180, 241, 2))
    with pytest.warns(LimitedAngleWarning, match=r"cover 122\.0°, but .* takes 213\.2° without a gap"):
        measure_weights(two_arcs)


@pytest.mark.parametrize(
    "scan",
    [
        FAN.model_copy(update={"views": 1}),
        at(FAN, 30),
        at(FAN, 30, 390, -330),
        at(PARALLEL, 30, 210),
        PARALLEL.model_copy(update={"views": 2, "arc": 2 * math.pi}),
    ],
)
def test_one_direction_is_refused(scan):
    with pytest.raises(InputError, match="look in one direction"):
        measure_weights(scan)
