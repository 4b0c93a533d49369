"""A toy problem for the training tests; also run as a script, which a test kills while it trains."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomosec.analysis.architectures import SmallCNN
from tomosec.analysis.networks import Classifier
from tomosec.analysis.plan import Training
from tomosec.analysis.training import TrainingResult, train
from tomosec.randomness import generator

SIDE = 32
PLAN = Training(epochs=8, batch_size=16, learning_rate=2e-3, patience=4)


class Squares:
    """Noise of 0 .. 0.01 / mm; class 1 has a brighter square at a random place. The noise is redrawn every epoch."""

    def __init__(self, count: int = 40, contrast: float = 0.01) -> None:
        rng = generator("squares", count)
        self.labels = torch.arange(count) % 2
        self.clean = torch.zeros(count, 1, SIDE, SIDE)
        for i in range(1, count, 2):
            row, column = rng.integers(0, SIDE - 10, 2)
            self.clean[i, 0, row : row + 10, column : column + 10] = contrast

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        noise = [generator("squares-noise", i, epoch).random((1, SIDE, SIDE), "float32") for i in indices]
        return self.clean[list(indices)] + 0.01 * torch.stack([torch.from_numpy(n) for n in noise]), self.labels[list(indices)]


def objective(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(network(batch[0]), batch[1])


def validation(network: nn.Module) -> Mapping[str, float]:
    images, labels = Squares(24).batch(range(24), 1000)
    logits = network(images)
    return {"loss": float(F.cross_entropy(logits, labels)), "accuracy": float((logits.argmax(1) == labels).float().mean())}


def classifier(**fields: object) -> Classifier:
    made = SmallCNN(**{"dropout": 0.2, **fields}).build(classes=2, shape=(SIDE, SIDE), seed=3)
    made.set_input_statistics(0.006, 0.004)
    return made


def run(checkpoint: Path | None, network: Classifier | None = None, *, talk: bool = False) -> tuple[Classifier, TrainingResult]:
    def validate(network: nn.Module) -> Mapping[str, float]:
        if talk:
            print("epoch", flush=True)
        return validation(network)

    network = network or classifier()
    return network, train(network, PLAN, Squares(), objective=objective, validate=validate, seed=5, checkpoint=checkpoint)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), talk=True)
