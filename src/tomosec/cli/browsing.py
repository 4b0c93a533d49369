"""The verbs that look at what there is: ``status``, ``report`` and ``list``. The first two load no torch."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from tomosec.cli.console import ago, errors, say, show_table
from tomosec.cli.running import Verb, resolve_ids
from tomosec.errors import InputError, nearest

if TYPE_CHECKING:
    from tomosec.record import Record

#: What ``list`` can show: plural to component family; recipes are files.
KINDS = {
    "attacks": "attack",
    "defenses": "defense",
    "datasets": "dataset",
    "networks": "network",
    "reconstructions": "reconstruction",
    "geometries": "geometry",
    "acquisitions": "acquisition",
    "splits": "split",
    "recipes": "",
}


@dataclass(frozen=True, kw_only=True)
class Status(Verb):
    """Show the runs of a folder: state, age, clean accuracy and attack success."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")] = Path("runs")
    """Folder of runs."""

    def run(self) -> int:
        """Print a table of the runs."""
        from tomosec.cli.results import headline
        from tomosec.record import Store, now

        store, rows, unreadable = Store(self.folder), [], []
        records = []
        for name in store.ids():
            try:
                records.append(store.read(name))
            except InputError as error:
                unreadable.append(str(error))
        for record in sorted(records, key=lambda item: (item.started, item.id)):
            rows.append(
                [
                    record.id,
                    record.title,
                    state(record),
                    ago(now() - (record.finished or record.heartbeat)),
                    headline(record, "attacked", "clean", "accuracy") or headline(record, "clean", "clean", "accuracy"),
                    headline(record, "attacked", "triggered", "asr"),
                    record.error.partition("\n")[0],
                ]
            )
        if rows:
            show_table(["id", "title", "status", "age", "CA", "ASR", "note"], rows)
            say("age: since the end or the last sign of life")
            say("CA, ASR: clean accuracy and attack success rate of the attacked model, on test slices")
        else:
            say(f"{self.folder}: no runs yet")
        for message in unreadable:
            errors().print(message, style="red", markup=False, soft_wrap=True)
        return 1 if unreadable else 0


def state(record: Record) -> str:
    """The status, with a dead run told from a live one by its heartbeat."""
    from tomosec.record import STALE_AFTER, now

    if record.status != "started":
        stopped = "interrupted" if record.error.startswith("interrupted") else str(record.status)
        return "a defense failed, run it again" if record.failures else stopped
    return "stale: stopped, run it again" if now() - record.heartbeat > STALE_AFTER else "running"


@dataclass(frozen=True, kw_only=True)
class Report(Verb):
    """Write one offline HTML file from the runs of a folder. It shows example slices of the data that were used."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder of runs."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="FILE")] = Path("report.html")
    """The HTML file; an existing one is replaced."""
    ids: Annotated[tuple[str, ...], arg(name="id", metavar="ID"), UseAppendAction] = ()
    """Only this run, all of them when not given; the beginning of an id is enough."""
    export: Annotated[Path | None, arg(metavar="DIR")] = None
    """Also write the tables and figures of studies to this folder, as Markdown and SVG."""

    def run(self) -> int:
        """Build the report."""
        from tomosec.record import Store

        store = Store(self.folder)
        ids = resolve_ids(store.ids(), self.ids, self.folder)
        if not ids:
            raise InputError(f"{self.folder}: no runs yet, so there is nothing to report")
        if self.output.is_dir():
            raise InputError(f"--output {self.output}: a folder; give the name of an HTML file")
        if self.export is not None and self.export.exists() and not self.export.is_dir():
            raise InputError(f"--export {self.export}: a file; give a folder")
        from tomosec.report.build import build_report

        path = build_report(store, self.output, ids=ids if self.ids else None)
        say(f"Report: {path}")
        if self.export is not None:
            from tomosec.report.export import export_studies

            written = export_studies(store, self.export, ids=ids if self.ids else None)
            say(
                f"{self.export}: {len(written)} files"
                if written
                else f"{self.export}: nothing written; no run belongs to a study"
            )
        say("It contains example slices of the data; share it as you may share them.")
        return 0


@dataclass(frozen=True, kw_only=True)
class List(Verb):
    """Show what there is of one kind: attacks, defenses, datasets, networks, reconstructions, geometries, ... or recipes."""

    kind: Annotated[Positional[str], arg(metavar="KIND")]
    """attacks, defenses, datasets, networks, reconstructions, geometries, acquisitions, splits or recipes."""

    def run(self) -> int:
        """Print a table."""
        kind = (
            self.kind
            if self.kind in KINDS
            else next((plural for plural, family in KINDS.items() if family == self.kind), self.kind)
        )
        if kind == "recipe":
            kind = "recipes"
        if kind not in KINDS:
            raise InputError(f"list: no kind {self.kind!r}{nearest(self.kind, KINDS)}; there are {', '.join(KINDS)}")
        if kind == "recipes":
            _list_recipes()
        else:
            _list_components(kind)
        return 0


def _list_recipes() -> None:
    from tomosec.experiment import load_recipe, recipe_folder

    rows = []
    for path in sorted(recipe_folder().glob("*.yaml")):
        recipe = load_recipe(path)
        sweep = f"{len(recipe.sweep.overrides())} experiments" if recipe.sweep is not None else ""
        about = str(recipe.experiment.get("description") or recipe.experiment.get("title") or "")
        rows.append([path.stem, " ".join(about.split()), ", ".join(recipe.presets), sweep])
    show_table(["recipe", "what", "presets", "sweep"], rows)


def _list_components(kind: str) -> None:
    from tomosec.component import components

    rows = []
    for name, cls in components(KINDS[kind]).items():
        needs = ", ".join(sorted(getattr(cls, "needs", ())))
        if getattr(cls, "needs_root", False):
            needs = "--data PATH"
        rows.append([name, str(getattr(cls, "domain", "")), _first_line(cls), str(getattr(cls, "source", "")), needs])
    if not rows:
        say(f"no {kind} in this version")
        return
    columns = [KINDS[kind], "domain", "what", "source", "needs"]
    # A column that no component of this family fills says nothing.
    filled = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    show_table([columns[i] for i in filled], [[row[i] for i in filled] for row in rows])


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").strip().partition("\n\n")[0].replace("\n", " ")
