"""Residuals with answers by hand: half scans, sums over air, second differences and their correlations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tomosec.consistency.air import air_sums
from tomosec.consistency.half_scans import HalfDifference
from tomosec.consistency.second_differences import SecondDifferences
from tomosec.defenses.noise_statistics import NoiseStatistics
from tomosec.geometry import FanBeam
from tomosec.reconstruction.fbp import FBP
from tomosec.testing.scans import PhantomScans

SCAN = FanBeam.ltgm().scaled(views=96, bins=72, shape=(48, 48))


def test_half_scans_of_an_object_agree_and_views_that_alternate_make_opposite_images():
    p = PhantomScans(SCAN, 1, i0=math.inf).at([0]).line_integrals.double()
    residual, circle = HalfDifference(SCAN), torch.from_numpy(SCAN.scan_circle())
    image = FBP(SCAN)(p)[:, 0, circle]
    assert float(residual.values(p).norm() / (2 * image).norm()) < 0.2
    alternating = p * (-1.0) ** torch.arange(SCAN.views)[:, None]
    assert torch.allclose(residual.values(alternating), 2 * image, atol=1e-9)


def test_sums_over_air_are_by_view_by_bin_and_of_all():
    air = torch.tensor([[True, True, False], [True, False, False]])
    p = torch.tensor([[[1.0, 2.0, 100.0], [4.0, 100.0, 100.0]]])
    expected = [3 / math.sqrt(2), 4, 5 / math.sqrt(2), 2, 7 / math.sqrt(3)]
    assert air_sums(p, air)[0].tolist() == pytest.approx(expected)


def test_second_differences_of_a_parabola_are_constant_and_of_white_noise_six_times_as_variable():
    views = torch.arange(10.0, dtype=torch.float64)[None, None, :, None].expand(1, 1, 10, 4)
    assert torch.allclose(SecondDifferences().values(3 * views.square() - views), torch.full((1, 8, 4), 6.0, dtype=torch.float64))
    assert torch.equal(SecondDifferences().nominal(torch.ones(1, 1, 10, 4)), torch.full((1, 8, 4), 6.0))


def test_correlations_of_the_noise_are_between_neighbors_along_each_axis():
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 96, 73)))
    neighbors = (noise[..., :-1] + noise[..., 1:]) / math.sqrt(2)
    features = NoiseStatistics().residual(SCAN)
    white, alike = (features.values(p)[0, -2:].tolist() for p in (noise[..., :-1], neighbors))
    # Of second differences of white noise, neighboring views share −4 of 6.
    assert white == pytest.approx([-4 / 6, 0], abs=0.05)
    assert alike == pytest.approx([-4 / 6, 0.5], abs=0.05)
    variance = features.measure(3 * noise[..., :-1], torch.full((1, 1, 96, 72), 3.0, dtype=torch.float64))[0][0, :-2]
    assert float(variance.mean()) == pytest.approx(0, abs=0.05)
