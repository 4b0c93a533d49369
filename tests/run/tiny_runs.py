"""A whole experiment that takes seconds: few small patients, a coarse scan, a short training."""

from __future__ import annotations

TINY = {
    "title": "tiny",
    "data": {"kind": "chest-phantom", "patients": 12, "slices_per_patient": 3, "size": 96, "pixel_mm": 4.0},
    "split": {"kind": "by-patient", "validation": 0.2, "test": 0.3},
    "geometry": {
        "kind": "fan-beam",
        "views": 48,
        "bins": 40,
        "bin_mm": 24.0,
        "source_to_isocenter_mm": 1000.0,
        "source_to_detector_mm": 2000.0,
        "shape": [32, 32],
        "pixel_mm": 13.0,
    },
    "acquisition": {"kind": "simulated", "dose": "standard"},
    "reconstruction": {"kind": "fbp"},
    "network": {"kind": "small-cnn"},
    "training": {"epochs": 3, "batch_size": 8},
    "threat": {"budget": {"value": 20.0}},
    "attack": {"kind": "ltgm"},
    "controls": ["random-trigger", "white-victim", "spectrum-victim"],
    "seeds": 1,
}
