"""The torch side of the operators: gradients of any order, registration, modules, refused input."""

from __future__ import annotations

import copy

import pytest
import torch
from small_scans import SCANS

from tomosec.errors import InputError, TruncationWarning
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.operators import Backprojector, Projector, project
from tomosec.operators.dispatch import geometry_key

TINY = {
    "fast path": FanBeam.ltgm().scaled(views=8, bins=6, shape=(4, 4)),
    "general path": ParallelBeam(views=3, bins=5, bin_mm=4.0, shape=(3, 4), pixel_mm=5.0),
}
# Random images fill the corners, where not every view sees them, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::tomosec.errors.TruncationWarning")

FUNCTIONS = ("project", "project_t", "backproject", "backproject_t")
MODULES = {
    "project": Projector,
    "project_t": lambda geometry: Projector(geometry).T,
    "backproject": Backprojector,
    "backproject_t": lambda geometry: Backprojector(geometry).T,
}


def example(function, geometry, **options):
    shape = geometry.shape if function in ("project", "backproject_t") else geometry.sinogram_shape
    return torch.rand((2, 1, *shape), generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("path", TINY)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_of_first_and_second_order(function, path):
    operator, key = getattr(torch.ops.tomosec, function), geometry_key(TINY[path])
    x = example(function, TINY[path], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: operator(a, key), (x,))
    assert torch.autograd.gradgradcheck(lambda a: operator(a * a, key), (x,))  # squared: the operator alone has no curvature


@pytest.mark.parametrize("path", TINY)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torch_accepts_the_registration(function, path):
    x = example(function, TINY[path]).requires_grad_()
    torch.library.opcheck(getattr(torch.ops.tomosec, function), (x, geometry_key(TINY[path])))


def test_transpose_of_the_transpose_is_the_module():
    for module in (Projector, Backprojector):
        operator = module(SCANS["ltgm"])
        assert operator.T.T is operator
        assert operator.T is operator.T
        assert list(operator.modules()) == [operator]
        assert not operator.state_dict()
        other = copy.deepcopy(operator)
        x = example(operator.name, operator.geometry)
        assert torch.equal(other(x), operator(x))
        assert other.T.T is other


def test_input_of_any_layout_gives_the_same():
    geometry = SCANS["ltgm"]
    x = torch.rand(5, 1, 16, 16)
    expected = project(x, geometry)
    assert torch.equal(project(x.transpose(2, 3).contiguous().transpose(2, 3), geometry), expected)
    assert torch.equal(project(x[:1].expand(5, -1, -1, -1), geometry), expected[:1].expand(5, -1, -1, -1))
    assert torch.equal(project(x[1::2], geometry), expected[1::2])
    assert project(x[:0], geometry).shape == (0, 1, 16, 24)


@pytest.mark.parametrize("name", ["ltgm", "curved"])
def test_an_empty_batch_is_an_empty_result(name):
    geometry = SCANS[name]
    for operator in (Projector(geometry), Backprojector(geometry)):
        y = operator(example(operator.name, geometry)[:0])
        assert y.shape[0] == 0
        assert operator.T(y).shape == (0, 1, *(geometry.shape if operator.name == "project" else geometry.sinogram_shape))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(16, 16), r"project: the image has shape \(16, 16\).*\(B, 1, H, W\) = \(B, 1, 16, 16\)"),
        (torch.rand(2, 3, 16, 16), r"shape \(2, 3, 16, 16\)"),
        (torch.rand(2, 1, 16, 24), r"shape \(2, 1, 16, 24\)"),
        (torch.rand(2, 1, 16, 16).half(), "float16; float32 or float64"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.int64), "int64; float32 or float64"),
    ],
)
def test_input_that_does_not_fit_is_refused_with_what_is_wanted(x, message):
    with pytest.raises(InputError, match=message):
        Projector(SCANS["ltgm"])(x)


def test_refused_sinogram_names_views_and_bins():
    with pytest.raises(InputError, match=r"project_t: the sinogram has shape .*\(B, 1, views, bins\) = \(B, 1, 16, 24\)"):
        Projector(SCANS["ltgm"]).T(torch.rand(1, 1, 24, 16))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_none_is_refused_by_its_place(value):
    geometry = SCANS["ltgm"]
    x, p = torch.rand(2, 1, 16, 16), torch.rand(3, 1, 16, 24)
    x[1, 0, 3, 5] = p[2, 0, 15, 0] = value
    x[1, 0, 4, 4] = torch.nan
    with pytest.raises(InputError, match=rf"project: the image is {value} at image 1, row 3, column 5 .*; 2 such of 512\)"):
        project(x, geometry)
    with pytest.raises(InputError, match=rf"backproject: the sinogram is {value} at image 2, view 15, bin 0 .*; 1 such of 1152"):
        Backprojector(geometry)(p)


