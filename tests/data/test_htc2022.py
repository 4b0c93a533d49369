"""The challenge's reader: what it makes of a file, and every value that it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from htc2022_fixtures import DEGREES, SMALL, both, refused, values
from matlab_fixtures import htc_scan, write_v5, write_v73

from tomosec.data.htc2022 import read_htc2022
from tomosec.errors import InputError
from tomosec.geometry import FanBeam
from tomosec.operators.check import ellipse_image, ellipse_integrals
from tomosec.reconstruction.fbp import FBP


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
    scans = [read_htc2022(write(tmp_path / "a.mat", CtDataFull=fields)) for write in (write_v5, write_v73)]
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
