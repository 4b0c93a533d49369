"""Progress: plain lines, bars in terminals of any size, and nothing that could end the work it reports on."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from tomosec.progress import PlainProgress, Progress, RichProgress, SilentProgress, for_terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(progress: Progress, steps: int = 50) -> None:
    progress.start(steps, "Training [of] a model with a long name")
    for step in range(steps):
        progress.advance()
        if step == 10:
            progress.message("a [note] 3/4: µ")
    progress.start(0, "Unknown length")
    progress.advance(3)
    progress.start(10, "Ends early")
    progress.advance(3)
    progress.message("done")


def test_plain_lines_are_rare_and_messages_are_not() -> None:
    stream = io.StringIO()
    work(PlainProgress(stream, every_seconds=60))
    assert stream.getvalue() == "a [note] 3/4: µ\ndone\n"
    stream = io.StringIO()
    progress = PlainProgress(stream, every_seconds=0)
    progress.start(200, "Scanning")
    progress.advance(50)
    assert stream.getvalue() == "Scanning: 25 % (50 of 200), 0 s\n"


def test_closed_streams_are_survived() -> None:
    for make in (PlainProgress, RichProgress):
        stream = Terminal()
        progress = make(stream)
        progress.start(3, "Scanning")
        stream.close()
        progress.message("nobody reads this")
        progress.advance(3)


@pytest.mark.parametrize("width", [1, 5, 20, 40, 80, 200])
def test_bars_work_at_any_width(width: int) -> None:
    stream = Terminal()
    work(RichProgress(stream, width=width))
    text = stream.getvalue()
    assert "".join(text.split()).count("[note]3/4:µ") == 1
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor stays hidden"


def test_terminals_get_bars_and_pipes_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(for_terminal(), RichProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(for_terminal(), PlainProgress)
    monkeypatch.setenv("TERM", "xterm")
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert isinstance(for_terminal(), PlainProgress)
    work(SilentProgress())


def test_plan_and_progress_load_neither_torch_nor_rich() -> None:
    code = (
        "import sys, tomosec.progress, tomosec.analysis.plan, tomosec.analysis.task; print({'torch', 'rich'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
