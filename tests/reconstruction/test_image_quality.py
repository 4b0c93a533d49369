"""What the reconstructions are for: the error in HU on slices of the chest phantom, one against the other.

The scans are made by the projector that the iterative ones invert, so these are upper bounds of what they gain over FBP.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

from tomosec.acquisition import Scanner
from tomosec.component import components
from tomosec.data.base import to_attenuation
from tomosec.data.synthetic import ChestPhantom
from tomosec.geometry import FanBeam
from tomosec.hounsfield import HU_PER_MU
from tomosec.reconstruction.base import FitContext

SCAN = FanBeam(
    views=90, bins=72, bin_mm=13.8, source_to_isocenter_mm=2000.0, source_to_detector_mm=5000.0, shape=(48, 48), pixel_mm=8.0
)
CIRCLE = torch.from_numpy(SCAN.scan_circle())
KINDS = components("reconstruction")


@lru_cache
def slices(patients):
    opened = ChestPhantom(patients=patients, slices_per_patient=1, size=96, pixel_mm=4.0).open()
    images = [to_attenuation(opened.read(entry), SCAN.shape, SCAN.pixel_mm) for entry in opened.entries]
    return torch.from_numpy(np.stack(images).astype(np.float32))[:, None]


class Scans:
    """Noisy scans of some patients."""

    def __init__(self, first, last, i0):
        self.images, self.scanner, self.first = slices(64)[first:last], Scanner(SCAN, i0=i0, electronic_noise=3.3), first
        self.integrals = self.scanner(self.images)

    def __len__(self):
        return len(self.images)

    def pair(self, positions, draw):
        positions = list(positions)
        keys = [str(self.first + i) for i in positions]
        return self.scanner.measure(self.integrals[positions], keys, seed=0, draw=draw), self.images[positions]


def error_hu(image, truth):
    """RMSE inside the scan circle."""
    return float((image - truth)[:, 0, CIRCLE].square().mean().sqrt()) * HU_PER_MU


def errors(i0, *reconstructions):
    p, x = Scans(48, 56, i0).pair(range(8), 0)
    return [error_hu(KINDS[kind](**fields).build(SCAN)(p), x) for kind, fields in reconstructions]


def test_algebraic_methods_come_to_the_level_of_fbp_and_beyond():
    fbp, *iterated = errors(2e5, ("fbp", {}), ("sirt", {}), ("os-sart", {}), ("cgls", {}))
    assert max(iterated) < fbp
    early, late = errors(2e5, ("sirt", {"iterations": 10}), ("cgls", {"steps": 4}))
    assert min(early, late) > fbp  # too few steps: it is the iteration that does it


def test_many_steps_of_cgls_let_the_noise_in():
    few, many = errors(2e3, ("cgls", {"steps": 8}), ("cgls", {"steps": 60}))
    assert many > 1.2 * few


@pytest.mark.parametrize(("i0", "strength"), [(2e5, 5.0), (1e4, 20.0)])
def test_total_variation_beats_fbp_of_any_window(i0, strength):
    found, *fbp = errors(i0, ("tv", {"strength_hu": strength}), *(("fbp", {"window": w}) for w in ("ram-lak", "hann")))
    assert found < 0.75 * min(fbp)


@pytest.mark.parametrize("i0", [1e4, 1e3])
def test_weights_help_where_photons_are_few(i0):
    # Each at the best strength of a grid, because λ acts on differently scaled data terms.
    best = {
        kind: min(errors(i0, *((kind, {"strength_hu": s, "iterations": 100}) for s in strengths)))
        for kind, strengths in {"tv": (10.0, 20.0, 40.0, 80.0, 160.0), "pwls-tv": (2.0, 4.0, 8.0, 16.0, 32.0)}.items()
    }
    print(i0, best)
    assert best["pwls-tv"] < best["tv"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind, cls in KINDS.items() if cls.is_learned])
def test_learned_reconstructions_beat_fbp_on_patients_they_have_not_seen(kind):
    training, held_out = Scans(0, 48, 2e4), Scans(48, 56, 2e4)
    reconstruction = KINDS[kind](epochs=25)
    fitted = reconstruction.fit(FitContext(SCAN, training, held_out))
    p, x = held_out.pair(range(8), 0)
    image = reconstruction.build(SCAN, state=fitted.state)(p)
    fbp = min(error_hu(KINDS["fbp"](window=window).build(SCAN)(p), x) for window in ("ram-lak", "hann"))
    print(kind, error_hu(image, x), fbp)
    assert error_hu(image, x) < 0.9 * fbp
    # What the curve says of the held-out slices is what they show.
    said = fitted.facts["curves"][-1]["validation_loss"] ** 0.5 * float(fitted.state["std"]) * HU_PER_MU
    assert error_hu(image, x) == pytest.approx(said, rel=1e-3)
