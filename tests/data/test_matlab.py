"""MATLAB's two formats: how a file is recognized, what damage does, and that nothing in a file leads elsewhere."""

from __future__ import annotations

import builtins
import os
import struct

import h5py
import numpy as np
import pytest
from htc2022_fixtures import DEGREES, both, refused, values
from matlab_fixtures import htc_scan, write_v5, write_v73
from scipy import sparse
from scipy.io import savemat

from tomosec.data.htc2022 import read_htc2022
from tomosec.data.matlab import Unread, read_struct
from tomosec.errors import InputError


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


def patched(path, at, content):
    damaged = bytearray(path.read_bytes())
    damaged[at : at + len(content)] = content
    path.write_bytes(damaged)


@pytest.mark.parametrize(
    ("place", "content", "said"),
    [
        ("type", b"\xba", "one of type"),  # a type that is not in SciPy's table: it would end the process
        ("size", b"\xff\xff\xff", "bytes where"),
        ("class", b"\x63", "an array of class 99"),
        ("rows", b"\xff\xff\xff\x3f", "values that are not"),  # 2³⁰ rows
        ("rows", b"\xff\xff\xff\xff", "an array of dimensions (-1, 14)"),
    ],
)
def test_elements_that_do_not_fit_never_reach_scipy(place, content, said, tmp_path):
    path = write_v5(tmp_path / "a.mat", compressed=False, CtDataFull=htc_scan(values(25), DEGREES))
    assert read_htc2022(path).geometry.views == 24
    # In front of the tag of the sinogram's values are its flags, dimensions and (empty) name.
    tag, rows = (path.read_bytes().index(struct.pack("<II", *pair)) for pair in ((9, 25 * 14 * 8), (25, 14)))
    patched(path, {"type": tag, "size": tag + 4, "rows": rows, "class": rows - 16}[place], content)
    refused(path, "damaged or truncated MATLAB file", said)


def test_damage_without_a_checksum_never_ends_the_process(tmp_path):
    path = write_v5(tmp_path / "a.mat", compressed=False, CtDataFull=htc_scan(values(2, bins=2), DEGREES[:2]))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    errors = 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[int(rng.integers(128, len(content)))] = int(rng.integers(20))
        path.write_bytes(damaged)
        try:
            read_htc2022(path)
        except InputError:
            errors += 1
    assert errors > 200


def test_a_variable_that_is_there_twice(tmp_path):
    first, second = (tmp_path / name for name in ("a.mat", "b.mat"))
    for path, seed in ((first, 0), (second, 1)):
        write_v5(path, CtDataFull=htc_scan(values(25, seed=seed), DEGREES))
    first.write_bytes(first.read_bytes() + second.read_bytes()[128:])
    refused(first, "Duplicate variable name")


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
    for write in (write_v5, write_v73):
        name, struct = read_struct(write(tmp_path / "a.mat", **content), ["none", "one"])
        assert name == "one"
        assert struct.text("text") == "ab"
        assert struct.struct("deep").number("number") == 2.0
        assert np.array_equal(struct.struct("deep").array("array"), np.arange(6.0).reshape(2, 3))


def test_text_of_many_rows(tmp_path):
    savemat(tmp_path / "a.mat", {"s": {"rows": np.array(["ab", "cd"])}})
    assert read_struct(tmp_path / "a.mat", ["s"])[1].text("rows") == "ab\ncd"


@pytest.mark.parametrize("compressed", [True, False])
def test_every_type_of_a_version_5_file_passes_its_check(compressed, tmp_path):
    fields = {
        "sparse": sparse.csc_array(np.eye(3, 4)),
        "empty": np.zeros((0, 3)),
        "complex": np.ones((2, 3)) * 1j,
        "cell": np.array([1, "x", np.ones(3)], dtype=object),
        "deep": {"text": "µ", "volume": np.ones((2, 3, 4), dtype=np.uint8)},
    }
    savemat(tmp_path / "a.mat", {"s": fields}, do_compression=compressed)
    _, found = read_struct(tmp_path / "a.mat", ["s"])
    assert isinstance(found.fields["sparse"], Unread)
    assert isinstance(found.fields["cell"], Unread)
    assert found.fields["empty"].shape == (0, 3)
    assert found.fields["complex"].dtype == np.complex128
    assert found.struct("deep").text("text") == "µ"
    assert found.struct("deep").array("volume").shape == (2, 3, 4)
