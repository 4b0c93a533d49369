"""Fixtures shared by the data tests; the DICOM writers live one folder up because recipe tests use them too."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@pytest.fixture(scope="session")
def covid_sample() -> Path:
    """Six real patients of COVID-CT-MD, which are not distributed with the package."""
    shared = Path(os.environ.get("TOMOSEC_SHARED") or Path(__file__).resolve().parents[3] / "shared")
    folder = shared / "data" / "covid_ct_md_sample"
    if not (folder / "labels.csv").is_file():
        pytest.skip(f"no {folder}: set TOMOSEC_SHARED to the folder that holds data/covid_ct_md_sample")
    return folder
