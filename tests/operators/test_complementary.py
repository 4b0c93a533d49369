"""Complementary rays against an object whose line integrals are known, and against trigonometric interpolation by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.operators.complementary import complementary, symmetrize, why_not_complementary

FAN = FanBeam(
    views=180, bins=90, bin_mm=8.0, source_to_isocenter_mm=600.0, source_to_detector_mm=1000.0, shape=(32, 32), pixel_mm=8.0
)
PARALLEL = ParallelBeam(views=120, bins=64, bin_mm=5.0, arc=2 * math.pi, shape=(32, 32), pixel_mm=8.0)


def change(geometry, **fields):
    return type(geometry).model_validate(geometry.model_dump() | fields)


def blob(geometry, x=40.0, y=-25.0, width=25.0):
    """Line integrals of a Gaussian blob at (x, y), (1, 1, views, bins) float64."""
    t = geometry.view_angles[:, None]
    if isinstance(geometry, FanBeam):
        gamma = geometry.fan_angles[None, :]
        theta, s = t + gamma, geometry.source_to_isocenter_mm * np.sin(gamma)
    else:
        theta, s = t, geometry.bin_centers_mm[None, :]
    distance = s - (x * np.cos(theta) + y * np.sin(theta))
    return torch.from_numpy(np.exp(-(distance**2) / (2 * width**2)))[None, None]


@pytest.mark.parametrize(
    "geometry",
    [FAN, change(FAN, arc=-2 * math.pi), change(FAN, detector="curved", start=0.3), change(FAN, views=181), PARALLEL],
    ids=["flat", "clockwise", "curved", "odd", "parallel"],
)
def test_both_sides_of_a_line_see_the_same_of_an_object(geometry):
    p = blob(geometry)
    assert (complementary(geometry, p) - p).norm() < 1e-6 * p.norm()
    assert (p.flip(-1) - p).norm() > 0.1 * p.norm()


@pytest.mark.parametrize("geometry", [FAN, change(FAN, views=31, bins=7), PARALLEL], ids=["fan", "odd", "parallel"])
def test_symmetrizing_makes_noise_agree_with_its_other_side(geometry):
    p = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1, *geometry.sinogram_shape)))
    even = symmetrize(geometry, p)
    assert (complementary(geometry, even) - even).norm() < 1e-12 * even.norm()
    assert (symmetrize(geometry, even) - even).norm() < 1e-12 * even.norm()
    # Half of white noise is even; the rest of it has changed sign.
    assert float(even.square().sum() / p.square().sum()) == pytest.approx(0.5, abs=0.05)


def test_the_shift_is_trigonometric_interpolation_of_the_views():
    geometry = change(FAN, views=9, bins=5)
    p = np.random.default_rng(1).standard_normal(geometry.sinogram_shape)
    t, gamma = geometry.view_angles, geometry.fan_angles
    expected = np.empty_like(p)
    for j in range(9):
        for d in range(5):
            x = (t[j] + math.pi + 2 * gamma[d]) - t  # the Dirichlet kernel of an odd number of samples
            kernel = np.where(np.abs(np.sin(x / 2)) < 1e-12, 1.0, np.sin(9 * x / 2) / (9 * np.sin(x / 2) + 1e-300))
            expected[j, d] = kernel @ p[:, 4 - d]
    assert np.allclose(complementary(geometry, torch.from_numpy(p)[None, None])[0, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("geometry", "reason"),
    [
        (change(FAN, arc=math.pi), "arc of 180°"),
        (change(FAN, detector_offset_bins=0.25), "detector_offset_bins is 0.25"),
        (change(FAN, axis_offset_mm=2.0), "axis_offset_mm is 2"),
        (FAN.views_at([0, 2, 1, *range(3, 180)]), "order of the rotation"),
        (change(PARALLEL, arc=math.pi), "arc of 180°"),
    ],
)
def test_scans_without_complementary_bins_are_refused(geometry, reason):
    assert reason in why_not_complementary(geometry)
    with pytest.raises(InputError, match="complementary rays need"):
        complementary(geometry, torch.zeros(1, 1, *geometry.sinogram_shape))


def test_explicit_angles_in_order_are_as_good_as_equal_steps():
    p = blob(FAN)
    assert torch.allclose(complementary(FAN.views_at(slice(None)), p), complementary(FAN, p), rtol=0, atol=1e-9)
