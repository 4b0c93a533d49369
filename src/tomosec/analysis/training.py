"""The one training function: clean models, victims of poisoned data and joint attacks differ in their data and loss alone.

An interrupted training continues bit for bit. What an epoch does follows from its number: order and dropout have named
seeds, the learning rate is a function of the step, and the source redraws noise by epoch. So the checkpoint after an epoch
needs the weights, the optimizer's moments and the curves, and no random state.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tomosec.analysis.checkpoint import State, load_checkpoint, save_checkpoint
from tomosec.analysis.plan import Training
from tomosec.errors import InputError, TomosecError
from tomosec.progress import Progress, SilentProgress
from tomosec.randomness import generator, torch_seed

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingDiverged(TomosecError):  # noqa: N818 (an outcome, as NotApplicable is)
    """The loss is no longer finite; the message names epoch, step and learning rate."""


class TrainingSource(Protocol):
    """Training slices, made when they are asked for."""

    def __len__(self) -> int:
        """How many slices an epoch has."""
        ...

    def batch(self, indices: Sequence[int], epoch: int) -> Any:
        """Whatever the objective reads, on the network's device; the noise of a slice is a function of it and ``epoch``."""
        ...


#: Mean loss over a batch, as a scalar tensor. It may call the network as often as it likes.
Objective = Callable[[nn.Module, Any], Tensor]
#: Metrics of a network in eval mode, without gradients. Must hold "loss", of which less is better.
Validate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training was.

    Attributes:
        curves: one mapping per epoch: ``epoch`` (from 0), ``loss`` (mean over slices), ``lr`` (of the last step),
            ``validation_<name>`` for each validation metric, ``seconds``.
        best_epoch: the epoch whose weights the network has: that of the lowest validation loss where training can stop
            early, else the last.
        epochs_run: how many, interrupted calls included.
        stopped_early: whether patience ran out.
        seconds: time in epochs, validation included, interrupted calls included.
        gradient_passes: slices times backward passes, interrupted calls included; a slice that the objective shows to the
            network twice counts once.
    """

    curves: list[dict[str, float]]
    best_epoch: int
    epochs_run: int
    stopped_early: bool
    seconds: float
    gradient_passes: int


def train(
    network: nn.Module,
    plan: Training,
    source: TrainingSource,
    *,
    objective: Objective,
    validate: Validate | None = None,
    seed: int,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train ``network`` in place and leave it in eval mode on ``device``.

    On the CPU, with the same number of threads, the weights are a function of the arguments, bit for bit, and do not depend
    on interruptions. The global random state is left as it was. The last batch of an epoch may be smaller and is used; where
    it is a single slice and the network has BatchNorm, which has no variance to take from one slice, that slice joins the
    batch before.

    Args:
        network: with its initial weights and input statistics.
        plan: how to train.
        source: training slices.
        objective: mean loss of a batch.
        validate: called after each epoch; needed where the plan has patience.
        seed: names order and dropout.
        device: where to train.
        checkpoint: file that is written after each epoch and continued from where it exists; removing it is up to the caller.
        progress: where progress goes; nowhere by default. A step is one slice.

    Raises:
        InputError: nothing to train on or to optimize, patience without validation, single-slice batches with BatchNorm,
            fp16 without a GPU, or a checkpoint of another plan, seed, source or network.
        TrainingDiverged: a loss is not finite.
        TomosecError: the checkpoint cannot be written, or ``torch.compile`` fails; the last checkpoint stays.
    """
    device = torch.device(device)
    network.to(device)
    progress = progress or SilentProgress()
    batches = _check(network, plan, source, validate, device)
    run = _Run(network, plan, source, objective, seed, device, batches, progress)
    identity = {
        "plan": plan.fingerprint(),
        "seed": seed,
        "slices": len(source),
        "network": {name: list(tensor.shape) for name, tensor in network.state_dict().items()},
    }
    state = load_checkpoint(checkpoint, identity, network, run.optimizer, run.scaler) if checkpoint is not None else State()
    if state.epochs_run:
        progress.message(f"Continuing training after epoch {state.epochs_run} of {plan.epochs}")
    progress.start(plan.epochs * len(source), "Training")
    progress.advance(state.epochs_run * len(source))

    while state.epochs_run < plan.epochs and not _out_of_patience(state, plan):
        epoch, start = state.epochs_run, time.perf_counter()
        with _seeded(device, torch_seed(seed, "dropout", epoch)):
            point = run.epoch(epoch)
        if validate is not None:
            point |= _validation(network, validate, epoch, plan)
        point["seconds"] = time.perf_counter() - start
        state.curves.append(point)
        if plan.patience is not None and (state.best is None or point["validation_loss"] < state.best_loss):
            state.best_loss, state.best_epoch = point["validation_loss"], epoch
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
        if checkpoint is not None:
            save_checkpoint(checkpoint, identity, state, network, run.optimizer, run.scaler)

    stopped = _out_of_patience(state, plan)
    if stopped:
        progress.message(f"Stopped after epoch {state.epochs_run} of {plan.epochs}: no better since epoch {state.best_epoch + 1}")
    if state.best is not None:
        network.load_state_dict(state.best)
    network.eval()
    return TrainingResult(
        curves=state.curves,
        best_epoch=state.best_epoch if state.best is not None else state.epochs_run - 1,
        epochs_run=state.epochs_run,
        stopped_early=stopped and state.epochs_run < plan.epochs,
        seconds=sum(point["seconds"] for point in state.curves),
        gradient_passes=state.epochs_run * len(source),
    )


