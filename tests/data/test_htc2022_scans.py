"""The challenge's measured scans: the published geometry, the sense of rotation, the object, and the noise."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import ndimage

from tomosec.data.htc2022 import read_htc2022
from tomosec.reconstruction.fbp import FBP


@pytest.fixture(scope="module")
def full(htc2022):
    return read_htc2022(htc2022 / "mat" / "htc2022_ta_full_and_limited.mat", shape=(256, 256), pixel_mm=2 * 0.2 * 410.66 / 553.74)


@pytest.fixture(scope="module")
def image(full):
    return FBP(full.geometry, window="hann")(full.sinogram())[0, 0].numpy()


def gradient_energy(scan, **changes):
    geometry = type(scan.geometry).model_validate(scan.geometry.model_dump() | changes)
    picture = FBP(geometry, window="hann")(scan.sinogram())[0, 0].numpy()
    return float(sum(np.square(part).sum() for part in np.gradient(picture)))


def test_the_measured_scan_is_the_published_one(htc2022, full):
    expected = np.load(htc2022 / "htc2022_ta_full.npz")
    assert np.array_equal(full.line_integrals, expected["sinogram"][:720])
    assert np.array_equal(full.repeats[0], expected["sinogram"][720])
    assert np.degrees(full.geometry.view_angles) == pytest.approx(-expected["angles_deg"][:720], abs=1e-9)
    facts = json.loads((htc2022 / "geometry.json").read_text())
    geometry = read_htc2022(htc2022 / "mat" / "htc2022_ta_full_and_limited.mat").geometry
    assert geometry.is_full_circle
    assert (geometry.views, geometry.bins, geometry.detector) == (facts["n_angles"] - 1, facts["n_detector"], facts["detector"])
    assert geometry.bin_mm == facts["detector_pitch_mm"]
    assert geometry.source_to_isocenter_mm == facts["source_to_origin_mm"]
    assert geometry.source_to_detector_mm == facts["source_to_detector_mm"]
    assert geometry.pixel_mm == pytest.approx(facts["pixel_at_origin_mm"], rel=1e-12)
    assert geometry.detector_offset_bins == facts["detector_offset_px"]
    assert math.degrees(geometry.arc / geometry.views) == pytest.approx(-facts["angle_step_deg"], rel=1e-12)


def test_limited_scans_are_rows_of_the_full_one(htc2022, full):
    files = [*sorted((htc2022 / "mat").glob("htc2022_ta_limited_*.mat")), htc2022 / "mat" / "htc2022_ta_full_and_limited.mat"]
    assert len(files) == 4
    for path in files:
        part = read_htc2022(path, struct="CtDataLimited")
        rows = np.rint(np.degrees(part.geometry.view_angles) / -0.5).astype(int)
        assert len(rows) in (61, 121, 181)
        assert np.array_equal(part.line_integrals, full.line_integrals[rows]), path
        assert not part.geometry.is_full_circle
        assert not part.repeats


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("solid_disc_limited_181_211_v73", 181, 211),
        ("ta_limited_299_329_v73", 299, 329),
        ("tb_limited_075_165", 75, 165),
        ("tc_limited_032_062", 32, 62),
        ("td_limited_092_122", 92, 122),
    ],
)
def test_every_measured_file_is_read(htc2022, name, first, last):
    scan = read_htc2022(htc2022 / "mat" / f"htc2022_{name}.mat")
    assert np.degrees(scan.geometry.view_angles[[0, -1]]) == pytest.approx([-first, -last])
    assert scan.geometry.sinogram_shape == (2 * (last - first) + 1, 560)
    assert 1 < scan.line_integrals.max() < 3
    assert np.median(scan.line_integrals[:, :10]) == pytest.approx(0, abs=0.02)  # air beside the disc
    assert scan.attributes["voltage"] == "45"


def test_the_scan_turns_clockwise(full):
    """The other direction doubles every edge and makes each half as high: 1.27 times less gradient energy."""
    assert gradient_energy(full) > 1.15 * gradient_energy(full, arc=2 * math.pi)


def test_bins_are_symmetric_about_the_central_ray(full):
    """To within a quarter of a bin, so a reader that is off by half a bin would show."""
    energy = {offset: gradient_energy(full, detector_offset_bins=offset) for offset in (-0.5, 0.0, 0.5)}
    curvature = energy[-0.5] - 2 * energy[0.0] + energy[0.5]
    assert curvature < 0
    assert abs((energy[-0.5] - energy[0.5]) / curvature / 4) < 0.25


def test_the_disc_has_its_size_its_holes_and_the_attenuation_of_acrylic(full, image):
    solid = image > 0.017
    labels, _ = ndimage.label(ndimage.binary_fill_holes(solid))
    disc = labels == labels[128, 128]
    assert 2 * math.sqrt(disc.sum() / math.pi) * full.geometry.pixel_mm == pytest.approx(70, rel=0.01)
    assert ndimage.label(ndimage.binary_erosion(disc & ~solid, iterations=3))[1] == 8
    # NIST XCOM, acrylic of 1.19 g/cm³: 0.0361/mm at 30 keV, 0.0280/mm at 40 keV; the tube ran at 45 kV behind 0.5 mm aluminum.
    assert 0.0280 < np.median(image[ndimage.binary_erosion(disc & solid, iterations=3)]) < 0.0361


def test_the_repeated_view_measures_the_noise(full):
    difference = (full.repeats[0] - full.line_integrals[0]).astype(np.float64)
    level = full.line_integrals[0]
    sd = [difference[part].std() / math.sqrt(2) for part in (level < 0.05, level > 1.5)]
    assert 0.003 < sd[0] < 0.005
    assert 0.008 < sd[1] < 0.012
