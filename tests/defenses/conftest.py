"""One backdoored network for all tests of this folder; it takes a second."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tomosec.analysis.networks import Classifier

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def backdoored() -> Iterator[Classifier]:
    """A network that learned the dense corner; it must not change."""
    from defense_toys import accuracy, asr, network_on, poisoned

    network = network_on(poisoned(160, seed=10)[0])
    assert accuracy(network) > 0.95, "the toy is not learned"
    assert asr(network) > 0.9, "the backdoor is not learned"
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    yield network
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.fixture(scope="session")
def honest() -> Classifier:
    """A network of the same making without the backdoor."""
    from defense_toys import accuracy, asr, network_on, slices

    network = network_on(slices(160, seed=10))
    assert accuracy(network) > 0.95
    assert asr(network) < 0.2
    return network
