"""The command ``tomosec``: one dataclass per verb, and one place that turns exceptions into messages and exit codes.

Exit codes: 0 done, 1 an experiment or check failed, 2 bad input, 3 ``screen`` flagged a scan, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, TextIO, cast

import tyro
from tyro.conf import subcommand

from tomosec.cli.browsing import List, Report, Status
from tomosec.cli.checking import CheckData, CheckDose, CheckEnv, CheckOperators
from tomosec.cli.console import errors
from tomosec.cli.running import Demo, Rescore, Run, Sweep, Verb
from tomosec.cli.screening import Calibrate, Screen
from tomosec.errors import InputError, TomosecError, TomosecWarning, nearest

DONE, FAILED, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141

LEAST_COLUMNS = 20

DESCRIPTION = (
    "How vulnerable is a CT chain to backdoors planted in its measured data, and would anyone notice?\n\n"
    "Begin with: tomosec demo. `tomosec VERB --help` explains a verb, `tomosec --version` shows the version."
)

CHECKS = {"env": CheckEnv, "data": CheckData, "dose": CheckDose, "operators": CheckOperators}
VERBS: dict[str, type[Verb]] = {
    "demo": Demo,
    "run": Run,
    "sweep": Sweep,
    "status": Status,
    "report": Report,
    "rescore": Rescore,
    "screen": Screen,
    "list": List,
}

_Check = (
    Annotated[CheckEnv, subcommand("env")]
    | Annotated[CheckData, subcommand("data")]
    | Annotated[CheckDose, subcommand("dose")]
    | Annotated[CheckOperators, subcommand("operators")]
)
_Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Run, subcommand("run")]
    | Annotated[Sweep, subcommand("sweep")]
    | Annotated[Status, subcommand("status")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Rescore, subcommand("rescore")]
    | Annotated[Screen, subcommand("screen")]
    | Annotated[List, subcommand("list")]
    | Annotated[_Check, subcommand("check", description="Check this machine, a folder of data, the doses or the operators.")]
)


def parse(args: Sequence[str]) -> Verb:
    """Turn arguments into a verb.

    Raises:
        SystemExit: 0 after ``--help``; 2 for what is not understood, after a message that names the nearest match.
    """
    known = list(CHECKS) if args[:1] == ["check"] else [*VERBS, "check"]
    word = args[1] if args[:1] == ["check"] and len(args) > 1 else args[0] if args else ""
    # tyro suggests options, but not verbs.
    if word and not word.startswith("-") and word not in known and word != "check":
        _complain(f"no verb {word!r}{nearest(word, known)}; there are {', '.join(known)}")
        raise SystemExit(BAD_INPUT)
    if shutil.get_terminal_size().columns < LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(LEAST_COLUMNS)  # tyro's help never ends in a terminal of a few columns
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    if list(args[:2]) == ["screen", "calibrate"]:  # everything else after screen names scans
        return tyro.cli(Calibrate, prog="tomosec screen calibrate", args=list(args[2:]), config=config)
    command = tyro.cli(_Command, prog="tomosec", description=DESCRIPTION, args=list(args), config=config)
    return cast(Verb, command)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; no traceback reaches the user."""
    args = list(sys.argv[1:] if args is None else args)
    _write_any_text()
    # OpenMP's default lets a thread that waits spin on its core; where other work wants that core, training takes several
    # times as long. It reads this when torch is loaded, which is later than here; a user's own setting stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _show_what_is_said()
    verb: Verb | None = None
    try:
        if args in (["--version"], ["-V"]):
            import tomosec

            print(f"tomosec {tomosec.__version__}")  # noqa: T201 (no console is needed for one line)
            return _flushed(DONE)
        verb = parse(args or ["--help"])
        return _flushed(verb.run())
    except SystemExit as request:
        return _flushed(request.code if isinstance(request.code, int) else DONE)
    except KeyboardInterrupt:
        _complain(f"Interrupted. {verb.when_interrupted if verb is not None else ''}".strip())
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has left. Python must not fail once more when it flushes stdout at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except InputError as error:
        _complain(str(error))
        return BAD_INPUT
    except TomosecError as error:
        _complain(str(error))
        return FAILED
    except Exception as error:  # the last resort: a fault of ours, or of the machine
        _complain(f"{type(error).__name__}: {error}\nThis should not have happened. The details are in {_keep_traceback()}")
        return FAILED


class _Messages(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            errors().print(record.getMessage(), markup=False, soft_wrap=True)


def _show_what_is_said() -> None:
    """Print what the library logs, and its warnings as one line without the place in the code."""
    logger = logging.getLogger("tomosec")
    if not any(isinstance(handler, _Messages) for handler in logger.handlers):
        logger.addHandler(_Messages())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    other = warnings.showwarning
    if getattr(other, "__module__", "") == __name__:
        return

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, TomosecWarning):
            return other(message, category, *place, **more)
        return _complain(f"warning: {message}", style="yellow")

    warnings.showwarning = show


def _flushed(code: int) -> int:
    sys.stdout.flush()
    return code


def _complain(message: str, style: str = "red") -> None:
    with suppress(OSError):
        errors().print(f"tomosec: {message}", style=style, markup=False, soft_wrap=True)


def _keep_traceback() -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="tomosec-error-", suffix=".txt", delete=False, encoding="utf-8") as file:
            traceback.print_exc(file=file)
        return file.name
    except OSError as error:
        return f"no file, since none could be written ({error})"


def _write_any_text() -> None:
    """Make output fit a terminal that cannot show every character: a "?" is better than a crash at the end of a long run."""
    for stream in (sys.stdout, sys.stderr):
        if (stream.encoding or "").lower().replace("-", "") != "utf8" and hasattr(stream, "reconfigure"):
            cast(TextIO, stream).reconfigure(errors="replace")  # type: ignore[attr-defined]
