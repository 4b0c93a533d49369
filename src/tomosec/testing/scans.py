"""The contract of defenses of measured data, for ours and for those of plug-ins.

>>> from tomosec.defenses.air_rays import AirRays
>>> from tomosec.testing.scans import check_scan_defense
>>> check_scan_defense(AirRays())
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tomosec.acquisition import Scanner
from tomosec.analysis.architectures import SmallCNN
from tomosec.defenses.base import (
    Defense,
    Images,
    ImageSource,
    ModelContext,
    PredictionWrapper,
    ScanContext,
    ScanDetector,
    ScanPurifier,
    Scans,
    ScanSetDetector,
)
from tomosec.errors import InputError, NotApplicable, TomosecWarning
from tomosec.geometry import FanBeam, Geometry, ParallelBeam
from tomosec.hounsfield import MU_WATER
from tomosec.pipeline import ImagingChain
from tomosec.randomness import generator
from tomosec.reconstruction.fbp import FBP
from tomosec.tensorfile import read_tensors, write_tensors
from tomosec.testing.components import check_component, tiny_geometry


class PhantomScans:
    """Noisy scans of water ellipses with a denser spot, one per patient: a ScanSource that holds no scan.

    Args:
        geometry: of the scans.
        count: how many.
        seed: names the patients; other seeds are other patients.
        i0: photons per bin in air; infinite for no noise.
        change: (views, bins) line integrals that are added to every scan.
        noise_model: whether the scans come with their noise_sd.
    """

    def __init__(
        self,
        geometry: Geometry,
        count: int,
        *,
        seed: int = 0,
        i0: float = 1e5,
        change: Tensor | None = None,
        noise_model: bool = True,
    ) -> None:
        self._scanner = Scanner(geometry, i0=i0, electronic_noise=3.3)
        self._seed, self._change, self._noise_model = seed, change, noise_model
        self.patients: Sequence[str] = tuple(f"phantom-{seed}-{i}" for i in range(count))

    def __len__(self) -> int:
        return len(self.patients)

    def image(self, i: int) -> Tensor:
        """Attenuation (1, H, W) of a patient, 1/mm."""
        rng, geometry = generator(self._seed, "phantom-scan", i), self._scanner.geometry
        y, x = (np.linspace(-1, 1, n) for n in geometry.shape)
        rows, columns = np.meshgrid(y, x, indexing="ij")
        a, b = rng.uniform(0.5, 0.65, 2)
        cx, cy = rng.uniform(-0.3, 0.3, 2)
        body = (rows / a) ** 2 + (columns / b) ** 2 < 1
        spot = (rows - cy) ** 2 + (columns - cx) ** 2 < 0.15**2
        return torch.from_numpy((MU_WATER * (body + 0.5 * (spot & body))).astype(np.float32))[None]

    @torch.no_grad()
    def at(self, positions: Sequence[int]) -> Scans:
        """Some of them."""
        keys = tuple(self.patients[i] for i in positions)
        integrals = self._scanner(torch.stack([self.image(i) for i in positions]))
        measured = self._scanner.measure(integrals, keys, seed=self._seed, draw=0)
        if self._change is not None:
            measured = measured + self._change.to(measured)
        return Scans(measured, keys, self._scanner.noise_sd(measured) if self._noise_model else None)

    def batches(self, size: int) -> Iterator[Scans]:
        """All of them."""
        for start in range(0, len(self), size):
            yield self.at(range(start, min(len(self), start + size)))


class _NoImages(ImageSource):
    """No labeled slices: predictions from scans need none."""

    targets: Sequence[int] = ()

    def __len__(self) -> int:
        return 0

    def batches(self, size: int) -> Iterator[Images]:
        """None."""
        return iter(())


def phantom_context(geometry: Geometry | None = None, count: int = 12, *, seed: int = 0, **options: Any) -> ScanContext:
    """What a defense of measured data is granted, on phantoms; ``options`` are those of :class:`PhantomScans`."""
    geometry = tiny_geometry() if geometry is None else geometry
    return ScanContext(geometry=geometry, clean=PhantomScans(geometry, count, seed=seed, **options))


def phantom_model_context(seed: int = 0) -> ModelContext:
    """A small chain with an untrained network, for predictions from scans."""
    geometry = tiny_geometry(shape=(32, 32))
    network = SmallCNN(norm="none").build(classes=2, shape=geometry.shape, seed=seed).eval().requires_grad_(False)
    imaging = ImagingChain(Scanner(geometry, i0=1e5), FBP(geometry))
    return ModelContext(network=network, clean=_NoImages(), classes=("a", "b"), imaging=imaging, seed=seed)


def check_scan_defense(defense: Defense) -> None:
    """The contract of defenses of measured data, by role.

    Every role: found by its kind, survives JSON, names its source and needs; the scans it is given do not change; a scan's result
    does not depend on its batch or its place in it; the same again gives the same; what is no scan of its geometry is an
    InputError; where it does not apply, a reason and NotApplicable, never another error.

    Detectors: scores and p-values of the promised shape and type, finite, in (0, 1]; no p-value from few clean scans; the score
    rises with the strength of a planted pattern that it can see, if any; restored from its tensors, it says the same.
    """
    check_component(defense)
    assert defense.source, f"{defense!r} names no source"
    assert "raw-sinogram" in defense.needs, f"{defense!r} works on measured data and does not say so"
    if isinstance(defense, ScanDetector):
        _check_detector(defense)
    elif isinstance(defense, ScanSetDetector):
        _check_set_detector(defense)
    elif isinstance(defense, ScanPurifier):
        _check_purifier(defense)
    elif isinstance(defense, PredictionWrapper):
        _check_wrapper(defense)
    else:
        raise AssertionError(f"{type(defense).__name__} is no defense of measured data: its role is {defense.role!r}")


def _check_detector(detector: ScanDetector) -> None:
    context = phantom_context(count=42)
    detection = detector.calibrate(context)
    scans = PhantomScans(context.geometry, 3, seed=1).at(range(3))
    _check_batches(lambda some: detection.judge(some).score[:, None], scans)
    verdicts = detection.judge(scans)
    assert verdicts.score.shape == (3,), f"scores of shape {tuple(verdicts.score.shape)} for 3 scans"
    assert verdicts.score.dtype == torch.float64
    assert bool(torch.isfinite(verdicts.score).all()), "a score is not finite"
    assert detection.held_out >= 19, "half of 42 patients are held out, less than 19 of them count"
    assert verdicts.p_value is not None, "19 held-out patients and no p-value"
    assert verdicts.p_value.shape == (3,)
    assert bool(((verdicts.p_value >= 1 / (detection.held_out + 1) - 1e-12) & (verdicts.p_value <= 1)).all())
    where = detection.where(scans)
    if where is not None:
        assert where.shape == (3, *context.geometry.sinogram_shape), f"a map of shape {tuple(where.shape)}"
        assert bool(torch.isfinite(where).all()), "a map is not finite"
        _check_batches(lambda some: _some_map(detection.where(some)), scans)
    again = detector.restore(_saved(detection.tensors()), context.geometry).judge(scans)
    assert torch.equal(again.score, verdicts.score), "restored, it scores otherwise"
    assert again.p_value is not None
    assert torch.equal(again.p_value, verdicts.p_value), "restored, it has other p-values"
    assert torch.equal(detector.calibrate(context).judge(scans).score, verdicts.score), "calibrated again, it scores otherwise"
    # Strong noise is seen by everything that looks at anything; an offset by what looks at air.
    p = scans.line_integrals
    noise = torch.from_numpy(generator("check-scan-defense").standard_normal(tuple(p.shape[1:]), dtype=np.float32))
    scores = torch.stack([detection.judge(replace(scans, line_integrals=p + s * noise)).score for s in (0.0, 0.3, 3.0)])
    assert bool((scores.diff(dim=0) > 0).all()), f"the score does not rise with the strength of noise: {scores.tolist()}"
    few = detector.calibrate(phantom_context(count=10)).judge(scans)
    assert few.p_value is None, "a p-value from ten clean scans"
    assert bool(torch.isfinite(few.score).all()), "a score from ten clean scans is not finite"
    empty = detection.judge(Scans(p[:0], (), scans.noise_sd[:0] if scans.noise_sd is not None else None))
    assert empty.score.shape == (0,)
    _check_refusals(lambda some: detection.judge(some), scans)
    _check_elsewhere(detector.why_not, lambda there: detector.calibrate(there).judge(there.clean.batches(2).__next__()).score)


def _check_set_detector(detector: ScanSetDetector) -> None:
    context = phantom_context(count=44)
    detection = detector.calibrate(context)
    scans = PhantomScans(context.geometry, 6, seed=1)
    verdict = detection.judge(scans)
    assert verdict.scans == 6
    assert math.isfinite(verdict.score)
    assert (verdict.p_value is None) == bool(verdict.reason), "either a p-value or a reason why there is none"
    assert verdict.where is None or verdict.where.shape == context.geometry.sinogram_shape
    again = detector.restore(_saved(detection.tensors()), context.geometry).judge(scans)
    assert (again.score, again.p_value) == (verdict.score, verdict.p_value), "restored, it judges otherwise"
    few = detector.calibrate(phantom_context(count=10)).judge(scans)
    assert few.p_value is None, "a p-value from ten clean scans"
    assert few.reason
    assert math.isfinite(few.score)
    _check_elsewhere(detector.why_not, lambda there: torch.tensor(detector.calibrate(there).judge(there.clean).score))


def _check_purifier(purifier: ScanPurifier) -> None:
    context = phantom_context(count=10)
    purification = purifier.fit(context)
    scans = PhantomScans(context.geometry, 3, seed=1).at(range(3))
    purified = purification.purify(scans)
    assert purified.shape == scans.line_integrals.shape
    assert purified.dtype == torch.float32, f"float32 becomes {purified.dtype}"
    assert bool(torch.isfinite(purified).all()), "what is purified is not finite"
    change = float((purified - scans.line_integrals).norm() / scans.line_integrals.norm())
    assert change < 0.3, f"a clean scan is changed by {100 * change:.3g} %"
    _check_batches(purification.purify, scans)
    _check_refusals(purification.purify, scans)
    _check_elsewhere(purifier.why_not, lambda there: purifier.fit(there).purify(next(there.clean.batches(2))))


def _check_wrapper(wrapper: PredictionWrapper) -> None:
    context = phantom_model_context()
    assert context.imaging is not None
    prediction = wrapper.fit(context)
    scans = PhantomScans(context.imaging.geometry, 3, seed=1).at(range(3))
    said = prediction.predict(scans)
    assert said.labels.shape == (3,)
    assert said.probabilities.shape == (3, 2)
    assert torch.equal(said.labels, said.probabilities.argmax(1)), "the label is not the most probable class"
    assert torch.allclose(said.probabilities.sum(1), torch.ones(3), atol=1e-5), "probabilities do not add up to 1"
    for name, values in (("suspicion", said.suspicion), ("radius", said.radius)):
        if values is not None:
            assert values.shape == (3,), f"{name} of shape {tuple(values.shape)} for 3 scans"
            assert values.dtype == torch.float64, f"{name} is {values.dtype}"
            assert bool((torch.isfinite(values) & (values >= 0)).all()), f"{name} is {values.tolist()}"

    def everything(some: Scans) -> Tensor:
        found = prediction.predict(some)
        parts = [found.probabilities, *(part[:, None] for part in (found.suspicion, found.radius) if part is not None)]
        return torch.cat(parts, dim=1)

    _check_batches(everything, scans)
    _check_refusals(prediction.predict, scans)
    blind = replace(context, imaging=None)
    assert wrapper.why_not(blind), "it needs measured data and does not say so"
    _refused(lambda: wrapper.fit(blind), NotApplicable, "fitted without measured data")


def _saved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Written to a profile's file and read back."""
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(Path(folder) / "profile.safetensors", tensors, {})
        return read_tensors(Path(folder) / "profile.safetensors")[0]


