"""Content-addressed folders for what experiments share: prepared data, clean models, triggers, victims.

An artifact's name is the hash of everything its content depends on. It is made in ``<name>.partial`` and renamed when
complete, so an interrupted one is continued and a finished one never changes. A file lock lets parallel processes wait for
each other instead of doing the same work twice; it is released by the system when its process ends.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from tomosec.component import canonical
from tomosec.experiment import NUMERICS_VERSION, digest
from tomosec.files import sync_folder, write_text


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished artifact.

    Attributes:
        folder: its files.
        facts: what its maker returned: plain data, kept in ``facts.json``.
        made: whether this call made it.
    """

    folder: Path
    facts: dict[str, Any]
    made: bool


class Artifacts:
    """The shared artifacts of a store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, kind: str, key: Mapping[str, Any], make: Callable[[Path], dict[str, Any]]) -> Artifact:
        """Return the artifact of ``key``, making it where it is missing.

        Args:
            kind: what it is, such as ``model``.
            key: everything its content depends on, as values or plain data.
            make: fills the folder it is given and returns facts; what an interrupted call left is still there.
        """
        plain = canonical(key)
        name = digest({"key": plain, "numerics": NUMERICS_VERSION})
        folder = self.root / kind / name
        facts = folder / "facts.json"
        if not facts.is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not facts.is_file():
                    partial = folder.with_suffix(".partial")
                    partial.mkdir(exist_ok=True)
                    start = time.perf_counter()
                    found = make(partial)
                    found.setdefault("seconds", round(time.perf_counter() - start, 3))
                    write_text(partial / "key.json", json.dumps(plain, indent=1, sort_keys=True))
                    write_text(partial / "facts.json", json.dumps(found, indent=1))
                    partial.replace(folder)
                    sync_folder(folder.parent)
                    return Artifact(folder, found, made=True)
        return Artifact(folder, json.loads(facts.read_text(encoding="utf-8")), made=False)
