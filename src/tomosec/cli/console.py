"""What the command line prints: plain text that fits a narrow terminal, a pipe and a log file alike."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

#: Below this many columns a table is printed as a list: its cells would be a few letters wide.
NARROW = 72
#: Width where there is no terminal to ask: a file or a pipe has no edge, but a table has to end somewhere.
PIPE_WIDTH = 150


def output() -> Console:
    """Console for results, on stdout; made anew each time because tests and pipes replace stdout."""
    return _console(sys.stdout)


def errors() -> Console:
    """Console for messages that are no results, on stderr."""
    return _console(sys.stderr)


def _console(file: object) -> Console:
    console = Console(file=file, highlight=False, emoji=False)  # type: ignore[arg-type]
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def say(text: str, style: str = "") -> None:
    """Print text that comes from anywhere: nothing in it is taken for markup, and paths are not broken by wrapping."""
    output().print(escape(text), style=style or None, soft_wrap=True)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print rows as a table, or as a list of "column: value" where the terminal is narrow."""
    console, rows = output(), [list(row) for row in rows]
    if title:
        console.print(f"\n{escape(title)}", style="bold")
    if console.width < NARROW:
        for row in rows:
            console.print(escape(row[0]), style="bold")
            for name, cell in zip(columns[1:], row[1:], strict=True):
                if cell:
                    console.print(Padding(escape(f"{name}: {cell}" if name else cell), (0, 0, 0, 2)))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=any(columns))
    for position, name in enumerate(columns):
        table.add_column(escape(name), overflow="fold", no_wrap=False, min_width=min(len(name), 12) if position else None)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def ago(elapsed: timedelta) -> str:
    """How long ago, in the largest unit that fits: ``"3 min"``."""
    seconds = max(0, int(elapsed.total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
