"""Content digests: remembered between processes, never for a file that changed."""

from __future__ import annotations

import json
import os

from tomosec.data import files


def test_digests_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    path, cache = tmp_path / "slice.npy", tmp_path / "cache" / "digests.json"
    path.write_bytes(b"first")
    monkeypatch.setattr(files, "_digests", {})
    with files.remembered_digests(cache):
        first = files.digest(path)
    monkeypatch.setattr(files, "_digests", {})
    monkeypatch.setattr(files.hashlib, "file_digest", lambda *a: 1 / 0)
    with files.remembered_digests(cache):
        assert files.digest(path) == first
    monkeypatch.undo()
    path.write_bytes(b"other")
    os.utime(path, ns=(0, 0))
    with files.remembered_digests(cache):
        assert files.digest(path) != first
    assert len(json.loads(cache.read_text())) >= 2


def test_a_damaged_cache_only_costs_time(tmp_path):
    path, cache = tmp_path / "slice.npy", tmp_path / "digests.json"
    path.write_bytes(b"content")
    for damaged in ("{", "[[1]]", '{"a": 1}', "[1, 2]"):
        cache.write_text(damaged)
        with files.remembered_digests(cache):
            assert len(files.digest(path)) == 32
