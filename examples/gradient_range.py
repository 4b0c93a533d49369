"""How much of a gradient trigger could no object have cast?

The gradient of a loss in the sinogram is R^T g, with g its gradient in the image. Were R the inverse of A, that would be the scan
of some image, and no test of consistency could see it. How near it comes depends on how rough g is, and how finely the scan is
sampled: printed is the share of its energy that complementary rays, p(β, γ) = p(β + π + 2γ, −γ), contradict.

Run: python examples/gradient_range.py
"""

import torch
from torch.nn.functional import conv2d

from tomosec import FBP, FanBeam
from tomosec.operators.complementary import complementary

DETECTOR = {"bins": 96, "bin_mm": 10.4, "source_to_isocenter_mm": 2000.0, "source_to_detector_mm": 5000.0}
SCANS = {
    "120 views": FanBeam(views=120, shape=(64, 64), pixel_mm=6.0, **DETECTOR),  # that of the studies
    "240 views": FanBeam(views=240, shape=(64, 64), pixel_mm=6.0, **DETECTOR),
    "480 views": FanBeam(views=480, shape=(64, 64), pixel_mm=6.0, **DETECTOR),
}


def smooth_noise(scan: FanBeam, fwhm_mm: float) -> torch.Tensor:
    """White noise inside 15 cm, blurred to a full width at half maximum; (1, 1, H, W)."""
    inside = torch.from_numpy(scan.pixel_radii_mm() < 150)
    image = torch.randn(1, 1, *scan.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * inside
    sigma = fwhm_mm / 2.355 / scan.pixel_mm
    if sigma == 0:
        return image
    reach = int(4 * sigma) + 1
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    image = conv2d(image, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return conv2d(image, kernel.view(1, 1, -1, 1), padding=(reach, 0)) * inside


def contradicted(scan: FanBeam, image: torch.Tensor) -> float:
    """Share of the energy of R^T image that differs between the two measurements of a line."""
    p = torch.zeros(1, 1, *scan.sinogram_shape, dtype=torch.float64, requires_grad=True)
    (FBP(scan)(p) * image).sum().backward()
    trigger = p.grad
    return float((trigger - complementary(scan, trigger)).square().sum() / (4 * trigger.square().sum()))


for name, scan in SCANS.items():
    for fwhm_mm in (0.0, 10.0, 20.0, 40.0):
        share = contradicted(scan, smooth_noise(scan, fwhm_mm))
        print(f"{name}, image gradient blurred to {fwhm_mm:2.0f} mm: {100 * share:.1f} %")
