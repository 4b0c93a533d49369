"""Example slices, sinogram and trigger of a run, from its ``tensors.safetensors`` to pictures with scales and readings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tomosec.report import rasters, wording
from tomosec.report.rasters import Floats, Raster

#: Readings of an example that belong under each picture: the end of their key in the file.
_READING_OF = {"clean": "clean", "triggered": "triggered", "random": "random trigger"}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a network read."""

    model: str
    label: str
    probability: str
    wrong: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """A slice in every display window, or a difference.

    Attributes:
        name: ``clean``, ``triggered``, ``random`` or ``difference``.
        title: heading.
        alt: text alternative.
        views: window name to picture; the difference has one, called ``all``.
        readings: what the networks read on it.
        facts: a line of numbers below.
    """

    name: str
    title: str
    alt: str
    views: Mapping[str, Raster]
    readings: tuple[Reading, ...] = ()
    facts: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """One slice."""

    key: str
    patient: str
    label: str
    pictures: tuple[Picture, ...]
    outline: str = ""


@dataclass(frozen=True, slots=True)
class Plane:
    """A picture with axes: the sinogram, the trigger or its effect.

    Attributes:
        title, alt: heading and text alternative.
        raster: the picture.
        unit: unit of the color bar.
        signed: whether zero is white.
        x, y: axis label and ticks (position 0 to 1, text).
        note: a remark below.
    """

    title: str
    alt: str
    raster: Raster
    unit: str
    signed: bool
    x: tuple[str, tuple[tuple[float, str], ...]] = ("", ())
    y: tuple[str, tuple[tuple[float, str], ...]] = ("", ())
    note: str = ""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Everything that is shown of a run's tensors; ``missing`` says why there is nothing."""

    examples: tuple[Example, ...] = ()
    planes: tuple[Plane, ...] = ()
    seed: int | None = None
    limit: float = 0.0
    averaged: tuple[int, int] = (1, 1)
    omitted: int = 0
    missing: str = ""
    windows: Mapping[str, str] = field(default_factory=lambda: dict(rasters.WINDOW_NAMES))


def load(folder: Path, experiment: Mapping[str, Any], *, most: int = 4) -> Pictures:
    """Read a run's pictures; a missing or damaged file gives the reason instead.

    Args:
        folder: the run's folder.
        experiment: plain form of the experiment, for the axes.
        most: how many examples to show.
    """
    path = folder / "tensors.safetensors"
    if not path.is_file():
        return Pictures(missing="This run left no example images (tensors.safetensors is not in its folder).")
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {}).get("tomosec", "{}"))
            tensors = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (a safetensors handle is not a mapping)
        return _pictures(tensors, facts if isinstance(facts, dict) else {}, experiment, most)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        return Pictures(missing=f"The example images of this run cannot be read (tensors.safetensors: {error}).")


def _pictures(tensors: Mapping[str, Any], facts: Mapping[str, Any], experiment: Mapping[str, Any], most: int) -> Pictures:
    clean: Floats | None = tensors.get("clean_hu")
    planes = _planes(tensors, experiment)
    seed = facts.get("seed")
    if clean is None or clean.ndim != 3:
        return Pictures(planes=planes, seed=seed, missing="" if planes else "The file of example images holds no images.")
    triggered = tensors.get("triggered_hu")
    limit = rasters.symmetric_limit(triggered - clean) if triggered is not None else 0.0
    described = list(facts.get("examples", ()))
    examples = []
    for index in range(min(most, len(clean))):
        about = described[index] if index < len(described) else {}
        examples.append(
            _example(
                {
                    name: value[index]
                    for name, value in tensors.items()
                    if name.endswith("_hu") and value.ndim == 3 and len(value) == len(clean)
                }
                | {name: tensors[name][index] for name in ("body", "lesion") if name in tensors},
                about,
                limit,
            )
        )
    _, block = rasters.shrink(clean[0], 256)
    return Pictures(tuple(examples), planes, seed, limit, block, len(clean) - len(examples))


def _example(images: Mapping[str, Any], about: Mapping[str, Any], limit: float) -> Example:
    label, key = str(about.get("label", "unknown")), str(about.get("key", ""))
    readings = about.get("readings", {})
    clean = images["clean_hu"]
    pictures = [_slice("clean", "Clean scan", clean, label, readings)]
    if "triggered_hu" in images:
        change = images["triggered_hu"] - clean
        pictures.append(_slice("triggered", "With the trigger", images["triggered_hu"], label, readings))
        pictures.append(
            Picture(
                "difference",
                "Difference",
                f"Difference between the scan with the trigger and the clean scan, from −{limit:g} to {limit:g} HU",
                {"all": rasters.signed(change, limit)},
                facts=_size_of(change, images.get("body")),
            )
        )
    if "random_hu" in images:
        pictures.append(_slice("random", "Random trigger", images["random_hu"], label, readings))
    lesion = images.get("lesion")
    outline = rasters.outline(np.asarray(lesion) > 0) if lesion is not None and np.any(lesion) else ""
    return Example(key, str(about.get("patient", "")), label, tuple(pictures), outline)


