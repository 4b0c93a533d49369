"""Training: it learns, repeats and continues bit for bit, stops early, and says what went wrong."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_toys import PLAN, Squares, classifier, objective, run, validation

import tomosec.analysis.checkpoint
from tomosec.analysis.architectures import SmallCNN
from tomosec.analysis.plan import Training
from tomosec.analysis.training import TrainingDiverged, train
from tomosec.errors import InputError, TomosecError


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bits depend on the number of threads, and the killed process has one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network, result = run(None)
    torch.set_num_threads(threads)
    return network.state_dict(), without_seconds(result.curves)


def without_seconds(curves: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in point.items() if name != "seconds"} for point in curves]


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def quick(**fields: Any) -> Training:
    return Training(**{"epochs": 2, "batch_size": 16, **fields})


def test_it_learns(uninterrupted: Any) -> None:
    _, curves = uninterrupted
    assert [point["epoch"] for point in curves] == list(range(len(curves)))
    assert max(point["validation_accuracy"] for point in curves) == 1.0
    assert curves[-1]["loss"] < 0.3 < 0.5 < curves[0]["loss"]
    assert set(curves[0]) == {"epoch", "loss", "lr", "validation_loss", "validation_accuracy"}


def test_same_seed_same_bits_whatever_the_global_state(uninterrupted: Any) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    network, result = run(None)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(network.state_dict(), uninterrupted[0])
    assert without_seconds(result.curves) == uninterrupted[1]
    assert not network.training


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("epochs", [2, 5])
def test_killed_and_continued_it_ends_with_the_same_bits(tmp_path: Path, uninterrupted: Any, epochs: int) -> None:
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    script = Path(__file__).with_name("training_toys.py")
    with subprocess.Popen([sys.executable, str(script), str(checkpoint)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(epochs):
            assert process.stdout.readline() == "epoch\n"
        process.send_signal(signal.SIGKILL)
    assert checkpoint.is_file()
    (checkpoint.parent / f".{checkpoint.name}.12345.tmp").write_bytes(b"half a checkpoint")
    network, result = run(checkpoint)
    assert same(network.state_dict(), uninterrupted[0])
    assert without_seconds(result.curves) == uninterrupted[1]
    assert [item.name for item in checkpoint.parent.iterdir()] == [checkpoint.name]
    # Killed between the end of training and whatever its caller does next, nothing is trained again.
    again, repeated = run(checkpoint, classifier())
    assert same(again.state_dict(), uninterrupted[0])
    assert repeated.curves == result.curves


@pytest.mark.parametrize("fields", [{"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "sgd"}, {"precision": "bf16"}])
def test_other_optimizers_and_precisions_continue_too(tmp_path: Path, fields: dict[str, Any]) -> None:
    plan, path = quick(epochs=3, **fields), tmp_path / "c.safetensors"
    straight, halted = classifier(), classifier()
    train(straight, plan, Squares(), objective=objective, seed=0)

    def stop(network: nn.Module) -> Mapping[str, float]:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return {"loss": 1.0}

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train(halted, plan, Squares(), objective=objective, validate=stop, seed=0, checkpoint=path)
    network = classifier()
    result = train(network, plan, Squares(), objective=objective, seed=0, checkpoint=path)
    assert same(network.state_dict(), straight.state_dict())
    assert result.epochs_run == 3
    assert result.gradient_passes == 3 * 40
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


@pytest.mark.parametrize("norm", ["none", "group"])
def test_accumulated_gradients_are_those_of_the_whole_batch(norm: str) -> None:
    """20 slices in batches of 16: also the last batch of 4, cut in 3, must weigh its slices equally."""
    ends = []
    for accumulate in (1, 3):
        network = classifier(norm=norm, dropout=0.0).double()
        plan = quick(accumulate=accumulate, optimizer="sgd", learning_rate=0.01, warmup_epochs=0)
        train(network, plan, Squares(20), objective=lambda n, b: objective(n, (b[0].double(), b[1])), seed=0)
        ends.append(network.state_dict())
    start = classifier(norm=norm, dropout=0.0).double().state_dict()
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-9, atol=1e-12)
    assert not same(start, ends[0])


def test_every_slice_is_used_once_an_epoch_in_an_order_that_changes() -> None:
    class Spy(Squares):
        def batch(self, indices: Any, epoch: int) -> tuple[Tensor, Tensor]:
            seen.setdefault(epoch, []).append(list(indices))
            return super().batch(indices, epoch)

    # 33 slices in batches of 16 leave one; BatchNorm cannot take it alone, other networks can.
    for norm, sizes in (("batch", [16, 17]), ("none", [16, 16, 1])):
        seen: dict[int, list[list[int]]] = {}
        train(classifier(norm=norm), quick(), Spy(33), objective=objective, seed=0)
        for epoch in (0, 1):
            assert [len(part) for part in seen[epoch]] == sizes
            assert sorted(i for part in seen[epoch] for i in part) == list(range(33))
        assert seen[0] != seen[1]


def test_patience_stops_and_gives_the_best_weights_back() -> None:
    losses = [3.0, 2.0, 2.5, 2.4, 2.3, 0.1]
    kept: list[dict[str, Tensor]] = []

    def validate(network: nn.Module) -> Mapping[str, float]:
        assert not network.training
        assert not torch.is_grad_enabled()
        kept.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return {"loss": losses[len(kept) - 1]}

    network = classifier()
    result = train(network, quick(epochs=6, patience=3), Squares(), objective=objective, validate=validate, seed=0)
    assert (result.best_epoch, result.epochs_run, result.stopped_early) == (1, 5, True)
    assert same(network.state_dict(), kept[1])
    kept.clear()
    network = classifier()
    result = train(network, quick(epochs=4), Squares(), objective=objective, validate=validate, seed=0)
    assert (result.best_epoch, result.epochs_run, result.stopped_early) == (3, 4, False)
    assert same(network.state_dict(), kept[3])


def test_divergence_names_epoch_and_rate() -> None:
    def blown(network: nn.Module, batch: Any) -> Tensor:
        return objective(network, batch) * float("inf")

    with pytest.raises(TrainingDiverged, match=r"epoch 1 of 2, step 1 of 3: the loss is inf at learning rate 0\.00333"):
        train(classifier(), quick(learning_rate=0.01), Squares(), objective=blown, seed=0)
    with pytest.raises(TrainingDiverged, match="validation loss is nan"):
        train(classifier(), quick(), Squares(), objective=objective, validate=lambda _: {"loss": float("nan")}, seed=0)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"

    def go(plan: Training, seed: int = 0, source: Squares | None = None, **network: Any) -> None:
        train(classifier(**network), plan, source or Squares(), objective=objective, seed=seed, checkpoint=path)

    go(quick(epochs=1))
    content = path.read_bytes()
    for what, call in {
        "plan": lambda: go(quick(epochs=3)),
        "seed": lambda: go(quick(epochs=1), seed=1),
        "slices": lambda: go(quick(epochs=1), source=Squares(41)),
        "network": lambda: go(quick(epochs=1), norm="none"),
    }.items():
        with pytest.raises(InputError, match=rf"c\.safetensors: a checkpoint of another training \(different {what}\)"):
            call()
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "text"])
def test_a_damaged_checkpoint_is_warned_about_and_training_starts_again(tmp_path: Path, damage: str) -> None:
    plan, path = quick(epochs=1), tmp_path / "c.safetensors"
    first, again = classifier(), classifier()
    train(first, plan, Squares(), objective=objective, seed=0, checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "one bit": content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
            "empty": b"",
            "text": b"not a checkpoint at all",
        }[damage]
    )
    with pytest.warns(RuntimeWarning, match=r"c\.safetensors: .*starts again from its first epoch"):
        train(again, plan, Squares(), objective=objective, seed=0, checkpoint=path)
    assert same(first.state_dict(), again.state_dict())


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    kept: list[bytes] = []

    def full_from_the_second_epoch(network: nn.Module) -> Mapping[str, float]:
        if path.exists():
            kept.append(path.read_bytes())
            monkeypatch.setattr(Path, "write_bytes", no_space)
        return {"loss": 1.0}

    def no_space(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with pytest.raises(TomosecError, match=r"c\.safetensors: no space left on the device"):
        train(classifier(), PLAN, Squares(), objective=objective, validate=full_from_the_second_epoch, seed=0, checkpoint=path)
    monkeypatch.undo()
    assert [item.name for item in tmp_path.iterdir()] == ["c.safetensors"]
    assert path.read_bytes() == kept[0]
    assert tomosec.analysis.checkpoint.read_tensors(path)[1]["curves"][-1]["epoch"] == 0


def test_what_cannot_work_is_refused() -> None:
    def go(plan: Training, count: int = 40, **fields: Any) -> None:
        train(classifier(**fields), plan, Squares(count), objective=objective, seed=0)

    with pytest.raises(InputError, match="no training slice"):
        go(quick(), 0)
    with pytest.raises(InputError, match="patience 3 needs validation"):
        go(quick(patience=3))
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        go(quick(precision="fp16"))
    for plan, count in ((quick(batch_size=1), 40), (quick(batch_size=4, accumulate=4), 40), (quick(), 1)):
        with pytest.raises(InputError, match="BatchNorm"):
            go(plan, count)
        go(plan, min(count, 4), norm="group")
    with pytest.raises(InputError, match="must return 'loss'"):
        train(classifier(), quick(), Squares(), objective=objective, validate=lambda _: {"accuracy": 1.0}, seed=0)
    with pytest.raises(InputError, match="all are frozen"):
        train(classifier().requires_grad_(False), quick(), Squares(), objective=objective, seed=0)


def test_plan_refuses_contradictions_and_its_rates_follow_the_schedule() -> None:
    for fields, match in (
        ({"accumulate": 33}, "parts without a slice"),
        ({"momentum": 0.9}, "momentum is for optimizer sgd"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"epoch": 3}, "did you mean 'epochs'"),
    ):
        with pytest.raises(ValueError, match=match):
            Training(**fields)  # type: ignore[arg-type]
    plan = Training(epochs=5, learning_rate=0.1, warmup_epochs=1)
    rates = [plan.learning_rate_at(step, 10) for step in range(50)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == rates[10] == pytest.approx(0.1)
    assert rates[30] == pytest.approx(0.05)
    assert 0 < rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert {plan.model_copy(update={"schedule": "constant"}).learning_rate_at(step, 10) for step in range(10, 50)} == {0.1}
    # A warm-up that is as long as the training leaves one epoch at the full rate.
    assert Training(epochs=1, learning_rate=0.1).learning_rate_at(0, 10) == 0.1
    assert plan.fingerprint() == Training(epochs=5, learning_rate=0.1).fingerprint() != Training().fingerprint()


def test_progress_counts_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counter:
        total = done = 0

        def start(self, total: int, description: str) -> None:
            self.total, self.done = total, 0

        def advance(self, n: int = 1) -> None:
            self.done += n

        def message(self, text: str) -> None:
            raise AssertionError(text)

    counter = Counter()
    train(SmallCNN().build(classes=2, shape=(32, 32), seed=0), quick(), Squares(), objective=objective, seed=0, progress=counter)
    assert (counter.total, counter.done) == (80, 80)


def test_a_compile_failure_is_said_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import InternalTorchDynamoError

    def broken(module: nn.Module) -> nn.Module:
        class Broken(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                raise InternalTorchDynamoError("no compiler found")

        return Broken()

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(TomosecError, match=r"training\.compile: torch\.compile fails here \(no compiler found"):
        train(classifier(), quick(compile=True), Squares(), objective=objective, seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled_training_agrees_with_plain_training() -> None:
    ends = []
    for compiled in (False, True):
        network = classifier(dropout=0.0)
        train(network, quick(compile=compiled), Squares(), objective=objective, validate=validation, seed=0)
        ends.append(network.state_dict())
    assert ends[0].keys() == ends[1].keys()
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-3, atol=1e-4)
