"""The challenge's files: both of MATLAB's formats, what is dropped and how it turns, and every way in which a file is refused."""

from __future__ import annotations

import builtins
import json
import math
import os

import h5py
import numpy as np
import pytest
from matlab_fixtures import htc_scan, write_v5, write_v73
from scipy import ndimage
from scipy.io import savemat

from tomosec.data.htc2022 import read_htc2022
from tomosec.data.matlab import read_struct
from tomosec.errors import InputError
from tomosec.geometry import FanBeam
from tomosec.operators.check import ellipse_image, ellipse_integrals
from tomosec.reconstruction.fbp import FBP

WRITERS = {"v5": write_v5, "v7.3": write_v73}
DEGREES = np.arange(25) * 15.0  # a full circle and its first view again
SMALL = {"shape": (16, 16), "pixel_mm": 4.0}

both = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def values(views, bins=14, seed=0):
    return np.random.default_rng(seed).random((views, bins))


def refused(path, *said, **options):
    with pytest.raises(InputError) as caught:
        read_htc2022(path, **options)
    message = str(caught.value)
    assert str(path) in message
    for part in said:
        assert part in message


# --- what is read ---------------------------------------------------------------------------------------------------------


@both
def test_a_full_scan_is_a_full_circle_without_the_repeated_view(write, tmp_path):
    data = values(25)
    scan = read_htc2022(write(tmp_path / "a.mat", CtDataFull=htc_scan(data, DEGREES)), **SMALL)
    assert scan.key == "a"
    assert scan.line_integrals.dtype == np.float32
    assert scan.line_integrals.flags.c_contiguous
    assert np.array_equal(scan.line_integrals, data[:24].astype(np.float32))
    assert list(scan.repeats) == [0]
    assert np.array_equal(scan.repeats[0], data[24].astype(np.float32))
    assert scan.attributes["repeatedView"] == "view 24 (360 degrees) repeats view 0 and is kept apart"
    assert scan.geometry.is_full_circle
    assert (scan.geometry.angles, scan.geometry.start, scan.geometry.arc) == (None, 0.0, -2 * math.pi)
    assert scan.geometry == FanBeam(
        views=24,
        bins=14,
        bin_mm=8.0,
        arc=-2 * math.pi,
        source_to_isocenter_mm=410.66,
        source_to_detector_mm=553.74,
        **SMALL,
    )


@both
def test_a_limited_scan_has_the_views_of_its_angles(write, tmp_path):
    data = values(5)
    scan = read_htc2022(write(tmp_path / "b.mat", CtDataLimited=htc_scan(data, np.arange(5) * 0.5 + 299)), **SMALL)
    assert np.array_equal(scan.line_integrals, data.astype(np.float32))
    assert not scan.repeats
    assert "repeatedView" not in scan.attributes
    assert not scan.geometry.is_full_circle
    assert scan.geometry.angles is None
    assert np.degrees(scan.geometry.view_angles) == pytest.approx([-299, -299.5, -300, -300.5, -301])


def test_both_formats_say_the_same(tmp_path):
    fields = htc_scan(values(25), DEGREES)
    scans = [read_htc2022(write(tmp_path / "a.mat", CtDataFull=fields)) for write in WRITERS.values()]
    assert np.array_equal(scans[0].line_integrals, scans[1].line_integrals)
    assert np.array_equal(scans[0].repeats[0], scans[1].repeats[0])
    assert scans[0].geometry == scans[1].geometry
    assert scans[0].attributes == scans[1].attributes
    facts = scans[0].attributes
    assert facts["struct"] == "CtDataFull"
    assert facts["measurers"] == "Alexander Meaney, Tommi Heikkilä"
    assert facts["voltage"] == "45"
    assert facts["numDetectorsPost"] == 14
    assert facts["freeRayAtDetector"] == "1 128 1 128"
    assert "angles" not in facts
    assert scans[0].geometry.shape == (512, 512)
    assert scans[0].geometry.pixel_mm == pytest.approx(0.2 * 410.66 / 553.74, rel=1e-12)


