"""The ramp's taps, and the product with a symmetric Toeplitz matrix in two halves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tomosec.geometry import FanBeam
from tomosec.reconstruction import filters
from tomosec.reconstruction.fbp import FBP, ray_weights
from tomosec.reconstruction.filters import detector_taps, half_matrices, multiply, ramp_taps, toeplitz

WINDOWS = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann")


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


@pytest.mark.parametrize("bins", [1, 2, 9, 12])
def test_the_product_in_halves_is_the_product(bins):
    rng = np.random.default_rng(bins)
    weight = rng.random(bins)
    matrix = (weight + weight[::-1])[:, None] * toeplitz(rng.standard_normal(bins))
    even, odd = (torch.as_tensor(half) for half in half_matrices(matrix))
    lines = rng.standard_normal((2, 3, bins))
    for x in (torch.as_tensor(lines), torch.as_tensor(lines.transpose(1, 0, 2).copy()).transpose(0, 1)):
        assert multiply(x, even, odd).numpy() == pytest.approx(lines @ matrix, rel=1e-12, abs=1e-12)
    assert multiply(x[:0], even, odd).shape == (0, 3, bins)
    mapped = torch.func.vmap(multiply, in_dims=(1, None, None), out_dims=1)(x, even, odd)
    assert torch.equal(mapped, multiply(x, even, odd))
    x = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: multiply(a, even, odd), (x,))
    assert torch.autograd.gradgradcheck(lambda a: multiply(a * a, even, odd), (x,))
    gradients = torch.func.vmap(torch.func.grad(lambda a: multiply(a, even, odd).square().sum()))(x.detach())
    assert gradients.numpy() == pytest.approx(2 * lines @ matrix @ matrix.T, rel=1e-12, abs=1e-12)


def test_blocks_do_not_show(monkeypatch):
    even, odd = (torch.as_tensor(half) for half in half_matrices(toeplitz(ramp_taps(12))))
    x = torch.rand((5, 7, 12), dtype=torch.float64)
    whole = multiply(x, even, odd)
    monkeypatch.setattr(filters, "_BLOCK", 100)  # 8 of 35 lines
    assert multiply(x, even, odd).numpy() == pytest.approx(whole.numpy(), rel=1e-13)


@pytest.mark.parametrize("change", [{}, {"detector": "curved"}, {"bins": 191}, {"axis_offset_mm": 20.0}, {"arc": 3.6}])
def test_filter_is_the_weighted_zero_padded_convolution(change):
    geometry = FanBeam.ltgm().reduced(4).model_copy(update=change)
    fbp = FBP(geometry)
    line = np.random.default_rng(0).random(geometry.sinogram_shape)
    taps = detector_taps(geometry)
    kernel = np.concatenate([taps[:0:-1], taps])
    weighted = line * np.broadcast_to(fbp._weights, line.shape)
    if "arc" not in change:
        assert fbp._weights == pytest.approx(ray_weights(geometry)[None] * math.pi / geometry.views)
    filtered = fbp.filter(torch.as_tensor(line)[None, None])[0, 0].numpy()
    for view in (0, 5, 255):
        expected = np.convolve(weighted[view], kernel)[geometry.bins - 1 : -geometry.bins + 1]
        assert filtered[view] == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_taps_of_a_detector_are_those_of_its_pitch_at_the_isocenter():
    flat = FanBeam.ltgm().reduced(4)
    curved = flat.model_copy(update={"detector": "curved"})
    assert detector_taps(flat) == pytest.approx(ramp_taps(192) / 3.2)
    angle = 7 * curved.bin_mm / curved.source_to_detector_mm
    assert detector_taps(curved)[7] == pytest.approx(detector_taps(flat)[7] * (angle / math.sin(angle)) ** 2)
