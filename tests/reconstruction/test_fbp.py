"""Filtered backprojection: does the picture come back, in every geometry that it claims, and what are its gradients?"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from tomosec.component import parse_component
from tomosec.errors import InputError, LimitedAngleWarning
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.operators import project
from tomosec.operators.check import ellipse_image, ellipse_integrals
from tomosec.reconstruction.fbp import FBP
from tomosec.reconstruction.redundancy import needed_arc

WINDOWS = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann")
SMALL = FanBeam.ltgm().scaled(views=256, bins=256, shape=(64, 64))
CURVED = FanBeam.somatom_scope(shape=(96, 96)).scaled(views=288, bins=368)
PARALLEL = ParallelBeam(views=240, bins=368, bin_mm=1.4, shape=(96, 96), pixel_mm=5.0)
WIDE = CURVED.model_copy(update={"bins": 420})  # covers the image with an axis off the central ray, too
SHORT = needed_arc(CURVED)


def explicit(scan, angles):
    fields = scan.model_dump(exclude={"views", "start", "arc", "angles"})
    return type(scan)(**fields, angles=tuple(float(angle) for angle in angles))


def unequal(arc, count, start):
    """Angles over an arc in steps that differ by up to three times, in no order."""
    rng = np.random.default_rng(0)
    steps = rng.uniform(0.5, 1.5, count)
    return rng.permutation(start + np.cumsum(steps) * arc / steps.sum())


SCANS = {
    "flat": FanBeam.somatom_scope(shape=(96, 96), detector="flat").scaled(views=288, bins=368),
    "curved": CURVED,
    "clockwise": CURVED.model_copy(update={"arc": -2 * math.pi, "start": 0.4}),
    "quarter offset": CURVED.model_copy(update={"detector_offset_bins": 0.25}),
    "short": CURVED.model_copy(update={"views": 200, "arc": SHORT, "start": 0.7}),
    "short, clockwise": CURVED.model_copy(update={"views": 200, "arc": -SHORT, "start": 0.7}),
    "short, axis off": WIDE.model_copy(update={"views": 200, "arc": SHORT, "axis_offset_mm": 10.0}),
    "short, clockwise, axis off": WIDE.model_copy(update={"views": 200, "arc": -SHORT, "axis_offset_mm": -10.0}),
    "300 degrees": CURVED.model_copy(update={"views": 240, "arc": math.radians(300)}),
    "axis off": WIDE.model_copy(update={"axis_offset_mm": 10.0}),
    "flat, axis far off": FanBeam.somatom_scope(shape=(96, 96), detector="flat")
    .scaled(views=288, bins=368)
    .model_copy(update={"bins": 460, "axis_offset_mm": -30.0}),
    "explicit circle": explicit(CURVED, unequal(2 * math.pi, 288, 1.0)),
    "explicit short, axis off": explicit(
        WIDE.model_copy(update={"axis_offset_mm": 10.0}), unequal(needed_arc(CURVED) * 1.02, 200, 5.0)
    ),
    "golden angle": explicit(CURVED, np.arange(288) * 2.399963),
    "parallel": PARALLEL,
    "parallel, whole turn": PARALLEL.model_copy(update={"views": 320, "start": 0.3, "arc": 2 * math.pi}),
    "parallel, 250 degrees": PARALLEL.model_copy(update={"views": 331, "arc": math.radians(-250)}),
    "parallel, explicit": explicit(PARALLEL, unequal(2 * math.pi, 288, 1.0)),
    "wide image": PARALLEL.model_copy(update={"shape": (96, 120)}),
}
ELLIPSES = ((0.02, 0.7, 0.8, 0.1, 0.0, 20.0), (-0.01, 0.2, 0.1, 0.3, 0.3, 0.0))


PARTS = ({"views": 200, "arc": math.pi * 5 / 6}, {"views": 40, "start": math.pi * 5 / 6, "arc": math.pi / 6})


def psnr(measured, expected):
    return -10 * math.log10(float(np.mean((np.asarray(measured, dtype=np.float64) - expected) ** 2)))


def reconstructed(geometry, **options):
    sinogram = torch.as_tensor(ellipse_integrals(geometry, ellipses=ELLIPSES, rays=4))[None, None]
    return FBP(geometry, **options)(sinogram)[0, 0].numpy()


@pytest.mark.parametrize("name", SCANS)
def test_exact_data_give_the_phantom_in_every_geometry(name):
    geometry = SCANS[name]
    image, result = ellipse_image(geometry, ellipses=ELLIPSES), reconstructed(geometry)
    y, x = np.indices(geometry.shape)
    r = np.hypot(y - (geometry.shape[0] - 1) / 2, x - (geometry.shape[1] - 1) / 2) * geometry.pixel_mm / geometry.scan_radius_mm
    inside = geometry.scan_circle()
    assert np.sqrt(np.mean((result - image)[inside] ** 2)) / 0.02 < 0.015  # pixels alone cost 0.005 to 0.008
    flat = inside & (r < 0.25) & (image == image[geometry.shape[0] // 2, geometry.shape[1] // 2])
    assert result[flat].mean() == pytest.approx(0.02, rel=3e-4)  # the scale, without the edges
    assert np.abs(result[flat] / 0.02 - 1).max() < 0.01
    outside = inside & (r > 0.92)
    assert abs(result[outside].mean()) / 0.02 < 1e-3


@pytest.mark.parametrize("name", ["curved", "short, clockwise, axis off", "300 degrees", "parallel, 250 degrees"])
def test_the_same_views_as_explicit_angles_give_the_same_picture(name):
    geometry = SCANS[name]
    order = np.random.default_rng(0).permutation(geometry.views)
    turns = 2 * math.pi * np.random.default_rng(1).integers(-1, 2, geometry.views)
    shuffled = explicit(geometry, (geometry.view_angles + turns)[order])
    sinogram = torch.rand((1, 1, *geometry.sinogram_shape), dtype=torch.float64)
    expected, result = FBP(geometry).filter(sinogram), FBP(shuffled).filter(sinogram[:, :, order])
    assert float((result - expected[:, :, order]).norm() / expected.norm()) < 1e-9


def test_a_limited_angle_warns_and_gives_its_part_of_the_picture():
    part, rest = (PARALLEL.model_copy(update=change) for change in PARTS)
    with pytest.warns(LimitedAngleWarning, match=r"the views cover 150\.0°, but .* takes 180\.0° without a gap"):
        first = reconstructed(part)
    with pytest.warns(LimitedAngleWarning, match=r"cover 30\.0°"):
        second = reconstructed(rest)
    assert first + second == pytest.approx(reconstructed(PARALLEL), rel=1e-9, abs=1e-12)
    assert np.abs(second).max() > 1e-3


def test_a_fan_of_half_a_turn_warns():
    geometry = CURVED.model_copy(update={"views": 160, "arc": math.pi})
    with pytest.warns(LimitedAngleWarning, match=r"cover 180\.0°, but .* takes 235\.\d° ") as caught:
        result = reconstructed(geometry)
    assert caught[0].filename == __file__  # the line that asked for it
    image = ellipse_image(geometry, ellipses=ELLIPSES)
    # Rays are counted once: what is left is the missing wedge, and not a level that is wrong everywhere.
    assert np.sqrt(np.mean((result - image)[geometry.scan_circle()] ** 2)) / 0.02 < 0.2


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


def test_repr_rebuilds_the_module():
    sinogram = torch.rand((1, 1, *SMALL.sinogram_shape))
    module = FBP(SMALL, window="hann", gradient="reference")
    assert repr(module) == f"FBP({SMALL!r}, window='hann', gradient='reference')"
    assert repr(FBP(PARALLEL)) == f"FBP({PARALLEL!r})"
    assert torch.equal(eval(repr(module))(sinogram), module(sinogram))


@pytest.mark.parametrize("name", ["flat", "short", "quarter offset"])  # tables for the matrix alone, for rays, for bins
def test_tables_move_with_the_module_and_lose_no_digit(name):
    geometry = SCANS[name].scaled(views=24, bins=40, shape=(8, 8))
    sinogram = torch.rand((2, 1, *geometry.sinogram_shape), dtype=torch.float64)
    fbp = FBP(geometry)
    expected, rounded = fbp(sinogram), fbp(sinogram.float())
    for converted in (copy.deepcopy(fbp), fbp.double(), fbp.half(), fbp.to(torch.bfloat16), fbp.double().float()):
        assert torch.equal(converted(sinogram), expected)
        assert torch.equal(converted(sinogram.float()), rounded)
    assert float((rounded - expected).norm() / expected.norm()) < 1e-5
    assert not fbp.state_dict()
    buffers = dict(fbp.named_buffers())
    assert {"_even32", "_odd64"} <= set(buffers)
    assert ("_weights64" in buffers) == (name != "flat")
    assert all(buffer.device.type == "meta" for buffer in copy.deepcopy(fbp).to("meta").buffers())


@pytest.mark.parametrize("gradient", ["exact", "reference"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, while it compiles
def test_compiles_as_one_graph(gradient):
    geometry = SCANS["short"].scaled(views=8, bins=13, shape=(4, 4))
    fbp = FBP(geometry, gradient=gradient)
    sinogram = torch.rand((2, 1, 8, 13))
    results = []
    for function in (fbp, torch.compile(fbp, fullgraph=True)):
        p = sinogram.clone().requires_grad_()
        image = function(p)
        (slope,) = torch.autograd.grad(image.square().sum(), p)
        results.append((image.detach(), slope))
    for plain, compiled in zip(*results, strict=True):
        assert float((plain - compiled).norm() / plain.norm()) < 1e-5


def test_runs_inside_autocast():
    sinogram = torch.rand((1, 1, *SMALL.sinogram_shape))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = FBP(SMALL)(sinogram)
    assert torch.equal(inside, FBP(SMALL)(sinogram))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": 1}, r"1 view\(s\) look in one direction"),
        ({"detector_offset_bins": 500.0, "bin_mm": 0.1}, "detector misses the isocenter"),
    ],
)
def test_views_that_give_no_picture_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        FBP(SMALL.model_copy(update=change))


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match=r"window 'ramlak' is not one of ram-lak.*did you mean 'ram-lak'"):
        FBP(SMALL, window="ramlak")
    with pytest.raises(InputError, match="gradient"):
        FBP(SMALL, gradient="wrong")
    with pytest.raises(InputError, match=r"fbp: the sinogram has shape \(1, 1, 256, 64\)"):
        FBP(SMALL)(torch.rand(1, 1, 256, 64))
    with pytest.raises(InputError, match="fbp: the sinogram is float16; float32 or float64 is allowed"):
        FBP(SMALL)(torch.rand(1, 1, 256, 256).half().requires_grad_())
