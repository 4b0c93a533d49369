"""Every example runs as it stands, in an empty folder."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matlab_fixtures import htc_scan, write_v5
from matplotlib.image import imread

from tomosec.geometry import FanBeam
from tomosec.operators.check import ellipse_integrals

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
NEED_DATA = {"htc2022"}


def run(path, *arguments, cwd):
    done = subprocess.run([sys.executable, str(path), *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem not in NEED_DATA], ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    assert run(path, cwd=tmp_path).strip()


def test_the_example_with_measured_data_draws_a_full_scan(tmp_path):
    scan = FanBeam(
        views=90,
        bins=64,
        bin_mm=1.75,
        shape=(64, 64),
        pixel_mm=1.2,
        source_to_isocenter_mm=410.66,
        source_to_detector_mm=553.74,
        arc=-2 * math.pi,
    )
    disc = ellipse_integrals(scan, ellipses=((0.03, 0.8, 0.8, 0.0, 0.0, 0.0), (-0.03, 0.2, 0.3, 0.3, 0.2, 0.0)))
    folder = tmp_path / "scans"
    folder.mkdir()
    write_v5(folder / "disc.mat", CtDataFull=htc_scan(np.vstack([disc, disc[:1]]), np.linspace(0, 360, 91)))
    (path,) = (path for path in EXAMPLES if path.stem == "htc2022")
    said = run(path, folder, "--arcs", "90", "30", "--out", "seen.png", cwd=tmp_path)
    assert "saved: seen.png" in said
    assert "noise of a line integral 0.0000" in said  # the second measurement is the first one here
    picture = imread(tmp_path / "seen.png")
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.1


def test_there_are_examples():
    assert EXAMPLES
    assert {path.stem for path in EXAMPLES} >= NEED_DATA
