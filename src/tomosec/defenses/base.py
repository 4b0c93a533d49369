"""What a defense is: a value that says what it needs, is fitted on what its threat model grants, and never sees an attack.

A defense has one role, and its role decides what the runner hands it: a context of this module. No context holds a trigger, an
attack's settings or a success rate; the runner measures those afterwards. Every score is higher for what is more suspicious.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from tomosec.analysis.networks import Classifier
from tomosec.analysis.plan import Training
from tomosec.component import Component
from tomosec.geometry import Geometry
from tomosec.pipeline import ImagingChain
from tomosec.progress import Progress, SilentProgress

Role = Literal[
    "scan-detector",
    "scan-set-detector",
    "scan-purifier",
    "input-detector",
    "prediction-wrapper",
    "inspector",
    "repair",
    "sample-filter",
    "training-defense",
]

#: What a defense may declare that it needs; the runner answers "not applicable: needs ..." where it is missing.
Need = Literal[
    "raw-sinogram",
    "geometry",
    "calibration-scans",
    "reconstruction",
    "clean-samples",
    "training-samples",
    "weights",
    "gradients",
    "batchnorm",
    "feature-maps",
    "three-classes",
]


@dataclass(frozen=True, slots=True)
class Scans:
    """Measured data of one scanner.

    Attributes:
        line_integrals: (B, 1, views, bins), after log and corrections.
        keys: B names.
        noise_sd: (B, 1, views, bins) standard deviation by the scanner's own noise model; None where it is not known.
    """

    line_integrals: Tensor
    keys: tuple[str, ...]
    noise_sd: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Images:
    """Reconstructed slices.

    Attributes:
        images: (B, 1, H, W) in 1/mm, air outside the scan circle.
        targets: (B,) class indices, as the labels say; for training samples these may be poisoned.
        keys: B names.
    """

    images: Tensor
    targets: Tensor
    keys: tuple[str, ...]


class ScanSource(Protocol):
    """Scans that are read in batches, as often as a defense asks for them, so that memory does not grow with their number."""

    @property
    def patients(self) -> Sequence[str]:
        """Patient of each, in the order of :meth:`batches`; where that is not known, each scan's own key."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batches(self, size: int) -> Iterator[Scans]:
        """All of them, in a fixed order."""
        ...


