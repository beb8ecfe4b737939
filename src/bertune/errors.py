"""Every error that bertune raises on purpose.

BertuneError                 exit code 1: the work failed
├── InputError               exit code 2: input or usage
│   ├── DataError            a table: its file, row, column, value
│   ├── ConfigError          an option or a configuration file
│   ├── ModelError           a model folder, archive or hub name
│   └── MissingExtraError    an optional dependency that is not installed
├── TrainingError            training cannot go on (divergence, full disk)
└── Interrupted              exit code 130: Ctrl-C; what was done is saved

A message is one sentence or two: the place, the value, the choices, the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BertuneError(Exception):
    """Base of all errors below; `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(BertuneError):
    """What the user handed in cannot be used as it is."""

    exit_code = 2


class DataError(InputError):
    """A table, a row or a cell that cannot be used."""


class ConfigError(InputError):
    """An option with a value that cannot be used, or options that exclude each other."""


class ModelError(InputError):
    """A model that is absent, damaged or of an unknown kind."""


class MissingExtraError(InputError):
    """An optional dependency that the request needs is not installed."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{module}': pip install 'bertune[{extra}]'")


class TrainingError(BertuneError):
    """Training cannot go on; the message says what was kept."""


class Interrupted(BertuneError):
    """The user stopped the work; the message says how to go on."""

    exit_code = 130


def listed(values: Iterable[object], limit: int = 12) -> str:
    """`a, b, c` with a count of the rest, for error messages."""
    names = [str(value) for value in values]
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" (+{rest} more)" if rest > 0 else "")


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a choice is close to `name`, else an empty string."""
    choices = [str(choice) for choice in choices]
    folded = {choice.casefold(): choice for choice in reversed(choices)}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean '{folded[close[0]]}'?" if close else ""


def printable(text: str) -> str:
    """One line, whatever a cell or a file name in it holds: no line breaks, and nothing that a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text)
