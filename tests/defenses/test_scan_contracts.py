"""Every defense of measured data keeps the contract."""

from __future__ import annotations

import pytest

from tomosec.component import components
from tomosec.defenses.complementary_rays import ComplementaryRays
from tomosec.defenses.consistent_projection import ConsistentProjection
from tomosec.defenses.cross_scan_residual import CrossScanResidual
from tomosec.testing.scans import check_scan_defense

ROLES = ("scan-detector", "scan-set-detector", "scan-purifier", "prediction-wrapper")
KINDS = [kind for kind, cls in components("defense").items() if cls.role in ROLES]


@pytest.mark.parametrize("kind", KINDS)
def test_every_defense_of_measured_data_keeps_the_contract(kind):
    check_scan_defense(components("defense")[kind]())


@pytest.mark.parametrize(
    "variant",
    [
        ComplementaryRays(statistic="top"),
        ConsistentProjection(method="complementary"),
        ConsistentProjection(method="wedge"),
        CrossScanResidual(statistic="top", residual_of="reprojection-residual", blocks=8),
    ],
    ids=str,
)
def test_variants_keep_the_contract(variant):
    check_scan_defense(variant)
