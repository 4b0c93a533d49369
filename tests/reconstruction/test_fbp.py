"""Filtered backprojection: does the picture come back, in every geometry that it claims, and what are its gradients?"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tomosec.component import parse_component
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.operators import project
from tomosec.operators.check import ellipse_image, ellipse_integrals
from tomosec.reconstruction.fbp import FBP, filter_matrix, ramp_taps

WINDOWS = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann")
SMALL = FanBeam.ltgm().scaled(views=256, bins=256, shape=(64, 64))
CURVED = FanBeam.somatom_scope(shape=(96, 96)).scaled(views=288, bins=368)
PARALLEL = ParallelBeam(views=240, bins=368, bin_mm=1.4, shape=(96, 96), pixel_mm=5.0)
SCANS = {
    "flat": FanBeam.somatom_scope(shape=(96, 96), detector="flat").scaled(views=288, bins=368),
    "curved": CURVED,
    "clockwise": CURVED.model_copy(update={"arc": -2 * math.pi, "start": 0.4}),
    "quarter offset": CURVED.model_copy(update={"detector_offset_bins": 0.25}),
    "parallel": PARALLEL,
    "parallel, whole turn": PARALLEL.model_copy(update={"views": 320, "start": 0.3, "arc": 2 * math.pi}),
    "wide image": PARALLEL.model_copy(update={"shape": (96, 120)}),
}


def psnr(measured, expected):
    return -10 * math.log10(float(np.mean((np.asarray(measured, dtype=np.float64) - expected) ** 2)))


def test_phantom_comes_back_at_the_geometry_of_ltgm():
    geometry = FanBeam.ltgm()
    image = ellipse_image(geometry)
    sinogram = project(torch.as_tensor(image, dtype=torch.float32)[None, None], geometry)
    assert psnr(FBP(geometry)(sinogram)[0, 0], image) > 41.5


@pytest.mark.parametrize("name", SCANS)
def test_exact_data_give_the_phantom_in_every_geometry(name):
    geometry = SCANS[name]
    ellipses = ((0.02, 0.7, 0.8, 0.1, 0.0, 20.0), (-0.01, 0.2, 0.1, 0.3, 0.3, 0.0))
    image = ellipse_image(geometry, ellipses=ellipses)
    result = FBP(geometry)(torch.as_tensor(ellipse_integrals(geometry, ellipses=ellipses, rays=4))[None, None])[0, 0].numpy()
    y, x = np.indices(geometry.shape)
    r = np.hypot(y - (geometry.shape[0] - 1) / 2, x - (geometry.shape[1] - 1) / 2) * geometry.pixel_mm / geometry.scan_radius_mm
    inside = geometry.scan_circle()
    assert np.sqrt(np.mean((result - image)[inside] ** 2)) / 0.02 < 0.06
    flat = inside & (r < 0.25) & (image == image[geometry.shape[0] // 2, geometry.shape[1] // 2])
    assert result[flat].mean() == pytest.approx(0.02, rel=3e-3)  # the scale, without the edges
    outside = inside & (r > 0.92)
    assert abs(result[outside].mean()) / 0.02 < 3e-3


@pytest.mark.parametrize("window", WINDOWS)
def test_taps_are_the_inverse_transform_of_the_windowed_ramp(window):
    response = {
        "ram-lak": lambda f: 1.0 + 0 * f,
        "shepp-logan": np.sinc,
        "cosine": lambda f: np.cos(np.pi * f),
        "hamming": lambda f: 0.54 + 0.46 * np.cos(2 * np.pi * f),
        "hann": lambda f: 0.5 + 0.5 * np.cos(2 * np.pi * f),
    }[window]
    count = 20000
    f = (np.arange(count) + 0.5) / count / 2
    expected = [2 * np.mean(f * response(f) * np.cos(2 * np.pi * f * n)) / 2 for n in range(8)]
    assert ramp_taps(8, window) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_bare_ramp_is_the_known_one():
    taps = ramp_taps(6)
    assert taps[0] == 0.25
    assert taps[1::2] == pytest.approx([-1 / (math.pi * n) ** 2 for n in (1, 3, 5)])
    assert np.abs(taps[2::2]).max() < 1e-15


def test_filter_matrix_is_the_zero_padded_convolution():
    geometry = SMALL
    line = np.random.default_rng(0).random(geometry.bins)
    taps = ramp_taps(geometry.bins)
    kernel = np.concatenate([taps[:0:-1], taps])
    weighted = line * np.cos(geometry.fan_angles) * math.pi / geometry.views / geometry.bin_at_isocenter_mm
    assert line @ filter_matrix(geometry) == pytest.approx(np.convolve(weighted, kernel)[geometry.bins - 1 : -geometry.bins + 1])


def test_smoother_windows_are_quieter():
    noise = torch.randn((2, 1, *SMALL.sinogram_shape), generator=torch.Generator().manual_seed(0))
    levels = [float(FBP(SMALL, window=window)(noise).std()) for window in WINDOWS]
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] < 0.7 * levels[0]


def test_windows_keep_the_level_of_a_flat_disc():
    disc = ((0.02, 0.9, 0.9, 0.0, 0.0, 0.0),)
    sinogram = torch.as_tensor(ellipse_integrals(SMALL, ellipses=disc, rays=4))[None, None]
    for window in WINDOWS:
        assert float(FBP(SMALL, window=window)(sinogram)[0, 0, 26:38, 26:38].mean()) == pytest.approx(0.02, rel=2e-3)


def test_float32_costs_rounding_only():
    sinogram = torch.rand((2, 1, *SMALL.sinogram_shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fbp = FBP(SMALL)
    exact, rounded = fbp(sinogram), fbp(sinogram.float())
    assert rounded.dtype is torch.float32
    assert float((rounded - exact).norm() / exact.norm()) < 1e-4


def test_exact_gradient():
    geometry = FanBeam.ltgm().scaled(views=8, bins=6, shape=(4, 4))
    sinogram = torch.rand((2, 1, 8, 6), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FBP(geometry), (sinogram,))
    assert torch.autograd.gradgradcheck(lambda p: FBP(geometry)(p).square(), (sinogram,))


def test_reference_gradient_is_the_published_one():
    geometry = FanBeam.ltgm()
    image = torch.as_tensor(ellipse_image(geometry), dtype=torch.float32)[None, None]
    noise = 0.1 * torch.randn((1, 1, *geometry.sinogram_shape), generator=torch.Generator().manual_seed(0))
    sinogram = project(image, geometry) + noise
    gradients, images = [], []
    for kind in ("exact", "reference"):
        p = sinogram.clone().requires_grad_()
        images.append(FBP(geometry, gradient=kind)(p))
        (gradient,) = torch.autograd.grad((images[-1] - image).square().mean(), p)
        gradients.append(gradient.flatten().double())
    assert torch.equal(*images)  # only the way back differs
    exact, reference = gradients
    assert float(exact @ reference / exact.norm() / reference.norm()) > 0.99
    assert float(exact.norm() / reference.norm()) == pytest.approx(226, rel=0.02)


def test_reference_gradient_can_be_taken_twice():
    geometry = FanBeam.ltgm().scaled(views=8, bins=6, shape=(4, 4))
    p = torch.rand((1, 1, 8, 6), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(FBP(geometry, gradient="reference")(p).square().sum(), p, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), p)
    assert second.abs().max() > 0


def test_component_builds_the_module():
    config = parse_component("reconstruction", {"kind": "fbp", "window": "hann", "gradient": "reference"})
    module = config.build(SMALL)
    assert isinstance(module, FBP)
    assert (module.window, module.gradient, module.is_linear, module.is_differentiable) == ("hann", "reference", True, True)
    assert eval(repr(config), {type(config).__name__: type(config)}) == config
    assert not module.state_dict()


def test_runs_inside_autocast():
    sinogram = torch.rand((1, 1, *SMALL.sinogram_shape))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = FBP(SMALL)(sinogram)
    assert torch.equal(inside, FBP(SMALL)(sinogram))


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (SMALL.model_copy(update={"arc": 4.0}), "short scan needs Parker weights"),
        (SCANS["parallel"].model_copy(update={"arc": 2.0}), "half a turn or a whole one"),
    ],
)
def test_views_that_would_give_a_wrong_picture_are_refused(geometry, message):
    with pytest.raises(InputError, match=message):
        FBP(geometry)


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match=r"window 'ramlak' is not one of ram-lak.*did you mean 'ram-lak'"):
        FBP(SMALL, window="ramlak")
    with pytest.raises(InputError, match="gradient"):
        FBP(SMALL, gradient="wrong")
    with pytest.raises(InputError, match=r"fbp: the sinogram has shape \(1, 1, 256, 64\)"):
        FBP(SMALL)(torch.rand(1, 1, 256, 64))
