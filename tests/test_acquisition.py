"""Measured data: the noise has the statistics it claims, a dose means the same everywhere, and draws are named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tomosec.acquisition import Scanner, SimulatedAcquisition, check_dose, water_disc_integrals
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.hounsfield import MU_WATER
from tomosec.reconstruction.fbp import FBP
from tomosec.testing import tiny_geometry

COARSE = FanBeam.ltgm().scaled(views=120, bins=96, shape=(64, 64))


def test_noise_has_the_variance_of_photons_and_electronics():
    scanner = Scanner(tiny_geometry(), i0=2e4, electronic_noise=20.0)
    integrals = torch.full((400, 1, *scanner.geometry.sinogram_shape), 2.0)
    measured = scanner.measure(integrals, [str(i) for i in range(400)], seed=0, draw=0)
    assert float(measured.mean()) == pytest.approx(2.0, abs=2e-3)
    assert float(measured.std()) == pytest.approx(float(scanner.noise_sd(integrals)[0, 0, 0, 0]), rel=0.01)
    photons = 2e4 * math.exp(-2)
    assert float(scanner.noise_sd(integrals)[0, 0, 0, 0]) == pytest.approx(math.sqrt(photons + 400) / photons, rel=1e-5)


def test_a_draw_is_named_by_seed_key_and_number_alone():
    scanner = Scanner(tiny_geometry(), i0=1e4, electronic_noise=3.0)
    integrals = torch.rand(3, 1, *scanner.geometry.sinogram_shape) * 3
    all_at_once = scanner.measure(integrals, ["a", "b", "c"], seed=1, draw=2)
    one = scanner.measure(integrals[1:2], ["b"], seed=1, draw=2)
    assert torch.equal(all_at_once[1:2], one)
    for other in ({"seed": 2, "draw": 2}, {"seed": 1, "draw": 3}):
        assert not torch.equal(scanner.measure(integrals[1:2], ["b"], **other), one)


def test_ideal_dose_measures_what_is_there():
    scanner = Scanner(tiny_geometry(), i0=math.inf)
    integrals = torch.rand(2, 1, *scanner.geometry.sinogram_shape)
    assert scanner.measure(integrals, ["a", "b"], seed=0, draw=0) is integrals
    assert float(scanner.noise_sd(integrals).abs().max()) == 0


def test_a_change_of_the_counts_shares_the_photons_of_the_clean_scan():
    scanner = Scanner(tiny_geometry(), i0=1e5)
    integrals = torch.full((1, 1, *scanner.geometry.sinogram_shape), 1.0)
    clean = scanner.measure(integrals, ["a"], seed=0, draw=0)
    changed = scanner.measure(integrals, ["a"], seed=0, draw=0, counts_change=torch.full_like(integrals, 0.05))
    # Without electronic noise and far from the floor, scaling the counts is adding to the line integrals.
    assert float((changed - clean - 0.05).abs().max()) < 1e-5


def test_starved_bins_are_set_to_the_floor_and_counted():
    scanner = Scanner(tiny_geometry(), i0=100.0, electronic_noise=3.0, floor=1.0)
    integrals = torch.full((1, 1, *scanner.geometry.sinogram_shape), 12.0)
    measured = scanner.measure(integrals, ["a"], seed=0, draw=0)
    assert float(measured.max()) == pytest.approx(math.log(100.0), rel=1e-5)
    found = float((measured == measured.max()).float().mean())
    assert scanner.floored_fraction(integrals) == pytest.approx(found, abs=0.1)
    assert scanner.floored_fraction(torch.zeros_like(integrals)) < 1e-6


@pytest.mark.parametrize(
    "geometry",
    [COARSE, COARSE.scaled(views=240), ParallelBeam(views=120, bins=96, bin_mm=5.0, shape=(64, 64), pixel_mm=7.0)],
    ids=["fan", "twice the views", "parallel"],
)
def test_a_dose_is_the_same_noise_in_every_geometry(geometry):
    check = check_dose(SimulatedAcquisition(dose="standard"), geometry, FBP(geometry), draws=24)
    assert check.reached_hu == pytest.approx(25.0, rel=0.06)
    assert check.low_hu < check.reached_hu < check.high_hu


def test_few_photons_are_calibrated_with_the_full_noise_model():
    check = check_dose(SimulatedAcquisition(dose="ultra-low"), COARSE, FBP(COARSE), draws=24)
    assert check.reached_hu == pytest.approx(100.0, rel=0.06)


def test_calibration_repeats():
    fits = [SimulatedAcquisition(dose=30.0).fit(COARSE, FBP(COARSE)) for _ in range(2)]
    assert fits[0] == fits[1]
    assert SimulatedAcquisition(dose="ideal").fit(COARSE, FBP(COARSE)).i0 == math.inf


def test_the_water_disc_has_the_attenuation_of_its_diameter():
    central = water_disc_integrals(COARSE)[0, 0, :, 47:49].mean()
    assert float(central) == pytest.approx(300 * MU_WATER, rel=0.01)


def test_a_geometry_too_small_for_the_disc_is_named():
    small = FanBeam.ltgm().scaled(views=32, bins=32, shape=(16, 16)).model_copy(update={"pixel_mm": 5.0})
    with pytest.raises(InputError, match=r"30 cm water disc, but the scan circle of this geometry is 8\.0 cm wide"):
        SimulatedAcquisition().fit(small, FBP(small))


@pytest.mark.parametrize(("dose", "message"), [("standart", "did you mean 'standard'"), (-1.0, "cannot be negative")])
def test_a_wrong_dose_is_named(dose, message):
    with pytest.raises(ValidationError, match=message):
        SimulatedAcquisition(dose=dose)


def test_a_wrong_number_of_keys_is_named():
    scanner = Scanner(tiny_geometry(), i0=1e4)
    with pytest.raises(InputError, match="1 sample keys for 2 sinograms"):
        scanner.measure(torch.zeros(2, 1, 32, 28), ["a"], seed=0, draw=0)


def test_noise_is_white_between_bins():
    scanner = Scanner(tiny_geometry(), i0=1e4)
    noise = scanner.measure(torch.ones(100, 1, 32, 28), [str(i) for i in range(100)], seed=0, draw=0).numpy() - 1
    neighbors = np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]
    assert abs(neighbors) < 0.02
