"""How a network is trained, as a value. No torch here: experiments and reports read it."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tomosec.component import Value


class Training(Value):
    """A training plan: the same for clean models, poisoned victims and joint attacks, which differ in data and loss alone.

    There is no augmentation: a flipped chest has its heart on the wrong side, and a rotated or shifted image is not what the
    reconstruction of any measured sinogram would show, so a sinogram trigger would not survive it in a realistic way. Noise
    is redrawn every epoch by the chain itself.

    Attributes:
        epochs: passes over the training slices, at the most.
        batch_size: slices per optimizer step.
        accumulate: parts that a batch is cut into to save memory; gradients are summed over them, so the step is the same
            (but for rounding, and for BatchNorm, which sees the parts).
        optimizer: ``adamw`` (Loshchilov and Hutter, ICLR 2019) or ``sgd``; the released LTGM code trains with
            ``sgd``, learning rate 0.01, weight decay 1e-8, no momentum, batches of 8.
        learning_rate: of the first step after the warm-up.
        weight_decay: decoupled for adamw, an L2 penalty for sgd; applies to all parameters.
        momentum: of sgd; adamw's moments are (0.9, 0.999).
        schedule: ``cosine`` falls to 0 over the steps after the warm-up (Loshchilov and Hutter, ICLR 2017); ``constant`` stays.
        warmup_epochs: epochs over which the rate rises linearly from 0.
        patience: epochs without a lower validation loss after which training stops and the best weights return; None runs
            to the end and keeps the last weights.
        min_validation_patients: with fewer validation patients than this, patience is ignored: the minimum of a noisy
            curve is no better than its end.
        precision: of the arithmetic in training; weights, optimizer and validation stay in float32. ``fp16`` needs a GPU.
        compile: compile the training step with ``torch.compile``; needs a C++ compiler (CPU) or Triton (GPU).
    """

    version: Literal[1] = 1
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 30
    batch_size: Annotated[int, Field(ge=1)] = 32
    accumulate: Annotated[int, Field(ge=1)] = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    patience: Annotated[int, Field(ge=1)] | None = None
    min_validation_patients: Annotated[int, Field(ge=1)] = 10
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    compile: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate {self.accumulate} cuts a batch of {self.batch_size} into parts without a slice")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is for optimizer sgd; {self.optimizer} has moments of its own")
        return self

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of optimizer step ``step``, counted from 0; a function of its arguments, so nothing needs restoring."""
        # One epoch is left to train at the full rate, however short a training is.
        warmup = round(min(self.warmup_epochs, self.epochs - 1) * steps_per_epoch)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - warmup) / (self.epochs * steps_per_epoch - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def fingerprint(self) -> str:
        """Hash of every field (16 hex digits): a checkpoint is continued under this very plan only."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]
