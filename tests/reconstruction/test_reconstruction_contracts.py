"""Every registered reconstruction keeps the contract, and the contract notices who does not."""

from __future__ import annotations

import pytest
import torch

from tomosec.component import components
from tomosec.errors import InputError
from tomosec.reconstruction import base, cgls, fbp, os_sart, pwls_tv, sirt, tv
from tomosec.reconstruction.saved import load_reconstruction
from tomosec.tensorfile import write_tensors
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


def test_errors_name_the_kind_that_was_built():
    for kind in ("fbp", "sirt", "os-sart", "cgls", "tv", "pwls-tv"):
        with pytest.raises(InputError, match=f"^{kind}: the sinogram has shape"):
            KINDS[kind]().build(tiny_geometry().model_copy(update={"views": 40}))(torch.zeros(1, 1, 3, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_listed_says_the_source_and_what_the_contract_checks(kind):
    cls = KINDS[kind]
    assert cls.source
    said = " ".join(cls.__doc__.split("\n\n")[0].split())  # what `tomosec list reconstructions` shows
    geometry = tiny_geometry()
    runtime = cls.network(cls(), geometry) if cls.is_learned else cls().build(geometry)
    assert ("Not linear" in said) == (not runtime.is_linear)
    assert ("Linear" in said) == runtime.is_linear
    assert "gradient" in said
    assert runtime.is_differentiable
    assert ("Learned" in said) == cls.is_learned


def test_a_state_that_is_not_finite_is_refused():
    state = KINDS["red-cnn"]().network(tiny_geometry()).state_dict()
    KINDS["red-cnn"]().build(tiny_geometry(), state=state)
    state["body.encoder.0.weight"][0, 0, 1, 1] = float("nan")
    with pytest.raises(InputError, match=r"red-cnn: body\.encoder\.0\.weight of the state is not finite"):
        KINDS["red-cnn"]().build(tiny_geometry(), state=state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reconstruction": None}, "a reconstruction file without reconstruction$"),
        ({"geometry": None, "metadata": None}, "a reconstruction file without geometry, metadata$"),
        ({"reconstruction": {"kind": "fpb"}}, "no reconstruction of kind 'fpb' .did you mean 'fbp'"),
        ({"reconstruction": {"kind": "fbp", "version": 9}}, "version: Input should be 1"),
        ({"geometry": [1]}, "a geometry is a mapping"),
        ({"reconstruction-format": 2}, "reconstruction format 2; this version of tomosec reads format 1"),
        ({"reconstruction-format": None}, "a file of tomosec, but not a reconstruction"),
    ],
)
def test_saved_files_that_are_refused(tmp_path, change, message):
    header = {
        "reconstruction-format": 1,
        "reconstruction": {"kind": "fbp"},
        "geometry": tiny_geometry().model_dump(mode="json"),
        "metadata": {},
    }
    path = tmp_path / "a.safetensors"
    write_tensors(path, {}, header)
    assert load_reconstruction(path)[0] == KINDS["fbp"]()
    write_tensors(path, {}, {name: value for name, value in (header | change).items() if value is not None})
    with pytest.raises(InputError, match=message) as caught:
        load_reconstruction(path)
    assert str(path) in str(caught.value)
