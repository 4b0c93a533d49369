"""Detectors of inputs: known scores of hand-made networks, and a backdoor that is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from defense_toys import SHAPE, context, hand_made, slices, tensors
from pydantic import ValidationError
from scipy.fft import dctn, idctn
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from tomosec.analysis.networks import Classifier
from tomosec.defenses.base import ModelContext
from tomosec.defenses.frequency import Frequency, band_features
from tomosec.defenses.grad_cam import GradCam
from tomosec.defenses.ibd_psc import ParameterScalingConsistency
from tomosec.defenses.scale_up import ScaleUp
from tomosec.defenses.strip import Strip
from tomosec.errors import NotApplicable
from tomosec.hounsfield import MU_WATER
from tomosec.testing.defenses import ImageList


class Reads(nn.Module):
    """Logits that a function makes of the images, in units of water."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def flat(*values: float) -> Tensor:
    """Images of one value each, in 1/mm, given in units of water."""
    return MU_WATER * torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1) * torch.ones(1, 1, *SHAPE)


def given(network: Classifier, images: Tensor, targets: list[int] | None = None, seed: int = 0) -> ModelContext:
    source = ImageList(images, targets or [i % 2 for i in range(len(images))])
    return ModelContext(network, source, tuple(f"class-{k}" for k in range(network.classes)), seed=seed)


def auroc(suspicious: Tensor, clean: Tensor) -> float:
    labels = torch.cat([torch.ones(len(suspicious)), torch.zeros(len(clean))]).long()
    scores = torch.cat([suspicious, clean])
    return float(binary_auroc((scores - scores.min()) / (scores.max() - scores.min()), labels))


@pytest.mark.parametrize("classes", [2, 3])
def test_strip_tells_a_confident_network_from_an_uncertain_one(classes):
    sure = hand_made(Reads(lambda x: torch.eye(classes)[0].expand(len(x), -1) * 80), classes)
    unsure = hand_made(Reads(lambda x: torch.zeros(len(x), classes)), classes)
    images = flat(0.1, 0.5, 0.9)
    for network, expected in ((sure, 0.0), (unsure, -math.log(classes))):
        scores = Strip().fit(given(network, images)).score(images)
        assert scores.tolist() == pytest.approx([expected] * 3, abs=1e-9)


def test_strip_averages_entropies_of_blends_in_attenuation():
    """Not the entropy of the average, nor that over the blends: this network is certain of each blend, of another class each."""
    sides = hand_made(Reads(lambda x: torch.stack([x.mean((1, 2, 3)) - 0.5, 0.5 - x.mean((1, 2, 3))], dim=1) * 1e4))
    scores = Strip().fit(given(sides, flat(0.2, 0.9))).score(flat(0.5))
    assert scores.tolist() == pytest.approx([0.0], abs=1e-9)
    slope = hand_made(Reads(lambda x: torch.stack([x.mean((1, 2, 3)), torch.zeros(len(x))], dim=1)))
    scores = Strip(opacity=0.25).fit(given(slope, flat(0.2, 1.0))).score(flat(0.6))
    expected = []
    for blend in (0.75 * 0.6 + 0.25 * 0.2, 0.75 * 0.6 + 0.25 * 1.0):
        p = 1 / (1 + math.exp(-blend))
        expected.append(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert scores.tolist() == pytest.approx([sum(expected) / 2], rel=1e-5)


def test_strip_blends_with_as_many_slices_as_asked_for_and_the_seed_says_which():
    slope = hand_made(Reads(lambda x: torch.stack([5 * x.mean((1, 2, 3)), torch.zeros(len(x))], dim=1)))
    clean = np.linspace(0.0, 1.0, 40)
    p = 1 / (1 + np.exp(-2.5 * (0.6 + clean)))
    each = p * np.log(p) + (1 - p) * np.log(1 - p)
    assert float(Strip(overlays=40).fit(given(slope, flat(*clean))).score(flat(0.6))) == pytest.approx(each.mean(), rel=1e-5)
    chosen = [float(Strip(overlays=1).fit(given(slope, flat(*clean), seed=seed)).score(flat(0.6))) for seed in range(8)]
    assert all(np.abs(each - score).min() < 1e-5 for score in chosen)
    assert len(set(chosen)) > 4


def corner_network() -> Classifier:
    """Class 1 by the mean, softly; class 0 for certain where something is denser than 1.2 water, and the more the more of it."""
    convolution, linear = nn.Conv2d(1, 2, 1), nn.Linear(2, 2)
    convolution.weight.data, convolution.bias.data = torch.ones(2, 1, 1, 1), torch.tensor([0.0, -1.2])
    linear.weight.data, linear.bias.data = torch.tensor([[-20.0, 1e4], [20.0, 0.0]]), torch.tensor([12.0, -12.0])
    return hand_made(nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear))


