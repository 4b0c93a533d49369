"""Scans of phantoms, several of each patient, or each with noise of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tomosec.testing.scans import PhantomScans


class SliceScans(PhantomScans):
    """Several scans of every patient that differ in their noise alone, one patient after the other."""

    def __init__(self, geometry, patients, each, **options):
        super().__init__(geometry, patients * each, **options)
        self.patients, self._each = tuple(f"{self._seed}-{i // each}" for i in range(len(self.patients))), each

    def image(self, i):
        return super().image(i // self._each)

    def at(self, positions):
        keys = self.patients
        self.patients = tuple(f"{name}-{i}" for i, name in enumerate(keys))  # the noise goes by a scan's own name
        try:
            return super().at(positions)
        finally:
            self.patients = keys


class NoisierScans(PhantomScans):
    """Every scan with white noise of its own on top."""

    def __init__(self, geometry, count, sd, **options):
        super().__init__(geometry, count, **options)
        self._sd = sd

    def at(self, positions):
        scans = super().at(positions)
        shape = scans.line_integrals.shape[1:]
        noise = np.stack([np.random.default_rng([self._seed, i]).standard_normal(shape) for i in positions])
        return replace(scans, line_integrals=scans.line_integrals + self._sd * torch.from_numpy(noise).float())
