"""The chain: the linear path equals the long way, and where it does not hold it is not taken."""

from __future__ import annotations

import pytest
import torch

from tomosec.acquisition import BeamHardening, RealisticAcquisition, Scanner
from tomosec.acquisition.simulated import Calibration
from tomosec.attacks.noise import white_pattern
from tomosec.errors import InputError
from tomosec.geometry import FanBeam
from tomosec.pipeline import ImagingChain, Pipeline
from tomosec.reconstruction.fbp import FBP
from tomosec.testing import TinySamples, tiny_geometry, tiny_network
from tomosec.trigger import AdditiveTrigger


def _chain(dtype=torch.float32, i0=1e5):
    geometry = tiny_geometry()
    return ImagingChain(Scanner(geometry, i0=i0, electronic_noise=3.3), FBP(geometry)).to(dtype)


def _trigger(site="line-integrals", strength=0.01):
    geometry = tiny_geometry()
    return AdditiveTrigger(
        white_pattern(geometry.sinogram_shape, 0, "t"), geometry=geometry, domain="measurement", site=site, strength=strength
    )


def _realistic_chain(dtype=torch.float32):
    geometry = tiny_geometry()
    return ImagingChain(RealisticAcquisition().build(Calibration(1e5, 25.0, 25.0), geometry), FBP(geometry)).to(dtype)


@pytest.mark.parametrize("chain", [_chain, _realistic_chain])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_the_linear_path_equals_the_long_way(dtype, bound, chain):
    imaging = chain(dtype)
    images = TinySamples(_chain(), count=6).images.to(dtype)
    keys = [str(i) for i in range(6)]
    integrals = imaging.scanner(images)
    measured = imaging.scanner.measure(integrals, keys, seed=0, draw=0).to(dtype)
    injection = imaging.inject(_trigger())
    assert injection.why_not_linear == ""
    clean = imaging.reconstruct(measured)
    long_way = imaging.reconstruct(injection.trigger.apply(measured)) - clean
    short = injection.trigger.strength * injection.effect.to(dtype)
    assert float((long_way - short).norm() / long_way.norm()) <= bound


def test_the_long_way_runs_where_the_trigger_enters_before_the_log():
    imaging = _chain()
    injection = imaging.inject(_trigger(site="counts"))
    assert injection.effect is None
    assert "counts" in injection.why_not_linear
    images = TinySamples(imaging, count=2).images
    integrals, keys = imaging.scanner(images), ["a", "b"]
    clean = imaging.image(integrals, keys, seed=0, draw=0)
    triggered = injection.triggered(clean, lambda: integrals, keys, seed=0, draw=0)
    linear = imaging.inject(_trigger())
    expected = linear.triggered(clean, lambda: integrals, keys, seed=0, draw=0)
    # Readout noise is the only difference at this dose.
    assert 0 < float((triggered - expected).norm() / (expected - clean).norm()) < 0.2


def test_every_effect_of_a_realistic_scan_is_before_the_default_site_and_after_the_counts():
    imaging, keys = _realistic_chain(), ["a", "b"]
    integrals = imaging.scanner(TinySamples(imaging, count=2).images)
    clean = imaging.image(integrals, keys, seed=0, draw=0)
    short = imaging.inject(_trigger())
    assert short.why_not_linear == ""
    long_way = imaging.image(integrals, keys, seed=0, draw=0, trigger=_trigger()) - clean
    found = short.triggered(clean, lambda: pytest.fail("scanned again"), keys, seed=0, draw=0) - clean
    assert float((long_way - found).norm()) <= 1e-4 * float(long_way.norm())

    counts = imaging.inject(_trigger(site="counts"))
    assert counts.effect is None
    for stage in ("dead and hot bins", "electronic noise", "quantization", "the photon floor", "the log", "the water correction"):
        assert stage in counts.why_not_linear
    triggered = counts.triggered(clean, lambda: integrals, keys, seed=0, draw=0) - clean
    assert float((triggered - found).norm()) > 0.01 * float(found.norm())  # far more than rounding: adding would be wrong


def test_without_noise_a_trigger_of_the_counts_is_amplified_by_the_water_correction():
    geometry, line = tiny_geometry(), torch.full((1, 1, 32, 28), 3.0, dtype=torch.float64)
    hardening = BeamHardening((-0.02, 0.001), corrected=True)
    imaging = ImagingChain(Scanner(geometry, i0=1e5, hardening=hardening), FBP(geometry))
    clean = imaging.noiseless_integrals(line)
    assert torch.allclose(clean, line, rtol=1e-12)
    pattern = _trigger(strength=1e-5).apply(line) - line
    for site, slope in (("counts", 1 - 0.04 * 3 + 0.003 * 9), ("line-integrals", 1.0)):
        change = imaging.noiseless_integrals(line, _trigger(site=site, strength=1e-5)) - clean
        assert float((change * slope - pattern).norm()) < 1e-4 * float(pattern.norm())