@both
def test_numbers_may_be_text(write, tmp_path):
    fields = htc_scan(values(25), DEGREES, distanceSourceOrigin=" 410.66", pixelSizePost="8", numDetectorsPost="14")
    scan = read_htc2022(write(tmp_path / "a.mat", CtDataFull=fields), **SMALL)
    assert (scan.geometry.source_to_isocenter_mm, scan.geometry.bin_mm, scan.geometry.bins) == (410.66, 8.0, 14)


@both
def test_what_is_not_needed_may_be_of_any_type(write, tmp_path):
    cell = [1.0, 2.0] if write is write_v73 else np.array([1.0, "two"], dtype=object)
    fields = htc_scan(values(25), DEGREES, extra=cell, flag=True, empty="")
    facts = read_htc2022(write(tmp_path / "a.mat", CtDataFull=fields, CtOther={"a": 1.0}, angles=DEGREES)).attributes
    assert "cell" in facts["extra"]
    assert facts["empty"] == ""


@both
def test_a_file_with_both_structs_gives_the_full_scan_unless_asked(write, tmp_path):
    path = write(
        tmp_path / "a.mat", CtDataLimited=htc_scan(values(3, seed=1), DEGREES[:3]), CtDataFull=htc_scan(values(25), DEGREES)
    )
    assert read_htc2022(path, **SMALL).attributes["struct"] == "CtDataFull"
    limited = read_htc2022(path, struct="CtDataLimited", **SMALL)
    assert (limited.attributes["struct"], len(limited.line_integrals)) == ("CtDataLimited", 3)


def test_the_content_and_not_the_name_says_which_format_it_is(tmp_path):
    plain = write_v5(tmp_path / "scan.h5", CtDataFull=htc_scan(values(25), DEGREES))
    hdf5 = write_v73(tmp_path / "scan.txt", CtDataFull=htc_scan(values(25), DEGREES))
    assert np.array_equal(read_htc2022(plain).line_integrals, read_htc2022(str(hdf5)).line_integrals)


@pytest.mark.parametrize(
    ("degrees", "start", "arc", "repeats"),
    [
        (np.arange(5) * 90.0, 0, -360, [0]),  # closes
        (np.arange(4) * 90.0, 0, -360, []),  # a full circle that repeats nothing
        (10 - np.arange(5) * 90.0, -10, 360, [0]),  # counter-clockwise
        (np.float32(np.arange(5) * 90.0 + 0.1), -0.1, -360, [0]),  # rounded
        (30 + np.arange(3) * 2.0, -30, -6, []),
    ],
)
def test_equal_steps_are_a_start_and_an_arc(degrees, start, arc, repeats, tmp_path):
    scan = read_htc2022(write_v5(tmp_path / "a.mat", CtDataFull=htc_scan(values(len(degrees)), degrees)), **SMALL)
    assert math.degrees(scan.geometry.start) == pytest.approx(start, rel=1e-6)
    assert math.degrees(scan.geometry.arc) == pytest.approx(arc, rel=1e-12)
    assert list(scan.repeats) == repeats
    assert scan.geometry.is_full_circle == (abs(arc) == 360)


@pytest.mark.parametrize(
    ("degrees", "kept"),
    [
        ([0, 1, 3], [0, -1, -3]),
        ([5], [-5]),
        ([7, 7, 7], [-7, -7, -7]),
        ([0, 100, 230, 360], [0, -100, -230]),  # uneven, and closes
        ([0, 100, 200, 300, 400], [0, -100, -200, -300, -400]),  # more than a turn
    ],
)
def test_other_angles_are_explicit(degrees, kept, tmp_path):
    path = write_v5(tmp_path / "a.mat", CtDataFull=htc_scan(values(len(degrees)), np.array(degrees)))
    scan = read_htc2022(path, **SMALL)
    assert np.degrees(scan.geometry.angles) == pytest.approx(kept)
    assert len(scan.line_integrals) == len(kept)