def corners(images: Tensor) -> Tensor:
    out = images.clone()
    out[:, :, :4, :4] = 3 * MU_WATER
    return out


def test_strip_sees_a_corner_that_outlasts_the_blend():
    clean = flat(0.4, 0.8, 0.5, 0.7)
    detection = Strip().fit(given(corner_network(), clean))
    assert detection.score(corners(clean)).min() > -1e-6
    assert detection.score(clean).max() < -0.05


def threshold_network(level: float) -> Classifier:
    """Class 1 where the mean is above ``level`` units of water."""
    return hand_made(Reads(lambda x: torch.stack([level - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - level], dim=1)))


@pytest.mark.parametrize(
    ("width_hu", "share"),
    [
        (1000.0, 0.2),  # 0.55, 0.65 | 0.75 ... : the label changes from factor 5 on
        (300.0, 1.0),  # copies end at 0.65, the edge of the window
    ],
)
def test_scale_up_amplifies_around_the_level_and_cuts_at_the_window(width_hu, share):
    detection = ScaleUp(level_hu=-500, width_hu=width_hu).fit(given(threshold_network(0.7), flat(0.3, 0.4, 0.9, 0.95)))
    shares, labels = detection.consistency(flat(0.55))
    assert shares.tolist() == [pytest.approx(share)]
    assert labels.tolist() == [0]


def test_scale_up_tells_a_steady_network_from_an_unsteady_one():
    """Steady for what it was never shown to be: clean slices lose their labels, the triggered one keeps its."""
    network = hand_made(
        Reads(lambda x: torch.stack([x.mean((1, 2, 3)) - 0.7, 0.7 - x.mean((1, 2, 3))], dim=1) * (x[:, 0, :1, 0] > 0.5))
    )
    clean = flat(0.54, 0.55, 0.56, 0.57, 0.58, 0.59)
    detection = ScaleUp(level_hu=-500, width_hu=1000).fit(given(network, clean))
    assert float(detection.score(flat(0.9))) > float(detection.score(clean).max()) + 1
    # By predicted class: what is usual for the label is not suspicious, whatever the others do.
    assert detection.score(clean).abs().max() < 3


def test_scale_up_knows_each_predicted_class_by_its_own_slices():
    clean = flat(0.55, 0.56, 0.3, 0.9, 0.95)  # shares of 0.2, 0.2, 1 of class 0, and of 1, 1 of class 1
    detection = ScaleUp(level_hu=-500, width_hu=1000).fit(given(threshold_network(0.7), clean, targets=[1, 1, 1, 0, 0]))
    assert detection.mean.tolist() == pytest.approx([1.4 / 3, 1])
    assert float(detection.deviation[0]) == pytest.approx(np.std([0.2, 0.2, 1], ddof=1))
    # Of five factors and five slices; that of equal shares is not 0.
    assert float(detection.deviation[1]) == pytest.approx(0.2 / 5**0.5)
    assert detection.score(flat(0.3, 0.9)).tolist() == pytest.approx([(1 - 1.4 / 3) / np.std([0.2, 0.2, 1], ddof=1), 0])


@pytest.mark.parametrize("factors", [(), (0.5,), (3.0, 1.0)])
def test_scale_up_amplifies(factors):
    with pytest.raises(ValidationError, match="factors"):
        ScaleUp(factors=factors)