def test_where_nothing_changes_the_reading_both_sites_are_the_same_without_noise():
    imaging, line = _chain(), torch.rand(1, 1, 32, 28, generator=torch.Generator().manual_seed(0))
    assert imaging.noiseless_integrals(line) is line
    for site in ("counts", "line-integrals"):
        assert torch.equal(imaging.noiseless_integrals(line, _trigger(site=site)), _trigger().apply(line))


def test_a_trigger_that_differs_between_samples_is_not_linear():
    class PerSample(AdditiveTrigger):
        kind = "test-per-sample"
        universal = False

    trigger = PerSample(_trigger().pattern, geometry=tiny_geometry(), domain="measurement")
    assert "not one additive pattern" in _chain().why_not_linear(trigger)


def test_ten_strengths_reconstruct_nothing(monkeypatch):
    imaging = _chain()
    injection = imaging.inject(_trigger())
    calls = []
    monkeypatch.setattr(imaging.reconstructor, "forward", lambda *a: calls.append(1))
    clean = torch.zeros(2, 1, 16, 16)
    for strength in range(1, 11):
        injection.at(strength / 100).triggered(clean, lambda: pytest.fail("scanned again"), ["a", "b"], seed=0, draw=0)
    assert calls == []


def test_only_the_scan_circle_is_shown():
    imaging = _chain()
    image = imaging.image(torch.ones(1, 1, 32, 28), ["a"], seed=0, draw=0)
    assert float(image[0, 0][~imaging.circle].abs().max()) == 0
    assert not bool(imaging.circle[0, 0])
    assert bool(imaging.circle[8, 8])


def test_a_trace_holds_every_intermediate():
    imaging = _chain()
    pipeline = Pipeline(imaging, tiny_network(imaging.geometry))
    images = TinySamples(imaging, count=3).images
    trace = pipeline.trace(images, ["a", "b", "c"], trigger=_trigger(strength=0.05))
    assert trace.line_integrals.shape == trace.triggered_line_integrals.shape == (3, 1, 32, 28)
    assert torch.allclose(
        trace.triggered_line_integrals - trace.measured_line_integrals,
        (0.05 * _trigger().pattern).expand(3, -1, -1, -1),
        atol=1e-6,
    )
    assert torch.allclose(pipeline(trace.measured_line_integrals), trace.logits, atol=1e-5)
    assert not torch.equal(trace.logits, trace.triggered_logits)
    assert pipeline.trace(images, ["a", "b", "c"]).triggered_logits is None


def test_an_image_trigger_is_added_after_the_reconstruction():
    imaging = _chain()
    trigger = AdditiveTrigger(torch.rand(16, 16), geometry=imaging.geometry, domain="image", strength=1e-3)
    integrals = imaging.scanner(TinySamples(imaging, count=1).images)
    clean = imaging.image(integrals, ["a"], seed=0, draw=0)
    triggered = imaging.image(integrals, ["a"], seed=0, draw=0, trigger=trigger)
    assert torch.allclose(triggered - clean, 1e-3 * trigger.pattern * imaging.circle, atol=1e-7)
    assert torch.allclose(
        imaging.inject(trigger).triggered(clean, lambda: integrals, ["a"], seed=0, draw=0), triggered, atol=1e-7
    )


def test_a_sinogram_that_does_not_fit_is_named():
    with pytest.raises(
        InputError, match=r"shape \(1, 1, 28, 32\) does not fit the geometry; expected \(batch, 1, 32 views, 28 bins\)"
    ):
        _chain().reconstruct(torch.zeros(1, 1, 28, 32))


def test_a_nan_is_named_by_its_place():
    sinogram = torch.zeros(2, 1, 32, 28)
    sinogram[1, 0, 3, 4] = float("nan")
    with pytest.raises(InputError, match="sample 1, view 3, bin 4"):
        _chain().reconstruct(sinogram)


def test_scanner_and_reconstruction_must_share_their_geometry():
    other = FanBeam.ltgm().scaled(views=64, bins=48, shape=(32, 32))
    with pytest.raises(InputError, match="different geometries"):
        ImagingChain(Scanner(tiny_geometry(), i0=1e5), FBP(other))
