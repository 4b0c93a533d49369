"""The challenge's measured scan, screened by a profile of simulated scans of its geometry and noise.

Every fourth view and pairs of bins, which keeps what is inconsistent and lets the test run in seconds.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from screening_fixtures import chords, counted

from tomosec.data.htc2022 import read_htc2022
from tomosec.data.measured import Measurement
from tomosec.screening import Profile, calibrate
from tomosec.screening.measured import photons_of

#: Without those that reconstruct, which take most of the time; docs/screen.md has the numbers of all.
QUICK = [
    "complementary-rays", "complementary-rays-top", "helgason-ludwig", "fourier-wedge", "fourier-wedge-top",
    "pairwise-consistency", "air-rays", "noise-statistics",
]  # fmt: skip
ACRYLIC = 0.0328  # 1/mm, the median of the reconstructed disc


@pytest.fixture(scope="module")
def real(htc2022) -> Measurement:
    full = read_htc2022(htc2022 / "mat" / "htc2022_ta_full_and_limited.mat", shape=(128, 128), pixel_mm=4 * 0.1483)

    def pairs(values: np.ndarray) -> np.ndarray:
        return values.reshape(*values.shape[:-1], -1, 2).mean(-1).astype(np.float32)

    geometry = full.geometry.scaled(views=180, bins=280)
    return Measurement(pairs(full.line_integrals[::4]), geometry, "ta", {}, {0: pairs(full.repeats[0])})


def disc(seed: int) -> list[tuple[float, float, float, float]]:
    """An acrylic disc of 70 mm with round holes."""
    rng = np.random.default_rng(seed)
    parts = [(ACRYLIC, 35.0, *rng.uniform(-2, 2, 2))]
    for _ in range(rng.integers(3, 11)):
        radius, angle, off = rng.uniform(2, 6), rng.uniform(0, 2 * math.pi), rng.uniform(0, 27)
        parts.append((-ACRYLIC, radius, off * math.cos(angle), off * math.sin(angle)))
    return parts


def simulated(real: Measurement, seed: int) -> Measurement:
    photons = photons_of(real)
    assert photons is not None
    values = counted(chords(real.geometry, disc(seed)), photons, seed).astype(np.float32)
    return Measurement(values, real.geometry, f"disc {seed}", {"photons": photons})


@pytest.fixture(scope="module")
def profile(real: Measurement) -> Profile:
    return calibrate([simulated(real, seed) for seed in range(200)], detectors=QUICK)


def test_the_noise_is_that_of_the_view_that_was_measured_twice(real: Measurement, profile: Profile) -> None:
    """0.0092 of a line integral in single bins, so about 0.0065 in pairs of independent ones; 6.2e4 photons for a pair."""
    assert photons_of(real) == pytest.approx(6.2e4, rel=0.05)
    assert profile.noise == "photons"
    assert profile.held_out >= 99


def test_simulated_scans_pass(real: Measurement, profile: Profile) -> None:
    p = [profile.screen(simulated(real, 900 + k), want_map=False).p_value for k in range(10)]
    assert min(p) > 0.01
    assert max(p) > 0.5


def test_the_untouched_scan_differs_from_the_model(real: Measurement, profile: Profile) -> None:
    """Golden: nobody touched this scan, but simulations are no clean ones of its scanner: air is not 0, rays disagree."""
    result = profile.screen(real)
    assert (result.verdict, result.p_value) == ("suspicious", pytest.approx(1 / 101))
    scores = {reading.detector: reading.score for reading in result.readings}
    clean = {name: profile.panel.scores[:, k].numpy() for k, name in enumerate(profile.panel.parts)}
    # Mean square in units of the noise of photons: 1 is a perfect scan.
    assert scores["complementary-rays"] == pytest.approx(1.33, abs=0.05)
    assert scores["fourier-wedge"] == pytest.approx(1.61, abs=0.05)
    assert scores["air-rays"] > 100 * clean["air-rays"].max()
    assert scores["noise-statistics"] < clean["noise-statistics"].max()


def test_the_score_rises_with_a_planted_pattern(real: Measurement, profile: Profile) -> None:
    """On top of the mismatch: 20 views by 30 bins, from a fifth of the noise of a ray to twenty times that."""
    pattern = np.zeros(real.geometry.sinogram_shape, np.float32)
    pattern[60:80, 120:150] = 1
    scores, rays = [], []
    for strength in (0.0, 0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16):
        result = profile.screen(replace(real, line_integrals=real.line_integrals + np.float32(strength) * pattern))
        scores.append(result.score)
        rays.append(next(reading.score for reading in result.readings if reading.detector == "complementary-rays"))
    assert np.all(np.diff(scores) > 0)
    assert np.all(np.diff(rays) > 0)
    assert result.where is not None
    view, bin_ = result.where.peak
    assert 60 <= view < 82
    assert 118 <= bin_ < 152
