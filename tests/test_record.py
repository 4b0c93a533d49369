"""Stores and files: what is written is whole or not there, and what is read is what was meant."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tomosec import files
from tomosec.errors import InputError, TomosecError
from tomosec.files import replacing, write_text
from tomosec.metrics.statistics import Estimate
from tomosec.record import MARKER, Condition, Cost, Provenance, Record, SeedResult, Store, now

ID = "0123456789abcdef"


def record(identity: str = ID, **fields: object) -> Record:
    start = now()
    base: dict[str, object] = {
        "id": identity, "status": "started", "experiment": {"title": "t"}, "provenance": Provenance(tomosec="0"),
        "started": start, "heartbeat": start,
    }  # fmt: skip
    return Record.model_validate(base | fields)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", create=True)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]


# --- the folder ---------------------------------------------------------------------------------------------------------


def test_a_store_is_made_once_and_reopened(tmp_path: Path) -> None:
    Store(tmp_path / "a/b/runs", create=True)
    Store(tmp_path / "a/b/runs")


def test_an_empty_folder_becomes_a_store_only_on_request(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=MARKER):
        Store(tmp_path)
    assert not list(tmp_path.iterdir())
    Store(tmp_path, create=True)


@pytest.mark.parametrize("create", [False, True])
def test_a_foreign_folder_is_left_alone(tmp_path: Path, create: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        Store(tmp_path, create=create)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(InputError, match="a file, not a folder"):
        Store(tmp_path / "runs", create=True)


def test_a_missing_folder_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no runs here"):
        Store(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


# --- records ------------------------------------------------------------------------------------------------------------


def test_a_record_comes_back_equal(store: Store) -> None:
    estimate = Estimate(value=0.5, low=0.4, high=0.6, n=20, patients=12, method="wilson")
    seed = SeedResult(seed=0, conditions=(Condition(model="clean", input="clean", metrics={"accuracy": estimate}),))
    written = record(status="success", seeds=(seed,), title="Ünïcode 患者", warnings=("a",), finished=now())
    store.write(written)
    assert store.read(ID) == written
    assert list(store.records()) == [written]
    assert store.ids() == [ID]
    assert written.complete
    assert not record().complete


def test_records_come_by_start_time(store: Store) -> None:
    first, second = record("b" * 16), record("a" * 16, started="2999-01-01T00:00:00Z")
    store.write(second)
    store.write(first)
    assert [item.id for item in store.records()] == [first.id, second.id]


def test_a_run_that_never_was(store: Store) -> None:
    with pytest.raises(InputError, match="no such run"):
        store.read("nope")


@pytest.mark.parametrize("text", ["", '{"id": "0123', "[1, 2", "\x00\x01", "null", "[]", '"text"'])
def test_a_torn_record_is_named(store: Store, text: str) -> None:
    path = store.folder(ID) / "record.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(InputError, match=r"record\.json"):
        store.read(ID)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_is_refused(store: Store, version: object) -> None:
    store.write(record())
    path = store.folder(ID) / "record.json"
    content = json.loads(path.read_text()) | {"schema_version": version}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"record schema {version}; this version of tomosec reads schema 1"):
        store.read(ID)


def test_a_record_with_an_unknown_or_wrong_field_is_refused_by_name(store: Store) -> None:
    store.write(record())
    path = store.folder(ID) / "record.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"surprise": 1}))
    with pytest.raises(InputError, match="unknown field 'surprise'"):
        store.read(ID)
    path.write_text(json.dumps(content | {"status": "great"}))
    with pytest.raises(InputError, match="status"):
        store.read(ID)


def test_a_record_in_the_folder_of_another(store: Store) -> None:
    store.write(record())
    store.folder(ID).rename(store.folder("f" * 16))
    with pytest.raises(InputError, match=f"record of run {ID} lies in the folder"):
        store.read("f" * 16)


def test_results_ignore_clocks_machines_and_cost() -> None:
    a = record(status="success", seeds=(SeedResult(seed=0, conditions=(), curves={"clean": [{"loss": 1.0, "seconds": 3.0}]}),))
    slower = a.seeds[0].model_copy(
        update={"cost": Cost(seconds={"x": 1.0}), "curves": {"clean": [{"loss": 1.0, "seconds": 9.0}]}}
    )
    other = {"started": now().replace(year=2000), "wall_seconds": 5.0, "provenance": Provenance(tomosec="9"), "title": "other"}
    b = a.model_copy(update={**other, "seeds": (slower,)})
    assert a.results() == b.results()
    c = a.model_copy(update={"seeds": (a.seeds[0].model_copy(update={"curves": {"clean": [{"loss": 2.0}]}}),)})
    assert a.results() != c.results()


# --- claims -------------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from tomosec.record import Store
with Store(sys.argv[1]).claim(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process that has claimed the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(store.root), ID], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_two_processes_cannot_claim_one_run(store: Store, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(TomosecError, match="another process is running"), store.claim(ID):
        pass
    with store.claim("f" * 16):
        pass  # another run is free


def test_a_claim_dies_with_its_process(store: Store, holder: subprocess.Popen[str]) -> None:
    holder.kill()  # SIGKILL: nothing is cleaned up
    holder.wait()
    with store.claim(ID) as folder:
        assert folder == store.folder(ID)


def test_a_claim_is_given_back_after_an_error(store: Store) -> None:
    with pytest.raises(RuntimeError), store.claim(ID):
        raise RuntimeError
    with store.claim(ID):
        pass


def test_killed_while_writing_leaves_the_old_record(store: Store) -> None:
    code = """
import os, sys
from tomosec import files
from tomosec.record import Store
store = Store(sys.argv[1])
record = store.read(sys.argv[2])
os.fsync = lambda handle: os.kill(os.getpid(), 9)   # the data are written, the rename is not done
store.write(record.model_copy(update={"title": "new"}))
"""
    store.write(record(title="old"))
    ended = subprocess.run([sys.executable, "-c", code, str(store.root), ID], check=False)
    assert ended.returncode == -9
    assert store.read(ID).title == "old"
    assert store.ids() == [ID]
    store.write(record(title="newer"))
    assert store.read(ID).title == "newer"


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")

    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(TomosecError, match="no space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_disk_that_fills_up_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")
    with pytest.raises(TomosecError, match="no space left"), replacing(path) as temporary:
        temporary.write_text("half of")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["record.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_device(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")
    with pytest.raises(TomosecError, match="no space left"), replacing(path) as temporary:
        temporary.symlink_to("/dev/full")
        with temporary.open("w") as file:
            file.write("x" * 100_000)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["record.json"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(TomosecError, match="cannot be written"):
        write_text(tmp_path / "x.json", "new")
    assert not leftovers(tmp_path)


def test_an_exception_in_the_block_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_reader_sees_old_or_new_never_half(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    texts = {"a" * 200_000, "b" * 200_000}
    write_text(path, "a" * 200_000)
    code = """
import sys
from pathlib import Path
from tomosec.files import write_text
while True:
    for c in "ab":
        write_text(Path(sys.argv[1]), c * 200_000)
"""
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            assert path.read_text() in texts
    finally:
        writer.kill()
        writer.wait()
