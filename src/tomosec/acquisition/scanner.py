"""The runtime that simulates scans: everything that happens between attenuation and corrected line integrals, in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from tomosec.acquisition.effects import BadBins, BeamHardening, Jitter, TubeCurrent
from tomosec.errors import InputError
from tomosec.geometry import Floats, Geometry
from tomosec.operators import Projector
from tomosec.operators.dispatch import check_sinogram
from tomosec.randomness import generator


class Scanner(nn.Module):
    """Simulates scans of attenuation images.

    A line integral p is measured in this order; what is not switched on is left out:

    1. it is projected by the geometry as scanned, and displaced by the jitter of its view;
    2. the beam hardens: the expected photons are N₀ = I0 m exp(−h(p)), with the relative tube current m of the view;
    3. quantum noise: N ~ Poisson(N₀). **A trigger at the site ``counts`` enters here**;
    4. bad bins read nothing, or as much as air;
    5. electronic noise e ~ Normal(0, electronic_noise), in photons, is added and the sum rounded to the converter's steps;
    6. the log: log(I0 m / max(N, floor)) (the usual model, e.g. Whiting et al., Medical Physics 33, 2006);
    7. corrections: interpolation over bad bins, then h is inverted. **A trigger at ``line-integrals`` enters after them.**

    Args:
        geometry: the scan that reconstructions assume.
        i0: photons per bin in air, mean over the views; ``math.inf`` switches every kind of noise and the quantization off.
        electronic_noise: sd of the readout, photons.
        floor: smallest count that the log is taken of.
        adc_step: step of the analog-to-digital converter, photons; 0 does not quantize.
        tube_current: how the current varies over the views; None keeps it.
        hardening: how the beam hardens; None for a monochromatic one.
        bad_bins: elements that do not measure.
        jitter: displacement of the views.
        scanned: the geometry as it really is; None where it is the assumed one.

    Raises:
        InputError: the sinograms of ``scanned`` have another shape, or an uncorrected bad bin has no finite reading without
            noise.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        i0: float,
        electronic_noise: float = 0.0,
        floor: float = 1.0,
        adc_step: float = 0.0,
        tube_current: TubeCurrent | None = None,
        hardening: BeamHardening | None = None,
        bad_bins: BadBins | None = None,
        jitter: Jitter | None = None,
        scanned: Geometry | None = None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.scanned = geometry if scanned is None else scanned
        if self.scanned.sinogram_shape != geometry.sinogram_shape or self.scanned.shape != geometry.shape:
            raise InputError(f"scanned: {self.scanned!r} has other views, bins or pixels than the assumed {geometry!r}")
        if math.isinf(i0) and bad_bins is not None and not bad_bins.corrected:
            raise InputError("bad_bins_corrected: false needs a finite dose; without noise a dead bin has no reading")
        self.projector = Projector(self.scanned)
        self.i0, self.electronic_noise, self.floor, self.adc_step = i0, electronic_noise, floor, adc_step
        self.tube_current, self.hardening, self.bad_bins, self.jitter = tube_current, hardening, bad_bins, jitter

    def forward(self, image: Tensor) -> Tensor:
        """Noiseless line integrals (B, 1, views, bins) of attenuation (B, 1, H, W) in 1/mm, in the geometry as scanned."""
        out: Tensor = self.projector(image)
        return out

    @property
    def is_noisy(self) -> bool:
        """Whether there are photon and electronic noise."""
        return math.isfinite(self.i0)

    @property
    def is_transparent(self) -> bool:
        """Whether a noiseless scan of undisplaced views reads the line integrals as they are."""
        return self.hardening is None and self.bad_bins is None

    @property
    def after_counts(self) -> str:
        """What follows the site ``counts``, for people: why a trigger there does not simply add to the line integrals."""
        stages = [
            ("dead and hot bins", self.bad_bins is not None),
            ("electronic noise", self.is_noisy and self.electronic_noise > 0),
            ("quantization", self.is_noisy and self.adc_step > 0),
            ("the photon floor", self.is_noisy),
            ("the log", True),
            ("interpolation over bad bins", self.bad_bins is not None and self.bad_bins.corrected),
            ("the water correction", self.hardening is not None and self.hardening.corrected),
        ]
        *first, last = [name for name, there in stages if there]
        return f"{', '.join(first)} and {last}" if first else last

    def attenuation(self, integrals: Tensor) -> tuple[Tensor, Tensor | float]:
        """What weakens the beam, and what the corrections then do to small errors.

        Args:
            integrals: (B, 1, views, bins) noiseless line integrals.

        Returns:
            a, same shape, with I0 exp(−a) expected photons; and the factor by which an error of the log grows in the water
            correction, same shape, or 1 without it.
        """
        if self.hardening is None and self.tube_current is None:
            return integrals, 1.0
        lines = integrals.detach().cpu().double().numpy()
        read = lines if self.hardening is None else self.hardening(lines)
        if self.tube_current is not None:
            read = read - np.log(np.stack([self._profile(line[0])[None] for line in lines]))
        growth: Tensor | float = 1.0
        if self.hardening is not None and self.hardening.corrected:
            growth = torch.from_numpy(1 / self.hardening.slope(lines)).to(integrals)
        return torch.from_numpy(read).to(integrals), growth

    def _profile(self, line: Floats) -> Floats:
        """Relative current (views, 1) of a scan with the line integrals (views, bins)."""
        assert self.tube_current is not None
        return self.tube_current.profile(line, self.geometry)[:, None]

    def noise_sd(self, integrals: Tensor) -> Tensor:
        """Standard deviation of the measured line integrals, to first order; zero without noise. Shape of ``integrals``.

        It is that of photons, readout and quantization, after the corrections. Jitter is not in it: its errors are not
        independent between bins. A bad bin that is not corrected counts as a good one.
        """
        if not self.is_noisy:
            return torch.zeros_like(integrals)
        weakened, growth = self.attenuation(integrals)
        photons = self.i0 * torch.exp(-weakened)
        sd = torch.sqrt(photons + self._readout_variance) / photons * growth
        if self.bad_bins is not None and self.bad_bins.corrected:
            left, right, weight = (torch.from_numpy(part).to(sd.device) for part in self.bad_bins.neighbors(sd.shape[-1]))
            weight = weight.to(sd.dtype)
            sd[..., torch.from_numpy(self.bad_bins.all).to(sd.device)] = torch.hypot(
                (1 - weight) * sd[..., left], weight * sd[..., right]
            )
        return sd

    @property
    def _readout_variance(self) -> float:
        """Variance of a reading that photons do not explain; rounding to a step has 1/12 of its square."""
        return self.electronic_noise**2 + self.adc_step**2 / 12

    def measure(
        self, integrals: Tensor, keys: Sequence[str], *, seed: int, draw: int, counts_change: Tensor | None = None
    ) -> Tensor:
        """Measured line integrals of noiseless ones.

        Args:
            integrals: (B, 1, views, bins) noiseless line integrals.
            keys: B sample keys. Noise and jitter are functions of (seed, key, draw) alone, so a clean and a triggered scan share
                them.
            seed: seed of the experiment.
            draw: 0 for tests, 1 + epoch in training.
            counts_change: line integrals to add to each sample at the ``counts`` site: after quantum noise, before
                everything that the detector does. The tube current does not react to it.

        Returns:
            (B, 1, views, bins) on the device of ``integrals``; float32 where there is noise, else their type.

        Raises:
            InputError: sinograms that are not of the geometry or not finite, or another number of keys.
        """
        check_sinogram(integrals, self.scanned, "measure")
        if len(keys) != integrals.shape[0]:
            raise InputError(f"{len(keys)} sample keys for {integrals.shape[0]} sinograms")
        if not self.is_noisy and self.is_transparent and self.jitter is None:
            return integrals if counts_change is None else integrals + counts_change
        expected, change = _arrays(integrals, counts_change)
        out = np.empty(expected.shape, dtype=np.float32 if self.is_noisy else expected.dtype)

        def one(i: int) -> None:
            out[i, 0] = self._scan(expected[i, 0], None if change is None else change[i, 0], (seed, keys[i], draw))

        # NumPy's generators release the GIL while they draw.
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
            list(pool.map(one, range(len(keys))))
        return torch.from_numpy(out).to(integrals.device)

    def read(self, integrals: Tensor, counts_change: Tensor | None = None) -> Tensor:
        """Line integrals that a scan without noise and jitter would give, after the corrections.

        Args:
            integrals: (B, 1, views, bins) noiseless line integrals.
            counts_change: as in :meth:`measure`.

        Returns:
            (B, 1, views, bins), type and device of ``integrals``, which are returned as they are where nothing changes them.

        Raises:
            InputError: sinograms that are not of the geometry or not finite.
        """
        check_sinogram(integrals, self.scanned, "read")
        if self.is_transparent:
            return integrals if counts_change is None else integrals + counts_change
        expected, change = _arrays(integrals, counts_change)
        out = np.empty(expected.shape, dtype=expected.dtype)
        for i, (line,) in enumerate(expected):
            line = line.astype(np.float64)
            value = line if self.hardening is None else self.hardening(line)
            if change is not None:
                value = value + change[i, 0]
            if self.bad_bins is not None and not self.bad_bins.corrected:
                value = value.copy()
                air = self.i0 if self.tube_current is None else self.i0 * self._profile(line)
                value[:, list(self.bad_bins.dead)] = np.log(air / self.floor)
                value[:, list(self.bad_bins.hot)] = 0.0
            out[i, 0] = self._correct(value)
        return torch.from_numpy(out).to(integrals.device)

    def _scan(self, line: Floats, change: Floats | None, key: tuple[int, str, int]) -> Floats:
        """Measure one scan, (views, bins); ``key`` is seed, sample and draw."""
        seed, sample, draw = key
        line = line.astype(np.float64)
        air: float | Floats = self.i0 if self.tube_current is None else self.i0 * self._profile(line)
        if self.jitter is not None:
            line = self.jitter.displace(line, self.scanned, seed, "jitter", sample, draw)
        if self.hardening is not None:
            line = self.hardening(line)
        if not self.is_noisy:
            return self._correct(line if change is None else line + change)
        rng = generator(seed, "noise", sample, draw)
        counts = rng.poisson(air * np.exp(-line)).astype(np.float64)
        if change is not None:
            counts *= np.exp(-change.astype(np.float64))
        if self.bad_bins is not None:
            counts[:, list(self.bad_bins.dead)] = 0.0
            counts[:, list(self.bad_bins.hot)] = air
        if self.electronic_noise > 0:
            counts += self.electronic_noise * rng.standard_normal(counts.shape, dtype=np.float32)
        if self.adc_step > 0:
            counts = self.adc_step * np.rint(counts / self.adc_step)
        return self._correct(np.log(air / np.maximum(counts, self.floor)))

    def _correct(self, read: Floats) -> Floats:
        """Corrected line integrals of the log of what was read, (views, bins)."""
        if self.bad_bins is not None and self.bad_bins.corrected:
            read = self.bad_bins.interpolate(read)
        if self.hardening is not None and self.hardening.corrected:
            read = self.hardening.inverse(read)
        return read

    def floored_fraction(self, integrals: Tensor) -> float:
        """Expected fraction of bins whose count falls below the floor (normal approximation); the record states it.

        Bad bins are counted as good ones.
        """
        if not self.is_noisy:
            return 0.0
        photons = self.i0 * torch.exp(-self.attenuation(integrals.double())[0])
        sd = torch.sqrt(photons + self._readout_variance)
        return float(torch.special.ndtr((self.floor - photons) / sd).mean())

    def extra_repr(self) -> str:
        """Show the physics in ``repr``."""
        shown = [f"i0={self.i0:.4g}", f"electronic_noise={self.electronic_noise}", f"floor={self.floor}"]
        if self.adc_step > 0:
            shown.append(f"adc_step={self.adc_step}")
        for name in ("tube_current", "hardening", "bad_bins", "jitter"):
            if getattr(self, name) is not None:
                shown.append(f"{name}={getattr(self, name)}")
        return ", ".join(shown)


def _arrays(integrals: Tensor, change: Tensor | None) -> tuple[Floats, Floats | None]:
    """Line integrals (B, 1, views, bins) and a change of them, broadcast to the same shape, as arrays."""
    lines = integrals.detach().cpu().numpy()
    return lines, None if change is None else np.broadcast_to(change.detach().cpu().numpy(), lines.shape)
