"""The value that readers of measured data return."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tomosec.data.measured import Measurement
from tomosec.errors import InputError
from tomosec.geometry import FanBeam, ParallelBeam

SCAN = ParallelBeam(views=3, bins=4, bin_mm=1.0, shape=(4, 4), pixel_mm=1.0)


def line_integrals(**changes):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for place, value in changes.items():
        view, bin_ = map(int, place.removeprefix("at_").split("_"))
        values[view, bin_] = value
    return values


@pytest.mark.parametrize(
    "geometry",
    [
        SCAN,
        FanBeam(
            views=3, bins=4, bin_mm=1.0, shape=(4, 4), pixel_mm=1.0, source_to_isocenter_mm=50.0, source_to_detector_mm=100.0
        ),
    ],
    ids=["parallel", "fan"],
)
def test_a_measurement_gives_a_sinogram_of_its_own(geometry):
    scan = Measurement(line_integrals(), geometry, "a", {"voltage": "45"}, {2: np.ones(4, dtype=np.float32)})
    sinogram = scan.sinogram()
    assert sinogram.shape == (1, 1, 3, 4)
    assert np.array_equal(sinogram[0, 0].numpy(), scan.line_integrals)
    sinogram.zero_()
    assert scan.line_integrals.max() == 11


def test_an_array_that_may_not_be_written_is_fine():
    values = line_integrals()
    values.setflags(write=False)
    assert Measurement(values, SCAN, "a").sinogram().sum() == 66


@pytest.mark.parametrize(
    ("values", "repeats", "said"),
    [
        (np.zeros((4, 3), dtype=np.float32), {}, r"a: line_integrals has shape \(4, 3\) and the geometry \(3, 4\)"),
        (np.zeros((3, 4)), {}, "a: line_integrals is float64; a numpy array of float32 is needed"),
        ([[0.0] * 4] * 3, {}, "a: line_integrals is list; a numpy array of float32"),
        (line_integrals(at_2_1=np.nan, at_1_3=np.inf), {}, r"a: line_integrals: inf at view 1, bin 3 .*2 such of 12"),
        (line_integrals(), {3: np.zeros(4, dtype=np.float32)}, "a: repeats has a view 3, and the scan has views 0 to 2"),
        (line_integrals(), {0: np.zeros(3, dtype=np.float32)}, r"a: repeats\[0\] has shape \(3,\) and the geometry \(4,\)"),
        (line_integrals(), {0: np.array([0, 0, np.nan, 0], dtype=np.float32)}, r"a: repeats\[0\]: nan at bin 2"),
    ],
)
def test_what_does_not_fit_is_refused(values, repeats, said):
    with pytest.raises(InputError, match=said):
        Measurement(values, SCAN, "a", repeats=repeats)


def test_reading_loads_no_torch():
    code = "import sys; from tomosec.data import htc2022, measured; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
