"""Filters of training slices: a planted cluster is found, and where nothing was planted nothing is suspected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from defense_toys import hand_made
from scipy.linalg import expm
from scipy.stats import chi2
from torch import nn
from torchmetrics.functional.classification import binary_auroc

from tomosec.analysis.plan import Training
from tomosec.component import parse_component
from tomosec.defenses._representations import principal, representations
from tomosec.defenses.activation_clustering import ActivationClustering, two_means
from tomosec.defenses.base import TrainingContext
from tomosec.defenses.scan_untangling import ScanUntangling, untangle
from tomosec.defenses.spectral_signatures import SpectralSignatures
from tomosec.defenses.spectre import Spectre, _robustly_whitened
from tomosec.errors import NotApplicable
from tomosec.hounsfield import MU_WATER
from tomosec.randomness import generator
from tomosec.testing.defenses import ImageList

SIDE = 4  # images of 4 x 4 pixels are their own representations, of 16 features
FILTERS = ["activation-clustering", "spectral-signatures", "spectre", "scan-untangling"]


def filtering(features: np.ndarray, targets: np.ndarray, seed: int = 0) -> TrainingContext:
    """A context whose network represents a slice by its pixels, in units of water."""
    classes = int(targets.max()) + 1
    network = hand_made(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, classes)), classes, (SIDE, SIDE))
    images = torch.from_numpy((MU_WATER * features).astype(np.float32)).view(-1, 1, SIDE, SIDE)
    names = tuple(f"class-{k}" for k in range(classes))

    def never(*_: object):
        raise AssertionError("a filter trains nothing")

    return TrainingContext(ImageList(images, targets.tolist()), Training(), never, never, names, network, seed=seed)


def planted(
    share: float, apart: float = 6.0, *, per_class: int = 100, classes: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, 16), labels, and which are poison: a share of class 0, ``apart`` deviations away along one axis."""
    rng = generator("planted", seed)
    targets = np.arange(classes * per_class) % classes
    features = rng.standard_normal((len(targets), SIDE * SIDE)) + 10.0 * targets[:, None]
    bad = np.zeros(len(targets), dtype=bool)
    bad[np.flatnonzero(targets == 0)[: round(share * per_class)]] = True
    features[bad, 3] += apart
    return features, targets, bad


def auroc(scores: torch.Tensor, bad: np.ndarray) -> float:
    ranks = scores.argsort().argsort().double()  # ties are broken by place; the tests have none that matter
    return float(binary_auroc(ranks / len(ranks), torch.from_numpy(bad).long()))


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_planted_cluster_is_found(kind, classes):
    features, targets, bad = planted(0.15, classes=classes)
    scores = parse_component("defense", kind).suspicion(filtering(features, targets))
    # Without whitening, the tails of the other class reach the nearest of the poison.
    assert auroc(scores, bad) > (0.95 if kind == "spectral-signatures" else 0.99)
    assert set(np.argsort(scores.numpy())[-10:]) <= set(np.flatnonzero(bad))


@pytest.mark.parametrize("kind", FILTERS)
def test_order_and_offset_do_not_matter(kind):
    features, targets, _ = planted(0.15)
    order = generator("order").permutation(len(targets))
    scores = parse_component("defense", kind).suspicion(filtering(features, targets))
    other = parse_component("defense", kind).suspicion(filtering(features[order] + 50, targets[order]))
    assert torch.allclose(other, scores[torch.from_numpy(order)], rtol=1e-2, atol=1e-2 * float(scores.max()))