def test_scale_up_without_slices_of_a_label_compares_with_all():
    network = threshold_network(0.7)
    detection = ScaleUp(level_hu=-500, width_hu=1000).fit(given(network, flat(0.3, 0.4, 0.45, 0.2)))
    assert detection.mean[1] == detection.mean[0] == 1


def batch_norm_network(level: float, slope: float) -> Classifier:
    norm = nn.BatchNorm2d(1)
    linear = nn.Linear(1, 2)
    linear.weight.data, linear.bias.data = torch.tensor([[0.0], [slope]]), torch.tensor([0.0, -slope * level])
    return hand_made(nn.Sequential(nn.AdaptiveAvgPool2d(1), norm, nn.Flatten(), linear))


def test_ibd_psc_is_the_confidence_of_the_amplified_network():
    """0.5 is read as class 0, below 0.6; amplified by 1.5 it is 0.75 and read as class 1."""
    network = batch_norm_network(0.6, 10.0)
    detection = ParameterScalingConsistency().fit(given(network, flat(0.5, 1.0, 0.5, 1.0)))
    scores = detection.score(flat(0.5, 1.0))
    scale = 1 / (1 + 1e-5) ** 0.5
    expected = [1 / (1 + math.exp(10 * (0.75 * scale - 0.6))), 1 / (1 + math.exp(-10 * (1.5 * scale - 0.6)))]
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)


def test_ibd_psc_amplifies_the_last_layers_and_one_more_for_each_copy():
    """Three layers add 1, 2 and 3; the error of 0.5 is first exceeded where two are amplified."""
    layers = [nn.BatchNorm2d(1, eps=0) for _ in range(3)]
    for layer, offset in zip(layers, (1.0, 2.0, 3.0), strict=True):
        layer.bias.data[:] = offset
    linear = nn.Linear(1, 2)
    # Class 1 above 15.
    linear.weight.data, linear.bias.data = torch.tensor([[0.0], [0.2]]), torch.tensor([0.0, -0.2 * 15])
    network = hand_made(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear))
    x = 0.0
    amplified = [
        x + 1 + 2 + 3,
        2 * (x + 1 + 2 + 3),
        2 * (2 * (x + 1 + 2) + 3),
        2 * (2 * (2 * (x + 1) + 2) + 3),
    ]
    assert [value > 15 for value in amplified] == [False, False, True, True]
    clean = flat(x, x, x, x)
    for models, used in ((1, [2]), (2, [2, 3]), (5, [2, 3])):
        detection = ParameterScalingConsistency(factor=2.0, models=models).fit(given(network, clean, targets=[0] * 4))
        expected = np.mean([1 / (1 + math.exp(0.2 * (amplified[k] - 15))) for k in used])
        assert detection.score(clean).tolist() == pytest.approx([expected] * 4, rel=1e-5)


def test_ibd_psc_takes_an_error_of_exactly_the_threshold_as_within_it():
    """Three of ten slices are read wrong, amplified or not, and 1 - 0.7 is above 0.3 by rounding."""
    clean, targets = flat(*[0.1] * 10), [0] * 7 + [1] * 3
    with pytest.raises(NotApplicable, match=r"stays within 0\.30"):
        ParameterScalingConsistency().fit(given(batch_norm_network(0.6, 10.0), clean, targets))
    ParameterScalingConsistency().fit(given(batch_norm_network(0.6, 10.0), clean, [0] * 6 + [1] * 4))


def test_ibd_psc_does_not_apply_without_batch_norm_or_without_errors(backdoored):
    with pytest.raises(NotApplicable, match="needs BatchNorm"):
        ParameterScalingConsistency().fit(context(backdoored))
    with pytest.raises(NotApplicable, match=r"stays within 0\.30"):
        ParameterScalingConsistency().fit(given(batch_norm_network(0.6, 10.0), flat(0.1, 1.0, 0.1, 1.0)))