def test_a_known_object_comes_back_clockwise(tmp_path):
    """Exact integrals of a lopsided object, listed as the challenge lists them, give the object and not its mirror image."""
    scan = FanBeam(
        views=120,
        bins=96,
        bin_mm=0.2 * 560 / 96,
        shape=(64, 64),
        pixel_mm=1.2,
        source_to_isocenter_mm=410.66,
        source_to_detector_mm=553.74,
        arc=-2 * math.pi,
    )
    ellipses = ((0.03, 0.8, 0.8, 0.0, 0.0, 0.0), (-0.03, 0.15, 0.3, 0.3, 0.2, 20.0))
    integrals = ellipse_integrals(scan, ellipses=ellipses, rays=4)
    path = write_v73(tmp_path / "a.mat", CtDataFull=htc_scan(np.vstack([integrals, integrals[:1]]), np.arange(121) * 3.0))
    found = read_htc2022(path, shape=(64, 64), pixel_mm=1.2)
    image = FBP(found.geometry)(found.sinogram())[0, 0].numpy()
    truth = ellipse_image(scan, ellipses=ellipses)
    error = np.sqrt(np.mean((image - truth) ** 2)) / 0.03
    assert error < 0.1
    for mirrored in (truth[::-1], truth[:, ::-1]):
        assert np.sqrt(np.mean((image - mirrored) ** 2)) / 0.03 > 2 * error


# --- what is refused ------------------------------------------------------------------------------------------------------


def test_no_such_file(tmp_path):
    refused(tmp_path / "none.mat", "no such file")
    (tmp_path / "none.mat.mat").touch()  # SciPy would append the suffix
    refused(tmp_path / "none.mat", "no such file")


