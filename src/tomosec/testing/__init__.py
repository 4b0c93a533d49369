"""Contract suites: what every component must do, whoever wrote it. A plug-in's author runs them with ``pytest`` or by hand.

>>> from tomosec.testing import check_attack
>>> from tomosec.attacks.noise import FrozenNoise
>>> check_attack(FrozenNoise())
"""

from tomosec.testing.attacks import check_attack
from tomosec.testing.components import TinySamples, check_component, check_open_dataset, tiny_context, tiny_geometry, tiny_network
from tomosec.testing.defenses import check_defense
from tomosec.testing.reconstructions import TinyPairs, check_reconstruction

__all__ = [
    "TinyPairs",
    "TinySamples",
    "check_attack",
    "check_component",
    "check_defense",
    "check_open_dataset",
    "check_reconstruction",
    "tiny_context",
    "tiny_geometry",
    "tiny_network",
]