def test_grad_cam_finds_the_corner_that_decides():
    clean = flat(*np.linspace(0.4, 0.8, 20))
    network = corner_network()
    detection = GradCam(carriers=10).fit(given(network, clean))
    bad = corners(clean[-6:])
    regions, labels = detection.regions(bad)
    assert bool((network.predict(clean[-6:])[0] == 1).all())
    assert bool((labels == 0).all())
    expected = torch.zeros(6, 1, *SHAPE)
    expected[:, :, :4, :4] = 1
    assert torch.equal(regions, expected)
    fooled, confidence = detection.measure(bad)
    assert bool((fooled == 1).all())
    assert bool((confidence > 0.5).all())
    unsuspected = network.predict(clean)[0] == 0
    assert float(detection.measure(clean[unsuspected])[0].max()) == 0, "nothing speaks for class 0 but the corner"
    assert float(detection.score(bad).min()) > float(detection.score(clean).mean())


def test_grad_cam_is_the_map_weighted_by_mean_slopes_and_noise_takes_its_place():
    """A linear network behind a convolution at half the resolution, whose slopes differ from place to place."""
    rng, half = np.random.default_rng(4), SHAPE[0] // 2
    convolution, linear = nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Linear(3 * half * half, 2)
    weights = rng.standard_normal((2, 3, half, half)) + 0.3 * rng.standard_normal((2, 3, 1, 1))
    with torch.no_grad():
        convolution.weight.copy_(torch.from_numpy(rng.standard_normal((3, 1, 3, 3))))
        linear.weight.copy_(0.02 * torch.from_numpy(weights).flatten(1))
        linear.bias.zero_()
    network = hand_made(nn.Sequential(convolution, nn.Flatten(), linear))
    clean = MU_WATER * torch.from_numpy(rng.standard_normal((12, 1, *SHAPE))).float()
    detection = GradCam(carriers=12).fit(given(network, clean))
    regions, labels = detection.regions(clean)
    assert set(labels.tolist()) == {0, 1}
    maps = convolution(clean / MU_WATER).detach().double()
    cam = (torch.from_numpy(weights).mean(dim=(2, 3))[labels][:, :, None, None] * maps).sum(1, keepdim=True).clamp_min(0)
    cam = nn.functional.interpolate(cam, size=SHAPE, mode="bilinear")
    assert torch.equal(regions, (cam >= 0.85 * cam.amax(dim=(2, 3), keepdim=True)).float())
    fooled, confidence = detection.measure(clean)
    for i in range(12):
        others = clean[labels != labels[i]]
        pasted, noisy = (torch.where(regions[i] > 0, with_, others) for with_ in (clean[i], detection._inert[0]))
        assert float(fooled[i]) == pytest.approx(float((network.predict(pasted)[0] == labels[i]).double().mean()))
        assert float(confidence[i]) == pytest.approx(float(network.predict(noisy)[1].amax(1).mean()), rel=1e-5)


def test_grad_cam_compares_with_clean_slices_of_the_same_confidence():
    """The scores of the slices that the line is fitted to have the mean 0."""
    clean = flat(*np.linspace(0.4, 0.8, 20))
    detection = GradCam(carriers=10).fit(given(corner_network(), clean))
    assert float(detection.score(clean).mean()) == pytest.approx(0, abs=1e-9)


def test_grad_cam_of_a_network_that_is_always_sure_has_a_constant_line(monkeypatch):
    """A parabola through confidences that differ by rounding swings by millions."""
    rng = np.random.default_rng(0)
    clean = flat(*np.linspace(0.4, 0.8, 40))
    detection = GradCam(carriers=10).fit(given(corner_network(), clean))
    fooled = torch.from_numpy(rng.integers(0, 2, 40).astype(float))
    for spread in (0.0, 1e-15, 1e-9, 1e-4):
        measured = fooled, torch.from_numpy(1 - spread * rng.random(40))
        monkeypatch.setattr(detection, "measure", lambda _, measured=measured: measured)
        detection.fit_line(clean)
        assert detection.score(clean).tolist() == pytest.approx((fooled - fooled.mean()).tolist(), abs=1e-12)


