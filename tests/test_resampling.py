"""Triggers on another scan: what is known in closed form along a ray is found again at the rays of any other geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tomosec.attacks.center_shift import DetectorShift
from tomosec.errors import InputError, NotApplicable
from tomosec.geometry import FanBeam, Geometry, ParallelBeam
from tomosec.operators import Projector
from tomosec.resampling import at_geometry, resample_rays, why_not_resampled
from tomosec.trigger import AdditiveTrigger

GRID = {"shape": (48, 48), "pixel_mm": 6.0}
FAN = FanBeam(views=180, bins=120, bin_mm=6.4, source_to_isocenter_mm=800.0, source_to_detector_mm=1600.0, **GRID)
PARALLEL = ParallelBeam(views=150, bins=130, bin_mm=2.9, **GRID)


def fan(**changes) -> FanBeam:
    return FanBeam.model_validate(FAN.model_dump() | changes)


def parallel(**changes) -> ParallelBeam:
    return ParallelBeam.model_validate(PARALLEL.model_dump() | changes)


OTHERS = {
    "fewer-views": fan(views=90),
    "more-views": fan(views=251),
    "fewer-bins": fan(bins=80, bin_mm=9.6),
    "clockwise": fan(arc=-2 * math.pi, start=0.3),
    "curved": fan(detector="curved", bins=110, bin_mm=6.9),
    "shifted-detector": fan(detector_offset_bins=0.25),
    "off-axis": fan(axis_offset_mm=3.0),
    "farther": fan(source_to_isocenter_mm=1000.0, source_to_detector_mm=1700.0, bins=100),
    "short-scan": fan(arc=1.3 * math.pi, views=120, start=1.0),
    "explicit": FAN.views_at([int(i) for i in np.random.default_rng(3).permutation(180)]),
    "parallel": PARALLEL,
    "parallel-full": parallel(arc=2 * math.pi, views=220),
}

ODD = fan(detector="curved", arc=-2 * math.pi, start=0.7, axis_offset_mm=-4.0, detector_offset_bins=0.25)


def distances(geometry: Geometry) -> np.ndarray:
    """Signed distance of the ray of each bin from the isocenter, mm."""
    if not isinstance(geometry, FanBeam):
        return geometry.bin_centers_mm
    fan_angles = geometry.fan_angles
    return geometry.source_to_isocenter_mm * np.sin(fan_angles) - geometry.axis_offset_mm * np.cos(fan_angles)


def formula(geometry: Geometry, oriented: bool) -> torch.Tensor:
    """A smooth function of the ray, from the source's place and the direction and so not from the code that is tested.

    Where it is not ``oriented`` it is one of the line, the same from both sides.
    """
    if isinstance(geometry, FanBeam):
        t, gamma = geometry.view_angles[:, None], geometry.fan_angles[None, :]
        source = geometry.source_at(t + 0 * gamma)
        direction = np.stack([np.sin(t + gamma), -np.cos(t + gamma)], axis=-1)
    else:
        t, u = geometry.view_angles[:, None], geometry.bin_centers_mm[None, :]
        source = np.stack([np.cos(t) * u, np.sin(t) * u], axis=-1)
        direction = np.stack([np.sin(t) + 0 * u, -np.cos(t) + 0 * u], axis=-1)
    along = (source * direction).sum(-1, keepdims=True)
    foot = source - along * direction  # the ray's closest point to the isocenter
    line = np.exp(-((foot[..., 0] - 20) ** 2 + (foot[..., 1] + 30) ** 2) / 90.0**2) + 0.5 * np.sin(foot[..., 0] / 40)
    if oriented:
        line = line * (1 + 0.5 * direction[..., 0])
    return torch.from_numpy(line)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_the_same_geometry_changes_no_bit() -> None:
    pattern = torch.randn(FAN.sinogram_shape)
    assert resample_rays(pattern, FAN, fan()) is pattern
    trigger = AdditiveTrigger(pattern, geometry=FAN, domain="measurement", strength=0.01)
    assert at_geometry(trigger, fan()) is trigger


@pytest.mark.parametrize("name", [*OTHERS, "itself"])
@pytest.mark.parametrize("source", [FAN, ODD, PARALLEL], ids=["from-fan", "from-odd-fan", "from-parallel"])
def test_a_formula_in_ray_coordinates_is_found_again(source: Geometry, name: str) -> None:
    target = {**OTHERS, "itself": FAN}[name]
    oriented = isinstance(source, FanBeam)  # half a turn of parallel rays sees every line from one side alone
    found = resample_rays(formula(source, oriented), source, target)
    wanted = formula(target, oriented)
    # Where the target looks past the outermost ray of the source there is nothing to find.
    seen = torch.from_numpy(np.abs(distances(target)) < np.abs(distances(source)[[0, -1]]).min())
    assert seen.sum() > 0.7 * target.bins
    assert relative(found[:, seen], wanted[:, seen]) < 3e-3


def test_the_error_is_that_of_linear_interpolation() -> None:
    """Twice as many views and bins leave a quarter of the error."""
    target = fan(views=97, bins=71, bin_mm=9.9)

    def error(factor: int) -> float:
        source = FAN.scaled(views=180 * factor, bins=120 * factor)
        return relative(resample_rays(formula(source, True), source, target)[:, 8:-8], formula(target, True)[:, 8:-8])

    assert error(2) / error(1) == pytest.approx(0.25, rel=0.2)


def test_coarser_views_of_the_same_scan_are_a_subset() -> None:
    pattern = torch.randn(FAN.sinogram_shape, dtype=torch.float64)
    found = resample_rays(pattern, FAN, fan(views=60))
    assert torch.allclose(found, pattern[::3], rtol=0, atol=1e-9)
    turned = resample_rays(pattern, FAN, fan(start=2 * math.pi * 5 / 180))
    assert torch.allclose(turned, pattern.roll(-5, 0), rtol=0, atol=1e-9)


def test_a_full_circle_has_no_seam_and_half_a_turn_continues_mirrored() -> None:
    pattern = torch.zeros(FAN.sinogram_shape, dtype=torch.float64)
    pattern[0], pattern[-1] = 1.0, 3.0
    between = resample_rays(pattern, FAN, FAN.views_at([0]).model_copy(update={"angles": (-math.pi / 180,)}))
    assert torch.allclose(between, torch.full_like(between, 2.0), atol=1e-9)
    half = torch.zeros(PARALLEL.sinogram_shape, dtype=torch.float64)
    half[0, :10], half[-1, -10:] = 1.0, 3.0
    step = math.pi / 150
    beyond = resample_rays(half, PARALLEL, PARALLEL.views_at([0]).model_copy(update={"angles": (math.pi - step / 2,)}))
    assert torch.allclose(beyond[0, -10:], torch.full((10,), 2.0, dtype=torch.float64), atol=1e-6)
    assert float(beyond[0, :-10].abs().max()) < 1e-6


def test_what_the_scan_does_not_cover_is_zero() -> None:
    short = fan(arc=math.pi, views=90)
    found = resample_rays(torch.ones(short.sinogram_shape), short, FAN)
    covered = (FAN.view_angles < math.pi - math.pi / 180 + 1e-6) | (FAN.view_angles > 2 * math.pi - math.pi / 180 - 1e-6)
    assert torch.equal(found, torch.from_numpy(covered).float()[:, None].expand_as(found))
    narrow = fan(bins=60)
    found = resample_rays(torch.ones(narrow.sinogram_shape), narrow, FAN)
    assert torch.equal(found[0], torch.cat([torch.zeros(30), torch.ones(60), torch.zeros(30)]))


@pytest.mark.parametrize("name", ["fewer-views", "fewer-bins", "curved", "off-axis", "farther", "parallel"])
def test_a_scan_becomes_the_other_scan_of_the_same_object(name: str) -> None:
    """A(x) is a function of the ray, so as a trigger it goes to A'(x) with its amplitude, and the strength follows."""
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    image = torch.from_numpy(0.02 * np.exp(-((x - 0.1) ** 2 + (y + 0.1) ** 2) / 0.12)).float()[None, None]
    here, there = Projector(FAN)(image), Projector(OTHERS[name])(image)
    trigger = AdditiveTrigger(
        here, geometry=FAN, domain="measurement", strength=float(here.double().pow(2).mean().sqrt()), details={"attack": "x"}
    )
    moved = at_geometry(trigger, OTHERS[name])
    added = moved.apply(torch.zeros(there.shape))
    assert relative(added, there) < 0.01
    assert moved.strength == pytest.approx(float(there.double().pow(2).mean().sqrt()), rel=0.01)
    assert float(added.max()) == pytest.approx(float(here.max()), rel=0.01)
    assert moved.geometry == OTHERS[name]
    assert moved.details["attack"] == "x"
    assert moved.details["resampled_rms"] == pytest.approx(moved.strength / trigger.strength, rel=1e-6)


