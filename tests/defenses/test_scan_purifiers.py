"""Purifiers and predictions from several looks at one scan: what they leave alone, what they take out, what they promise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import binomtest, norm

from tomosec.acquisition import Scanner
from tomosec.analysis.architectures import SmallCNN
from tomosec.consistency.fourier_wedge import Wedge
from tomosec.defenses._voting import disagreement, vote
from tomosec.defenses.base import Scans
from tomosec.defenses.consistent_projection import ConsistentProjection
from tomosec.defenses.randomized_smoothing import RandomizedSmoothing
from tomosec.defenses.reconstruction_diversity import ReconstructionDiversity
from tomosec.defenses.sinogram_denoiser import SinogramDenoiser, WeightedGaussian, _risk
from tomosec.defenses.view_drop import ViewDrop
from tomosec.geometry import FanBeam, ParallelBeam
from tomosec.hounsfield import MU_WATER
from tomosec.operators import Projector
from tomosec.operators.complementary import complementary
from tomosec.testing.scans import PhantomScans, phantom_context, phantom_model_context

SCAN = FanBeam.ltgm().scaled(views=96, bins=72, shape=(48, 48))


def pattern(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 1, *SCAN.sinogram_shape))).float()


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("method", ["complementary", "wedge", "cgls"])
def test_projection_keeps_an_object_and_takes_noise_out(method):
    purify = ConsistentProjection(method=method).fit(phantom_context(SCAN, 3)).purify
    image = torch.stack([PhantomScans(SCAN, 2).image(i) for i in range(2)])
    blurred = torch.nn.functional.avg_pool2d(image, 3, stride=1, padding=1)
    p, noise = Projector(SCAN)(blurred), 0.05 * pattern()
    clean = purify(Scans(p, ("a", "b")))
    assert relative(clean, p) < 0.02
    left = purify(Scans(p + noise, ("a", "b"))) - clean
    share = float(left.square().mean() / noise.square().mean())
    expected = {"complementary": 0.5, "wedge": 1 - float(Wedge(SCAN).outside.double().mean()), "cgls": 0.5}[method]
    assert share == pytest.approx(expected, abs=0.03 if method != "cgls" else 0.4)


def test_what_is_purified_is_consistent_and_stays_as_it_is():
    noise = Scans(pattern(), ("a",))
    even = ConsistentProjection(method="complementary").fit(phantom_context(SCAN, 3)).purify(noise)
    assert relative(complementary(SCAN, even), even) < 1e-5
    wedge = ConsistentProjection(method="wedge").fit(phantom_context(SCAN, 3)).purify(noise)
    assert float(Wedge(SCAN).project_out(wedge).norm() / wedge.norm()) < 1e-5


def test_a_method_that_does_not_apply_says_so_and_another_does():
    parallel = ParallelBeam(views=30, bins=27, bin_mm=18.0, shape=(16, 16), pixel_mm=24.0)
    context = phantom_context(parallel, 3)
    assert "180" in ConsistentProjection(method="complementary").why_not(context)
    assert not ConsistentProjection(method="wedge").why_not(context)
    assert not ConsistentProjection().why_not(context)


def test_the_denoiser_comes_nearer_to_the_noiseless_scan_and_is_wider_where_there_is_more_noise():
    widths, gain = [], []
    for i0 in (1e6, 2e3):
        denoiser = SinogramDenoiser().fit(phantom_context(SCAN, 6, i0=i0))
        source = PhantomScans(SCAN, 3, seed=4, i0=i0)
        noisy = source.at(range(3))
        truth = Scanner(SCAN, i0=math.inf)(torch.stack([source.image(i) for i in range(3)]))
        # In units of the noise: quiet rays count as loud ones.
        error = [float(((p - truth) / noisy.noise_sd).square().mean()) for p in (noisy.line_integrals, denoiser.purify(noisy))]
        widths.append(denoiser.widths)
        gain.append(error[1] / error[0])
    assert gain[1] < 0.6
    assert gain[1] < gain[0] < 1.02
    assert math.prod(w + 0.1 for w in widths[1]) > math.prod(w + 0.1 for w in widths[0])


@pytest.mark.parametrize("arc", [2 * math.pi, 3.5])
def test_a_rays_own_share_is_the_derivative_of_its_smoothed_value(arc):
    tiny = FanBeam.model_validate(SCAN.model_dump() | {"arc": arc, "views": 12, "bins": 9})
    p, noise_sd = (torch.from_numpy(np.random.default_rng(i).uniform(0.5, 2, (1, 1, 12, 9))) for i in range(2))
    smoother = WeightedGaussian(tiny, (0.6, 0.9))
    jacobian = torch.autograd.functional.jacobian(lambda q: smoother.smooth(Scans(q, ("a",), noise_sd))[0], p).reshape(108, 108)
    share = smoother.smooth(Scans(p, ("a",), noise_sd))[1]
    assert torch.allclose(share.flatten(), jacobian.diagonal(), rtol=1e-10)


@pytest.mark.parametrize("noise_model", [True, False])
def test_the_risk_of_white_noise_is_that_of_what_is_left_of_it(noise_model):
    smoother = WeightedGaussian(SCAN, (0.6, 0.9))
    noise = Scans(0.1 * pattern().double(), ("a",), 0.1 * torch.ones(1, 1, *SCAN.sinogram_shape) if noise_model else None)
    smoothed, share = smoother.smooth(noise)
    left = float((smoothed / 0.1).square().mean())
    if noise_model:
        assert _risk(noise, smoother) == pytest.approx(left, abs=0.05)
    else:
        # Cross-validation leaves each ray out: the error of its prediction is its noise and what is left of the others'.
        assert _risk(noise, smoother) / 0.01 == pytest.approx(1 + left, rel=0.1)
        assert float(share.mean()) > 0.15


def test_the_denoiser_goes_around_a_whole_turn_and_not_past_the_ends_of_a_short_scan():
    step = torch.zeros(1, 1, *SCAN.sinogram_shape)
    step[:, :, :3] = 1
    short = FanBeam.model_validate(SCAN.model_dump() | {"arc": 3.5})
    for geometry, reaches in ((SCAN, True), (short, False)):
        smooth = SinogramDenoiser(widths=(1.0,)).fit(phantom_context(geometry, 3)).purify(Scans(step, ("a",)))
        assert bool(smooth[0, 0, -1].mean() > 0.1) is reaches
        assert torch.allclose(smooth[0, 0, 40:44], torch.zeros(4, SCAN.bins))


def test_votes_settle_ties_by_the_mean_and_are_otherwise_majorities():
    p = torch.tensor([[[0.51, 0.49]], [[0.51, 0.49]], [[0.01, 0.99]]])
    labels, shares = vote(p)
    assert labels.tolist() == [0]  # two of three, although the mean says 1
    assert float(shares.sum()) == pytest.approx(1)
    assert vote(p[1:])[0].tolist() == [1]


def test_disagreement_is_zero_for_one_opinion_and_ln_2_for_two():
    same = torch.tensor([[[0.3, 0.7]], [[0.3, 0.7]]])
    assert float(disagreement(same)[0]) == pytest.approx(0, abs=1e-7)
    assert float(disagreement(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))[0]) == pytest.approx(math.log(2))


class Brightness(torch.nn.Module):
    """Class 1 where the mean attenuation of the middle is above a threshold: a network whose answers are known."""

    def __init__(self, threshold, slope=1e6):
        super().__init__()
        self.threshold, self.slope = threshold, slope

    def forward(self, x):
        middle = x[:, :, 12:20, 12:20].mean((1, 2, 3))
        logit = self.slope * (middle - self.threshold)
        return torch.stack([-logit, logit], 1)


def brightness_context(threshold, slope=1e6, seed=0):
    """The chain of the contract with a known network; it reads attenuation in standard units, so those are set to 1/mm."""
    context = phantom_model_context(seed)
    network = SmallCNN(norm="none").build(classes=2, shape=(32, 32), seed=0)
    network.body = Brightness(threshold, slope)
    network.set_input_statistics(0.0, 1.0)
    return replace(context, network=network.eval())


def water(threshold=0.0):
    """Scans of patients whose middle is water."""
    context = brightness_context(threshold)
    return context, PhantomScans(context.imaging.geometry, 4, seed=1).at(range(4))


@pytest.mark.parametrize(
    "wrapper", [ViewDrop(members=3), RandomizedSmoothing(samples=4), ReconstructionDiversity()], ids=lambda w: w.kind
)
def test_a_clear_case_is_read_as_it_is_and_nobody_disagrees(wrapper):
    for threshold, expected in ((0.5 * MU_WATER, 1), (3 * MU_WATER, 0)):
        context, scans = water(threshold)
        prediction = wrapper.fit(context)
        said = prediction.predict(scans)
        assert said.labels.tolist() == [expected] * 4
        assert float(said.probabilities[:, expected].min()) > 0.99
        assert float(said.suspicion.max()) < 1e-6


@pytest.mark.parametrize(
    "wrapper", [ViewDrop(), RandomizedSmoothing(noise_sd=0.3), ReconstructionDiversity()], ids=lambda w: w.kind
)
def test_a_borderline_case_is_disputed(wrapper):
    context, scans = water()
    middle = context.imaging.reconstruct(scans.line_integrals)[:, :, 12:20, 12:20].mean((1, 2, 3))
    sharp = brightness_context(float(middle[0]))
    clear = brightness_context(0.5 * MU_WATER)
    one = Scans(scans.line_integrals[:1], scans.keys[:1], scans.noise_sd[:1])
    disputed, agreed = (float(wrapper.fit(known).predict(one).suspicion[0]) for known in (sharp, clear))
    assert disputed > agreed + 0.1


def test_dropped_views_are_filled_from_their_neighbors_and_kept_ones_stay():
    context = phantom_model_context()
    prediction = ViewDrop(keep=0.5).fit(context)
    low, high, weight = prediction._subset("a", 0)
    views = context.imaging.geometry.views
    kept = torch.arange(views)[(low == torch.arange(views)) | (high == torch.arange(views))]
    assert len(kept) == views // 2
    ramp = torch.arange(views, dtype=torch.float32)
    filled = torch.lerp(ramp[low], ramp[high], weight)
    inside = (torch.arange(views) >= kept[0]) & (torch.arange(views) <= kept[-1])
    assert torch.allclose(filled[inside], ramp[inside])  # linear data survive linear interpolation
    assert torch.equal(prediction._subset("a", 0)[0], low)
    assert not torch.equal(prediction._subset("b", 0)[0], low)


def test_the_certificate_is_that_of_a_linear_classifier():
    """For a linear score w·p + b the exact probability under noise is Φ(margin / (s |w|)), and the exact radius the margin."""
    scans = water()[1]
    s = 0.02
    chain = brightness_context(0.0)
    p = scans.line_integrals[:1].double().requires_grad_(True)
    middle = chain.imaging.reconstruct(p)[:, :, 12:20, 12:20].mean()
    (w,) = torch.autograd.grad(middle, p)
    margin = 1.2 * s  # in the L2 norm of sinograms
    threshold = float(middle.detach()) - margin * float(w.norm())
    smoothing = RandomizedSmoothing(noise_sd=s, samples=64, certify_samples=400).fit(brightness_context(threshold))
    said = smoothing.predict(Scans(scans.line_integrals[:1], scans.keys[:1]))
    assert said.labels.tolist() == [1]
    agree = norm.cdf(margin / s)
    interval = binomtest(round(agree * 400), 400).proportion_ci(0.998, "exact")  # one-sided 0.001
    assert norm.cdf(float(said.radius[0]) / s) == pytest.approx(interval.low, abs=0.03)
    assert 0 < float(said.radius[0]) < margin


def test_a_coin_toss_is_not_certified():
    context, scans = water()
    middle = context.imaging.reconstruct(scans.line_integrals[:1])[:, :, 12:20, 12:20].mean()
    smoothing = RandomizedSmoothing(noise_sd=0.3, certify_samples=50).fit(brightness_context(float(middle)))
    assert smoothing.predict(Scans(scans.line_integrals[:1], scans.keys[:1])).radius.tolist() == [0.0]


def test_all_copies_agreeing_give_the_largest_radius_that_so_few_can():
    context, scans = water(0.5 * MU_WATER)
    radius = RandomizedSmoothing(noise_sd=0.02, samples=4, certify_samples=30, alpha=0.01).fit(context).predict(scans).radius
    assert radius.tolist() == pytest.approx([0.02 * norm.ppf(0.01 ** (1 / 30))] * 4, rel=1e-9)


@pytest.mark.parametrize(
    "wrapper", [ViewDrop(members=3), RandomizedSmoothing(samples=4, certify_samples=5), ReconstructionDiversity()],
    ids=lambda w: w.kind,
)  # fmt: skip
def test_label_and_disagreement_are_read_from_the_same_reconstructions(wrapper, monkeypatch):
    context, scans = water(0.5 * MU_WATER)
    assert len(images_read(wrapper, context, scans, monkeypatch)) == 4 * {
        "view-drop": 3, "randomized-smoothing": 9, "reconstruction-diversity": 4,
    }[wrapper.kind]  # fmt: skip


def images_read(wrapper, context, scans, monkeypatch):
    """What the network is shown for a prediction."""
    read = []
    network = type(context.network)
    predict = network.predict
    monkeypatch.setattr(network, "predict", lambda self, images: (read.append(images), predict(self, images))[1])
    wrapper.fit(context).predict(scans)
    return torch.cat(read)


def test_copies_that_choose_the_class_do_not_bound_its_probability(monkeypatch):
    context, scans = water(0.5 * MU_WATER)
    images = images_read(RandomizedSmoothing(samples=4, certify_samples=4), context, scans, monkeypatch)
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images) == 32


def test_every_reconstruction_is_air_outside_the_scan_circle(monkeypatch):
    context, scans = water(0.5 * MU_WATER)
    images = images_read(ReconstructionDiversity(), context, scans, monkeypatch)
    assert not images[:, 0][:, context.imaging.circle.reshape(32, 32) == 0].any()


def test_reconstructions_that_have_to_be_learned_are_refused():
    with pytest.raises(ValidationError, match="has to be learned"):
        ReconstructionDiversity(reconstructions=({"kind": "red-cnn"},))
    assert [r.kind for r in ReconstructionDiversity(reconstructions=({"kind": "fbp", "window": "hann"},)).reconstructions] == [
        "fbp"
    ]


def test_without_a_noise_model_the_denoiser_still_finds_a_width():
    context = phantom_context(SCAN, 4, i0=2e3, noise_model=False)
    denoiser = SinogramDenoiser().fit(context)
    assert max(denoiser.widths) > 0
    assert SinogramDenoiser(widths=(0.0,)).fit(context).widths == (0.0, 0.0)
