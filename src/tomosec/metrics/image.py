"""How visible a trigger is: in the image, in Hounsfield units, and in the measured data, in units of the noise.

Everything is per sample: a mean over a batch hides the slice in which a trigger shows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tomosec.errors import InputError
from tomosec.hounsfield import HU_PER_MU

#: Peak of the PSNR in HU: the span from air to dense bone, -1000 to 1000.
PSNR_PEAK_HU = 2000.0
#: SSIM is taken after clipping to a window (low, high) in HU and shifting it to [0, high - low].
SSIM_WINDOWS_HU: dict[str, tuple[float, float]] = {"ssim_lung": (-1350.0, 150.0), "ssim_full": (-1000.0, 1000.0)}
#: Side of SSIM's Gaussian window (sigma 1.5) of Wang et al. 2004; an image must be at least as large.
_SSIM_PIXELS = 11


def image_stealth(clean: Tensor, triggered: Tensor, body: Tensor) -> dict[str, Tensor]:
    """Difference between reconstructions with and without the trigger, that share their noise.

    Args:
        clean: (B, 1, H, W) attenuation in 1/mm.
        triggered: (B, 1, H, W) attenuation in 1/mm.
        body: (B, 1, H, W) or (1, 1, H, W) bool, the body inside the scan circle.

    Returns:
        (B,) float64 tensors:

        * ``rmse_hu``: RMSE over the body, HU; NaN where the mask is empty;
        * ``p95_abs_hu``: 95th percentile of the absolute difference over the body, HU; NaN where the mask is empty;
        * ``rmse_image_hu``: RMSE over the whole image, HU;
        * ``max_abs_hu``: largest absolute difference in the whole image, HU;
        * ``psnr_db``: PSNR over the whole image, unclipped, with a peak of 2000 HU; infinite for identical images;
        * ``ssim_lung``, ``ssim_full``: SSIM (Wang et al. 2004: Gaussian window of sigma 1.5, K1 0.01, K2 0.03) over the image
          less a border of 5 pixels, clipped to −1350..150 HU (data range 1500) and −1000..1000 HU (data range 2000).

    Raises:
        InputError: shapes do not fit, a value is not finite, or an image is smaller than SSIM's window of 11 pixels.
    """
    _check_images(clean, triggered, body)
    before, after = (image.detach().double() * HU_PER_MU - 1000.0 for image in (clean, triggered))
    # From attenuation, not from HU: subtracting the 1000 twice would cost digits.
    change = (triggered.detach().double() - clean.detach().double()) * HU_PER_MU
    mask = body.bool().expand_as(clean)
    result = {
        "rmse_hu": torch.stack([_rms(one[inside]) for one, inside in zip(change, mask, strict=True)]),
        "p95_abs_hu": torch.stack([_percentile(one[inside].abs(), 0.95) for one, inside in zip(change, mask, strict=True)]),
        "rmse_image_hu": change.flatten(1).pow(2).mean(1).sqrt(),
        "max_abs_hu": change.flatten(1).abs().amax(1),
        "psnr_db": peak_signal_noise_ratio(after, before, data_range=PSNR_PEAK_HU, reduction="none", dim=(1, 2, 3)),
    }
    for name, (low, high) in SSIM_WINDOWS_HU.items():
        # Single precision is off by 1e-7 here and a double-precision convolution is several times slower on a CPU.
        shown, reference = (after.clamp(low, high) - low).float(), (before.clamp(low, high) - low).float()
        # torchmetrics averages over the borders too, where its window sees a mirrored image; Wang et al. and scikit-image do not.
        _, local = structural_similarity_index_measure(
            shown, reference, data_range=high - low, reduction="none", return_full_image=True
        )
        margin = _SSIM_PIXELS // 2
        result[name] = local[..., margin:-margin, margin:-margin].double().flatten(1).mean(1)
    return result


def sinogram_stealth(change: Tensor, noise_sd: Tensor | float | None, sinogram: Tensor | None = None) -> dict[str, Tensor]:
    """Size of a change of the measured data, against the noise and against the data.

    Args:
        change: (B, 1, views, bins) p' − p in line integrals; for a universal additive trigger its pattern times its strength.
        noise_sd: standard deviation of each ray's noise in line integrals, > 0, broadcastable to ``change``; None where the
            chain has no noise, and then nothing is compared with it.
        sinogram: p, (B, 1, views, bins) line integrals, or None.

    Returns:
        (B,) float64 tensors; B is 1 for a universal trigger without a sinogram.

        * ``rms``, ``max_abs``: of the change, in line integrals;
        * with noise: ``rms_over_noise`` and ``max_over_noise``, of the change of each ray over its own noise; and
          ``dprime``, the root of the sum of their squares over all rays: the signal-to-noise ratio of a matched filter, which
          bounds what any detector can reach that knows the trigger and the clean scan (the ideal observer for Gaussian noise,
          independent between rays);
        * with a sinogram: ``relative_rms`` (rms over the rms of p) and ``psnr_db`` with the largest value of p as its peak;
          infinite for no change.

    Raises:
        InputError: shapes do not fit, a value is not finite, or a standard deviation is not positive.
    """
    if change.ndim != 4 or change.shape[1] != 1 or change.numel() == 0:
        raise InputError(f"sinogram change of shape {tuple(change.shape)}; expected (batch, 1, views, bins)")
    _check_finite("sinogram change", change)
    delta = change.detach().double()
    if sinogram is not None:
        _check_finite("sinogram", sinogram)
        if sinogram.ndim != 4 or sinogram.shape[1:] != change.shape[1:] or change.shape[0] not in (1, sinogram.shape[0]):
            raise InputError(f"sinogram of shape {tuple(sinogram.shape)} does not fit its change of shape {tuple(change.shape)}")
        delta = delta.expand(sinogram.shape)
    rms = delta.flatten(1).pow(2).mean(1).sqrt()
    result = {"rms": rms, "max_abs": delta.flatten(1).abs().amax(1)}
    if noise_sd is not None:
        ratio = (delta / _noise(noise_sd, delta)).flatten(1)
        result |= {
            "rms_over_noise": ratio.pow(2).mean(1).sqrt(),
            "max_over_noise": ratio.abs().amax(1),
            "dprime": ratio.pow(2).sum(1).sqrt(),
        }
    if sinogram is not None:
        data = sinogram.detach().double().flatten(1)
        result |= {"relative_rms": rms / data.pow(2).mean(1).sqrt(), "psnr_db": 20 * torch.log10(data.amax(1) / rms)}
    return result


def _noise(noise_sd: Tensor | float, like: Tensor) -> Tensor:
    sd = torch.as_tensor(noise_sd, dtype=torch.float64, device=like.device).detach()
    if not bool(torch.isfinite(sd).all()) or bool((sd <= 0).any()):
        raise InputError("noise_sd must be finite and positive for every ray; give None for a chain without noise")
    try:
        return sd.expand_as(like)
    except RuntimeError as error:
        raise InputError(f"noise_sd of shape {tuple(sd.shape)} does not fit sinograms of shape {tuple(like.shape)}") from error


def _check_images(clean: Tensor, triggered: Tensor, body: Tensor) -> None:
    shape = tuple(clean.shape)
    if clean.ndim != 4 or shape[1] != 1 or triggered.shape != clean.shape:
        raise InputError(f"images of shapes {shape} and {tuple(triggered.shape)}; expected two of (batch, 1, height, width)")
    if body.ndim != 4 or body.shape[1:] != clean.shape[1:] or body.shape[0] not in (1, shape[0]):
        raise InputError(f"body mask of shape {tuple(body.shape)} does not fit images of shape {shape}")
    if min(shape[2:]) < _SSIM_PIXELS:
        raise InputError(f"images of {shape[2]} x {shape[3]} pixels; SSIM needs at least {_SSIM_PIXELS} x {_SSIM_PIXELS}")
    _check_finite("clean image", clean)
    _check_finite("triggered image", triggered)


def _check_finite(what: str, values: Tensor) -> None:
    if bad := int((~torch.isfinite(values)).sum()):
        raise InputError(f"{what} holds {bad} values that are NaN or infinite")


def _rms(values: Tensor) -> Tensor:
    # The mean of nothing is NaN, which is what an empty mask means.
    return values.pow(2).mean().sqrt()


def _percentile(values: Tensor, q: float) -> Tensor:
    if values.numel() == 0:
        return values.new_tensor(torch.nan)
    # torch.quantile refuses more than 2^24 values; kthvalue does not. Linear interpolation between ranks, as NumPy's default.
    rank = q * (values.numel() - 1)
    below = int(rank)
    low = values.kthvalue(below + 1).values
    high = values.kthvalue(min(below + 2, values.numel())).values
    return low + (rank - below) * (high - low)