@pytest.mark.parametrize("kind", ["activation-clustering", pytest.param("scan-untangling", marks=pytest.mark.slow)])
def test_where_nothing_is_planted_nothing_is_suspected(kind):
    flagged, few = 0, {"draws": 19} if kind == "scan-untangling" else {}
    for seed in range(20):
        features, targets, _ = planted(0, seed=seed)
        scores = parse_component("defense", {"kind": kind, **few}).suspicion(filtering(features, targets, seed=seed))
        flagged += sum(bool((scores[torch.from_numpy(targets == k)] > 0).any()) for k in range(2))
    # 40 classes; the level of scan-untangling is 5 %.
    assert flagged <= 40 * 0.05 + 3 * (40 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize("kind", ["spectral-signatures", "spectre"])
def test_scores_of_clean_classes_are_ordinary(kind):
    features, targets, _ = planted(0)
    clean = parse_component("defense", kind).suspicion(filtering(features, targets))
    features, targets, bad = planted(0.1, apart=12.0)
    found = parse_component("defense", kind).suspicion(filtering(features, targets))
    assert float(found[torch.from_numpy(bad)].median()) > float(clean.max())


def test_spectral_scores_are_squared_projections_of_centered_features():
    features, targets, _ = planted(0.2, seed=3)
    mine = torch.from_numpy(targets == 0)
    scores = SpectralSignatures().suspicion(filtering(features, targets))[mine].numpy()
    own = features[targets == 0]
    centered = own - own.mean(axis=0)
    expected = (centered @ np.linalg.svd(centered)[2][0]) ** 2
    assert scores == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_spectre_sees_what_a_wide_clean_direction_hides():
    """Poison 6 deviations away along a narrow axis, beside a clean axis that is 20 times as wide."""
    features, targets, bad = planted(0.1, seed=5)
    features[:, 7] = 20 * (features[:, 7] - 10 * targets) + 10 * targets
    here = filtering(features, targets)
    # Of all slices: the clean class has extremes of its own, which no order within a class can help.
    mine = targets == 0
    spectral, spectre = (
        auroc(method.suspicion(here)[torch.from_numpy(mine)], bad[mine]) for method in (SpectralSignatures(), Spectre())
    )
    assert spectral < 0.7
    assert spectre > 0.95


def test_spectre_is_not_led_by_the_poison_it_looks_for():
    features, targets, bad = planted(0.1, apart=50.0)
    scores = Spectre(poison_rate=0.1).suspicion(filtering(features, targets))
    assert auroc(scores, bad) > 0.999


@pytest.mark.parametrize("share", [0, 0.1])
def test_spectre_whitens_the_clean_slices_whatever_the_poison(share):
    features, targets, bad = planted(share, apart=20.0, per_class=4000)
    own, clean = features[targets == 0][:, :6] * [1, 2, 3, 4, 5, 6] + 7, ~bad[targets == 0]
    whitened = _robustly_whitened(own, 0.85)
    assert whitened[clean].mean(axis=0) == pytest.approx(np.zeros(6), abs=0.15)
    variances = np.linalg.eigvalsh(np.cov(whitened[clean], rowvar=False))
    assert variances == pytest.approx(np.ones(6), abs=0.15)
    if not share:  # poison is beyond the median, which tells the scale
        assert variances.mean() == pytest.approx(1, abs=0.05)


def test_spectre_scores_by_quantum_entropy():
    """h' Q h / tr Q of Q = exp(alpha (S - 1) / (|S| - 1)), by the matrix exponential."""
    features, targets, _ = planted(0.1, per_class=200)
    points = principal(features[targets == 0], 4)
    whitened = _robustly_whitened(points, 1 - 1.5 * 0.1)
    covariance = np.cov(whitened, rowvar=False)
    q = expm(4 * (covariance - np.eye(4)) / (np.linalg.norm(covariance, 2) - 1))
    expected = np.einsum("ni,ij,nj->n", whitened, q, whitened) / np.trace(q)
    assert Spectre()._scores(points) == pytest.approx(expected, rel=1e-6)


def test_the_chi_square_of_the_paper_is_no_null_for_a_searched_split():
    """On 400 slices of one Gaussian group the search alone gains what the chi-square calls impossible."""
    rng, dimensions = generator("one-group"), 4
    ratio, _ = untangle(rng.standard_normal((400, dimensions)))
    assert ratio > 400 * 2 / np.pi * 0.9
    assert chi2.sf(ratio, dimensions * (dimensions + 3) / 2 + 1) < 1e-9


def test_j_is_the_gain_of_two_means():
    points = np.concatenate([np.zeros((6, 2)), np.full((2, 2), 3.0)]) + 0.01 * generator("j").standard_normal((8, 2))
    ratio, smaller = untangle(points)
    assert smaller.tolist() == [False] * 6 + [True] * 2
    one = ((points - points.mean(axis=0)) ** 2).sum()
    two = sum(((points[part] - points[part].mean(axis=0)) ** 2).sum() for part in (smaller, ~smaller))
    assert ratio == pytest.approx(one - two)


def test_scan_untangling_is_repeatable_and_marks_the_smaller_group():
    features, targets, bad = planted(0.2)
    first, second = (ScanUntangling().suspicion(filtering(features, targets)) for _ in range(2))
    assert torch.equal(first, second)
    own = torch.from_numpy((targets == 0) & ~bad)
    assert float(first[torch.from_numpy(bad)].median()) > 10 * float(first[own].median())
    assert not first[torch.from_numpy(targets == 1)].any(), "the clean class is suspected"


def test_activation_clustering_leaves_halves_alone():
    features, targets, bad = planted(0.5)
    scores = ActivationClustering().suspicion(filtering(features, targets))
    assert not scores[torch.from_numpy(targets == 0)].any(), "a cluster of half of its class is not poison"
    assert ActivationClustering(largest=0.5).suspicion(filtering(features, targets))[torch.from_numpy(bad)].min() > 0


def test_two_means_agrees_with_scikit_learn():
    from sklearn.cluster import KMeans

    features, targets, _ = planted(0.2, seed=9)
    points = principal(features[targets == 0], 10)
    theirs = KMeans(2, n_init=20, random_state=0).fit(points)
    small = theirs.labels_ == int(np.sum(theirs.labels_ == 1) < np.sum(theirs.labels_ == 0))
    assert np.array_equal(two_means(points), small)


def test_two_means_of_independent_components_does_not_find_what_that_of_principal_ones_does():
    """Independent components are principal ones of unit variance, turned: the distance that poison adds is divided out."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import FastICA

    features, targets, bad = planted(0.1, per_class=200, seed=1)
    own, poison = features[targets == 0], bad[targets == 0]
    points = principal(own, 10)
    independent = FastICA(10, random_state=0, tol=0.1, max_iter=1000).fit_transform(own)
    ours, theirs, same = (
        KMeans(2, n_init=10, random_state=0).fit(values) for values in (points, independent, points / points.std(axis=0))
    )
    assert np.array_equal(ours.labels_ == ours.labels_[poison][0], poison)
    assert np.mean(theirs.labels_ == theirs.labels_[poison][0]) > 0.3, "half of the class"
    assert same.inertia_ == pytest.approx(theirs.inertia_, rel=0.02)


@pytest.mark.parametrize("sign", [-1, 1])
def test_two_means_finds_the_odd_one_on_either_side(sign):
    points = np.zeros((20, 1))
    points[7] = sign
    assert np.flatnonzero(two_means(points)).tolist() == [7]


@pytest.mark.parametrize("kind", FILTERS)
def test_equal_slices_and_dead_features_are_numbers(kind):
    features, targets, _ = planted(0.1, per_class=12)
    features[:, 5:] = 0
    assert bool(torch.isfinite(parse_component("defense", kind).suspicion(filtering(features, targets))).all())
    for values in (np.ones(len(targets)), 1e3 * targets):
        features[:] = values[:, None]
        assert not parse_component("defense", kind).suspicion(filtering(features, targets)).any()


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("odd", [1, 2])
def test_a_class_that_is_read_as_one_point_but_for_a_few(kind, odd):
    """The innermost slices have no spread to whiten by."""
    targets = np.arange(40) % 2
    features = np.where(targets, 0.7, 0.3)[:, None] * np.ones(SIDE * SIDE)
    features[: 2 * odd : 2] += 1 + generator("odd").random((odd, SIDE * SIDE))
    scores = parse_component("defense", kind).suspicion(filtering(features, targets))
    assert bool(torch.isfinite(scores).all())
    assert float(scores.max()) < 1e30, "finite by luck"
    if kind != "scan-untangling":
        assert set(np.argsort(scores.numpy())[-odd:]) == set(range(0, 2 * odd, 2))


def test_rounding_is_no_axis():
    """Equal slices in batches of two sizes: what the network gives may differ in the last digit."""
    features = np.full((40, SIDE * SIDE), 0.3, dtype=np.float32)
    features[32:] = np.nextafter(features[32:], np.float32(1))
    assert principal(features.astype(np.float64), 10).shape == (40, 0)
    features[:, 0] += 0.01 * np.arange(40, dtype=np.float32)
    assert principal(features.astype(np.float64), 10).shape == (40, 1)


@pytest.mark.parametrize("kind", FILTERS)
def test_three_slices_are_too_few(kind):
    features, targets, _ = planted(0, per_class=3)
    with pytest.raises(NotApplicable, match="the largest has 3"):
        parse_component("defense", kind).suspicion(filtering(features, targets))


def test_representations_are_read_in_order():
    features, targets, _ = planted(0, per_class=40)
    found, labels = representations(filtering(features, targets))
    assert found == pytest.approx(features, rel=1e-5, abs=1e-5)
    assert np.array_equal(labels, targets)
