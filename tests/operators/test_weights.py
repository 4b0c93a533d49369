"""The operators' weights: against an independent oracle, against their transposes, and against each other."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_oracle import dense
from small_scans import COPIES, EIGHTFOLD, GENERAL, SCANS

from tomosec.geometry import FanBeam
from tomosec.operators import Backprojector, Projector, backproject, cpu, project, project_t, reference
from tomosec.operators.cpu_symmetry import passes
from tomosec.operators.dispatch import implementation

# Random images fill the corners, where not every view sees them, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::tomosec.errors.TruncationWarning")

BIGGER = {
    "eightfold": FanBeam.ltgm().scaled(views=104, bins=192, shape=(64, 64)),
    "fourfold, curved": FanBeam.somatom_scope(shape=(64, 64))
    .scaled(views=100, bins=150)
    .model_copy(update={"detector_offset_bins": 0.25, "start": 0.3}),
    "short arc": FanBeam.ltgm()
    .scaled(views=61, bins=192, shape=(64, 64))
    .model_copy(update={"arc": -3.6, "axis_offset_mm": 5.0}),
}
FUNCTIONS = ("project", "project_t", "backproject", "backproject_t")


def relative(measured, expected):
    return float((measured - expected).abs().max() / expected.abs().max())


def argument(name, geometry, dtype=torch.float64, images=3, seed=0):
    shape = geometry.shape if name in ("project", "backproject_t") else geometry.sinogram_shape
    return torch.rand((images, 1, *shape), dtype=dtype, generator=torch.Generator().manual_seed(seed))


def as_matrix(function, geometry):
    shape = geometry.shape if function.__name__ in ("project", "backproject_t") else geometry.sinogram_shape
    count = shape[0] * shape[1]
    columns = function(torch.eye(count, dtype=torch.float64).reshape(count, 1, *shape), geometry)
    return columns.reshape(count, -1).T


@pytest.mark.parametrize("name", SCANS)
def test_matrices_are_the_oracles_and_each_others_transposes(name):
    geometry = SCANS[name]
    P, B = (torch.as_tensor(matrix) for matrix in dense(geometry))
    assert P.abs().sum() > 0
    for module in (reference, cpu):
        assert relative(as_matrix(module.project, geometry), P) < 1e-10
        assert relative(as_matrix(module.project_t, geometry).T, P) < 1e-10
        assert relative(as_matrix(module.backproject, geometry), B) < 1e-10
        assert relative(as_matrix(module.backproject_t, geometry).T, B) < 1e-10
        for function, transpose in (("project", "project_t"), ("backproject", "backproject_t")):
            matrix, transposed = (as_matrix(getattr(module, name), geometry) for name in (function, transpose))
            assert relative(matrix, transposed.T) < 1e-12


@pytest.mark.parametrize("name", COPIES)
def test_symmetry_that_the_views_have_is_used(name):
    for part in passes(SCANS[name]):
        assert len(part.copies) == COPIES[name]


@pytest.mark.parametrize("name", SCANS)
def test_every_view_is_a_base_view_of_one_copy(name):
    geometry = SCANS[name]
    seen = [part.view_of[part.view_of >= 0].tolist() for part in passes(geometry)]
    assert sorted(itertools.chain.from_iterable(seen)) == list(range(geometry.views))


def test_full_circle_traverses_an_eighth_of_the_views():
    [part] = passes(FanBeam.ltgm())
    assert len(part.angles) == 1024 // 8 + 1


def test_the_device_chooses_who_computes():
    assert implementation("cpu") is cpu
    assert implementation("mps") is reference


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("images", [1, 19])
@pytest.mark.parametrize("name", BIGGER)
def test_cpu_equals_the_reference_at_a_realistic_size(name, function, images):
    geometry = BIGGER[name]
    x = argument(function, geometry, images=images)
    expected = getattr(reference, function)(x, geometry)
    assert relative(getattr(cpu, function)(x, geometry), expected) < 1e-11
    assert relative(getattr(cpu, function)(x.float(), geometry).double(), expected) < 1e-5


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", ["ltgm", "strongly diverging", "curved, shifted", "parallel"])
@pytest.mark.parametrize("module", [Projector, Backprojector])
def test_adjoint_defect_is_rounding(module, name, dtype, limit):
    geometry = SCANS[name]
    operator = module(geometry)
    x = argument(operator.name, geometry, dtype)
    image = operator(x)
    normal = torch.randn(image.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    for y in (image, normal):  # y = A x cannot hide a wrong scale behind a small product
        left, right = (image.double() * y.double()).sum(), (x.double() * operator.T(y).double()).sum()
        assert abs(left - right) / (image.double().norm() * y.double().norm()) < limit


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_precision_costs_rounding_only(function, name):
    x = argument(function, SCANS[name])
    operator = {"project": project, "project_t": project_t, "backproject": backproject}.get(function)
    if operator is None:
        operator = Backprojector(SCANS[name]).T
        exact, rounded = operator(x), operator(x.float())
    else:
        exact, rounded = operator(x, SCANS[name]), operator(x.float(), SCANS[name])
    assert rounded.dtype is torch.float32
    assert relative(rounded.double(), exact) < 1e-5


@pytest.mark.parametrize(
    "geometry", [EIGHTFOLD["ltgm"], GENERAL["odd views"].scaled(views=12), GENERAL["parallel"].scaled(views=8)]
)
def test_turning_the_image_by_90_degrees_shifts_the_views(geometry):
    turn = geometry.views // 4
    if geometry.kind == "parallel-beam":
        geometry, turn = geometry.model_copy(update={"arc": 2 * np.pi}), 2
    x = argument("project", geometry)
    for module in (reference, implementation("cpu")):
        turned = module.project(torch.rot90(x, 1, (2, 3)), geometry)  # counter-clockwise on the screen, as the views
        assert relative(turned, module.project(x, geometry).roll(turn, 2)) < 1e-12


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(SCANS)), st.sampled_from(FUNCTIONS), st.floats(-1e3, 1e3), st.integers(0, 2**31))
def test_operators_are_linear(name, function, factor, seed):
    geometry = SCANS[name]
    x, y = argument(function, geometry, seed=seed), argument(function, geometry, seed=seed + 1)
    run = getattr(implementation("cpu"), function)
    whole, parts = run(x + factor * y, geometry), (run(x, geometry), factor * run(y, geometry))
    size = parts[0].abs().max() + parts[1].abs().max()
    assert (whole - parts[0] - parts[1]).abs().max() / size < 1e-12


def test_not_a_number_in_a_gradient_is_not_hidden():
    for geometry in (EIGHTFOLD["ltgm"], GENERAL["curved"]):
        x = argument("project", geometry, torch.float32)
        x[1, 0, 3, 4] = torch.nan
        p = Projector(geometry).unchecked(x)
        assert torch.isnan(p[1]).any()
        assert torch.isfinite(p[[0, 2]]).all()


@pytest.mark.parametrize("name", BIGGER)
def test_result_does_not_depend_on_threads_or_company(name):
    geometry = BIGGER[name]
    before = torch.get_num_threads()
    try:
        for function in FUNCTIONS:
            x = argument(function, geometry, torch.float32, images=9)
            run = getattr(cpu, function)
            torch.set_num_threads(2)
            two = run(x, geometry)
            assert torch.equal(run(x[4:5], geometry), two[4:5])
            torch.set_num_threads(1)
            assert torch.equal(run(x, geometry), two)
    finally:
        torch.set_num_threads(before)


def test_concurrent_callers_do_not_disturb_each_other():
    scans = [EIGHTFOLD["ltgm"], GENERAL["curved"], FanBeam.ltgm().scaled(views=64, bins=96, shape=(32, 32))]
    inputs = [argument("project", geometry, seed=seed) for seed, geometry in enumerate(scans)]
    expected = [project_t(project(x, g), g) for x, g in zip(inputs, scans, strict=True)]
    wrong = []

    def work(offset):
        for n in range(15):
            k = (n + offset) % len(scans)
            if not torch.equal(project_t(project(inputs[k], scans[k]), scans[k]), expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_kernels_are_made_ready_once_and_say_what_it_took():
    first = cpu.prepare(np.dtype(np.float32))
    assert first.seconds > 0
    assert cpu.prepare(np.dtype(np.float32)) is first
