"""What several test folders share: the DICOM writers beside this file, and real data where they are at hand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def covid_sample() -> Path:
    """Six real patients of COVID-CT-MD, which are not distributed with the package."""
    shared = Path(os.environ.get("TOMOSEC_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    folder = shared / "data" / "covid_ct_md_sample"
    if not (folder / "labels.csv").is_file():
        pytest.skip(f"no {folder}: set TOMOSEC_SHARED to the folder that holds data/covid_ct_md_sample")
    return folder
