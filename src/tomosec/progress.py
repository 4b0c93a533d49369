"""Progress: what long work reports, and where it goes. No torch, and rich only once a bar is shown."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

#: A reader that has gone or a stream that is closed: neither may end the work that is reported on.
_GONE = (OSError, ValueError)


class Progress(Protocol):
    """What work that takes a while talks to. Stages follow one another; a new one ends the one before."""

    def start(self, total: int, description: str) -> None:
        """Begin a stage of ``total`` steps."""

    def advance(self, n: int = 1) -> None:
        """``n`` more steps of the stage are done."""

    def message(self, text: str) -> None:
        """Say one line that is worth keeping."""


class SilentProgress:
    """Says nothing: the default of every function."""

    def start(self, total: int, description: str) -> None:
        """Nothing."""

    def advance(self, n: int = 1) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""


class PlainProgress:
    """Lines, for logs and pipes. A stage that is short is not mentioned; a long one gets a line every few seconds.

    Args:
        stream: where to; stderr, as it is at each line, by default.
        every_seconds: least time between two lines of progress; messages always appear.
    """

    def __init__(self, stream: TextIO | None = None, *, every_seconds: float = 10.0) -> None:
        self._stream, self._every = stream, every_seconds
        self._total = self._done = 0
        self._description = ""
        self._last = self._begun = time.monotonic()

    def start(self, total: int, description: str) -> None:
        """Begin a stage."""
        self._total, self._done, self._description = total, 0, description
        self._last = self._begun = time.monotonic()

    def advance(self, n: int = 1) -> None:
        """Count, and say so if the last line is old enough."""
        self._done += n
        moment = time.monotonic()
        if moment - self._last < self._every or not self._description:
            return
        self._last = moment
        share = (
            f"{min(100, 100 * self._done // self._total)} % ({self._done} of {self._total})" if self._total else str(self._done)
        )
        self._say(f"{self._description}: {share}, {moment - self._begun:.0f} s")

    def message(self, text: str) -> None:
        """Print a line."""
        self._say(text)

    def _say(self, text: str) -> None:
        with contextlib.suppress(*_GONE):
            print(text, file=self._stream or sys.stderr, flush=True)


class RichProgress:
    """One bar on a terminal; messages scroll by above it. Narrow terminals get fewer columns.

    Args:
        stream: the terminal; stderr by default.
        width: columns, where the terminal is not to be asked.
    """

    #: Least time between two redraws in seconds: a bar must cost nothing, even over a slow connection.
    REDRAW = 0.1

    def __init__(self, stream: TextIO | None = None, *, width: int | None = None) -> None:
        self._stream, self._width = stream, width
        self._bars: Bars | None = None
        self._task: Any = None
        self._last = 0.0

    def start(self, total: int, description: str) -> None:
        """Show a bar."""
        self.close()
        from rich.markup import escape

        bars = self._make()
        self._task = bars.add_task(escape(description), total=total or None)
        with contextlib.suppress(*_GONE):
            bars.start()
            # Rich hides the cursor; a process that is killed could not bring it back.
            bars.console.show_cursor(True)
        self._bars = bars
        atexit.register(self.close)

    def advance(self, n: int = 1) -> None:
        """Move the bar; a full one goes away."""
        if self._bars is None:
            return
        self._bars.advance(self._task, n)
        moment = time.monotonic()
        if self._bars.finished:
            self.close()
        elif moment - self._last > self.REDRAW:
            self._last = moment
            with contextlib.suppress(*_GONE):
                self._bars.refresh()

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        with contextlib.suppress(*_GONE):
            (self._bars.console if self._bars is not None else self._console()).print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar away, if there is one."""
        if self._bars is not None:
            bars, self._bars = self._bars, None
            atexit.unregister(self.close)
            with contextlib.suppress(*_GONE):
                bars.stop()

    def _console(self) -> Any:
        from rich.console import Console

        return Console(file=self._stream or sys.stderr, width=self._width, highlight=False, emoji=False)

    def _make(self) -> Bars:
        from rich.progress import BarColumn, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        console = self._console()
        columns: list[ProgressColumn] = [TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))]
        if console.width >= 60:
            columns.append(BarColumn(bar_width=None if console.width < 100 else 40))
        if console.width >= 24:
            columns.append(TaskProgressColumn())
        if console.width >= 60:
            columns.append(TimeRemainingColumn())
        # No refresh thread: work is in native code most of the time, and a thread would fight with it for two cores.
        return Bars(*columns, console=console, transient=True, auto_refresh=False)


def for_terminal() -> Progress:
    """A bar where stderr is a terminal that can draw one, plain lines elsewhere."""
    try:
        terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # no stderr, or a closed one
        terminal = False
    return RichProgress() if terminal and os.environ.get("TERM", "") != "dumb" else PlainProgress()