def _some_map(found: Tensor | None) -> Tensor:
    assert found is not None, "a map for some batches and not for others"
    return found


def _check_batches(work: object, scans: Scans) -> None:
    """A scan's result is its own, whatever its batch and place; the scans are left alone; again gives the same."""
    assert callable(work)
    before = scans.line_integrals.clone()
    result = work(scans)
    assert torch.equal(scans.line_integrals, before), "the scans are changed"
    assert torch.equal(work(scans), result), "the same again gives something else"
    noise = scans.noise_sd
    alone = work(Scans(scans.line_integrals[1:2], scans.keys[1:2], None if noise is None else noise[1:2]))
    turned = work(Scans(scans.line_integrals.flip(0), scans.keys[::-1], None if noise is None else noise.flip(0))).flip(0)
    scale = float(result.abs().max())
    assert float((alone - result[1:2]).abs().max()) <= 1e-4 * scale, "a scan's result depends on its batch"
    assert float((turned - result).abs().max()) <= 1e-4 * scale, "a scan's result depends on its place"


def _check_refusals(work: object, scans: Scans) -> None:
    """What is no scan of the geometry is an InputError."""
    assert callable(work)
    p = scans.line_integrals
    for wrong in (p[..., :-1], p[:, 0], torch.where(p == p.max(), math.nan, p)):
        _refused(lambda wrong=wrong: work(replace(scans, line_integrals=wrong)), InputError, "what is no scan is accepted")
    _refused(lambda: work(replace(scans, keys=scans.keys[:1])), InputError, "one key for three scans is accepted")


