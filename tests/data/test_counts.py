"""Raw counts: the formula, dead bins and missing photons, HDF5 layouts, 2DeteCT, and what is refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tomosec.data import two_detect
from tomosec.data.counts import line_integrals, read_counts
from tomosec.data.two_detect import read_two_detect
from tomosec.errors import InputError
from tomosec.geometry import FanBeam
from tomosec.operators.check import ellipse_image, ellipse_integrals
from tomosec.reconstruction.fbp import FBP

h5py = pytest.importorskip("h5py")

SCAN = FanBeam(
    views=90, bins=64, bin_mm=2.0, shape=(32, 32), pixel_mm=2.5, source_to_isocenter_mm=300.0, source_to_detector_mm=450.0
)
DARK = np.linspace(90, 110, 64)
GAIN = 4000 * (1 + 0.3 * np.sin(np.arange(64)))  # every bin counts differently, so that a missing correction shows
EXACT = 0.02 * ellipse_integrals(SCAN)
#: Value, half axes and center, in radii of the scan circle.
ELLIPSES = ((0.02, 0.7, 0.5, 0.0, 0.0), (-0.01, 0.2, 0.1, 0.3, 0.2))


def counts() -> np.ndarray:
    return DARK + GAIN * np.exp(-EXACT)


def fields() -> tuple[np.ndarray, np.ndarray]:
    """Exposures whose means are right and none of which is."""
    return DARK + GAIN + np.array([[-50.0], [50.0]]), DARK + np.array([[-3.0], [1.0], [2.0]])


def write(path: Path, *, geometry: Any = SCAN, **datasets: Any) -> Path:
    flats, darks = fields()
    with h5py.File(path, "w") as file:
        for name, values in ({"counts": counts(), "flats": flats, "darks": darks} | datasets).items():
            if values is not None:
                file[name] = values
        if geometry is not None:
            file.attrs["geometry"] = geometry if isinstance(geometry, str) else geometry.model_dump_json()
        file.attrs["voltage"] = 45
        file.attrs["object"] = "disc"
    return path


def test_counts_become_the_line_integrals_and_the_image(tmp_path: Path) -> None:
    scan = read_counts(write(tmp_path / "scan.h5"))
    assert scan.key == "scan"
    assert scan.geometry == SCAN
    assert scan.line_integrals == pytest.approx(EXACT, rel=1e-5, abs=1e-6)
    assert scan.attributes == {"voltage": 45.0, "object": "disc", "flats": 2.0, "darks": 3.0}
    image = FBP(SCAN)(scan.sinogram())[0, 0].numpy()
    circle = SCAN.scan_circle()
    truth = 0.02 * ellipse_image(SCAN)
    assert np.sqrt(np.mean((image - truth)[circle] ** 2)) < 0.3 * np.sqrt(np.mean(truth[circle] ** 2))


def test_whole_numbers_are_counts_too(tmp_path: Path) -> None:
    flats, darks = (np.rint(values).astype(np.uint16) for values in fields())
    scan = read_counts(write(tmp_path / "scan.h5", counts=np.rint(counts()).astype(np.uint16), flats=flats, darks=darks))
    assert np.abs(scan.line_integrals - EXACT).max() < 0.01


@pytest.mark.parametrize("given", [SCAN, SCAN.model_dump()], ids=["geometry", "mapping"])
def test_one_row_of_a_detector_with_a_geometry_that_is_given(tmp_path: Path, given: Any) -> None:
    """Names and axes of the Data Exchange files of synchrotrons."""
    flats, darks = fields()
    stack = {
        "exchange/data": np.stack([np.full_like(counts(), 7), counts()], axis=1),
        "exchange/data_white": np.stack([flats + 7, flats], axis=1),
        "exchange/data_dark": np.stack([darks, darks], axis=1),
    }
    path = write(tmp_path / "scan.h5", geometry=None, **stack)
    names = {"counts": "exchange/data", "flats": "exchange/data_white", "darks": "exchange/data_dark"}
    scan = read_counts(path, geometry=given, row=1, **names)
    assert scan.line_integrals == pytest.approx(EXACT, rel=1e-5, abs=1e-6)
    assert scan.attributes["row"] == 1
    with pytest.raises(
        InputError, match=r"exchange/data has shape \(90, 2, 64\), a detector with several rows; choose one with row"
    ):
        read_counts(path, geometry=given, **names)
    with pytest.raises(InputError, match="has the rows 0 to 1, not 2"):
        read_counts(path, geometry=given, row=2, **names)


def test_fields_without_exposures_are_of_the_chosen_row(tmp_path: Path) -> None:
    """(rows, bins) and (exposures, bins) look alike: rows must not be averaged as exposures."""
    flats, darks = fields()
    stack = {
        "counts": np.stack([np.full_like(counts(), 7), counts()], axis=1),
        "flats": np.stack([3 * flats.mean(0), flats.mean(0)]),
        "darks": np.stack([darks, darks], axis=1),
    }
    scan = read_counts(write(tmp_path / "scan.h5", **stack), row=1)
    assert scan.line_integrals == pytest.approx(EXACT, rel=1e-5, abs=1e-6)
    assert (scan.attributes["flats"], scan.attributes["darks"]) == (1, 3)
    for name, wrong in {"flats": flats.mean(0), "darks": np.stack([darks] * 3, axis=1)}.items():
        with pytest.raises(InputError, match=rf"{name} has shape .*; counts has 2 rows of 64 bins, so \(2, 64\) or"):
            read_counts(write(tmp_path / "scan.h5", **stack | {name: wrong}), row=1)


def test_a_row_of_a_detector_that_has_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 7 chooses from \(views, rows, bins\), but counts has shape \(90, 64\)"):
        read_counts(write(tmp_path / "scan.h5"), row=7)


def test_a_file_that_claims_more_than_its_geometry_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.h5", counts=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("counts", shape=(10**6, 10**6), chunks=(100, 100), dtype="u2")  # no chunk is stored
    with pytest.raises(InputError, match=r"counts has shape \(1000000, 1000000\), and the geometry has \(90, 64\)"):
        read_counts(path)


def test_dead_bins_are_named_or_taken_from_their_neighbors() -> None:
    flats, darks = fields()
    flats[:, [0, 20, 21]] = darks.mean(0)[[0, 20, 21]]
    with pytest.raises(InputError, match=r"a: 3 of 64 bins are dead, .* dark field: 0, 20, 21; dead_bins='interpolate'"):
        line_integrals(counts(), flats, darks, where="a")
    values, facts = line_integrals(counts(), flats, darks, where="a", dead_bins="interpolate")
    assert facts["deadBins"] == "0 20 21"
    assert values[:, 0] == pytest.approx(EXACT[:, 1], rel=1e-5, abs=1e-6)
    assert values[:, 20] == pytest.approx(EXACT[:, 19] * 2 / 3 + EXACT[:, 22] / 3, rel=1e-5)
    alive = np.delete(np.arange(64), [0, 20, 21])
    assert values[:, alive] == pytest.approx(EXACT[:, alive], rel=1e-5, abs=1e-6)
    with pytest.raises(InputError, match="64 of 64 bins are dead"):
        line_integrals(counts(), darks, darks, where="a", dead_bins="interpolate")


def test_counts_without_photons_are_named_or_floored() -> None:
    flats, darks = fields()
    found = counts()
    found[7, 30], found[9, 31] = DARK[30], 0
    with pytest.raises(
        InputError, match=r"a: counts: .* at view 7, bin 30 .* is not above its dark field, .*2 such of 5760.*; floor"
    ):
        line_integrals(found, flats, darks, where="a")
    values, facts = line_integrals(found, flats, darks, where="a", floor=1e-3)
    assert facts["belowFloor"] == 2
    assert values[7, 30] == values[9, 31] == pytest.approx(-math.log(1e-3))
    rest = np.ones(values.shape, bool)
    rest[7, 30] = rest[9, 31] = False
    assert values[rest] == pytest.approx(EXACT[rest], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": np.ones(64)}, r"counts are float64 of shape \(64,\); real numbers \(views, bins\)"),
        ({"flats": np.ones(63)}, r"a: flats are float64 of shape \(63,\); real numbers \(64,\) or \(exposures, 64\)"),
        ({"darks": np.full(64, np.nan)}, "a: darks: 64 of 64 bins are NaN"),
        ({"counts": np.full((90, 64), np.inf)}, "a: counts: inf at view 0, bin 0"),
        ({"floor": 0.0}, "floor 0 is not a transmission"),
        ({"dead_bins": "interpolat"}, r"'interpolat' is not one of refuse, interpolate \(did you mean 'interpolate'\?\)"),
    ],
)
def test_arrays_and_options_that_are_refused(change: dict[str, Any], message: str) -> None:
    flats, darks = fields()
    given: dict[str, Any] = {"counts": counts(), "flats": flats, "darks": darks, "where": "a"} | change
    with pytest.raises(InputError, match=message):
        line_integrals(given.pop("counts"), given.pop("flats"), given.pop("darks"), **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"geometry": None}, "no attribute 'geometry', and none was given"),
        ({"geometry": "{"}, "geometry: not JSON"),
        ({"geometry": json.dumps({"kind": "fan-bean"})}, "no geometry of kind 'fan-bean' .did you mean 'fan-beam'"),
        ({"geometry": SCAN.scaled(bins=32)}, r"counts has shape \(90, 64\), and the geometry has \(90, 32\)"),
        ({"flats": None}, "no dataset 'flats'.*; there are counts, darks"),
        ({"counts": np.array([b"text"])}, "counts is of type .*; a dataset of real numbers is needed"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "scan.h5", **change)
    with pytest.raises(InputError, match=message) as caught:
        read_counts(path)
    assert str(path) in str(caught.value)


def test_links_and_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "scan.h5", counts=None)
    write(tmp_path / "other.h5")
    with h5py.File(path, "a") as file:
        file["counts"] = h5py.ExternalLink("other.h5", "counts")
    with pytest.raises(InputError, match="counts is a link, which is not followed"):
        read_counts(path)
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(InputError, match=r"text\.h5: not an HDF5 file"):
        read_counts(tmp_path / "text.h5")
    with pytest.raises(InputError, match="no such file"):
        read_counts(tmp_path / "none.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r'needs h5py, which is not installed; pip install "tomosec\[hdf5\]"'):
        read_counts(path)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """2DeteCT with 1/30 of its views and 1/8 of its pixels, of the same detector width."""
    monkeypatch.setattr(two_detect, "_VIEWS", 121)
    monkeypatch.setattr(two_detect, "_PIXELS", 240)
    monkeypatch.setattr(two_detect, "PIXEL_MM", 0.0748 * 1912 / 240)


def astra_integrals(*, shifted: bool) -> tuple[FanBeam, np.ndarray]:
    """Exact integrals of the ellipses over the pairs of pixels, in ASTRA's order of bins and views.

    In a view of ASTRA's ``fanflat`` a ray runs from (sin t, −cos t) R to the detector's middle, behind the axis, plus
    u (cos t, sin t): ends in space, apart from the reader's arithmetic of angles.
    """
    bins, pitch = 120, 2 * two_detect.PIXEL_MM
    image = FanBeam(
        views=1,
        bins=bins,
        bin_mm=pitch,
        shape=(64, 64),
        pixel_mm=bins * pitch * 431.019989 / 529.000488 / 64,
        source_to_isocenter_mm=431.019989,
        source_to_detector_mm=529.000488,
    )
    rows = []
    for t in np.linspace(0, 2 * np.pi, 121):
        source = 431.019989 * np.array([math.sin(t), -math.cos(t)])
        middle = (529.000488 - 431.019989) * np.array([-math.sin(t), math.cos(t)])
        place = (np.arange(bins) - (bins - 1) / 2 - shifted) * pitch
        ends = middle + place[:, None] * np.array([math.cos(t), math.sin(t)])
        rows.append([_through_ellipses(source, end, image.scan_radius_mm) for end in ends])
    return image, np.array(rows)


def _through_ellipses(source: np.ndarray, end: np.ndarray, radius: float) -> float:
    total = 0.0
    ray = end - source
    for value, half_x, half_y, x0, y0 in ELLIPSES:
        p = (source / radius - [x0, y0]) / [half_x, half_y]
        d = ray / radius / [half_x, half_y]
        root = (p @ d) ** 2 - (d @ d) * (p @ p - 1)
        total += value * 2 * math.sqrt(max(root, 0)) / (d @ d) * float(np.linalg.norm(ray))
    return total


def write_two_detect(folder: Path, integrals: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    gain, dark = np.full(240, 20_000.0), np.full(240, 300.0)
    stored = {
        "sinogram": dark + gain * np.repeat(np.exp(-integrals), 2, axis=1),
        "flat1": (dark + gain * 1.01)[None],
        "flat2": (dark + gain * 0.99)[None],
        "dark": dark[None],
    }
    for name, values in stored.items():
        Image.fromarray(np.rint(values).astype(np.uint16)).save(folder / f"{name}.tif")
    return folder


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("number", "shifted"), [(17, True), (2831, False), (5521, True), (6000, False)])
def test_two_detect_is_the_phantom_in_the_authors_frame(tmp_path: Path, number: int, shifted: bool) -> None:
    image, integrals = astra_integrals(shifted=shifted)
    folder = write_two_detect(tmp_path / f"slice{number:05d}" / "mode2", integrals)
    scan = read_two_detect(folder, shape=(64, 64))
    assert (scan.key, scan.geometry.is_full_circle, list(scan.repeats)) == (f"slice{number:05d}/mode2", True, [0])
    assert scan.repeats[0] == pytest.approx(scan.line_integrals[0], abs=1e-3)
    scale = image.scan_radius_mm / scan.geometry.scan_radius_mm  # a shifted detector sees a smaller disc
    ellipses = tuple((value, *(length * scale for length in lengths), 0.0) for value, *lengths in ELLIPSES)
    expected = ellipse_integrals(scan.geometry, ellipses=ellipses)
    assert np.abs(scan.line_integrals - expected).max() < 0.01
    assert np.abs(scan.line_integrals[:, ::-1] - expected).max() > 0.1


@pytest.mark.usefixtures("small")
def test_two_detect_files_that_are_refused(tmp_path: Path) -> None:
    folder = write_two_detect(tmp_path / "slice00001" / "mode1", np.zeros((121, 120)))
    with pytest.raises(InputError, match=r"slice 5200; 2DeteCT has the slices 1 to 5000 and 5521 to 6370"):
        read_two_detect(folder, slice_number=5200)
    Image.fromarray(np.zeros((1, 240), np.uint8)).save(folder / "dark.tif")
    with pytest.raises(InputError, match=r"dark\.tif: found L of shape \(1, 240\); 16-bit counts of shape \(1, 240\)"):
        read_two_detect(folder)
    (folder / "dark.tif").write_bytes(b"no")
    with pytest.raises(InputError, match=r"dark\.tif: cannot be read as TIFF"):
        read_two_detect(folder)
    (folder / "dark.tif").unlink()
    with pytest.raises(InputError, match=r"dark\.tif: no such file"):
        read_two_detect(folder)
    with pytest.raises(InputError, match="not named like slice00001; give slice_number"):
        read_two_detect(tmp_path / "slice00001")
