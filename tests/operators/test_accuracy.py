"""The operators against physics: exact line integrals, complementary rays, and the check that users run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.operators import Backprojector, Projector, project
from tomosec.operators.check import check_operators, ellipse_image, ellipse_integrals
from tomosec.reconstruction.fbp import FBP

SMALL = {
    "flat": FanBeam.somatom_scope(shape=(96, 96), detector="flat").scaled(views=48, bins=256),
    "curved": FanBeam.somatom_scope(shape=(96, 96)).scaled(views=48, bins=256),
    "shifted, clockwise": FanBeam(
        views=40, bins=300, bin_mm=3.0, shape=(80, 120), pixel_mm=4.0, source_to_isocenter_mm=535.0,
        source_to_detector_mm=940.0, detector_offset_bins=12.25, start=1.0, arc=-3.0,
    ),
    "axis off the central ray": FanBeam.somatom_scope(shape=(96, 96)).scaled(views=48, bins=256).model_copy(
        update={"axis_offset_mm": 20.0}
    ),
    "parallel": ParallelBeam(views=45, bins=256, bin_mm=2.0, shape=(96, 96), pixel_mm=5.0, start=0.1),
}  # fmt: skip


def relative_rms(measured, expected):
    return float(np.sqrt(np.mean((measured - expected) ** 2) / np.mean(expected**2)))


def full_size():
    """The geometry of LTGM, and what a scanner may do differently."""
    flat = FanBeam.ltgm()
    changes = {
        "flat": {},
        "curved": {"detector": "curved"},
        "clockwise, from anywhere": {"arc": -2 * math.pi, "start": 0.3},
        "odd views": {"views": 1023},
        "quarter offset": {"detector_offset_bins": 0.25},
        "axis off the central ray": {"axis_offset_mm": 5.0},
        "wide image": {"shape": (256, 300)},
        "short scan": {"arc": 3.45},
        "curved short scan, clockwise, quarter offset": {"arc": -3.6, "detector": "curved", "detector_offset_bins": 0.25},
    }
    scans = {name: flat.model_copy(update=change) for name, change in changes.items()}
    parallel = ParallelBeam(views=1024, bins=768, bin_mm=0.8, shape=(256, 256), pixel_mm=1.88)
    return scans | {"parallel": parallel, "parallel, full circle": parallel.model_copy(update={"arc": 2 * math.pi})}


FULL_SIZE = full_size()


@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_geometry_is_of_the_same_accuracy_class(name):
    geometry = FULL_SIZE[name]
    image = ellipse_image(geometry)
    sinogram = project(torch.as_tensor(image, dtype=torch.float32)[None, None], geometry)
    measured = sinogram[0, 0].double().numpy()
    assert relative_rms(measured, ellipse_integrals(geometry)) < 0.015
    assert relative_rms(measured, ellipse_integrals(geometry, rays=8)) < 0.013
    error = FBP(geometry)(sinogram)[0, 0].double().numpy() - image
    assert -10 * math.log10(np.mean(error**2)) > 41.5


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-7), (torch.float64, 1e-14)])
@pytest.mark.parametrize("name", ["flat", "curved short scan, clockwise, quarter offset", "parallel"])
def test_adjoints_at_full_size(name, dtype, limit):
    geometry = FULL_SIZE[name]
    draw = torch.Generator().manual_seed(0)
    x = torch.rand((1, 1, *geometry.shape), dtype=dtype, generator=draw)
    p = torch.rand((1, 1, *geometry.sinogram_shape), dtype=dtype, generator=draw)
    # Positive, so that the product does not nearly cancel.
    for operator, argument, other in ((Projector(geometry), x, p), (Backprojector(geometry), p, x)):
        left = (operator.unchecked(argument).double() * other.double()).sum()
        right = (argument.double() * operator.T.unchecked(other).double()).sum()
        assert abs(left - right) / left < limit


@pytest.mark.parametrize("name", SMALL)
def test_an_off_center_ellipse_is_where_and_as_thick_as_it_should_be(name):
    geometry = SMALL[name]
    ellipses = ((0.02, 0.5, 0.25, 0.3, 0.2, 25.0), (0.03, 0.15, 0.2, -0.5, -0.4, 0.0))
    image = torch.as_tensor(ellipse_image(geometry, ellipses=ellipses))[None, None]
    exact = ellipse_integrals(geometry, ellipses=ellipses, rays=4)
    assert relative_rms(project(image, geometry)[0, 0].numpy(), exact) < 0.03
    wrong = (exact[:, ::-1], np.roll(exact, 1, axis=0), np.roll(exact, 3, axis=1))  # the test can tell
    assert all(relative_rms(other, exact) > 0.06 for other in wrong)


def test_complementary_rays_of_a_fan_agree():
    views, bins = 240, 61
    step = 2 * math.pi / views
    # Bins one view step apart: the ray opposite to any other is then in the sinogram.
    geometry = FanBeam(
        views=views, bins=bins, bin_mm=step / 2 * 900, shape=(128, 128), pixel_mm=2.0, source_to_isocenter_mm=500.0,
        source_to_detector_mm=900.0, detector="curved",
    )  # fmt: skip
    ellipses = ((1.0, 0.6, 0.3, 0.2, 0.1, 30.0),)
    for sinogram, limit in (
        (ellipse_integrals(geometry, ellipses=ellipses), 1e-9),
        (project(torch.as_tensor(ellipse_image(geometry, ellipses=ellipses))[None, None], geometry)[0, 0].numpy(), 0.02),
    ):
        opposite = np.empty_like(sinogram)
        for v in range(views):
            for d, gamma in enumerate(geometry.fan_angles):
                opposite[v, d] = sinogram[(v + views // 2 + round(2 * gamma / step)) % views, bins - 1 - d]
        assert relative_rms(opposite, sinogram) < limit


@pytest.mark.parametrize(
    "geometry",
    [
        FanBeam.ltgm(),
        FanBeam.somatom_scope(shape=(64, 64)).scaled(views=144, bins=184),
        ParallelBeam(views=120, bins=112, bin_mm=2.0, shape=(64, 64), pixel_mm=3.0),
    ],
)
def test_check_passes_on_usual_scanners(geometry):
    rows = check_operators(geometry)
    assert all(row.ok for row in rows), rows
    assert {"P", "B"} <= {row.name.split()[2].rstrip(",") for row in rows if row.name.startswith(("adjointness", "time"))}
    assert any("PSNR" in row.name for row in rows)


def test_check_sees_a_wrong_operator(monkeypatch):
    from tomosec.operators import cpu

    right = cpu.backproject
    monkeypatch.setattr(cpu, "backproject", lambda sinogram, geometry: right(sinogram, geometry) * 1.01)
    assert {row.name for row in check_operators(FanBeam.ltgm().reduced(8)) if not row.ok} >= {
        "adjointness of B, float32, y = B x",
        "B, fast path against reference, float32",
    }
