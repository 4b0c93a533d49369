"""The errors and warnings a user of tomosec can meet; the command line turns an error into one message and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TomosecError(Exception):
    """Base of every error that tomosec raises on purpose."""


class InputError(TomosecError, ValueError):
    """A file, field, argument or array that cannot be used. The message names it, what was found and what is allowed."""


class NotApplicable(TomosecError):  # noqa: N818 (a result, not an error)
    """A component cannot run here, for a stated reason ("needs BatchNorm"); a result, not a failure."""


class TomosecWarning(UserWarning):
    """Base of every warning that tomosec raises on purpose: a result that is computed as asked, but means less than it seems."""


class LimitedAngleWarning(TomosecWarning):
    """The views do not see every ray through the scan circle, so no reconstruction of them can be exact."""


class TruncationWarning(TomosecWarning):
    """Part of the object lies outside the disc that every view sees whole, so its reconstruction is wrong there and near it."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest allowed word, or an empty string."""
    match = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
