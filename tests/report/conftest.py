from __future__ import annotations

import fabricated_runs as made
import pytest
from pages import ONE, report

from tomosec.record import Store


@pytest.fixture(scope="session")
def one(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("one") / "runs", create=True)
    made.save(store, made.record(ONE, seeds=made.three_seeds()))
    return store, *report(store)


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("sweep") / "runs", create=True)
    made.save(store, *made.sweep())
    return store, *report(store)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs", create=True)
