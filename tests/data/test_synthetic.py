"""The chest phantom: reproducible, anatomically in range, and without a shortcut to the class."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage, stats

from tomosec.component import component_class
from tomosec.data._anatomy import SCAN_RADIUS_MM, patient
from tomosec.data._rendering import Scan
from tomosec.data.base import Entry, Slice, body_mask, to_attenuation
from tomosec.data.synthetic import ChestPhantom
from tomosec.errors import InputError
from tomosec.hounsfield import hu_to_mu

SMALL = {"size": 96, "pixel_mm": 4.0}


@cache
def sample(patients: int = 6, count: int = 4, seed: int = 3) -> tuple[tuple[Entry, Slice], ...]:
    data = ChestPhantom(patients=patients, slices_per_patient=count, seed=seed).open()
    return tuple((entry, data.read(entry)) for entry in data.entries)


def organs(entry: Entry, seed: int = 3, pixel: float = 2.0, size: int = 192):
    """The signed distances at every pixel, worked out here from the patient's shift and tilt."""
    person = patient(seed, int(entry.patient[1:]) - 1)
    axis = (np.arange(size) - (size - 1) / 2) * pixel
    columns, rows = np.meshgrid(axis - person.shift[0], -axis - person.shift[1])
    c, s = np.cos(person.tilt), np.sin(person.tilt)
    x, y = (c * columns + s * rows).astype(np.float32), (c * rows - s * columns).astype(np.float32)
    return person, x, y, person.organs(x, y, np.asarray(entry.position_mm / person.height, dtype=np.float32))


# --- identity ------------------------------------------------------------------------------------------------------------


def test_it_is_the_registered_component_and_needs_no_folder():
    assert component_class("dataset", "chest-phantom") is ChestPhantom
    assert not ChestPhantom.needs_root


def test_same_seed_same_patient_bit_for_bit_whatever_the_cohort_and_the_order():
    few, many = (
        ChestPhantom(patients=2, slices_per_patient=3, **SMALL).open(),
        ChestPhantom(patients=20, slices_per_patient=3, **SMALL).open(),
    )
    assert few.entries == many.entries[:6]
    first = {entry.key: few.read(entry) for entry in few.entries}
    for entry in many.entries[18::3]:
        many.read(entry)  # the caches now hold other patients
    for entry in reversed(few.entries):
        again = many.read(entry)
        np.testing.assert_array_equal(again.hu, first[entry.key].hu)
        np.testing.assert_array_equal(again.lesion, first[entry.key].lesion)


def test_seeds_patients_and_slices_differ():
    one, other = ChestPhantom(seed=1, **SMALL).open(), ChestPhantom(seed=2, **SMALL).open()
    images = [one.read(one.entries[0]), one.read(one.entries[1]), one.read(one.entries[12]), other.read(other.entries[0])]
    for i, a in enumerate(images):
        for b in images[i + 1 :]:
            assert np.abs(a.hu - b.hu).mean() > 5
    assert [e.target for e in one.entries] != [e.target for e in other.entries]


def test_neighboring_slices_resemble_each_other_more_than_distant_ones():
    data = ChestPhantom(patients=2, slices_per_patient=40, **SMALL).open()
    hu = [data.read(data.entries[i]).hu for i in (10, 11, 30)]
    assert np.abs(hu[0] - hu[1]).mean() < 0.6 * np.abs(hu[0] - hu[2]).mean()


def test_the_manifest_is_stable_and_follows_every_field():
    base = ChestPhantom().open().manifest_hash()
    assert base == ChestPhantom().open().manifest_hash()
    changes = (
        {"patients": 50},
        {"slices_per_patient": 11},
        {"seed": 1},
        {"size": 193},
        {"pixel_mm": 1.9},
        {"lesions": ("nodule",)},
        {"lesion_load": 1.1},
    )
    assert {name for change in changes for name in change} == set(ChestPhantom.model_fields) - {"kind", "version"}
    hashes = {ChestPhantom(**change).open().manifest_hash() for change in changes}
    assert len(hashes | {base}) == len(changes) + 1


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValidationError, match="at least 352 mm"):
        ChestPhantom(size=100, pixel_mm=2.0)
    with pytest.raises(ValidationError, match="twice"):
        ChestPhantom(lesions=("nodule", "nodule"))
    data = ChestPhantom(patients=2).open()
    known = data.entries[0]
    for wrong in (Entry("P00099/0001", "P00099", 0), Entry(known.key, known.patient, 1 - known.target, known.position_mm)):
        with pytest.raises(InputError, match="no slice"):
            data.read(wrong)


# --- the entries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("patients", [2, 7, 48])
def test_half_of_the_patients_are_diseased(seed, patients):
    data = ChestPhantom(patients=patients, slices_per_patient=2, seed=seed).open()
    classes = {entry.patient: entry.target for entry in data.entries}
    assert len(classes) == patients
    assert abs(2 * sum(classes.values()) - patients) <= 1
    assert data.classes == ("normal", "disease")
    keys = [(e.patient, e.position_mm) for e in data.entries]
    assert keys == sorted(keys)
    assert len({e.key for e in data.entries}) == len(data.entries)


# --- anatomy ---------------------------------------------------------------------------------------------------------