def test_large_numbers_are_numbers():
    x = torch.full((1, 1, 16, 16), 3e38)
    x[0, 0, ::2] *= -1
    assert Projector(SCANS["ltgm"])(x / 1e20).isfinite().all()
    Projector(SCANS["ltgm"])(x.abs())  # their sum is infinite, they are not


def test_an_object_that_the_detector_does_not_see_whole_gives_a_warning():
    geometry = FanBeam.ltgm().scaled(views=16, bins=24, shape=(16, 16)).model_copy(update={"bin_mm": 25.0})
    x = torch.zeros(3, 1, 16, 16)
    x[:, 0, 7:9, 7:9] = 1.0
    project(x, geometry)
    x[1, 0, 0, 0] = 1.0
    expected = rf"20\.0% of image 1 lies outside the disc of radius {geometry.fan_radius_mm:.4g} mm"
    with pytest.warns(TruncationWarning, match=expected):
        project(x, geometry)
    with pytest.warns(TruncationWarning, match=expected):
        Projector(geometry)(x)


def test_half_precision_is_refused_outside_autocast_and_converted_inside():
    A, B = Projector(SCANS["ltgm"]), Backprojector(SCANS["ltgm"])
    x = torch.rand(2, 1, 16, 16)
    with pytest.raises(InputError, match=r"float16; float32 or float64 is allowed.*autocast"):
        A(x.half().requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(A(x), Projector(SCANS["ltgm"])(x))
        assert torch.equal(A(x.bfloat16()), A(x.bfloat16().float()))
        assert B(A(x).bfloat16()).dtype is torch.float32


@pytest.mark.parametrize("path", TINY)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_vmap_is_the_loop(function, path):
    operator = MODULES[function](TINY[path])
    x = torch.stack([example(function, TINY[path]) * k for k in (1, 2, 3)])
    expected = torch.stack([operator(part) for part in x])
    assert torch.equal(torch.func.vmap(operator)(x), expected)
    assert torch.equal(torch.func.vmap(operator, in_dims=1, out_dims=2)(x.movedim(0, 1)), expected.movedim(0, 2))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(torch.func.vmap(operator)(x).square().sum(), x)
    assert torch.allclose(gradient, torch.stack([2 * operator.T(operator(part)) for part in x.detach()]), rtol=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_whole_graph_compiles(function):
    operator = MODULES[function](TINY["fast path"])
    x = example(function, TINY["fast path"])

    def loss(x):
        return (operator(2 * x) ** 2).sum()

    x.requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.compiler.reset()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(x).backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("name", ["ltgm", "curved", "parallel", "short arc, clockwise"])
@pytest.mark.parametrize("module", [Projector, Backprojector])
def test_norm_is_the_largest_singular_value(module, name):
    operator = module(SCANS[name])
    shape = SCANS[name].shape if module is Projector else SCANS[name].sinogram_shape
    count = shape[0] * shape[1]
    dense = operator.unchecked(torch.eye(count, dtype=torch.float64).reshape(count, 1, *shape)).reshape(count, -1)
    assert operator.norm(tolerance=1e-9, iterations=5000) == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-6)
    assert operator.T.norm(tolerance=1e-9, iterations=5000) == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-6)


def test_norm_that_does_not_settle_is_no_number():
    with pytest.raises(InputError, match="not settled to 1e-12 in 2 iterations; allow more"):
        Projector(SCANS["ltgm"]).norm(tolerance=1e-12, iterations=2)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_repr_builds_the_operator_anew(function):
    names = {"Projector": Projector, "Backprojector": Backprojector, "FanBeam": FanBeam, "ParallelBeam": ParallelBeam}
    for geometry in (SCANS["curved, axis off the central ray"], SCANS["parallel, half a turn"]):
        operator = MODULES[function](geometry)
        other = eval(repr(operator), names)
        assert (other.name, other.geometry) == (operator.name, operator.geometry)