class ImageSource(Protocol):
    """Labeled slices that are read in batches."""

    @property
    def targets(self) -> Sequence[int]:
        """Label of each."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batches(self, size: int) -> Iterator[Images]:
        """All of them, in a fixed order."""
        ...


@dataclass(frozen=True, slots=True)
class ScanContext:
    """What a defense of measured data is granted.

    Attributes:
        geometry: of all scans.
        clean: calibration scans of this scanner, known to be untouched; other patients than those that are judged.
        reconstruct: line integrals (B, 1, views, bins) to images (B, 1, H, W) in 1/mm, as the site reconstructs.
        seed: of the experiment; draw with ``randomness.generator(seed, <defense kind>, ...)``.
        device: where to work.
        progress: where progress goes.
    """

    geometry: Geometry
    clean: ScanSource
    reconstruct: Callable[[Tensor], Tensor] | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Progress = field(default_factory=SilentProgress)


@dataclass(frozen=True, slots=True)
class ModelContext:
    """What a defense of the analysis network is granted: the network, which may hold a backdoor, and clean held-out slices.

    Attributes:
        network: the network under suspicion; a repair works on a copy.
        clean: labeled slices that are known to be clean; never training or test slices.
        classes: class names; index = class.
        imaging: the chain, for defenses that scan or reconstruct anew; None where only images are at hand.
        seed: of the experiment.
        device: where to work.
        progress: where progress goes.
    """

    network: Classifier
    clean: ImageSource
    classes: tuple[str, ...]
    imaging: ImagingChain | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Progress = field(default_factory=SilentProgress)


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """What a defense of the training is granted: the training slices as they were delivered, poisoned or not.

    Attributes:
        samples: training slices with the labels that they came with.
        training: how the network is to be trained.
        new_network: makes an untrained network, the same every time.
        fit: trains a network on slices with given weights (N,) or None, by ``training``, and returns it in evaluation mode.
        classes: class names.
        network: a network trained on all of ``samples``, for filters that look at its features.
        seed: of the experiment.
        device: where to work.
        progress: where progress goes.
    """

    samples: ImageSource
    training: Training
    new_network: Callable[[], Classifier]
    fit: Callable[[Classifier, ImageSource, Tensor | None], Classifier]
    classes: tuple[str, ...]
    network: Classifier
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Progress = field(default_factory=SilentProgress)


class Defense(Component):
    """Base of the defense components; use one of the role classes below.

    A plug-in subclasses the class of its role, sets ``kind``, ``version``, ``needs`` and ``source``, and writes the one abstract
    method of the role. The docstring's first line is what `tomosec list defenses` prints.

    Attributes:
        role: what it is handed and what it answers.
        needs: what it cannot do without.
        source: publication.
        adaptive: kinds of the attacks here that were made to get past it; empty means "not adaptively evaluated".
    """

    family: ClassVar[str] = "defense"
    role: ClassVar[Role]
    needs: ClassVar[frozenset[Need]] = frozenset()
    source: ClassVar[str] = ""
    adaptive: ClassVar[frozenset[str]] = frozenset()

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """Return why it does not apply here, such as a short scan without complementary rays; empty where it does."""
        return ""


@dataclass(frozen=True, slots=True)
class ScanVerdicts:
    """What a detector says about B scans.

    Attributes:
        score: (B,) float64, finite; higher is more suspicious.
        p_value: (B,) float64, chance of a clean scan of another patient to score at least as high, from calibration scans that
            nothing was fitted to; None where there are too few of them for a verdict.
    """

    score: Tensor
    p_value: Tensor | None


class ScanDetection(ABC):
    """A calibrated detector of measured data: a runtime."""

    @property
    @abstractmethod
    def held_out(self) -> int:
        """Patients behind the p-values; 1 / (held_out + 1) is the smallest that can be reached."""

    @abstractmethod
    def judge(self, scans: Scans) -> ScanVerdicts:
        """Each scan's own verdict, whatever else is in the batch.

        Raises:
            InputError: scans of another shape, with values that are not finite, or without the noise model of the calibration.
        """

    def where(self, scans: Scans) -> Tensor | None:
        """(B, views, bins) map of where a scan is wrong, in units of its clean spread; None where the detector has none."""
        return None

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a profile keeps; with the component, it rebuilds the runtime."""


class ScanDetector(Defense):
    """Judges one scan at a time by its measured data."""

    role: ClassVar[Role] = "scan-detector"

    def calibrate(self, context: ScanContext) -> ScanDetection:
        """Fit on clean scans.

        Raises:
            NotApplicable: the scan, or the calibration scans, do not have what it needs.
        """
        raise NotImplementedError

    def restore(self, tensors: Mapping[str, Tensor], geometry: Geometry) -> ScanDetection:
        """Inverse of :meth:`ScanDetection.tensors`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class SetVerdict:
    """What a set of scans says together.

    Attributes:
        score: higher is more suspicious.
        p_value: under clean sets of the same size; None where no verdict is possible.
        scans: how many were judged; one of each patient where a detector asks for that.
        where: (views, bins) map; None where there is none.
        reason: why there is no p-value; empty where there is one.
    """

    score: float
    p_value: float | None
    scans: int
    where: Tensor | None = None
    reason: str = ""


class ScanSetDetection(ABC):
    """A calibrated detector of sets of scans."""

    @abstractmethod
    def judge(self, scans: ScanSource) -> SetVerdict:
        """Read the scans once, in batches."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a profile keeps; with the component, it rebuilds the runtime."""