def _slice(name: str, title: str, values: Floats, label: str, readings: Mapping[str, Any]) -> Picture:
    found = []
    for reading, (text, probability) in readings.items():
        model, _, shown = str(reading).partition(", ")
        if shown == _READING_OF[name]:
            found.append(Reading(model[:1].upper() + model[1:], str(text), wording.share(float(probability)), str(text) != label))
    said = "; ".join(f"{r.model.lower()}: {r.label}, {r.probability}" for r in found)
    alt = f"{title}: axial CT slice, true class {label}" + (f"; {said}" if said else "")
    return Picture(
        name, title, alt, {window: rasters.gray(values, *limits) for window, limits in rasters.WINDOWS.items()}, tuple(found)
    )


def _size_of(change: Floats, body: Any) -> str:
    inside = change[np.asarray(body) > 0] if body is not None and np.any(body) else change.ravel()
    where = "inside the body" if inside.size != change.size else "whole image"
    rmse = math.sqrt(float(np.mean(np.square(inside, dtype=np.float64))))
    return f"this slice: RMSE {wording.number(rmse, 'HU')} {where}, largest {wording.number(float(np.abs(change).max()), 'HU')}"


def _planes(tensors: Mapping[str, Any], experiment: Mapping[str, Any]) -> tuple[Plane, ...]:
    out = []
    sinogram, trigger, effect = (tensors.get(name) for name in ("sinogram", "trigger", "trigger_effect_hu"))
    if sinogram is not None:
        axes = _sinogram_axes(sinogram.shape, experiment)
        high = float(np.max(sinogram)) or 1.0
        raster = rasters.gray(sinogram, 0.0, high, 360)
        out.append(
            Plane(
                "Clean sinogram of the first example",
                "Sinogram: line integrals over view angle and detector bin",
                raster,
                "",
                False,
                *axes,
                averaged(raster),
            )
        )
    if trigger is not None:
        raster = rasters.signed(trigger, rasters.symmetric_limit(trigger), 360)
        rms = math.sqrt(float(np.mean(np.square(trigger, dtype=np.float64))))
        share = ""
        if sinogram is not None and (whole := math.sqrt(float(np.mean(np.square(sinogram, dtype=np.float64))))) > 0:
            share = f"; {wording.share(rms / whole)} of the RMS of the sinogram beside it"
        note = f"RMS {wording.number(rms)}{share}. {averaged(raster)}".strip()
        out.append(
            Plane(
                "Trigger as it is added, s·T",
                "Trigger in the sinogram, symmetric scale with zero in white",
                raster,
                "",
                True,
                *_sinogram_axes(trigger.shape, experiment),
                note,
            )
        )
    if effect is not None:
        raster = rasters.signed(effect, rasters.symmetric_limit(effect), 360)
        note = f"What the trigger adds to every image. {averaged(raster)}".strip()
        out.append(
            Plane(
                "Its effect in the image, s·R(T)",
                "Effect of the trigger in the image, in HU, symmetric scale with zero in white",
                raster,
                "HU",
                True,
                note=note,
            )
        )
    return tuple(out)


def averaged(raster: Raster) -> str:
    """Say how many samples a pixel of the picture stands for, where they are several."""
    rows, columns = raster.averaged
    return (
        f"Shown averaged over blocks of {rows} × {columns} samples, which hides finer detail."
        if (rows, columns) != (1, 1)
        else ""
    )


def _sinogram_axes(
    shape: tuple[int, ...], experiment: Mapping[str, Any]
) -> tuple[tuple[str, tuple[tuple[float, str], ...]], tuple[str, tuple[tuple[float, str], ...]]]:
    views, bins = shape
    x = ("detector bin", tuple((place, str(max(1, round(place * bins)))) for place in (0.0, 0.5, 1.0)))
    geometry = experiment.get("geometry")
    if (
        isinstance(geometry, Mapping)
        and geometry.get("angles") is None
        and isinstance(geometry.get("arc", 2 * math.pi), (int, float))
    ):
        start, arc = math.degrees(float(geometry.get("start", 0.0))), math.degrees(float(geometry.get("arc", 2 * math.pi)))
        return x, (
            "view angle",
            tuple((place, f"{start + place * arc:.0f}°".replace("-", "−")) for place in (0.0, 0.25, 0.5, 0.75, 1.0)),
        )
    return x, ("view", tuple((place, str(max(1, round(place * views)))) for place in (0.0, 0.5, 1.0)))