def test_a_folder(tmp_path):
    refused(tmp_path, "a folder; a MATLAB file is needed")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions bind nobody here")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write_v5(tmp_path / "a.mat", CtDataFull=htc_scan(values(25), DEGREES))
    path.chmod(0)
    refused(path, "cannot be read")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no MATLAB file"),
        (b"view,bin\n" * 200, "no MATLAB file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(1000), "no MATLAB file"),
        (b"MATLAB 7.3 MAT-file, Platform", "truncated MATLAB file"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM", "no variable CtDataFull or CtDataLimited; the variables are none"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
    ],
)
def test_a_file_of_another_kind(content, said, tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    refused(path, said)


@both
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file(write, kept, tmp_path):
    path = write(tmp_path / "a.mat", CtDataFull=htc_scan(values(25, bins=100), DEGREES))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refused(path, "truncated MATLAB file")


def test_a_damaged_file_gives_an_error_or_the_same_numbers(tmp_path):
    """Version 5 has a checksum; HDF5 as MATLAB writes it has none, so there only the structure can tell."""
    path = write_v5(tmp_path / "a.mat", CtDataFull=htc_scan(values(25), DEGREES))
    content, whole = path.read_bytes(), read_htc2022(path)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(150):
        damaged = bytearray(content)
        damaged[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = read_htc2022(path)
        except InputError as error:
            errors.append(str(error))
        else:
            assert np.array_equal(found.line_integrals, whole.line_integrals)
            assert found.geometry == whole.geometry
    assert len(errors) > 100
    assert all(str(path) in error for error in errors)


@both
def test_no_struct_of_that_name(write, tmp_path):
    path = write(tmp_path / "a.mat", CtDataful=htc_scan(values(25), DEGREES), other=1.0)
    refused(path, "no variable CtDataFull or CtDataLimited (did you mean 'CtDataful'?)", "the variables are", "other")
    path = write(tmp_path / "a.mat", CtDataFull=htc_scan(values(25), DEGREES))
    refused(path, "no variable CtDataLimited", "the variables are CtDataFull", struct="CtDataLimited")
    with pytest.raises(InputError, match="struct 'CtDataFul' is not one of CtDataFull, CtDataLimited"):
        read_htc2022(path, struct="CtDataFul")


@both
@pytest.mark.parametrize("value", [np.ones((3, 4)), "text"])
def test_no_struct_at_all(write, value, tmp_path):
    refused(write(tmp_path / "a.mat", CtDataFull=value), "CtDataFull must be a struct")


def test_an_array_of_structs(tmp_path):
    array = np.array([(1.0,), (2.0,)], dtype=[("sinogram", object)])
    refused(write_v5(tmp_path / "a.mat", CtDataFull=array), "CtDataFull must be a struct, found a 1 x 2 array of structs")


@both
@pytest.mark.parametrize(
    "name",
    [
        "geometryType",
        "distanceSourceOrigin",
        "distanceSourceDetector",
        "distanceUnit",
        "angles",
        "pixelSizePost",
        "effectivePixelSizePost",
        "numDetectorsPost",
    ],
)
def test_a_missing_parameter(write, name, tmp_path):
    path = write(tmp_path / "a.mat", CtDataFull=htc_scan(values(25), DEGREES, **{name: None}))
    refused(path, f"CtDataFull.parameters.{name}: no such field", "the fields are")


@both
@pytest.mark.parametrize("name", ["type", "sinogram", "parameters"])
def test_a_missing_part(write, name, tmp_path):
    fields = htc_scan(values(25), DEGREES)
    del fields[name]
    refused(write(tmp_path / "a.mat", CtDataFull=fields), f"CtDataFull.{name}: no such field")


@both
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"geometryType": "Parallel"}, "geometryType: found 'Parallel'; only 'Cone' is read"),
        ({"geometryType": 3.0}, "geometryType: text is needed, found 3.0"),
        ({"distanceUnit": "cm"}, "distanceUnit: found 'cm'; only 'mm' is read"),
        ({"distanceSourceOrigin": "far"}, "distanceSourceOrigin: a finite number is needed, found 'far'"),
        ({"distanceSourceOrigin": ""}, "distanceSourceOrigin: a finite number is needed, found ''"),
        ({"distanceSourceOrigin": "nan"}, "distanceSourceOrigin: a finite number is needed, found 'nan'"),
        ({"distanceSourceOrigin": math.inf}, "distanceSourceOrigin: a finite number is needed, found inf"),
        ({"distanceSourceOrigin": -410.66}, "distanceSourceOrigin: found -410.66; a positive number is needed"),
        ({"distanceSourceOrigin": np.ones((1, 2))}, "distanceSourceOrigin: one number is needed, found 1.0 1.0"),
        ({"distanceSourceOrigin": 600.0}, "must exceed source_to_isocenter_mm"),
        ({"distanceSourceOrigin": 1 + 2j}, "distanceSourceOrigin: an array of real numbers is needed"),
        ({"pixelSizePost": 0.0}, "pixelSizePost: found 0; a positive number is needed"),
        ({"pixelSizePost": 400.0}, "the outermost ray is"),
        ({"effectivePixelSizePost": -1.0}, "effectivePixelSizePost: found -1; a positive number is needed"),
        ({"numDetectorsPost": 15.0}, ("sinogram: shape (25, 14), but", "numDetectorsPost is 15")),
        ({"numDetectorsPost": 14.5}, "numDetectorsPost: found 14.5; a whole number is needed"),
        ({"angles": DEGREES[None, :24]}, ("sinogram: shape (25, 14), but", "lists 24 views")),
        ({"angles": DEGREES.reshape(5, 5)}, "angles: a vector is needed"),
        ({"angles": np.zeros((1, 0))}, "angles: a vector is needed"),
        ({"angles": "0:15:360"}, "angles: an array of real numbers is needed, found '0:15:360'"),
        ({"angles": np.where(DEGREES == 30, np.nan, DEGREES)[None]}, "angles: nan for view 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_wrong_parameter(write, changes, said, tmp_path):
    path = write(tmp_path / "a.mat", CtDataFull=htc_scan(values(25), DEGREES, **changes))
    refused(path, *((said,) if isinstance(said, str) else said), shape=(16, 16))


def test_a_transposed_sinogram(tmp_path):
    fields = htc_scan(values(25), DEGREES)
    refused(
        write_v5(tmp_path / "a.mat", CtDataFull=fields | {"sinogram": fields["sinogram"].T}),
        "shape (14, 25), but",
        "(views, bins)",
    )


@both
@pytest.mark.parametrize(("value", "found"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (1e200, "inf")], ids=str)
def test_a_value_that_is_not_finite(write, value, found, tmp_path):
    data = values(25)
    data[24, 5] = data[7, 3] = value
    refused(
        write(tmp_path / "a.mat", CtDataFull=htc_scan(data, DEGREES)), f"CtDataFull.sinogram: {found} at view 7, bin 3", "2 such"
    )


@both
@pytest.mark.parametrize(
    ("sinogram", "said"),
    [
        (np.ones((25, 14), dtype=np.uint16), "found uint16, which are counts"),
        (np.ones((25, 14)) * 1j, "an array of real numbers is needed"),
        ("text", "an array of real numbers is needed, found 'text'"),
    ],
    ids=["counts", "complex", "text"],
)
def test_a_sinogram_of_another_type(write, sinogram, said, tmp_path):
    fields = htc_scan(values(25), DEGREES) | {"sinogram": sinogram}
    refused(write(tmp_path / "a.mat", CtDataFull=fields), f"CtDataFull.sinogram: {said}")


@both
def test_a_scan_in_three_dimensions(write, tmp_path):
    fields = htc_scan(values(25), DEGREES) | {"type": "3d"}
    refused(write(tmp_path / "a.mat", CtDataFull=fields), "CtDataFull.type: found '3d'; only '2d' is read")
    fields = htc_scan(values(25), DEGREES) | {"sinogram": np.ones((25, 14, 2))}
    refused(write(tmp_path / "a.mat", CtDataFull=fields), "CtDataFull.sinogram: shape (25, 14, 2)")


def test_parameters_that_are_no_struct(tmp_path):
    fields = htc_scan(values(25), DEGREES) | {"parameters": "none"}
    refused(write_v5(tmp_path / "a.mat", CtDataFull=fields), "CtDataFull.parameters: a struct is needed, found 'none'")


@pytest.mark.parametrize("options", [{"pixel_mm": -1.0}, {"shape": (0, 16)}, {"pixel_mm": 100.0}])
def test_an_image_grid_that_cannot_be(options, tmp_path):
    refused(write_v5(tmp_path / "a.mat", CtDataFull=htc_scan(values(25), DEGREES)), "the geometry of CtDataFull", **options)


def test_a_variable_that_is_there_twice(tmp_path):
    first, second = (tmp_path / name for name in ("a.mat", "b.mat"))
    for path, seed in ((first, 0), (second, 1)):
        write_v5(path, CtDataFull=htc_scan(values(25, seed=seed), DEGREES))
    first.write_bytes(first.read_bytes() + second.read_bytes()[128:])
    refused(first, "Duplicate variable name")


# --- HDF5 only ------------------------------------------------------------------------------------------------------------


def test_without_h5py_the_message_says_what_to_install(monkeypatch, tmp_path):
    path = write_v73(tmp_path / "a.mat", CtDataFull=htc_scan(values(25), DEGREES))
    plain = write_v5(tmp_path / "b.mat", CtDataFull=htc_scan(values(25), DEGREES))
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "h5py":
            raise ImportError("No module named 'h5py'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(path, 'pip install "tomosec[hdf5]"')
    assert read_htc2022(plain).line_integrals.shape == (24, 14)


def replaced(path, name, make):
    """Put something else in place of a dataset of a 7.3 file; the header is kept."""
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs)
        del file[name]
        made = make(file, name)
        if made is not None:
            made.attrs.update(attributes)


def test_nothing_leads_to_another_file(tmp_path):
    secret = tmp_path / "secret.mat"
    write_v73(secret, CtDataFull=htc_scan(values(25), DEGREES))
    for label, said, make in (
        ("soft", "a link", lambda file, name: file.__setitem__(name, h5py.SoftLink("/#refs#/a"))),
        ("external", "a link", lambda file, name: file.__setitem__(name, h5py.ExternalLink(str(secret), name))),
        (
            "raw",
            "another file",
            lambda file, name: file.create_dataset(name, (14, 25), "f8", external=[(str(secret), 0, 14 * 25 * 8)]),
        ),
    ):
        path = write_v73(tmp_path / f"{label}.mat", CtDataFull=htc_scan(values(25), DEGREES))
        replaced(path, "CtDataFull/sinogram", make)
        refused(path, f"CtDataFull.sinogram: {'its values lie in ' if label == 'raw' else ''}{said}")


def test_a_struct_that_contains_itself(tmp_path):
    path = write_v73(tmp_path / "a.mat", CtDataFull=htc_scan(values(25), DEGREES))
    with h5py.File(path, "r+") as file:
        file["CtDataFull/parameters/again"] = file["CtDataFull"]
    assert read_htc2022(path).attributes["again"] == "a struct"


def test_a_reference_to_one_value_is_followed(tmp_path):
    path = write_v73(tmp_path / "a.mat", CtDataFull=htc_scan(values(25), DEGREES))

    def refer(file, name):
        file["#refs#/b"] = np.array([[400.0]])
        file["#refs#/b"].attrs["MATLAB_class"] = np.bytes_("double")
        file.create_dataset(name, data=np.array([[file["#refs#/b"].ref]], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)

    replaced(path, "CtDataFull/parameters/distanceSourceOrigin", refer)
    assert read_htc2022(path).geometry.source_to_isocenter_mm == 400.0


def test_other_structs_are_read_alike(tmp_path):
    """What reads the challenge's files serves other sources too."""
    content = {"one": {"text": "ab", "deep": {"number": 2.0, "array": np.arange(6.0).reshape(2, 3)}}}
    for write in WRITERS.values():
        name, struct = read_struct(write(tmp_path / "a.mat", **content), ["none", "one"])
        assert name == "one"
        assert struct.text("text") == "ab"
        assert struct.struct("deep").number("number") == 2.0
        assert np.array_equal(struct.struct("deep").array("array"), np.arange(6.0).reshape(2, 3))


def test_text_of_many_rows_and_big_endian_files(tmp_path):
    savemat(tmp_path / "a.mat", {"s": {"rows": np.array(["ab", "cd"])}})
    assert read_struct(tmp_path / "a.mat", ["s"])[1].text("rows") == "ab\ncd"


# --- the measured scans ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(htc2022):
    return read_htc2022(htc2022 / "mat" / "htc2022_ta_full_and_limited.mat", shape=(256, 256), pixel_mm=2 * 0.2 * 410.66 / 553.74)


@pytest.fixture(scope="module")
def image(full):
    return FBP(full.geometry, window="hann")(full.sinogram())[0, 0].numpy()


def gradient_energy(scan, **changes):
    geometry = type(scan.geometry).model_validate(scan.geometry.model_dump() | changes)
    picture = FBP(geometry, window="hann")(scan.sinogram())[0, 0].numpy()
    return float(sum(np.square(part).sum() for part in np.gradient(picture)))


def test_the_measured_scan_is_the_published_one(htc2022, full):
    expected = np.load(htc2022 / "htc2022_ta_full.npz")
    assert np.array_equal(full.line_integrals, expected["sinogram"][:720])
    assert np.array_equal(full.repeats[0], expected["sinogram"][720])
    assert np.degrees(full.geometry.view_angles) == pytest.approx(-expected["angles_deg"][:720], abs=1e-9)
    facts = json.loads((htc2022 / "geometry.json").read_text())
    geometry = read_htc2022(htc2022 / "mat" / "htc2022_ta_full_and_limited.mat").geometry
    assert geometry.is_full_circle
    assert (geometry.views, geometry.bins, geometry.detector) == (facts["n_angles"] - 1, facts["n_detector"], facts["detector"])
    assert geometry.bin_mm == facts["detector_pitch_mm"]
    assert geometry.source_to_isocenter_mm == facts["source_to_origin_mm"]
    assert geometry.source_to_detector_mm == facts["source_to_detector_mm"]
    assert geometry.pixel_mm == pytest.approx(facts["pixel_at_origin_mm"], rel=1e-12)
    assert geometry.detector_offset_bins == facts["detector_offset_px"]
    assert math.degrees(geometry.arc / geometry.views) == pytest.approx(-facts["angle_step_deg"], rel=1e-12)


def test_limited_scans_are_rows_of_the_full_one(htc2022, full):
    files = [*sorted((htc2022 / "mat").glob("htc2022_ta_limited_*.mat")), htc2022 / "mat" / "htc2022_ta_full_and_limited.mat"]
    assert len(files) == 4
    for path in files:
        part = read_htc2022(path, struct="CtDataLimited")
        rows = np.rint(np.degrees(part.geometry.view_angles) / -0.5).astype(int)
        assert len(rows) in (61, 121, 181)
        assert np.array_equal(part.line_integrals, full.line_integrals[rows]), path
        assert not part.geometry.is_full_circle
        assert not part.repeats


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("solid_disc_limited_181_211_v73", 181, 211),
        ("ta_limited_299_329_v73", 299, 329),
        ("tb_limited_075_165", 75, 165),
        ("tc_limited_032_062", 32, 62),
        ("td_limited_092_122", 92, 122),
    ],
)
def test_every_measured_file_is_read(htc2022, name, first, last):
    scan = read_htc2022(htc2022 / "mat" / f"htc2022_{name}.mat")
    assert np.degrees(scan.geometry.view_angles[[0, -1]]) == pytest.approx([-first, -last])
    assert scan.geometry.sinogram_shape == (2 * (last - first) + 1, 560)
    assert 1 < scan.line_integrals.max() < 3
    assert np.median(scan.line_integrals[:, :10]) == pytest.approx(0, abs=0.02)  # air beside the disc
    assert scan.attributes["voltage"] == "45"


