"""What several test folders share: the DICOM writers beside this file, and real data where they are at hand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


def shared_data(folder: str, *, needed: str) -> Path:
    """A folder of data that is not distributed with the package, or skip; ``needed`` is a file in it."""
    shared = Path(os.environ.get("TOMOSEC_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    found = shared / "data" / folder
    if not (found / needed).is_file():
        pytest.skip(f"no {found}: set TOMOSEC_SHARED to the folder that holds data/{folder}")
    return found


@pytest.fixture(scope="session")
def covid_sample() -> Path:
    """Six real patients of COVID-CT-MD."""
    return shared_data("covid_ct_md_sample", needed="labels.csv")


@pytest.fixture(scope="session")
def htc2022() -> Path:
    """Measured scans of the Helsinki Tomography Challenge 2022."""
    return shared_data("htc2022_fanbeam", needed="geometry.json")