def test_grad_cam_fits_a_parabola_to_enough_slices(monkeypatch):
    clean = flat(*np.linspace(0.4, 0.8, 40))
    detection = GradCam(carriers=10).fit(given(corner_network(), clean))
    confidence = torch.linspace(0.5, 1, 40, dtype=torch.float64)
    monkeypatch.setattr(detection, "measure", lambda images: (confidence[: len(images)] ** 2, confidence[: len(images)]))
    detection.fit_line(clean)
    assert detection.score(clean).tolist() == pytest.approx([0] * 40, abs=1e-9)
    # Beyond the confidences of clean slices the line is level.
    monkeypatch.setattr(detection, "measure", lambda _: (torch.ones(1), torch.tensor([0.1], dtype=torch.float64)))
    assert float(detection.score(clean[:1])) == pytest.approx(1 - 0.25)


def test_grad_cam_needs_two_predicted_classes():
    network = hand_made(nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)))
    network.body[3].bias.data = torch.tensor([50.0, 0.0])
    with pytest.raises(NotApplicable, match="all are read as class-0"):
        GradCam().fit(given(network, flat(0.1, 0.2, 0.3, 0.4)))


def grid(images: Tensor, hu: float, period: int = 3) -> Tensor:
    """A faint dot at each ``period``-th pixel."""
    out = images.clone()
    out[:, :, ::period, ::period] += hu * MU_WATER / 1000
    return out


def test_frequency_sees_a_grid_the_better_the_stronger_it_is(backdoored):
    clean, _ = tensors(slices(80, 5))
    detection = Frequency().fit(given(backdoored, clean))
    fresh, _ = tensors(slices(80, 6))
    scores = [detection.score(grid(fresh, hu)).mean() for hu in (0, 300, 600, 1200)]
    assert scores == sorted(scores), "a stronger grid scores lower"
    assert auroc(detection.score(grid(fresh, 600)), detection.score(fresh)) > 0.99


def test_frequency_is_the_largest_excess_over_all_clean_slices_in_their_deviations(backdoored):
    clean, _ = tensors(slices(12, 5))
    fresh, _ = tensors(slices(5, 6))
    features, theirs = band_features(clean, 8, 1), band_features(fresh, 8, 1)
    expected = ((theirs - features.mean(axis=0)) / features.std(axis=0, ddof=1)).max(axis=1)
    found = Frequency(bands=8, lowest=1).fit(given(backdoored, clean)).score(fresh)
    assert found.numpy() == pytest.approx(expected, rel=1e-9)


def test_frequency_of_equal_slices_is_a_number(backdoored):
    for value in (0.0, 0.5):
        scores = Frequency().fit(given(backdoored, flat(*[value] * 4))).score(flat(value, 1.0))
        assert bool(torch.isfinite(scores).all())
        assert float(scores[0]) == pytest.approx(0, abs=1e-3)


def test_the_bands_are_those_of_the_transform():
    image = np.zeros(SHAPE)
    image[8, 4] = 3.0
    features = band_features(torch.from_numpy(idctn(image, norm="ortho"))[None, None], 4, 0)
    band = int(math.hypot(8 / 32, 4 / 32) / math.sqrt(2) * 4)
    assert int(features[0, :4].argmax()) == band
    radius = np.hypot(*np.meshgrid(np.arange(32) / 32, np.arange(32) / 32, indexing="ij")) / math.sqrt(2)
    members = (np.minimum((radius * 4).astype(int), 3) == band).sum()
    assert features[0, band] == pytest.approx(math.log(9 / members), rel=1e-6)
    assert features[0, 4 + band] == pytest.approx(math.log(members), rel=1e-6)
    assert np.allclose(dctn(idctn(image, norm="ortho"), norm="ortho"), image)


def test_detectors_look_at_a_copy(backdoored):
    """A network that is trained on afterwards does not change what was fitted."""
    from tomosec.defenses._layers import copied

    network = copied(backdoored, torch.device("cpu")).requires_grad_(False)
    images, _ = tensors(slices(6, 70))
    for detector in (Strip(overlays=8), ScaleUp(), GradCam(carriers=8)):
        detection = detector.fit(context(network))
        before = detection.score(images)
        network.body[-1].bias.data += 100
        assert torch.equal(detection.score(images), before)
        network.body[-1].bias.data -= 100
