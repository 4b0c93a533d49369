"""What a real scanner adds to a scan: each effect against its definition, alone; then all of them, and none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tomosec.acquisition import (
    BadBins,
    BeamHardening,
    Jitter,
    RealisticAcquisition,
    Scanner,
    SimulatedAcquisition,
    TubeCurrent,
    as_scanned,
    check_dose,
)
from tomosec.acquisition.dose import disc_image, water_disc_integrals
from tomosec.acquisition.effects import shift_bins, turn_views
from tomosec.acquisition.simulated import Calibration
from tomosec.component import canonical
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.hounsfield import MU_WATER
from tomosec.operators import Projector
from tomosec.pipeline import ImagingChain
from tomosec.randomness import generator
from tomosec.reconstruction.fbp import FBP
from tomosec.testing import TinySamples, check_component, tiny_geometry

COARSE = FanBeam.ltgm().scaled(views=120, bins=96, shape=(64, 64))
#: Pixels much smaller than bins, so that what is projected is smooth.
SMOOTH = FanBeam.ltgm().scaled(views=120, bins=96, shape=(256, 256))
VIEWS, BINS = tiny_geometry().sinogram_shape
#: A statistic may miss its expectation by so many of its own standard deviations.
SD = 4.5


def keys(count: int) -> list[str]:
    return [f"scan {i}" for i in range(count)]


def realistic(geometry=None, i0=2e5, **fields) -> Scanner:
    acquisition = RealisticAcquisition(**fields)
    return acquisition.build(Calibration(i0, 25.0, 25.0), geometry or tiny_geometry())


def body(count=1) -> torch.Tensor:
    """Smooth line integrals up to 5 that differ between scans, (count, 1, views, bins) float32."""
    view, bin_ = np.meshgrid(np.linspace(0, 2 * np.pi, VIEWS, endpoint=False), np.linspace(-1, 1, BINS), indexing="ij")
    return torch.from_numpy(
        np.stack([(4 + np.sin(view + i)) * np.clip(1 - bin_**2, 0, None) ** 0.5 for i in range(count)])[:, None].astype("f4")
    )


def within(found: float, expected: float, standard_error: float) -> bool:
    return abs(found - expected) <= SD * standard_error


# Nothing on: the numbers of before.


def test_with_everything_off_the_numbers_are_those_of_the_plain_model():
    scanner = SimulatedAcquisition().build(Calibration(1e4, 25.0, 25.0), tiny_geometry())
    x = torch.linspace(0, 5, 3 * VIEWS * BINS).reshape(3, 1, VIEWS, BINS)
    change = 0.05 * torch.sin(x[:1])
    measured = scanner.measure(x, ["a", "b", "c"], seed=3, draw=1, counts_change=change)
    for i, key in enumerate("abc"):
        rng = generator(3, "noise", key, 1)
        counts = rng.poisson(1e4 * np.exp(-x[i].numpy().astype(np.float64))) * np.exp(-change[0].numpy().astype(np.float64))
        counts += 3.3 * rng.standard_normal(counts.shape, dtype=np.float32)
        assert np.array_equal(measured[i].numpy(), np.log(1e4 / np.maximum(counts, 1.0)).astype(np.float32))
    # Golden: printed by the same calls before the effects existed.
    assert float(measured[1, 0, 5, 7]) == pytest.approx(1.8904510736465454, rel=1e-6)
    assert float(measured[2, 0, 31, 27]) == pytest.approx(5.106362819671631, rel=1e-6)
    assert scanner.read(x) is x
    assert scanner.scanned is scanner.geometry


def test_a_calibration_with_everything_off_is_that_of_before():
    # Golden as above: SimulatedAcquisition().fit(COARSE, FBP(COARSE)). Rounding of the FBP may turn a photon.
    assert SimulatedAcquisition().fit(COARSE, FBP(COARSE)).i0 == pytest.approx(98552.3812505196, rel=1e-3)


@pytest.mark.parametrize("kind", [SimulatedAcquisition, RealisticAcquisition])
def test_defaults_are_not_part_of_the_identity(kind):
    check_component(kind())
    assert canonical(kind()) == {"kind": kind().kind, "version": 1}
    assert canonical(kind(adc_step=2.0)) == {"kind": kind().kind, "version": 1, "adc_step": 2.0}


def test_realistic_switches_every_effect_on_and_simulated_none():
    scanner = realistic()
    assert None not in (scanner.tube_current, scanner.hardening, scanner.bad_bins, scanner.jitter)
    assert scanner.adc_step > 0
    assert scanner.electronic_noise > 0
    assert scanner.scanned != scanner.geometry
    plain = SimulatedAcquisition().build(Calibration(1e5, 25.0, 25.0), tiny_geometry())
    assert (plain.tube_current, plain.hardening, plain.bad_bins, plain.jitter, plain.adc_step) == (None, None, None, None, 0)


# Photons and tube current.


def test_photons_have_the_mean_and_the_variance_of_poisson_and_readout():
    scanner = Scanner(tiny_geometry(), i0=5e3, electronic_noise=20.0, adc_step=30.0)
    n = 200 * VIEWS * BINS
    measured = scanner.measure(torch.full((200, 1, VIEWS, BINS), 1.5), keys(200), seed=0, draw=0)
    counts = 5e3 * torch.exp(-measured.double())
    mean, variance = 5e3 * math.exp(-1.5), 5e3 * math.exp(-1.5) + 20.0**2 + 30.0**2 / 12
    assert within(float(counts.mean()), mean, math.sqrt(variance / n))
    assert within(float(counts.var()), variance, variance * math.sqrt(2 / n))


def test_a_sinusoidal_tube_current_spares_front_and_back():
    current = TubeCurrent("sinusoidal", 0.4).profile(np.zeros((VIEWS, BINS)), tiny_geometry())
    assert current == pytest.approx(1 - 0.4 * np.cos(2 * tiny_geometry().view_angles), rel=1e-12)
    assert current[0] == pytest.approx(0.6)
    assert current[VIEWS // 4] == pytest.approx(1.4)


def test_a_tube_current_by_attenuation_follows_the_power_of_the_thickest_ray():
    line = np.zeros((3, 5))
    line[:, 2] = 4.0, 6.0, 1000.0
    current = TubeCurrent("attenuation", 0.5).profile(line[:2], tiny_geometry())
    assert current[1] / current[0] == pytest.approx(math.e, rel=1e-12)
    assert current.mean() == pytest.approx(1, rel=1e-12)
    assert np.isfinite(TubeCurrent("attenuation", 0.5).profile(line, tiny_geometry())).all()


def test_the_square_root_makes_the_least_noise_for_the_charge():
    line = generator("peaks").uniform(2, 7, (50, 1))

    def variance(exponent):
        return float((np.exp(line[:, 0]) / TubeCurrent("attenuation", exponent).profile(line, tiny_geometry())).sum())

    assert variance(0.5) < min(variance(0.45), variance(0.55), variance(1e-9))


@pytest.mark.parametrize("current", [TubeCurrent("sinusoidal", 0.5), TubeCurrent("attenuation", 0.5)], ids=lambda c: c.kind)
def test_the_noise_of_a_view_follows_its_current(current):
    scanner, line = Scanner(tiny_geometry(), i0=2e5, tube_current=current), body().expand(400, -1, -1, -1)
    measured = scanner.measure(line, keys(400), seed=0, draw=0).double()
    expected = scanner.noise_sd(line[:1])[0, 0].double()
    plain = torch.exp(line[0, 0].double() / 2) / math.sqrt(2e5)
    profile = torch.from_numpy(current.profile(line[0, 0].double().numpy(), tiny_geometry()))
    assert torch.allclose(expected, plain / profile[:, None].sqrt(), rtol=1e-5)
    ratio = ((measured - line)[:, 0] / expected).pow(2).mean((0, 2))  # per view
    assert float((ratio - 1).abs().max()) < SD * math.sqrt(2 / (400 * BINS))
    assert float(profile.max() / profile.min()) > 1.1


# Converter.


def test_readings_are_steps_of_the_converter_and_the_error_is_uniform():
    line = torch.full((100, 1, VIEWS, BINS), 2.0)
    fine = Scanner(tiny_geometry(), i0=2e4, electronic_noise=5.0)
    coarse = Scanner(tiny_geometry(), i0=2e4, electronic_noise=5.0, adc_step=16.0)
    exact, stepped = (2e4 * torch.exp(-s.measure(line, keys(100), seed=0, draw=0).double()) for s in (fine, coarse))
    assert float((stepped / 16 - (stepped / 16).round()).abs().max()) < 1e-3
    error = stepped - exact
    assert float(error.abs().max()) < 8.01
    assert within(float(error.var()), 16**2 / 12, 16**2 / 12 * math.sqrt(0.8 / error.numel()))  # kurtosis 1.8
    assert within(float(error.mean()), 0, 16 / math.sqrt(12 * error.numel()))
    rough = Scanner(tiny_geometry(), i0=2e4, electronic_noise=5.0, adc_step=100.0)  # its rounding is a quarter of the variance
    noise = rough.measure(line, keys(100), seed=0, draw=0).double().std()
    assert within(float(noise / rough.noise_sd(line[:1]).mean()), 1, 1 / math.sqrt(2 * error.numel()) + 0.002)


# Beam hardening.

HARDENING = (-0.020, 0.0010)


def test_hardening_is_the_polynomial_and_the_correction_its_inverse():
    p = np.linspace(-1, 15, 4001)
    read = BeamHardening(HARDENING)(p)
    assert read == pytest.approx(p - 0.020 * p**2 + 0.0010 * p**3, rel=1e-12, abs=1e-15)
    far = np.linspace(-4, 40, 2001)  # goes on as a straight line
    assert BeamHardening(HARDENING).inverse(BeamHardening(HARDENING)(far)) == pytest.approx(far, rel=1e-10, abs=1e-12)
    assert np.diff(BeamHardening(HARDENING)(far), 2)[far[1:-1] > 15.1] == pytest.approx(0, abs=1e-12)
    h = 1e-6
    difference = (BeamHardening(HARDENING)(p + h) - BeamHardening(HARDENING)(p - h)) / (2 * h)
    assert BeamHardening(HARDENING).slope(p)[1:-1] == pytest.approx(difference[1:-1], rel=1e-6)


def test_a_hardened_scan_reads_the_polynomial_and_a_corrected_one_the_line_integrals():
    line = body(2).double()
    read = Scanner(tiny_geometry(), i0=math.inf, hardening=BeamHardening(HARDENING)).measure(line, keys(2), seed=0, draw=0)
    assert torch.allclose(read, line - 0.020 * line**2 + 0.0010 * line**3, rtol=1e-12)
    corrected = Scanner(tiny_geometry(), i0=math.inf, hardening=BeamHardening(HARDENING, corrected=True))
    assert torch.allclose(corrected.measure(line, keys(2), seed=0, draw=0), line, rtol=1e-12)
    assert torch.allclose(
        corrected.read(line, torch.full_like(line, 0.01)), line + 0.01 / (1 - 0.04 * line + 0.003 * line**2), rtol=1e-3
    )


def test_the_water_correction_amplifies_the_noise_by_its_slope():
    scanner = Scanner(tiny_geometry(), i0=1e6, hardening=BeamHardening(HARDENING, corrected=True))
    line = torch.full((200, 1, VIEWS, BINS), 5.0)
    noise = scanner.measure(line, keys(200), seed=0, draw=0).double() - 5
    slope = 1 - 0.04 * 5 + 0.003 * 25
    expected = math.exp((5 - 0.020 * 25 + 0.0010 * 125) / 2) / math.sqrt(1e6) / slope
    assert float(scanner.noise_sd(line[:1]).mean()) == pytest.approx(expected, rel=1e-5)
    # 1 %: the second order of the log at 15 000 photons is 1e-4.
    assert float(noise.std()) == pytest.approx(expected, rel=0.01)


def test_uncorrected_hardening_makes_a_water_disc_a_cup_and_the_correction_flattens_it():
    disc, line = disc_image(COARSE, 150.0)[0, 0] > 0.999, water_disc_integrals(COARSE).float()
    radius = torch.from_numpy(np.hypot(*np.meshgrid(*[(np.arange(64) - 31.5) * COARSE.pixel_mm] * 2)))
    images = {
        corrected: FBP(COARSE, window="hann")(
            Scanner(COARSE, i0=math.inf, hardening=BeamHardening(HARDENING, corrected)).measure(line, ["w"], seed=0, draw=0)
        )[0, 0]
        for corrected in (False, True)
    }
    cup = {k: float(v[disc & (radius > 100) & (radius < 130)].mean() / v[radius < 40].mean() - 1) for k, v in images.items()}
    assert cup[False] > 0.015
    assert abs(cup[True]) < 0.003


@pytest.mark.parametrize("coefficients", [(-0.05,), (0.0, -0.01)])
def test_a_polynomial_that_does_not_grow_is_refused(coefficients):
    with pytest.raises(ValidationError, match=r"the reading p \+ .* does not grow at p = "):
        SimulatedAcquisition(beam_hardening=coefficients)
    with pytest.raises(InputError, match="it must from p = -1 to 15"):
        BeamHardening(coefficients)


# Jitter.


def test_no_displacement_is_the_identity():
    line = body()[0, 0].double().numpy()
    assert turn_views(line, tiny_geometry(), np.zeros(VIEWS)) == pytest.approx(line, rel=1e-12, abs=1e-14)
    assert np.array_equal(shift_bins(line, np.zeros(VIEWS)), line)
    assert Jitter(0.0, 0.0).displace(line, tiny_geometry(), "a") is line


def _blob(geometry) -> torch.Tensor:
    """A smooth off-center object, so that splines have something to interpolate; (1, 1, H, W) float64."""
    y, x = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * geometry.pixel_mm for n in geometry.shape], indexing="ij")
    return torch.from_numpy(MU_WATER * np.exp(-((x - 40) ** 2 + (y + 25) ** 2) / (2 * 50.0**2)))[None, None]


@pytest.mark.parametrize(
    "geometry",
    [
        SMOOTH,
        SMOOTH.model_copy(update={"arc": -math.pi * 1.3}),
        ParallelBeam(views=90, bins=96, bin_mm=5.0, shape=(256, 256), pixel_mm=1.75),
        SMOOTH.views_at(np.random.default_rng(0).permutation(120).tolist()),
    ],
    ids=["full circle", "short scan backwards", "parallel", "views in any order"],
)
def test_turned_views_are_those_of_the_turned_scan(geometry):
    turned = 0.01 * np.random.default_rng(1).standard_normal(geometry.views)
    fields = geometry.model_dump(exclude={"views", "start", "arc", "angles"})
    exact = type(geometry).model_validate(fields | {"angles": tuple(geometry.view_angles + turned)})
    before, after = (Projector(g)(_blob(geometry))[0, 0].numpy() for g in (geometry, exact))
    found = turn_views(before, geometry, turned)
    assert np.linalg.norm(found - after) < 0.02 * np.linalg.norm(after - before)


@pytest.mark.parametrize("detector", ["flat", "curved"])
@pytest.mark.parametrize("bins", [0.3, -0.2, 1.6])
def test_a_shifted_detector_measures_what_the_shifted_geometry_projects(detector, bins):
    geometry = SMOOTH.model_copy(update={"detector": detector})
    before, after = (Projector(as_scanned(geometry, detector_offset_bins=d))(_blob(geometry))[0, 0].numpy() for d in (0, bins))
    found = shift_bins(before, np.full(geometry.views, bins))
    assert np.linalg.norm(found - after) < 0.02 * np.linalg.norm(after - before)


def test_jitter_has_the_moments_it_claims_and_is_new_in_every_view_and_scan():
    geometry, count = tiny_geometry(), 300
    scanner = Scanner(geometry, i0=math.inf, jitter=Jitter(detector_mm=9.0))  # 0.2 bins
    ramp = torch.arange(BINS, dtype=torch.float64).expand(count, 1, VIEWS, BINS)
    shift = (scanner.measure(ramp, keys(count), seed=0, draw=0) - ramp)[:, 0, :, 5:-5].numpy()
    assert shift == pytest.approx(shift[..., :1].repeat(BINS - 10, -1), abs=1e-9)  # one shift a view
    shift, n = shift[..., 0], count * VIEWS
    assert within(shift.mean(), 0, 0.2 / math.sqrt(n))
    assert within(shift.std(), 0.2, 0.2 / math.sqrt(2 * n))
    assert within(float(np.mean(shift[:, 1:] * shift[:, :-1])), 0, 0.04 / math.sqrt(n))
    assert within(float(np.mean(shift[1:] * shift[:-1])), 0, 0.04 / math.sqrt(n))
    turned, _ = zip(*(Jitter(view_rad=0.003).displacements(geometry, 0, key) for key in keys(count)), strict=True)
    assert within(float(np.mean(turned)), 0, 0.003 / math.sqrt(n))
    assert within(float(np.std(turned)), 0.003, 0.003 / math.sqrt(2 * n))


def test_a_draw_of_jitter_is_named_by_seed_key_and_number_alone():
    scanner, line = Scanner(tiny_geometry(), i0=math.inf, jitter=Jitter(0.003, 2.0)), body().double()
    found = {
        name: scanner.measure(line, [name[0]], seed=name[1], draw=name[2]).numpy().tobytes()
        for name in (("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1))
    }
    assert len(set(found.values())) == 4
    assert scanner.measure(line, ["a"], seed=0, draw=0).numpy().tobytes() == found["a", 0, 0]


def test_the_two_jitters_do_not_change_each_other():
    both, alone = Jitter(0.003, 2.0), Jitter(0.0, 2.0)
    assert np.array_equal(both.displacements(COARSE, 1, "a")[1], alone.displacements(COARSE, 1, "a")[1])


def test_views_with_one_angle_cannot_be_turned():
    single = COARSE.views_at([3])
    with pytest.raises(InputError, match="view_jitter_rad: nothing can be interpolated"):
        turn_views(np.ones((1, 96)), single, np.zeros(1))


# Bad bins.


def test_bad_bins_belong_to_the_scanner():
    drawn = BadBins.draw(0.1, 96, 0)
    assert len(drawn.all) == 10
    assert (len(drawn.dead), len(drawn.hot)) == (5, 5)
    assert drawn == BadBins.draw(0.1, 96, 0)
    assert len({BadBins.draw(0.1, 96, seed) for seed in range(20)}) == 20
    assert len(BadBins.draw(1e-6, 96, 0).all) == 1
    places = np.concatenate([BadBins.draw(1e-6, 10, seed).all for seed in range(1000)])
    assert within(float(places.mean()), 4.5, math.sqrt(99 / 12 / 1000))  # uniform


def test_every_scan_of_a_scanner_has_the_same_bad_bins():
    fields = {"bad_bins": 0.1, "bad_bins_corrected": False, "electronic_noise": 0.0}

    def constant(name, **which):
        scanner = SimulatedAcquisition(**fields, scanner_seed=name).build(Calibration(1e4, 25.0, 25.0), tiny_geometry())
        measured = scanner.measure(body(2), keys(2), **which)
        return tuple(np.flatnonzero((measured.std((0, 1, 2)) == 0).numpy())), scanner

    first, scanner = constant(0, seed=0, draw=0)
    assert first == tuple(scanner.bad_bins.all)
    assert constant(0, seed=7, draw=3)[0] == first
    assert constant(1, seed=0, draw=0)[0] != first


def test_dead_bins_read_the_floor_and_hot_ones_air_whatever_the_current_or_the_trigger():
    defects = BadBins((3,), (10,), corrected=False)
    scanner = Scanner(tiny_geometry(), i0=1e4, bad_bins=defects, floor=2.0)
    modulated = Scanner(tiny_geometry(), i0=1e4, bad_bins=defects, floor=2.0, tube_current=TubeCurrent("sinusoidal", 0.5))
    current = 1 - 0.5 * np.cos(2 * tiny_geometry().view_angles)
    for read in (modulated.measure(body(), ["a"], seed=0, draw=0), modulated.read(body())):
        assert read[0, 0, :, 3].numpy() == pytest.approx(np.log(1e4 * current / 2), rel=1e-6)
        assert read[..., 10].numpy() == pytest.approx(0, abs=1e-7)
    for read in (
        scanner.measure(body(), ["a"], seed=0, draw=0, counts_change=torch.full((1, 1, VIEWS, BINS), 0.5)),
        scanner.read(body()),
    ):
        assert read[..., 3].numpy() == pytest.approx(math.log(1e4 / 2), rel=1e-6)
        assert read[..., 10].numpy() == pytest.approx(0, abs=1e-7)
    assert torch.equal(scanner.read(body())[..., 4:10], body()[..., 4:10])


def test_correcting_bad_bins_is_interpolation_between_the_good_neighbors():
    defects = BadBins((0, 6, 27), (7, 20), corrected=True)
    found = Scanner(tiny_geometry(), i0=math.inf, bad_bins=defects).read(body().double())
    line = body().double()
    expected = line.clone()
    expected[..., 0], expected[..., 27] = line[..., 1], line[..., 26]
    expected[..., 6] = (2 * line[..., 5] + line[..., 8]) / 3
    expected[..., 7] = (line[..., 5] + 2 * line[..., 8]) / 3
    expected[..., 20] = (line[..., 19] + line[..., 21]) / 2
    assert torch.allclose(found, expected, rtol=1e-12)


def test_no_detector_is_all_bad():
    with pytest.raises(InputError, match="1 of 1 bins would be bad"):
        BadBins.draw(0.1, 1, 0)
    with pytest.raises(ValidationError, match="without noise a dead bin has no reading"):
        SimulatedAcquisition(dose="ideal", bad_bins=0.01, bad_bins_corrected=False)
    with pytest.raises(InputError, match="without noise a dead bin has no reading"):
        Scanner(tiny_geometry(), i0=math.inf, bad_bins=BadBins((3,), (), corrected=False))


# Misalignment.


def test_an_offset_is_the_projection_of_the_shifted_geometry():
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * MU_WATER
    images *= torch.from_numpy(tiny_geometry().scan_circle())
    scanner = SimulatedAcquisition(dose="ideal", axis_offset_mm=3.0, detector_offset_bins=0.25).build(
        Calibration(math.inf, 0.0, 0.0), tiny_geometry()
    )
    shifted = FanBeam.model_validate(tiny_geometry().model_dump() | {"axis_offset_mm": 3.0, "detector_offset_bins": 0.25})
    assert torch.equal(scanner(images), Projector(shifted)(images))
    assert scanner.geometry == tiny_geometry()
    assert not torch.allclose(scanner(images), Projector(tiny_geometry())(images), rtol=1e-2)


def test_an_axis_offset_means_the_same_to_parallel_rays_as_to_a_source_far_away():
    parallel = ParallelBeam(views=90, bins=96, bin_mm=5.0, arc=2 * math.pi, shape=(64, 64), pixel_mm=7.0)
    far = FanBeam(
        views=90, bins=96, bin_mm=5.0, shape=(64, 64), pixel_mm=7.0,
        source_to_isocenter_mm=1e7, source_to_detector_mm=1e7 + 1,
    )  # fmt: skip
    before = Projector(parallel)(_blob(parallel))
    a, b = (Projector(as_scanned(g, axis_offset_mm=2.0))(_blob(g)) for g in (parallel, far))
    assert float((a - b).norm()) < 1e-3 * float((a - before).norm())


def test_an_offset_that_no_scan_can_have_is_named():
    with pytest.raises(InputError, match=r"geometry with its offsets: .*45°"):
        as_scanned(tiny_geometry(), detector_offset_bins=60)


def test_the_geometry_as_scanned_has_the_samples_of_the_assumed_one():
    with pytest.raises(InputError, match="has other views, bins or pixels"):
        Scanner(tiny_geometry(), i0=1e4, scanned=COARSE)


# All of them together.


def test_a_realistic_scan_does_not_depend_on_its_batch_or_order():
    scanner, line = realistic(), body(4)
    together = scanner.measure(line, ["a", "b", "c", "d"], seed=1, draw=2)
    assert torch.equal(scanner.measure(line.flip(0), ["d", "c", "b", "a"], seed=1, draw=2).flip(0), together)
    assert torch.equal(scanner.measure(line[2:3], ["c"], seed=1, draw=2), together[2:3])
    for other in ({"seed": 2, "draw": 2}, {"seed": 1, "draw": 3}):
        assert not torch.equal(scanner.measure(line[2:3], ["c"], **other), together[2:3])


def test_a_clean_and_a_triggered_realistic_scan_share_everything_random():
    scanner, line = realistic(electronic_noise=0.0, adc_step=0.0, beam_hardening=()), body(2)
    clean = scanner.measure(line, keys(2), seed=0, draw=0)
    assert torch.equal(scanner.measure(line, keys(2), seed=0, draw=0, counts_change=torch.zeros_like(line)), clean)
    changed = scanner.measure(line, keys(2), seed=0, draw=0, counts_change=torch.full_like(line, 0.05))
    assert float((changed - clean - 0.05).abs().max()) < 1e-5


def test_the_noise_of_a_realistic_scan_is_the_one_it_states():
    scanner, line = realistic(bad_bins=0.1, view_jitter_rad=0.0, detector_jitter_mm=0.0), body().expand(500, -1, -1, -1)
    noise = scanner.measure(line, keys(500), seed=0, draw=0).double()
    ratio = noise.std(0)[0] / scanner.noise_sd(line[:1])[0, 0].double()
    bad = torch.from_numpy(scanner.bad_bins.all)
    for chosen in (ratio, ratio[:, bad]):
        assert within(float(chosen.mean()), 1, 1 / math.sqrt(2 * 500 * chosen.numel()) + 0.0005)


def test_a_realistic_scan_without_dose_is_deterministic_up_to_jitter():
    scanner = RealisticAcquisition(dose="ideal", view_jitter_rad=0.0, detector_jitter_mm=0.0).build(
        Calibration(math.inf, 0.0, 0.0), tiny_geometry()
    )
    for kind in (torch.float32, torch.float64):
        measured = scanner.measure(body().to(kind), ["a"], seed=0, draw=0)
        assert measured.dtype == kind
        assert torch.equal(measured, scanner.measure(body().to(kind), ["b"], seed=5, draw=1))
        assert torch.equal(measured, scanner.read(body().to(kind)))


@pytest.mark.parametrize(
    "acquisition",
    [
        RealisticAcquisition(),
        RealisticAcquisition(dose="ultra-low"),
        SimulatedAcquisition(dose="low", tube_current="sinusoidal", modulation_depth=0.8),
        SimulatedAcquisition(dose="standard", beam_hardening=(-0.02,), water_correction=True),
        SimulatedAcquisition(dose=10.0, detector_jitter_mm=2.0),
    ],
    ids=["realistic", "realistic, ultra-low", "sinusoidal", "hardened", "mostly jitter"],
)
def test_a_dose_is_met_with_every_effect(acquisition):
    check = check_dose(acquisition, COARSE, FBP(COARSE), draws=48)
    # 5 %, and the scatter of the check itself.
    half = (check.high_hu - check.low_hu) / 2
    assert abs(check.reached_hu - check.target_hu) < 0.05 * check.target_hu + half


def test_a_dose_that_jitter_alone_exceeds_is_refused():
    with pytest.raises(InputError, match=r"alone make .* HU of noise on the water disc, more than the dose of 2 HU"):
        SimulatedAcquisition(dose=2.0, detector_jitter_mm=20.0).fit(COARSE, FBP(COARSE))


def test_a_dose_that_the_photon_floor_forbids_is_refused():
    with pytest.raises(InputError, match=r"acquisition\.dose: 20000 HU cannot be calibrated"):
        SimulatedAcquisition(dose=20000.0).fit(COARSE, FBP(COARSE))


def test_a_dose_beyond_all_photons_is_refused():
    with pytest.raises(InputError, match=r"acquisition\.dose: 1e-08 HU would take .* photons per bin, .*0 \('ideal'\)"):
        SimulatedAcquisition(dose=1e-8).fit(COARSE, FBP(COARSE))


@pytest.mark.parametrize("acquisition", [SimulatedAcquisition(dose="ideal"), SimulatedAcquisition(), RealisticAcquisition()])
@pytest.mark.parametrize("method", ["measure", "read"])
def test_what_is_no_sinogram_of_the_scan_is_refused(acquisition, method):
    scanner = acquisition.build(Calibration(1e4 if acquisition.dose_hu else math.inf, 0.0, 0.0), COARSE)
    good = torch.zeros(1, 1, *COARSE.sinogram_shape)
    named = {"keys": ["a"], "seed": 0, "draw": 0} if method == "measure" else {}
    getattr(scanner, method)(good, **named)
    bad = good.clone()
    bad[0, 0, 1, 2] = float("nan")
    with pytest.raises(InputError, match=f"{method}: the sinogram is nan at image 0, view 1, bin 2"):
        getattr(scanner, method)(bad, **named)
    with pytest.raises(InputError, match=f"{method}: the sinogram has shape"):
        getattr(scanner, method)(good[..., :-1], **named)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modulation_depth": 0.2}, "modulation_depth belongs to tube_current 'sinusoidal'"),
        ({"tube_current": "sinusoidal", "modulation_exponent": 0.3}, "modulation_exponent belongs to tube_current 'attenuation'"),
        ({"bad_bin": 0.1}, "did you mean 'bad_bins'"),
        ({"adc_step": -1.0}, "greater than or equal to 0"),
        ({"bad_bins": 0.5}, "less than or equal to 0.2"),
        ({"detector_jitter_mm": math.nan}, "finite number"),
        ({"axis_offset_mm": math.inf}, "finite number"),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(ValidationError, match=message):
        SimulatedAcquisition(**fields)


def test_what_follows_the_counts_is_told():
    assert Scanner(tiny_geometry(), i0=math.inf).after_counts == "the log"
    plain = Scanner(tiny_geometry(), i0=1e4, electronic_noise=3.3)
    assert plain.after_counts == "electronic noise, the photon floor and the log"
    assert realistic().after_counts == (
        "dead and hot bins, electronic noise, quantization, the photon floor, the log, interpolation over bad bins and "
        "the water correction"
    )
    assert "jitter=Jitter" in repr(realistic())


def test_samples_of_a_realistic_chain_reconstruct():
    imaging = ImagingChain(realistic(), FBP(tiny_geometry()))
    images = TinySamples(imaging, count=2).images
    found = imaging.image(imaging.scanner(images), ["a", "b"], seed=0, draw=0)
    ideal = imaging.reconstruct(imaging.scanner(images))
    assert 0 < float((found - ideal).norm()) < 0.3 * float(ideal.norm())
