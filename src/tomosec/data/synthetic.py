"""A procedural chest phantom: patients with and without lung disease, drawn from a seed; it needs no files.

It exists so that a chain can be tried, tested and compared without patient data. Its patients have a body with fat and
muscle, lungs with a vascular tree, heart, great vessels, airways, spine, ribs and diaphragm, all of which change along the
patient axis, and, in the diseased half, ground glass, consolidation and nodules whose extent is known. Nothing but the
lesions depends on the class. A result on it says that a chain works, not how that chain would do on patients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tomosec.component import canonical
from tomosec.data._anatomy import SCAN_RADIUS_MM, patient
from tomosec.data._rendering import FIRST_LEVEL, LAST_LEVEL, Lesion, LesionKind, Renderer, Scan, draw_lesions
from tomosec.data.base import Dataset, Entry, OpenDataset, Slice
from tomosec.errors import InputError
from tomosec.randomness import generator


class ChestPhantom(Dataset):
    """Synthetic chest CT, normal or diseased; the built-in data of the demo and the tests.

    A slice is a function of the seed, the patient's number, the slice's level and the rendering fields: asking for more
    patients leaves the earlier ones as they are. Of patients 0 and 1, 2 and 3, ... one each is diseased, and every slice
    of a diseased patient shows a lesion. The body lies within 176 mm of the isocenter. Original to tomosec.

    Attributes:
        patients: how many patients; half of them are diseased, to within one.
        slices_per_patient: axial slices of each, evenly spaced from below the clavicles to the lower lobes, 130 to 160 mm.
        seed: names the population.
        size: pixels along each side.
        pixel_mm: pixel size in mm; the image must span at least 352 mm.
        lesions: what the diseased may have. With nodules alone the disease is invisible on coarse grids (4 mm and up).
        lesion_load: scale of the lesions' size and number, 0.4 (hard to see) to 1.6 (obvious).
    """

    kind: Literal["chest-phantom"] = "chest-phantom"
    version: Literal[1] = 1
    needs_root: ClassVar[bool] = False

    patients: Annotated[int, Field(ge=2, le=100_000)] = 48
    slices_per_patient: Annotated[int, Field(ge=1, le=512)] = 12
    seed: Annotated[int, Field(ge=0)] = 0
    size: Annotated[int, Field(ge=48, le=1024)] = 192
    pixel_mm: Annotated[float, Field(gt=0)] = 2.0
    lesions: Annotated[tuple[LesionKind, ...], Field(min_length=1)] = ("ground-glass", "consolidation", "nodule")
    lesion_load: Annotated[float, Field(ge=0.4, le=1.6)] = 1.0

    @model_validator(mode="after")
    def _holds_the_body(self) -> Self:
        if self.size * self.pixel_mm < 2 * SCAN_RADIUS_MM:
            raise ValueError(
                f"size {self.size} × pixel_mm {self.pixel_mm:g} is {self.size * self.pixel_mm:g} mm; "
                f"the bodies need at least {2 * SCAN_RADIUS_MM:g} mm"
            )
        if len(set(self.lesions)) < len(self.lesions):
            raise ValueError("lesions names a kind twice")
        return self

    def open(self, root: Path | None = None) -> OpenChestPhantom:
        """List the slices; ``root`` is not used."""
        return OpenChestPhantom(self)


class OpenChestPhantom(OpenDataset):
    """The phantom's patients. Slices are drawn when read, about 10 ms each at the default size, and not kept."""

    def __init__(self, config: ChestPhantom) -> None:
        self.config = config
        self.classes = ("normal", "disease")
        self.entries = tuple(entry for number in range(config.patients) for entry in self._entries(number))
        self._places = {entry.key: (i // config.slices_per_patient, entry) for i, entry in enumerate(self.entries)}

    def _entries(self, number: int) -> list[Entry]:
        config = self.config
        name, target = f"P{number + 1:05d}", _target(config.seed, number)
        person, scan = patient(config.seed, number), Scan.draw(config.seed, number)
        attributes = {"kernel_fwhm_mm": round(scan.blur, 2), "table": "yes" if scan.table else "no"}
        count = config.slices_per_patient
        levels = [FIRST_LEVEL + (LAST_LEVEL - FIRST_LEVEL) * (i + 0.5) / count for i in range(count)]
        return [
            Entry(f"{name}/{i + 1:04d}", name, target, round(level * person.height, 3), attributes)
            for i, level in enumerate(levels)
        ]

    def read(self, entry: Entry) -> Slice:
        """Draw one slice; ``Slice.lesion`` is given for both classes, empty for the normal one.

        Raises:
            InputError: the entry is not of this dataset.
        """
        config = self.config
        number, known = self._places.get(entry.key, (-1, None))
        if known != entry:
            have = f"{config.patients} patients of {config.slices_per_patient} slices"
            raise InputError(f"chest-phantom: no slice {entry.key!r} of class {entry.target} among its {have}")
        assert entry.position_mm is not None
        lesions = _lesions(config.seed, number, config.lesions, config.lesion_load) if entry.target else ()
        hu, mask = _renderer(config.size, config.pixel_mm).render(patient(config.seed, number), entry.position_mm, lesions)
        return Slice(hu, (config.pixel_mm, config.pixel_mm), mask)

    def fingerprint(self) -> Mapping[str, str]:
        """Return the generator's fields and version, from which every pixel follows."""
        return {"chest-phantom": json.dumps(canonical(self.config), sort_keys=True, separators=(",", ":"))}


def _target(seed: int, number: int) -> int:
    # A coin per pair: balanced for any even number of patients, and a patient's class does not depend on that number.
    first = int(generator(seed, "phantom", number // 2, "class").integers(2))
    return first ^ (number & 1)


@lru_cache(maxsize=8)
def _lesions(seed: int, number: int, kinds: tuple[LesionKind, ...], load: float) -> tuple[Lesion, ...]:
    return tuple(draw_lesions(patient(seed, number), kinds, load))


@lru_cache(maxsize=2)
def _renderer(size: int, pixel_mm: float) -> Renderer:
    return Renderer(size, pixel_mm)
