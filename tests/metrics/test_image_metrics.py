"""Stealth metrics against scikit-image and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tomosec.errors import InputError
from tomosec.hounsfield import HU_PER_MU, MU_WATER
from tomosec.metrics.image import SSIM_WINDOWS_HU, image_stealth, sinogram_stealth


def pair(size: int = 48, count: int = 3, change_hu: float = 30.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Smooth images with lung, soft tissue and bone, with a change that grows with the sample; and a disc as body."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size - 0.5
    hu = np.stack(
        [-800 + 900 * np.sin(9 * x + k) + 300 * np.cos(14 * y) + random.normal(0, 25, (size, size)) for k in range(count)]
    )
    delta = np.stack([(k + 1) * change_hu * random.normal(size=(size, size)) for k in range(count)])
    clean, changed = ((MU_WATER * (1 + image / 1000))[:, None] for image in (hu, hu + delta))
    body = np.broadcast_to((x**2 + y**2 < 0.16), clean.shape)
    return torch.tensor(clean, dtype=torch.float32), torch.tensor(changed, dtype=torch.float32), torch.tensor(body)


def to_hu(image: torch.Tensor) -> np.ndarray:
    return image[:, 0].double().numpy() / MU_WATER * 1000 - 1000


def test_hounsfield_differences_by_hand() -> None:
    clean, changed, body = pair()
    found = image_stealth(clean, changed, body)
    delta = to_hu(changed) - to_hu(clean)
    for k in range(3):
        inside = delta[k][body[k, 0].numpy()]
        assert float(found["rmse_hu"][k]) == pytest.approx(np.sqrt((inside**2).mean()), rel=1e-9)
        assert float(found["p95_abs_hu"][k]) == pytest.approx(np.percentile(np.abs(inside), 95), rel=1e-9)
        assert float(found["rmse_image_hu"][k]) == pytest.approx(np.sqrt((delta[k] ** 2).mean()), rel=1e-9)
        assert float(found["max_abs_hu"][k]) == pytest.approx(np.abs(delta[k]).max(), rel=1e-9)


def test_psnr_and_ssim_agree_with_scikit_image() -> None:
    clean, changed, body = pair()
    found = image_stealth(clean, changed, body)
    before, after = to_hu(clean), to_hu(changed)
    for k in range(3):
        assert float(found["psnr_db"][k]) == pytest.approx(
            peak_signal_noise_ratio(before[k], after[k], data_range=2000), rel=1e-6
        )
        for name, (low, high) in SSIM_WINDOWS_HU.items():
            a, b = np.clip(before[k], low, high) - low, np.clip(after[k], low, high) - low
            expected = structural_similarity(
                a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=high - low
            )
            assert float(found[name][k]) == pytest.approx(expected, rel=1e-5)
            assert 0.02 < expected < 0.995


def test_a_sample_does_not_depend_on_its_batch() -> None:
    clean, changed, body = pair()
    together = image_stealth(clean, changed, body)
    for k in range(3):
        alone = image_stealth(clean[k : k + 1], changed[k : k + 1], body[k : k + 1])
        for name, column in alone.items():
            assert column.shape == (1,)
            assert float(column) == pytest.approx(float(together[name][k]), rel=1e-6)


def test_metrics_grow_with_the_change_and_end_at_identity() -> None:
    clean, changed, body = pair()
    found = image_stealth(clean, changed, body)
    assert (found["rmse_hu"].diff() > 0).all()
    assert (found["psnr_db"].diff() < 0).all()
    assert (found["ssim_full"].diff() < 0).all()
    same = image_stealth(clean, clean, body)
    assert (same["rmse_hu"] == 0).all()
    assert torch.isinf(same["psnr_db"]).all()
    assert same["ssim_lung"].numpy() == pytest.approx(np.ones(3))


def test_a_constant_offset_is_its_own_size() -> None:
    clean, _, body = pair(count=1)
    found = image_stealth(clean.double(), clean.double() + 7 / HU_PER_MU, body)
    for name in ("rmse_hu", "p95_abs_hu", "rmse_image_hu", "max_abs_hu"):
        assert float(found[name]) == pytest.approx(7, rel=1e-6)
    assert float(found["psnr_db"]) == pytest.approx(20 * math.log10(2000 / 7), rel=1e-6)


def test_no_body_is_not_a_number() -> None:
    clean, changed, body = pair(count=2)
    body = body.clone()
    body[0] = False
    found = image_stealth(clean, changed, body)
    for name in ("rmse_hu", "p95_abs_hu"):
        assert torch.isnan(found[name]).tolist() == [True, False]
    assert torch.isfinite(found["rmse_image_hu"]).all()
    shared = image_stealth(clean, changed, body[1:])
    assert float(shared["rmse_hu"][1]) == float(found["rmse_hu"][1])


def test_images_that_do_not_fit_are_refused() -> None:
    clean, changed, body = pair()
    for arguments, message in (
        ((clean[:, 0], changed[:, 0], body), "expected two of"),
        ((clean, changed[:1], body), "expected two of"),
        ((clean, changed, body[:2]), "body mask"),
        ((clean[..., :8, :8], changed[..., :8, :8], body[..., :8, :8]), "at least 11 x 11"),
        ((clean, torch.full_like(clean, torch.nan), body), "triggered image holds 6912 values"),
    ):
        with pytest.raises(InputError, match=message):
            image_stealth(*arguments)


def test_sinogram_change_against_noise_and_data() -> None:
    change = torch.tensor([[[[0.3, -0.4]]]])
    found = sinogram_stealth(change, torch.tensor([0.1, 0.2]), torch.tensor([[[[3.0, 4.0]]], [[[6.0, 8.0]]]]))
    assert found["rms"].tolist() == pytest.approx([math.sqrt(0.125)] * 2)
    assert found["max_abs"].tolist() == pytest.approx([0.4] * 2)
    assert found["rms_over_noise"].tolist() == pytest.approx([math.sqrt((9 + 4) / 2)] * 2)
    assert found["max_over_noise"].tolist() == pytest.approx([3.0] * 2)
    assert found["dprime"].tolist() == pytest.approx([math.sqrt(13)] * 2)
    assert found["relative_rms"].tolist() == pytest.approx([0.1, 0.05])
    assert found["psnr_db"].tolist() == pytest.approx([20 * math.log10(peak / math.sqrt(0.125)) for peak in (4, 8)])


def test_dprime_is_what_a_matched_filter_reaches() -> None:
    random = torch.Generator().manual_seed(0)
    change, sd = 0.05 * torch.randn(1, 1, 8, 9, generator=random), 0.1 + 0.2 * torch.rand(1, 1, 8, 9, generator=random)
    noise = sd * torch.randn(20000, 1, 8, 9, generator=random)
    template = change / sd**2
    without, with_ = ((data * template).flatten(1).sum(1) for data in (noise, noise + change))
    measured = (with_.mean() - without.mean()) / without.std()
    assert float(measured) == pytest.approx(float(sinogram_stealth(change, sd)["dprime"]), rel=0.03)


def test_sinogram_without_noise_or_data() -> None:
    change = torch.full((2, 1, 3, 4), 0.5)
    assert set(sinogram_stealth(change, None)) == {"rms", "max_abs"}
    assert sinogram_stealth(change, 0.25)["rms_over_noise"].tolist() == [2.0, 2.0]
    none = sinogram_stealth(torch.zeros(1, 1, 3, 4), 0.25, torch.ones(2, 1, 3, 4))
    assert none["dprime"].tolist() == [0.0, 0.0]
    assert torch.isinf(none["psnr_db"]).all()


def test_sinograms_that_do_not_fit_are_refused() -> None:
    change = torch.ones(2, 1, 3, 4)
    for arguments, message in (
        ((change[0], None), "sinogram change of shape"),
        ((change * torch.inf, None), "NaN or infinite"),
        ((change, 0.0), "finite and positive"),
        ((change, torch.ones(5)), "noise_sd of shape"),
        ((change, None, torch.ones(3, 1, 3, 4)), "does not fit its change"),
        ((change, None, torch.full_like(change, torch.nan)), "sinogram holds 24"),
    ):
        with pytest.raises(InputError, match=message):
            sinogram_stealth(*arguments)
