"""TV and PWLS-TV against closed forms, dense matrices and another algorithm; what weights do."""

from __future__ import annotations

import math

import pytest
import torch

from tomosec.errors import InputError
from tomosec.geometry import ParallelBeam
from tomosec.hounsfield import HU_PER_MU, MU_WATER
from tomosec.operators import Projector
from tomosec.reconstruction.pwls_tv import PWLSTotalVariation
from tomosec.reconstruction.tv import TotalVariation, differences, differences_t, total_variation, tv_denoise
from tomosec.testing import TinyPairs, tiny_geometry

SCAN = tiny_geometry()


def scans(count=2, dtype=torch.float64):
    p, x = TinyPairs(SCAN, count, seed=3).pair(range(count), 0)
    return p.to(dtype), x.to(dtype)


def test_differences_have_their_exact_transpose():
    x = torch.rand(2, 1, 5, 7, dtype=torch.float64)
    q = torch.rand(2, 2, 5, 7, dtype=torch.float64)
    assert torch.isclose((differences(x) * q).sum(), (x * differences_t(q)).sum(), rtol=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_step_is_denoised_as_the_closed_form_says(transposed):
    image = torch.zeros(1, 1, 8, 12, dtype=torch.float64)
    image[..., 5:] = 1.0
    expected = image.clone()
    expected[..., :5], expected[..., 5:] = 0.3 / 5, 1 - 0.3 / 7  # strength times border (8 pixels) over area (8 x 5, 8 x 7)
    if transposed:
        image, expected = image.mT, expected.mT
    assert torch.allclose(tv_denoise(image, 0.3, iterations=3000), expected, atol=1e-6)
    # From 1 / (1/5 + 1/7) on the step is gone and the mean remains.
    flat = tv_denoise(image, 3.0, iterations=3000)
    assert torch.allclose(flat, torch.full_like(flat, 7 / 12), atol=1e-6)


def test_total_variation_of_a_square():
    image = torch.zeros(1, 1, 9, 9)
    image[..., 3:6, 3:6] = 2.0
    # Four sides of 3 pixels and height 2; forward differences see one corner pixel once, diagonally.
    assert math.isclose(float(total_variation(image)), 2 * (12 - 2 + math.sqrt(2)), rel_tol=1e-6)


def test_the_scale_of_the_data_term_is_the_mean_curvature_of_a_pixel():
    circle = torch.from_numpy(SCAN.scan_circle())
    pixels = torch.eye(circle.numel(), dtype=torch.float64).reshape(-1, 1, *SCAN.shape)[circle.flatten()]
    exact = float(Projector(SCAN).unchecked(pixels).square().sum()) / int(circle.sum())
    assert math.isclose(TotalVariation().build(SCAN).curvature, exact, rel_tol=0.05)


def test_chambolle_pock_arrives_where_fista_does():
    p, _ = scans()
    runtime = TotalVariation(strength_hu=20.0, iterations=500).build(SCAN).double()
    values = []
    found = runtime.iterate(p, watch=lambda image: values.append(runtime.objective(image, p).sum()))
    # FISTA with its proximal map by tv_denoise: nothing in common with the primal-dual steps but the objective.
    A, step = Projector(SCAN), runtime.curvature / Projector(SCAN).norm() ** 2 * 0.999
    x = y = torch.zeros_like(found)
    momentum = 1.0
    for _ in range(500):
        ahead = tv_denoise(y - step * A.T(A(y) - p) / runtime.curvature, step * 20.0 / HU_PER_MU, iterations=20)
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        y, x, momentum = ahead + (momentum - 1) / following * (ahead - x), ahead, following
    best = runtime.objective(x, p).sum()
    assert torch.isclose(values[-1], best, rtol=1e-3)
    assert float((found - x).norm() / x.norm()) < 5e-3
    gaps = [float(values[k] - best) for k in (0, 9, 39, 199)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[2] < 0.1 * float(best)  # the default number of steps


def test_nonnegativity_is_kept_and_costs_objective():
    p, _ = scans()
    free, bound = (TotalVariation(iterations=500, nonnegative=flag).build(SCAN).double() for flag in (False, True))
    assert float(free(p).min()) < 0
    assert float(bound(p).min()) >= 0
    assert bool((bound.objective(bound(p), p) > free.objective(free(p), p)).all())


def test_the_same_strength_means_the_same_on_twice_as_many_views():
    # λ is an attenuation: without the scale of the data term twice the views would smooth half as much.
    few, many = (ParallelBeam(views=n, bins=31, bin_mm=12.0, shape=(16, 16), pixel_mm=20.0) for n in (40, 80))
    x = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    x[..., 5:11, 5:11] = MU_WATER
    first, second = (TotalVariation(strength_hu=300.0, iterations=300).build(scan)(Projector(scan)(x)) for scan in (few, many))
    assert float((first - second).norm()) < 0.1 * float((first - x).norm())


def test_a_pixel_sees_the_mean_weight_one_and_weights_follow_the_data():
    p, _ = scans()
    runtime, back = PWLSTotalVariation().build(SCAN).double(), Projector(SCAN).T
    weights, circle = runtime.ray_weights(p), torch.from_numpy(SCAN.scan_circle())
    seen = (back(weights) / back(torch.ones_like(weights)))[:, 0, circle].mean(1)
    assert torch.allclose(seen, torch.ones(2, dtype=torch.float64), rtol=1e-9)
    products = (weights * p.exp()).flatten(1)
    assert float(products.std(1).max()) < 1e-9 * float(products.mean())
    assert bool(torch.isfinite(runtime(torch.where(p == p.amax(), 800.0, p))).all())  # exp overflows


def test_given_variances_replace_those_of_photon_noise():
    p, _ = scans()
    same = {"strength_hu": 5.0, "iterations": 30}
    runtime, plain = (cls(**same).build(SCAN).double() for cls in (PWLSTotalVariation, TotalVariation))
    close = {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(runtime(p, variance=p.exp()), runtime(p), **close)
    torch.testing.assert_close(runtime(p, variance=1e-4 * p.exp()), runtime(p), **close)
    torch.testing.assert_close(runtime(p, variance=torch.full((1, 1, 1, 1), 7.0)), plain(p), **close)
    for wrong in (torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), math.inf)):
        with pytest.raises(InputError, match="variance of every line integral has to be positive and finite"):
            runtime(p, variance=wrong)
    with pytest.raises(InputError, match=r"variance has shape \(3, 1, 1, 1\), which does not fit"):
        runtime(p, variance=torch.ones(3, 1, 1, 1))


def test_a_ray_that_is_known_to_be_bad_does_no_harm():
    p, _ = scans(1)
    runtime = PWLSTotalVariation(iterations=100).build(SCAN).double()
    variance = torch.ones_like(p)
    good = runtime(p, variance=variance)
    broken = p.clone()
    broken[0, 0, 3:9, 14] += 3.0
    harm = float((runtime(broken, variance=variance) - good).norm())
    variance[0, 0, 3:9, 14] = 1e6
    # FBP, where it starts from, believes the rays; the steps have to correct that.
    assert float((runtime(broken, variance=variance) - good).norm()) < 0.2 * harm