class ScanSetDetector(Defense):
    """Judges many scans together: what is the same in all of them adds up."""

    role: ClassVar[Role] = "scan-set-detector"

    def calibrate(self, context: ScanContext) -> ScanSetDetection:
        """Fit on clean scans.

        Raises:
            NotApplicable: the scan, or the calibration scans, do not have what it needs.
        """
        raise NotImplementedError

    def restore(self, tensors: Mapping[str, Tensor], geometry: Geometry) -> ScanSetDetection:
        """Inverse of :meth:`ScanSetDetection.tensors`."""
        raise NotImplementedError


class Purification(ABC):
    """A fitted purifier."""

    @abstractmethod
    def purify(self, scans: Scans) -> Tensor:
        """(B, 1, views, bins) line integrals to be used instead."""


class ScanPurifier(Defense):
    """Changes measured data before they are reconstructed."""

    role: ClassVar[Role] = "scan-purifier"

    def fit(self, context: ScanContext) -> Purification:
        """Fit on clean scans, where there is something to fit."""
        raise NotImplementedError


class InputDetection(ABC):
    """A fitted detector of inputs."""

    @abstractmethod
    def score(self, images: Tensor) -> Tensor:
        """(B,) float64 of images (B, 1, H, W) in 1/mm."""


class InputDetector(Defense):
    """Judges one image at a time by what the network makes of it."""

    role: ClassVar[Role] = "input-detector"

    def fit(self, context: ModelContext) -> InputDetection:
        """Fit on the network and clean slices."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Readings:
    """What a wrapper reads in B scans.

    Attributes:
        labels: (B,) class indices.
        probabilities: (B, classes); the label is the most probable class.
        suspicion: (B,) float64, how much the predictions for a scan disagree, higher is more suspicious; None where there is
            one only.
        radius: (B,) float64, L2 norm over all rays of the change of line integrals up to which the label is certified; 0 where
            it is not; None where the wrapper certifies nothing.
    """

    labels: Tensor
    probabilities: Tensor
    suspicion: Tensor | None = None
    radius: Tensor | None = None


class Prediction(ABC):
    """A fitted wrapper around the chain."""

    @abstractmethod
    def predict(self, scans: Scans) -> Readings:
        """Everything that it says of measured data, each scan by itself, at once: a scan is reconstructed no more than needed."""


class PredictionWrapper(Defense):
    """Predicts in another way from the same scan, such as a vote over several reconstructions."""

    role: ClassVar[Role] = "prediction-wrapper"

    def fit(self, context: ModelContext) -> Prediction:
        """Prepare; ``context.imaging`` is the chain."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an inspector found in a network.

    Attributes:
        score: higher is more suspicious; one number for the network.
        by_class: suspicion of each class as the target, where the method has it.
        details: plain facts for the record.
    """

    score: float
    by_class: tuple[float, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Inspector(Defense):
    """Judges a network by itself."""

    role: ClassVar[Role] = "inspector"

    def inspect(self, context: ModelContext) -> Inspection:
        """Look at the network."""
        raise NotImplementedError


class Repair(Defense):
    """Returns a network that should have lost its backdoor."""

    role: ClassVar[Role] = "repair"

    def repair(self, context: ModelContext) -> Classifier:
        """Repair a copy, in evaluation mode; the network that was given does not change."""
        raise NotImplementedError


class SampleFilter(Defense):
    """Says which training slices look poisoned; the runner trains the network again without the most suspicious.

    Attributes:
        removed: fraction of all training slices that are taken out, whatever their class. 1.5 times the largest share of poison
            that is feared, as published (Tran et al., NeurIPS 2018, of each class); the default fears a tenth.
    """

    role: ClassVar[Role] = "sample-filter"
    removed: float = Field(0.15, gt=0, lt=1)

    def suspicion(self, context: TrainingContext) -> Tensor:
        """(N,) float64, higher is more suspicious, in the order of ``context.samples``."""
        raise NotImplementedError


class TrainingDefense(Defense):
    """Trains a network so that poison does less."""

    role: ClassVar[Role] = "training-defense"

    def train(self, context: TrainingContext) -> Classifier:
        """Return a trained network in evaluation mode."""
        raise NotImplementedError