def _check(
    network: nn.Module, plan: Training, source: TrainingSource, validate: Validate | None, device: torch.device
) -> list[list[int]]:
    """Refuse what cannot work; return the batches as (start, stop) into an epoch's order, each a list of cuts."""
    count, part = len(source), plan.batch_size // plan.accumulate
    if count == 0:
        raise InputError("there is no training slice; give the split a larger training part")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError("the network has no parameter to train: all are frozen")
    if plan.patience is not None and validate is None:
        raise InputError(f"training.patience {plan.patience} needs validation slices, and there are none; set it to null")
    if plan.precision == "fp16" and device.type != "cuda":
        raise InputError(f"training.precision fp16 needs a GPU (its gradients vanish without scaling), got {device}; use bf16")
    batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    if batch_norm and (count == 1 or part == 1):
        what = "1 training slice" if count == 1 else f"batch_size {plan.batch_size} in {plan.accumulate} parts"
        raise InputError(f"training: {what} leaves BatchNorm single slices, which have no variance; take larger parts")
    starts = list(range(0, count, plan.batch_size))
    if batch_norm and count - starts[-1] == 1:
        starts.pop()
    batches = []
    for start, stop in zip(starts, [*starts[1:], count], strict=True):
        parts = max(1, min(plan.accumulate, (stop - start) // 2 if batch_norm else stop - start))
        batches.append([start + (stop - start) * i // parts for i in range(parts + 1)])
    return batches


class _Run:
    """Network, optimizer and source of one training: what an epoch needs."""

    def __init__(
        self,
        network: nn.Module,
        plan: Training,
        source: TrainingSource,
        objective: Objective,
        seed: int,
        device: torch.device,
        batches: list[list[int]],
        progress: Progress,
    ) -> None:
        self._network, self._plan, self._source, self._objective = network, plan, source, objective
        self._seed, self._device, self._batches, self._progress = seed, device, batches, progress
        self.optimizer = _optimizer(network, plan)
        self.scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")
        # Validation and the caller keep the plain module, which shares its weights with the compiled one.
        self._called: nn.Module = torch.compile(network) if plan.compile else network  # type: ignore[assignment]

    def epoch(self, epoch: int) -> dict[str, float]:
        """Train one epoch; return its number, mean loss and last learning rate."""
        self._network.train()
        order = generator(self._seed, "shuffle", epoch).permutation(len(self._source)).tolist()
        total = rate = 0.0
        for number, cuts in enumerate(self._batches):
            rate = self._plan.learning_rate_at(epoch * len(self._batches) + number, len(self._batches))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
            for start, stop in itertools.pairwise(cuts):
                batch = self._source.batch(order[start:stop], epoch)
                loss = self._backward(batch, (stop - start) / (cuts[-1] - cuts[0]))
                if not math.isfinite(loss):
                    where = f"epoch {epoch + 1} of {self._plan.epochs}, step {number + 1} of {len(self._batches)}"
                    raise TrainingDiverged(
                        f"training diverged in {where}: "
                        f"the loss is {loss} at learning rate {rate:.3g}; lower training.learning_rate or lengthen the warm-up"
                    )
                total += loss * (stop - start)
                self._progress.advance(stop - start)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return {"epoch": float(epoch), "loss": total / len(self._source), "lr": rate}

    def _backward(self, batch: Any, share: float) -> float:
        """Add a part's share of the batch's gradient; return the part's mean loss."""
        kind = self._plan.precision
        try:
            with torch.autocast(self._device.type, dtype=AUTOCAST.get(kind), enabled=kind in AUTOCAST):
                loss = self._objective(self._called, batch)
            torch.autograd.backward(self.scaler.scale(loss * share))
        except Exception as error:
            if self._plan.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise TomosecError(f"training.compile: torch.compile fails here ({reason}); set it to false") from error
            raise
        return float(loss.detach())


def _optimizer(network: nn.Module, plan: Training) -> torch.optim.Optimizer:
    # Fused: one kernel call for all parameters, which for small networks on a CPU is a tenth of the step.
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=plan.learning_rate, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True
        )
    return torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True)


def _validation(network: nn.Module, validate: Validate, epoch: int, plan: Training) -> dict[str, float]:
    network.eval()
    with torch.no_grad():
        metrics = {f"validation_{name}": float(value) for name, value in validate(network).items()}
    if "validation_loss" not in metrics:
        raise InputError(f"validate returned {', '.join(metrics) or 'nothing'}; it must return 'loss'")
    if not math.isfinite(metrics["validation_loss"]):
        raise TrainingDiverged(
            f"training diverged in epoch {epoch + 1} of {plan.epochs}: the validation loss is {metrics['validation_loss']}; "
            f"lower training.learning_rate ({plan.learning_rate:.3g})"
        )
    return metrics


def _out_of_patience(state: State, plan: Training) -> bool:
    return plan.patience is not None and state.best is not None and state.epochs_run - 1 - state.best_epoch >= plan.patience


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators of the CPU and of ``device``; put them back at the end."""
    gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if gpu else []):
        torch.default_generator.manual_seed(seed)
        if gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
