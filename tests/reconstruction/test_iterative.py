"""Steps on A and A.T against dense linear algebra: where they go, how fast, and what their gradients are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.operators import Projector
from tomosec.reconstruction.iterative import (
    SARTWeights,
    cgls,
    cgls_start,
    cgls_step,
    ordered_subsets,
    sart_step,
    sart_weights,
    subset,
)

SCAN = ParallelBeam(views=12, bins=13, bin_mm=2.5, shape=(4, 5), pixel_mm=5.0, start=0.1)  # condition number 3.3
PARTLY = FanBeam(
    views=8, bins=4, bin_mm=9.0, shape=(8, 8), pixel_mm=5.0, source_to_isocenter_mm=70.0, source_to_detector_mm=120.0
)
A = Projector(SCAN)


def dense(projector):
    """The matrix of a projector, (views · bins, H · W), with zeros where rounding leaves a little."""
    pixels = projector.geometry.shape[0] * projector.geometry.shape[1]
    unit = torch.eye(pixels, dtype=torch.float64).reshape(pixels, 1, *projector.geometry.shape)
    matrix = projector(unit).reshape(pixels, -1).T.numpy()
    return np.where(np.abs(matrix) > 1e-9, matrix, 0.0)


def example(batch=2, scan=SCAN, **options):
    draw = torch.Generator().manual_seed(0)
    options = {"dtype": torch.float64, **options}
    x = torch.rand((batch, 1, *scan.shape), generator=draw, **options)
    return x, torch.rand((batch, 1, *scan.sinogram_shape), generator=draw, **options) * 10


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_cgls_reaches_least_squares_in_as_many_steps_as_unknowns():
    _, p = example(3)
    expected = np.linalg.lstsq(dense(A), p.reshape(3, -1).numpy().T, rcond=None)[0].T
    assert relative(cgls(p, A, steps=200).reshape(3, -1).numpy(), expected) < 1e-12  # nor does rounding lead away from it
    assert relative(cgls(p, A, steps=20).reshape(3, -1).numpy(), expected) < 1e-8
    assert relative(cgls(p, A, steps=10).reshape(3, -1).numpy(), expected) > 1e-6  # not before


def test_cgls_iterates_are_the_best_of_their_krylov_space():
    _, p = example(1)
    matrix, data = dense(A), p.flatten().numpy()
    gradient = matrix.T @ data
    space = [gradient]
    for step in range(1, 5):
        basis = np.linalg.qr(np.stack(space, axis=1))[0]
        best = basis @ np.linalg.lstsq(matrix @ basis, data, rcond=None)[0]
        assert relative(cgls(p, A, steps=step).flatten().numpy(), best) < 1e-9
        space.append(matrix.T @ (matrix @ space[-1]))


def test_cgls_takes_the_solution_of_least_norm_and_keeps_what_it_cannot_see():
    few = Projector(SCAN.views_at([3]))
    x, p = example(2, few.geometry)
    matrix = dense(few)
    assert np.linalg.matrix_rank(matrix) < matrix.shape[1]
    expected = (np.linalg.pinv(matrix) @ p.reshape(2, -1).numpy().T).T
    assert relative(cgls(p, few, steps=20).reshape(2, -1).numpy(), expected) < 1e-8
    start = x.reshape(2, -1).numpy()
    unseen = start - (np.linalg.pinv(matrix) @ matrix @ start.T).T
    assert relative(cgls(p, few, steps=20, x0=x).reshape(2, -1).numpy(), expected + unseen) < 1e-8


def test_cgls_state_is_what_it_says():
    x0, p = example(2)
    state = cgls_start(p, A, x0=x0)
    for _ in range(3):
        state = cgls_step(state, A)
    torch.testing.assert_close(state.residual, p - A(state.x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.gradient_square, A.T(state.residual).square().sum((1, 2, 3)), rtol=1e-6, atol=0)
    assert torch.equal(state.x, cgls(p, A, steps=3, x0=x0))


def test_cgls_has_float64_scalars_and_stays_where_it_arrives():
    x, p = example(3, dtype=torch.float32)
    p = torch.stack([torch.zeros_like(p[0]), A(x[1:2])[0], p[2] * 1e-25])  # nothing, exact, and squares below float32
    state = cgls_start(p, A)
    for _ in range(400):
        state = cgls_step(state, A)
    assert state.x.dtype is torch.float32
    assert state.gradient_square.dtype is torch.float64
    assert torch.equal(state.x[0], torch.zeros_like(state.x[0]))
    assert relative(state.x[1].numpy(), x[1].numpy()) < 1e-4
    expected = np.linalg.lstsq(dense(A), p[2].double().flatten().numpy(), rcond=None)[0]
    assert relative(state.x[2].flatten().numpy(), expected) < 1e-5


def test_sirt_is_its_formula():
    x, p = example()
    matrix = dense(A)
    rows, columns = matrix.sum(1), matrix.sum(0)
    rays = np.divide(1, rows, out=np.zeros_like(rows), where=rows > 0)
    flat, data = x.reshape(2, -1).numpy(), p.reshape(2, -1).numpy()
    expected = flat + 0.7 * ((data - flat @ matrix.T) * rays) @ matrix / columns
    assert relative(sart_step(x, p, A, relaxation=0.7).reshape(2, -1).numpy(), expected) < 1e-12
    learned = torch.tensor([[[[0.7]]], [[[0.7]]]], dtype=torch.float64)
    assert relative(sart_step(x, p, A, relaxation=learned).reshape(2, -1).numpy(), expected) < 1e-12


@pytest.mark.parametrize("relaxation", [0.5, 1.0, 1.9])
def test_sirt_descends_to_the_weighted_least_squares_solution(relaxation):
    _, p = example(1)
    matrix, data = dense(A), p.flatten().numpy()
    rows = matrix.sum(1)
    root = np.sqrt(np.divide(1, rows, out=np.zeros_like(rows), where=rows > 0))
    expected = np.linalg.lstsq(root[:, None] * matrix, root * data, rcond=None)[0]
    x, weights = torch.zeros(1, 1, *SCAN.shape, dtype=torch.float64), sart_weights(A, p)
    errors = []
    for _ in range(400):
        x = sart_step(x, p, A, relaxation=relaxation, weights=weights)
        errors.append(np.linalg.norm(root * (data - matrix @ x.flatten().numpy())))
    assert (np.diff(errors) <= 1e-12 * errors[0]).all()
    assert relative(x.flatten().numpy(), expected) < 1e-5
    assert relative(sart_step(torch.as_tensor(expected).view_as(x), p, A).flatten().numpy(), expected) < 1e-12  # it stays


def test_ordered_subsets_of_consistent_data_arrive_faster():
    x, _ = example()
    p = A(x)
    whole, parts = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(10):
        whole = sart_step(whole, p, A)
        for views in ordered_subsets(SCAN.views, 12):
            parts = sart_step(parts, p, A, views=views)
    assert float((parts - x).norm()) < 0.3 * float((whole - x).norm())


@pytest.mark.parametrize("views", [[0], [4, 1], slice(1, None, 3)])
def test_a_subset_is_the_part_of_the_scan(views):
    x, p = example()
    part = subset(A, views)
    torch.testing.assert_close(part(x), A(x)[:, :, views], rtol=1e-12, atol=1e-12)
    given = sart_step(x, p, A, views=views, weights=sart_weights(part, x))
    torch.testing.assert_close(given, sart_step(x, p[:, :, views], part), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("views", "count"), [(1024, 8), (12, 5), (9, 9), (7, 1), (10, 2)])
def test_ordered_subsets_share_out_the_views(views, count):
    subsets = ordered_subsets(views, count)
    assert len(subsets) == count
    assert sorted(number for part in subsets for number in range(views)[part]) == list(range(views))
    if count > 3:
        firsts = [part.start for part in subsets]
        assert all(1 < (b - a) % count < count - 1 for a, b in itertools.pairwise(firsts))


@pytest.mark.filterwarnings("ignore::tomosec.errors.TruncationWarning")  # the object is outside on purpose
def test_pixels_and_rays_that_meet_nothing_stay_out():
    projector = Projector(PARTLY)
    one_view = subset(projector, [0])
    x, p = example(2, one_view.geometry, dtype=torch.float32)
    unseen = torch.as_tensor(dense(one_view).sum(0) == 0).view(PARTLY.shape)
    assert unseen.any()
    assert not unseen.all()
    stepped = sart_step(x, p, one_view)
    assert torch.equal(stepped[:, 0, unseen], x[:, 0, unseen])
    assert (stepped != x)[:, 0, ~unseen].all()
    wide = Projector(SCAN.model_copy(update={"bins": 31}))
    weights = sart_weights(wide, p)
    assert weights.rays.isfinite().all()
    assert (weights.rays == 0).any()


def test_gradients_through_unrolled_steps():
    scan = ParallelBeam(views=4, bins=5, bin_mm=3.0, shape=(2, 3), pixel_mm=5.0)
    A = Projector(scan)
    x, p = (values.requires_grad_() for values in example(2, scan))
    relaxation = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def two_steps(x, p, relaxation):
        return sart_step(sart_step(x, p, A, relaxation=relaxation), p, A, relaxation=relaxation, views=[0, 3])

    assert torch.autograd.gradcheck(two_steps, (x, p, relaxation))
    assert torch.autograd.gradcheck(lambda x, p: cgls(p, A, steps=2, x0=x), (x, p))
    assert torch.autograd.gradgradcheck(lambda p: cgls(p, A, steps=2), (p,))
    arrived = torch.zeros_like(p, requires_grad=True)
    (slope,) = torch.autograd.grad(cgls(arrived, A, steps=2).sum(), arrived)
    assert slope.isfinite().all()


def test_samples_of_a_batch_are_alone():
    x, p = example(3)
    for function in (lambda x, p: sart_step(x, p, A), lambda x, p: cgls(p, A, steps=3, x0=x)):
        alone = torch.cat([function(x[i : i + 1], p[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(function(x, p), alone, rtol=1e-12, atol=1e-13)
        assert function(x[:0], p[:0]).shape == x[:0].shape


def test_what_does_not_fit_is_refused():
    x, p = example()
    with pytest.raises(InputError, match=r"sart_step: the image has shape \(2, 1, 12, 13\)"):
        sart_step(p, p, A)
    with pytest.raises(InputError, match=r"cgls: the sinogram has shape \(2, 1, 4, 5\)"):
        cgls(x, A, steps=1)
    with pytest.raises(InputError, match=r"1 image\(s\) of torch.float64 on cpu do not fit 2 sinogram"):
        sart_step(x[:1], p, A)
    with pytest.raises(InputError, match="float32 on cpu do not fit"):
        cgls(p, A, steps=1, x0=x.float())
    with pytest.raises(InputError, match=r"relaxation is 2;.*between 0 and 2"):
        sart_step(x, p, A, relaxation=2.0)
    with pytest.raises(InputError, match="steps is -1"):
        cgls(p, A, steps=-1)
    with pytest.raises(InputError, match=r"views_at: view 12 does not exist.*0 to 11"):
        sart_step(x, p, A, views=[12])
    whole = sart_weights(A, x)
    with pytest.raises(InputError, match=r"weights.rays has shape \(1, 1, 12, 13\).*\(1, 1, 1, 13\); compute sart_w"):
        sart_step(x, p, A, views=[1], weights=whole)
    with pytest.raises(InputError, match="13 subsets of 12 views"):
        ordered_subsets(12, 13)
    assert isinstance(sart_weights(A, x), SARTWeights)
