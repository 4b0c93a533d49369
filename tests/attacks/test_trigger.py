"""Triggers on their own: applying, scaling, saving, and refusing what is no trigger."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tomosec.attacks.noise import random_phases, white_pattern
from tomosec.errors import InputError
from tomosec.tensorfile import write_tensors
from tomosec.testing import tiny_geometry
from tomosec.trigger import AdditiveTrigger, load_trigger


def _trigger(**fields):
    geometry = tiny_geometry()
    return AdditiveTrigger(white_pattern(geometry.sinogram_shape, 0, "test"), geometry=geometry, domain="measurement", **fields)


@given(strength=st.floats(-10, 10, allow_subnormal=False), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_strength_is_the_rms_of_the_change(strength, seed):
    geometry = tiny_geometry()
    trigger = AdditiveTrigger(
        7.0 * white_pattern(geometry.sinogram_shape, seed, "test"), geometry=geometry, domain="measurement", strength=strength
    )
    data = torch.zeros(2, 1, *geometry.sinogram_shape)
    change = (trigger.apply(data) - data).pow(2).mean().sqrt()
    assert float(change) == pytest.approx(abs(strength), rel=1e-5)


def test_a_saved_trigger_is_the_same_to_the_last_bit(tmp_path):
    trigger = _trigger(strength=0.123456789, details={"attack": "frozen-noise", "raw_rms": 1.5})
    loaded = load_trigger(trigger.save(tmp_path / "t.safetensors"))
    assert torch.equal(loaded.pattern, trigger.pattern)
    assert (loaded.strength, loaded.geometry, loaded.details) == (trigger.strength, trigger.geometry, trigger.details)
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="no such trigger file"):
        load_trigger(tmp_path / "absent.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(struct.pack("<Q", 10**6) + b"{")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_trigger(tmp_path / "torn.safetensors")
    save_file({"pattern": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="a safetensors file, but not one of tomosec's"):
        load_trigger(tmp_path / "other.safetensors")
    write_tensors(tmp_path / "weights.safetensors", {"pattern": torch.zeros(2)}, {"network": "vgg11"})
    with pytest.raises(InputError, match="not a trigger saved by tomosec"):
        load_trigger(tmp_path / "weights.safetensors")
    write_tensors(tmp_path / "new.safetensors", {"pattern": torch.zeros(2)}, {"trigger": "additive", "format": 99})
    with pytest.raises(InputError, match="format 99"):
        load_trigger(tmp_path / "new.safetensors")


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({"geometry": None}, {}, "a damaged trigger"),
        ({"geometry": {"kind": "spiral"}}, {}, "a damaged trigger: no geometry of kind 'spiral'"),
        ({"strength": "strong"}, {}, "a damaged trigger"),
        ({}, {"pattern": torch.ones(5, 5)}, r"a damaged trigger: trigger pattern of shape \(5, 5\) does not fit"),
        ({}, {"other": torch.ones(32, 28)}, "an incomplete trigger, without 'pattern'"),
        ({"site": ...}, {}, "an incomplete trigger, without 'site'"),
    ],
    ids=str,
)
def test_loading_a_damaged_trigger_says_so(header, tensors, message, tmp_path):
    whole = {
        "format": 1, "trigger": "additive", "geometry": tiny_geometry().model_dump(mode="json"), "domain": "measurement",
        "site": "line-integrals", "strength": 1.0, "details": {},
    }  # fmt: skip
    whole = {name: value for name, value in (whole | header).items() if value is not ...}
    write_tensors(tmp_path / "t.safetensors", tensors or {"pattern": torch.ones(32, 28)}, whole)
    with pytest.raises(InputError, match=message):
        load_trigger(tmp_path / "t.safetensors")


def test_a_trigger_refuses_data_of_another_geometry():
    with pytest.raises(InputError, match=r"shape \(batch, 1, 32, 28\), got \(2, 1, 16, 16\)"):
        _trigger().apply(torch.zeros(2, 1, 16, 16))


@pytest.mark.parametrize("pattern", [torch.zeros(32, 28), torch.full((32, 28), float("nan")), torch.ones(5, 5)])
def test_an_unusable_pattern_is_refused(pattern):
    with pytest.raises(InputError):
        AdditiveTrigger(pattern, geometry=tiny_geometry(), domain="measurement")


def test_a_domain_and_a_site_that_contradict_raise():
    with pytest.raises(InputError, match="cannot enter at 'image'"):
        _trigger(site="image")


def test_random_phases_keep_the_spectrum_and_lose_the_pattern():
    pattern = white_pattern((32, 28), 0, "test").cumsum(1)
    scrambled = random_phases(pattern, 0, "test")
    expected, found = torch.fft.rfft2(pattern).abs(), torch.fft.rfft2(scrambled).abs()
    # Columns that are their own mirror must be real where the transform of real data is; elsewhere amplitudes are exact.
    assert torch.allclose(found[:, 1:-1], expected[:, 1:-1], rtol=1e-3, atol=1e-3 * float(expected.mean()))
    assert abs(float(torch.corrcoef(torch.stack([pattern.flatten(), scrambled.flatten()]))[0, 1])) < 0.9
