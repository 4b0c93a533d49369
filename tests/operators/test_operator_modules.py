"""The torch side of the operators: gradients of any order, registration, modules, refused input."""

from __future__ import annotations

import copy

import pytest
import torch
from small_scans import SCANS

from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.operators import Backprojector, Projector, project
from tomosec.operators.dispatch import geometry_key

TINY = {
    "fast path": FanBeam.ltgm().scaled(views=8, bins=6, shape=(4, 4)),
    "general path": ParallelBeam(views=3, bins=5, bin_mm=4.0, shape=(3, 4), pixel_mm=5.0),
}
FUNCTIONS = ("project", "project_t", "backproject", "backproject_t")


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