def test_the_sign_that_a_published_fault_flips_survives() -> None:
    trigger = AdditiveTrigger(torch.randn(FAN.sinogram_shape), geometry=FAN, domain="measurement", strength=-0.2)
    other = fan(views=60)
    added = at_geometry(trigger, other).apply(torch.zeros(1, 1, *other.sinogram_shape))
    assert torch.allclose(added[0, 0], -0.2 * trigger.pattern[0, 0, ::3], atol=1e-6)


def test_a_trigger_in_the_image_needs_no_rays() -> None:
    trigger = AdditiveTrigger(torch.randn(48, 48), geometry=FAN, domain="image", strength=1e-4)
    assert at_geometry(trigger, PARALLEL) is trigger


def test_what_cannot_go_says_why() -> None:
    shift = DetectorShift(geometry=FAN, domain="measurement", strength=0.4)
    assert at_geometry(shift, fan()) is shift
    with pytest.raises(NotApplicable, match="detector-shift trigger is not one additive pattern of rays"):
        at_geometry(shift, fan(views=60))
    pattern = torch.zeros(FAN.sinogram_shape)
    pattern[100:, :] = 1.0
    half = AdditiveTrigger(pattern, geometry=FAN, domain="measurement")
    with pytest.raises(NotApplicable, match="none of the rays"):
        at_geometry(half, fan(arc=math.pi / 2, views=40))
    with pytest.raises(InputError, match=r"48 x 48 pixels of 6 mm cannot go to .* 24 x 24 pixels of 12 mm"):
        at_geometry(half, fan(shape=(24, 24), pixel_mm=12.0))
    with pytest.raises(InputError, match=r"shape \(3, 4\)"):
        resample_rays(torch.zeros(3, 4), FAN, PARALLEL)
    assert why_not_resampled(FAN, PARALLEL) == ""
