"""Every registered reconstruction keeps the contract, and the contract notices who does not."""

from __future__ import annotations

import pytest
import torch

from tomosec.component import components
from tomosec.errors import InputError
from tomosec.reconstruction import base, cgls, fbp, os_sart, pwls_tv, sirt, tv
from tomosec.testing import check_reconstruction, tiny_geometry

KINDS = components("reconstruction")


@pytest.mark.parametrize("kind", [kind for kind, cls in KINDS.items() if not cls.is_learned])
def test_every_reconstruction_keeps_the_contract(kind):
    check_reconstruction(KINDS[kind]())


@pytest.mark.parametrize("kind", [kind for kind, cls in KINDS.items() if cls.is_learned])
def test_every_learned_reconstruction_keeps_the_contract(kind):
    check_reconstruction(KINDS[kind](epochs=2, **{"iterations": 2} if kind == "learned-primal-dual" else {"width": 4}))


@pytest.mark.parametrize(
    "reconstruction",
    [
        fbp.FilteredBackprojection(window="hann"),
        fbp.FilteredBackprojection(gradient="reference"),
        sirt.SIRT(iterations=5, nonnegative=True),
        os_sart.OSSART(sweeps=2, nonnegative=True, subsets=5),
        tv.TotalVariation(iterations=5, nonnegative=True),
        pwls_tv.PWLSTotalVariation(iterations=5, nonnegative=True),
        cgls.CGLS(steps=2),
    ],
    ids=repr,
)
def test_the_contract_is_kept_at_other_settings(reconstruction):
    check_reconstruction(reconstruction)


class _Claims(base.Reconstructor):
    """FBP of some function of the sinogram, with claims of one's own."""

    def __init__(self, geometry, function, is_linear):
        super().__init__(geometry)
        self.fbp, self.function, self.is_linear = fbp.FBP(geometry), function, is_linear

    def forward(self, sinogram):
        return self.fbp(self.function(sinogram))


@pytest.mark.parametrize(
    ("function", "is_linear", "complaint"),
    [
        (lambda p: p.clamp(min=0), True, "superposition fails"),
        (lambda p: 2 * p, False, "superposition holds"),
        (lambda p: p - p.mean(), True, "depends on its batch"),
        (lambda p: p * p.detach(), False, "finite differences say"),
        (lambda p: (p * p).sqrt() * p, False, "not finite"),
    ],
)
def test_the_contract_notices(monkeypatch, function, is_linear, complaint):
    def build(self, geometry, *, device="cpu", state=None):
        return _Claims(geometry, function, is_linear)

    monkeypatch.setattr(fbp.FilteredBackprojection, "build", build)
    with pytest.raises(AssertionError, match=complaint):
        check_reconstruction(fbp.FilteredBackprojection())


def test_what_cannot_be_built_says_why():
    with pytest.raises(InputError, match="os-sart: subsets is 40, but the scan has 32 views"):
        KINDS["os-sart"](subsets=40).build(tiny_geometry())
    with pytest.raises(InputError, match="red-cnn: it has to be trained first"):
        KINDS["red-cnn"]().build(tiny_geometry())
    with pytest.raises(InputError, match="does not fit this network"):
        KINDS["red-cnn"]().build(tiny_geometry(), state={"mean": torch.tensor(0.0)})
    small = tiny_geometry().model_copy(update={"shape": (12, 16)})
    with pytest.raises(InputError, match="fbpconvnet: 12 x 16 pixels are too few; 16 a side"):
        KINDS["fbpconvnet"]().build(small, state={})
