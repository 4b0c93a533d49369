"""The documentation is tested: its Python runs, its console sessions are replayed, its shell lines at least parse."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from sybil import Example, Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.sybil import SybilCollection

ROOT = Path(__file__).parent
# As the command line does: threads that wait must not spin, or tests that train take several times as long on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _command(line: str) -> list[str]:
    """Words of a ``tomosec`` command line; empty for other commands and continuations."""
    words = shlex.split(line, comments=True)
    return words[1:] if words[:1] == ["tomosec"] else []


def _parses(args: list[str]) -> None:
    from tomosec.cli import parse

    if args in ([], ["--version"]) or "--help" in args:
        return
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            parse(args)
        except SystemExit as error:
            raise AssertionError(f"tomosec {shlex.join(args)}: {said.getvalue()}") from error


def parse_shell_lines(example: Example) -> None:
    """```sh: every tomosec command has verbs and options that exist, and every make target too."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in str(example.parsed).replace("\\\n", " ").splitlines():
        _parses(_command(line))
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= targets, line


def replay_console(example: Example) -> None:
    """```console: commands after ``$`` succeed, and print what is shown; ``...`` stands for anything."""
    from tomosec.cli import main

    for part in re.split(r"^\$ ", str(example.parsed), flags=re.MULTILINE)[1:]:
        line, _, expected = part.partition("\n")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = main(_command(line))
        assert code == 0, f"{line}: exit code {code}"
        pattern = ".*".join(re.escape(" ".join(piece.split())) for piece in expected.split("..."))
        assert re.search(pattern, " ".join(out.getvalue().split()), re.DOTALL), f"{line} printed\n{out.getvalue()}"


def in_empty_folder(namespace: dict[str, Any]) -> None:
    """Examples write where they please."""
    namespace["_before"], namespace["_folder"] = os.getcwd(), tempfile.TemporaryDirectory()
    os.chdir(namespace["_folder"].name)


def leave_folder(namespace: dict[str, Any]) -> None:
    """Remove what the examples wrote."""
    os.chdir(namespace["_before"])
    namespace["_folder"].cleanup()


pytest_collect_file = SybilCollection(
    [
        Sybil(
            parsers=[
                SkipParser(),
                PythonCodeBlockParser(),
                CodeBlockParser(language="sh", evaluator=parse_shell_lines),
                CodeBlockParser(language="console", evaluator=replay_console),
            ],
            patterns=["README.md", "CONTRIBUTING.md", "docs/*.md"],
            setup=in_empty_folder,
            teardown=leave_folder,
        ),
        Sybil(
            parsers=[DocTestParser()],
            path="src",
            patterns=["**/*.py"],
            document_types={".py": PythonDocStringDocument},
        ),
    ]
).pytest()