def test_organs_have_their_hounsfield_units():
    for entry, image in sample():
        person, x, y, at = organs(entry)
        healthy = ~ndimage.binary_dilation(image.lesion, iterations=4)
        lung = image.hu[(at.lungs < -6) & healthy]
        assert -890 < np.median(lung) < -770, entry.key
        assert 10 < lung.std() < 260, entry.key  # texture and vessels
        upper, lower = (at.lungs < -6) & healthy & (y > 25), (at.lungs < -6) & healthy & (y < -25)
        assert np.median(image.hu[lower]) > np.median(image.hu[upper]), f"{entry.key}: the lower lung is the denser"
        if at.heart.min() < -15:
            assert 35 < np.median(image.hu[at.heart < -14]) < 60, entry.key
        level = np.asarray(entry.position_mm / person.height, dtype=np.float32)
        body = person.body(x, y, level)
        fat = image.hu[(body < -3.5) & (body > -0.3 * person.fat - 3) & (np.abs(x) < 60) & (y > 0)]
        assert -130 < np.median(fat) < -60, entry.key
        assert 350 < np.percentile(image.hu[(at.cage > 1) & (at.cage < 9)], 97) <= 1100, entry.key
        assert image.hu.min() >= -1000
        assert image.hu.max() <= 1500
        assert image.hu.dtype == np.float32


def test_air_surrounds_the_body_and_the_body_is_inside_the_scan_circle():
    axis = (np.arange(192) - 95.5) * 2
    outside = np.hypot(*np.meshgrid(axis, axis)) > SCAN_RADIUS_MM + 2
    for entry, image in sample():
        assert (image.hu[outside] < -950).all(), entry.key
        body = body_mask(hu_to_mu(image.hu))
        area = body.sum() * 4 / 100
        assert 350 < area < 800, f"{entry.key}: {area} cm²"
        coarse = body_mask(to_attenuation(image, (64, 64), 6.0))
        assert coarse.sum() * 36 / 100 == pytest.approx(area, rel=0.06), "the table stays apart from the body on a coarse grid"


@pytest.mark.parametrize("number", range(40))
def test_every_patient_fits_at_every_level(number):
    person = patient(11, number)
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    reach = SCAN_RADIUS_MM - np.hypot(*person.shift)
    x, y = (reach * np.cos(angle)).astype(np.float32), (reach * np.sin(angle)).astype(np.float32)
    for s in np.linspace(0.22, 0.86, 6, dtype=np.float32):
        level = np.asarray(s)
        assert (person.body(x, y, level) > 0).all()
        inner = np.linspace(-person.cage_width, person.cage_width, 80, dtype=np.float32)
        gx, gy = np.meshgrid(inner, inner)
        at = person.organs(gx, gy, level)
        assert (person.body(gx, gy, level)[at.lungs < 0] < -8).all(), "lungs lie under skin and ribs"
        for side in (-1, 1):
            assert ((at.lungs < -3) & (side * gx > 0)).sum() * (inner[1] - inner[0]) ** 2 > 2000, "two lungs of at least 20 cm²"


# --- lesions ---------------------------------------------------------------------------------------------------------


def test_lesions_are_in_the_lungs_of_every_slice_of_the_diseased_and_of_nobody_else():
    for entry, image in sample():
        _, _, _, at = organs(entry)
        assert image.lesion.shape == image.hu.shape
        if entry.target == 0:
            assert not image.lesion.any(), entry.key
            continue
        assert not (image.lesion & (at.lungs > 1.0)).any(), entry.key
        assert image.lesion.sum() * 4 > 600, f"{entry.key}: visible on a grid of 6 mm"
        assert image.lesion.sum() < 0.6 * (at.lungs < 0).sum(), entry.key
        healthy = (at.lungs < -6) & ~ndimage.binary_dilation(image.lesion, iterations=4)
        assert np.median(image.hu[image.lesion]) > np.median(image.hu[healthy]) + 120, entry.key


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("ground-glass", -690, -380), ("consolidation", -250, 60), ("nodule", -600, 60)]
)
def test_each_kind_of_lesion_has_its_density(kind, low, high):
    data = ChestPhantom(patients=4, slices_per_patient=4, lesions=(kind,)).open()
    images = [data.read(e) for e in data.entries if e.target == 1]
    assert all(image.lesion.any() for image in images)
    assert low < np.median(np.concatenate([image.hu[image.lesion] for image in images])) < high


def test_disease_changes_nothing_outside_the_lungs_but_the_blur_at_their_edge():
    load = [ChestPhantom(patients=2, slices_per_patient=2, lesion_load=load).open() for load in (0.5, 1.5)]
    for few, many in zip(*(data.entries for data in load), strict=True):
        a, b = load[0].read(few), load[1].read(many)
        if few.target == 0:
            np.testing.assert_array_equal(a.hu, b.hu)
        else:
            assert b.lesion.sum() > 1.5 * a.lesion.sum()
            _, _, _, at = organs(few, seed=0)
            np.testing.assert_array_equal(a.hu[at.lungs > 8], b.hu[at.lungs > 8])


def test_no_shortcut_to_the_class():
    data = ChestPhantom(patients=100, slices_per_patient=1, seed=5, **SMALL).open()
    rows = []
    for i, entry in enumerate(data.entries):
        hu = data.read(entry).hu
        body = body_mask(hu_to_mu(hu))
        place = ndimage.center_of_mass(body)
        person, scan = patient(5, i), Scan.draw(5, i)
        shape = (person.width, person.depth, person.fat, person.heart[2], person.aorta, entry.position_mm)
        rows.append(
            (body.sum(), *place, np.ptp(np.flatnonzero(body.any(0))), *shape, scan.table, scan.blur, scan.air, scan.dependent)
        )
    values, target = np.array(rows, dtype=float), np.array([entry.target for entry in data.entries])
    p = [stats.mannwhitneyu(column[target == 0], column[target == 1]).pvalue for column in values.T]
    assert min(p) > 0.05 / len(p) / 5, p  # Bonferroni, with room: the seed is fixed and the null is true by construction
