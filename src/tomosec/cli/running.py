"""The verbs that run experiments: ``demo``, ``run``, ``sweep`` and ``rescore``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from tyro.conf import Positional, UseAppendAction, arg

from tomosec.cli.console import say
from tomosec.errors import InputError

if TYPE_CHECKING:
    from tomosec.experiment import Experiment
    from tomosec.progress import Progress
    from tomosec.record import Record

Executor = Literal["inline", "processes"]


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb of the command line."""

    #: What Ctrl-C leaves behind; printed after "Interrupted."
    when_interrupted: ClassVar[str] = ""

    def run(self) -> int:
        """Do it and return the exit code."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class _Running(Verb):
    when_interrupted: ClassVar[str] = "What is complete is kept in the output folder; the same command continues from there."

    out: Annotated[Path, arg(metavar="DIR")] = Path("runs")
    """Folder of runs; made where it does not exist. What is complete in it is not run again."""
    overrides: Annotated[tuple[str, ...], arg(name="set", metavar="A.B=C"), UseAppendAction] = ()
    """Change a field of the recipe, such as --set training.epochs=5."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto, cpu, cuda or cuda:N."""

    def _execute(
        self, recipe: str, data: Path | None, preset: str | None, executor: Executor = "inline", workers: int | None = None
    ) -> list[Record]:
        # Everything that can be wrong with the recipe is said before torch is loaded and work begins.
        from tomosec.experiment import load_recipe, parse_overrides

        read = load_recipe(recipe)
        experiments = read.experiments(preset=preset, overrides=parse_overrides(self.overrides))
        if len(experiments) > 1:
            hint = "" if executor == "processes" else ", one after another; `tomosec sweep` has --executor processes"
            say(f"{recipe} is a sweep of {len(experiments)} experiments{hint}")
        from tomosec.progress import RichProgress, for_terminal
        from tomosec.record import now

        begun, progress = now(), for_terminal()
        try:
            if read.study is not None:
                from tomosec.run.study import run_study

                records = run_study(
                    read,
                    experiments,
                    preset=preset,
                    executor=executor,
                    workers=workers,
                    data=data,
                    out=self.out,
                    device=self.device,
                    progress=progress,
                )
            else:
                records = self._work(experiments, data, executor, workers, progress)
        finally:
            # A message about what went wrong must not end up in the line of a bar.
            if isinstance(progress, RichProgress):
                progress.close()
        done = sum(record.finished is not None and record.finished < begun for record in records)
        if done:
            say(f"{done} of {len(records)} complete before; nothing was run for {'it' if done == 1 else 'them'}.")
        return records

    def _work(
        self, experiments: list[Experiment], data: Path | None, executor: Executor, workers: int | None, progress: Progress
    ) -> list[Record]:
        if len(experiments) == 1:
            from tomosec.run.runner import run

            return [run(experiments[0], data=data, out=self.out, device=self.device, progress=progress)]
        from tomosec.run.executors import execute

        return execute(
            experiments, executor=executor, workers=workers, data=data, out=self.out, device=self.device, progress=progress
        )


def _finish(records: list[Record], out: Path) -> int:
    from tomosec.cli.results import show_records

    show_records(records)
    incomplete = [record for record in records if not record.complete]
    for what, group in (
        ("experiments have no result", [record for record in incomplete if record.status != "success"]),
        ("experiments have a defense that failed, which the same command tries again", [r for r in incomplete if r.failures]),
    ):
        if group:
            logs = ", ".join(str(out / record.id / "log.txt") for record in group[:3])
            say(f"\n{len(group)} of {len(records)} {what}; see {logs}")
    return 1 if incomplete else 0


@dataclass(frozen=True, kw_only=True)
class Demo(_Running):
    """Attack a small CT chain on built-in phantoms and write a report: a few minutes, no data needed."""

    def run(self) -> int:
        """Run the demo recipe, write its report, and say what to do next."""
        from tomosec.record import Store
        from tomosec.report.build import build_report

        say(f"A small CT chain on built-in phantoms, attacked with LTGM; a few minutes. Everything goes to {self.out}.")
        records = self._execute("demo", None, None)
        code = _finish(records, self.out)
        path = build_report(Store(self.out), self.out / "report.html", ids=[record.id for record in records])
        say(f"\nReport: {path}", style="bold")
        say(
            "Next: open the report in a browser; `tomosec run covid-ct-md --data FOLDER` does the same on real CT;\n"
            "`tomosec list recipes` shows the others; `tomosec check data FOLDER` looks at data of your own."
        )
        return code


@dataclass(frozen=True, kw_only=True)
class _WithRecipe(_Running):
    file: Annotated[Positional[str], arg(metavar="FILE")]
    """A recipe: a YAML file, or the name of a bundled one (`tomosec list recipes`)."""
    data: Annotated[Path | None, arg(metavar="PATH")] = None
    """Folder of the dataset, where the recipe's dataset reads one."""
    preset: Annotated[str | None, arg(metavar="NAME")] = None
    """One of the recipe's presets."""

    def _say_next(self) -> None:
        say(f"\nNext: `tomosec report {self.out} -o report.html`, `tomosec status {self.out}`")


@dataclass(frozen=True, kw_only=True)
class Run(_WithRecipe):
    """Run a recipe; what is complete is not run again. A recipe with a sweep runs all of it, one experiment after another."""

    def run(self) -> int:
        """Run and print the results."""
        records = self._execute(self.file, self.data, self.preset)
        code = _finish(records, self.out)
        self._say_next()
        return code


@dataclass(frozen=True, kw_only=True)
class Sweep(_WithRecipe):
    """Run every experiment of a recipe with a sweep; one that fails does not stop the others."""

    executor: Executor = "inline"
    """inline: one after another; processes: several at once on this machine."""
    workers: Annotated[int | None, arg(metavar="N")] = None
    """How many processes; two when not given."""

    def run(self) -> int:
        """Run and print the results."""
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers {self.workers}: one or more")
        if self.workers is not None and self.executor == "inline":
            raise InputError(f"--workers {self.workers}: only with --executor processes")
        records = self._execute(self.file, self.data, self.preset, self.executor, self.workers)
        code = _finish(records, self.out)
        self._say_next()
        return code


@dataclass(frozen=True, kw_only=True)
class Rescore(Verb):
    """Recompute the metrics of finished runs from their sample tables; no training, no GPU."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder of runs."""
    ids: Annotated[tuple[str, ...], arg(name="id", metavar="ID"), UseAppendAction] = ()
    """Only this run; all finished ones when not given."""

    def run(self) -> int:
        """Rescore and print the results."""
        from tomosec.record import Store

        store = Store(self.folder)
        ids = resolve_ids(store.ids(), self.ids, self.folder)
        if not self.ids:
            ids = [name for name in ids if store.read(name).status == "success"]
        if not ids:
            raise InputError(f"{self.folder}: no finished run to rescore")
        from tomosec.run.runner import rescore

        return _finish([rescore(store, name) for name in ids], self.folder)


def resolve_ids(known: list[str], asked: tuple[str, ...], folder: Path) -> list[str]:
    """Complete abbreviated run ids; all of them when none is asked for.

    Raises:
        InputError: an id that fits no run, or several.
    """
    if not asked:
        return known
    out = []
    for name in asked:
        fitting = [item for item in known if item.startswith(name)]
        if len(fitting) != 1:
            found = "no run" if not fitting else f"{len(fitting)} runs"
            raise InputError(f"--id {name}: {found} of {folder} begin with it; there are {', '.join(known) or 'none'}")
        out += fitting
    return out