def test_the_scan_turns_clockwise(full):
    """The other direction doubles every edge and makes each half as high: 1.27 times less gradient energy."""
    assert gradient_energy(full) > 1.15 * gradient_energy(full, arc=2 * math.pi)


def test_bins_are_symmetric_about_the_central_ray(full):
    """To within a quarter of a bin, so a reader that is off by half a bin would show."""
    energy = {offset: gradient_energy(full, detector_offset_bins=offset) for offset in (-0.5, 0.0, 0.5)}
    curvature = energy[-0.5] - 2 * energy[0.0] + energy[0.5]
    assert curvature < 0
    assert abs((energy[-0.5] - energy[0.5]) / curvature / 4) < 0.25


def test_the_disc_has_its_size_its_holes_and_the_attenuation_of_acrylic(full, image):
    solid = image > 0.017
    labels, _ = ndimage.label(ndimage.binary_fill_holes(solid))
    disc = labels == labels[128, 128]
    assert 2 * math.sqrt(disc.sum() / math.pi) * full.geometry.pixel_mm == pytest.approx(70, rel=0.01)
    assert ndimage.label(ndimage.binary_erosion(disc & ~solid, iterations=3))[1] == 8
    # NIST XCOM, acrylic of 1.19 g/cm³: 0.0361/mm at 30 keV, 0.0280/mm at 40 keV; the tube ran at 45 kV behind 0.5 mm aluminum.
    assert 0.0280 < np.median(image[ndimage.binary_erosion(disc & solid, iterations=3)]) < 0.0361


def test_the_repeated_view_measures_the_noise(full):
    difference = (full.repeats[0] - full.line_integrals[0]).astype(np.float64)
    level = full.line_integrals[0]
    sd = [difference[part].std() / math.sqrt(2) for part in (level < 0.05, level > 1.5)]
    assert 0.003 < sd[0] < 0.005
    assert 0.008 < sd[1] < 0.012
