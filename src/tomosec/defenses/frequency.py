"""Frequency detector: what a trigger leaves in the discrete cosine transform."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.fft import dctn
from torch import Tensor

from tomosec.defenses._samples import gather, insist, too_few
from tomosec.defenses.base import InputDetection, InputDetector, ModelContext, Need, ScanContext, TrainingContext


class Frequency(InputDetector):
    """Energy of the discrete cosine transform in bands of frequency, in clean deviations; looks at no network.

    The paper trains a convolutional network on the transforms of clean and of synthetically changed images. Here each slice
    gives, for each band of radial frequency, the logarithms of the mean energy and of the largest share that one coefficient
    has of it: the first shows patches and noise, the second patterns that repeat. Standardized by the clean slices, the largest
    of them is the score. That needs no synthetic attack to resemble the true one, and ten slices do.

    Attributes:
        bands: of radial frequency, of equal width.
        lowest: first band that is looked at; those below are anatomy.
    """

    kind: Literal["frequency"] = "frequency"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"clean-samples"})
    source: ClassVar[str] = "after Zeng et al., ICCV 2021"

    bands: int = Field(16, ge=2, le=256)
    lowest: int = Field(2, ge=0)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """Deviations of fewer slices are chance."""
        return too_few(context, 4) if isinstance(context, ModelContext) else ""

    def fit(self, context: ModelContext) -> FrequencyDetection:
        """Learn the clean bands."""
        insist(self, context)
        lowest = min(self.lowest, self.bands - 1)
        features = band_features(gather(context.clean, context.device).images, self.bands, lowest)
        deviation = features.std(axis=0, ddof=1)
        # Few slices may agree by chance; no band is trusted to a tenth of what bands vary by.
        deviation = np.maximum(deviation, max(0.1 * float(np.median(deviation)), 1e-6))
        return FrequencyDetection(features.mean(axis=0), deviation, self.bands, lowest)


class FrequencyDetection(InputDetection):
    """Means and deviations of clean slices."""

    def __init__(self, mean: NDArray[np.float64], deviation: NDArray[np.float64], bands: int, lowest: int) -> None:
        self._mean, self._deviation, self._bands, self._lowest = mean, deviation, bands, lowest

    def score(self, images: Tensor) -> Tensor:
        """Largest standardized excess of a band."""
        if len(images) == 0:
            return torch.zeros(0, dtype=torch.float64)
        excess = (band_features(images, self._bands, self._lowest) - self._mean) / self._deviation
        return torch.from_numpy(excess.max(axis=1))


def band_features(images: Tensor, bands: int, lowest: int) -> NDArray[np.float64]:
    """(B, 2 * bands seen) log mean energy, and log share of the largest coefficient, by band of radial frequency.

    Args:
        images: (B, 1, H, W).
        bands: between frequency 0 and the corner of the transform.
        lowest: first band that is seen; bands without a coefficient are left out.
    """
    height, width = images.shape[-2:]
    radius = np.hypot(*np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")) / np.sqrt(2)
    band = np.minimum((radius * bands).astype(int), bands - 1)
    members = [index for index in range(lowest, bands) if np.any(band == index)]
    rows = []
    for image in images[:, 0].cpu().numpy().astype(np.float64):
        energy = dctn(image, norm="ortho") ** 2
        floor = 1e-12 * max(float(energy.sum()), 1e-30)
        means = np.array([energy[band == index].mean() for index in members]) + floor
        peaks = np.array([energy[band == index].max() for index in members]) + floor
        rows.append(np.concatenate([np.log(means), np.log(peaks / means)]))
    return np.array(rows)