def _check_elsewhere(why_not: object, work: object) -> None:
    """On other geometries: a finite answer, or a reason and NotApplicable."""
    assert callable(why_not)
    assert callable(work)
    full = tiny_geometry()
    for geometry in (
        FanBeam.model_validate(full.model_dump() | {"arc": math.pi + 0.8}),
        FanBeam.model_validate(full.model_dump() | {"views": 9, "arc": 1.0, "shape": (16, 20)}),
        FanBeam.model_validate(full.model_dump() | {"detector_offset_bins": 0.25}),
        full.views_at([0, 7, 3, 20, 12]),
        ParallelBeam(views=30, bins=27, bin_mm=18.0, shape=(16, 16), pixel_mm=24.0),
        ParallelBeam(views=30, bins=27, bin_mm=18.0, shape=(16, 16), pixel_mm=24.0, arc=-2 * math.pi),
    ):
        context = phantom_context(geometry, count=8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TomosecWarning)  # of limited angles
            if why_not(context):
                _refused(
                    lambda context=context: work(context), NotApplicable, f"no applicable scan, and no refusal: {geometry!r}"
                )
                continue
            try:
                result = work(context)
            except NotApplicable:  # what only the data show
                continue
        assert bool(torch.isfinite(result).all()), f"not finite for {geometry!r}"
    one = phantom_context(count=1)
    if not why_not(one):
        with contextlib.suppress(NotApplicable):
            assert bool(torch.isfinite(work(one)).all()), "not finite with one clean scan"


def _refused(work: object, expected: type[Exception], otherwise: str) -> None:
    assert callable(work)
    try:
        work()
    except expected:
        return
    raise AssertionError(otherwise)
