"""Errors a person can mend: each says what was given, what was expected and what to do next.

The command line prints the message alone, never a traceback, and leaves with `exit_code`:
2 for a usage mistake (an option, a file name), 1 for work that failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FilbertError(ValueError):
    """A failure with a known cause, told in words that name the cause and the way out."""

    exit_code = 1


class UsageError(FilbertError):
    """A request that cannot be carried out as it was typed."""

    exit_code = 2


def short_of_memory(error: Exception) -> bool:
    """Whether memory ran out, as Python, the system, torch and other runtimes say it."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(mark in words for mark in _NO_MEMORY)


_NO_MEMORY = (
    "can't alloc", "not enough memory", "out of memory", "cannot allocate", "bad_alloc",
    "bad allocation",
)  # fmt: skip


def missing_extra(package: str, extra: str) -> FilbertError:
    """The error for an optional `package` that is not installed: it names the pip line to type."""
    return FilbertError(
        f"this needs the package '{package}', which is not installed. "
        f"Type: pip install 'filbert[{extra}]'"
    )


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A hint such as `" Did you mean 'label'?"`, or an empty string where nothing is near."""
    near = difflib.get_close_matches(name, [str(choice) for choice in choices], n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
