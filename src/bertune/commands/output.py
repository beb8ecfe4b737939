"""Results: on stdout, or in a file."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bertune.data.sources import local_files
from bertune.errors import ConfigError
from bertune.files import to_json
from bertune.paths import standing


def print_json(value: Any) -> None:
    """One JSON object on one line."""
    sys.stdout.write(to_json(value) + "\n")


def print_table(table: Sequence[Sequence[str]]) -> None:
    """A header and rows, the first column aligned left and the rest right."""
    from bertune.evaluate.tables import format_table

    sys.stdout.write(format_table(table) + "\n")


def check_target(out: str, *, overwrite: bool, inputs: Iterable[str], option: str = "--out") -> Path:
    """The path of a file to write at the end of the work; ConfigError where that could not be, or would cost a file.

    option: what named it.
    """
    path = Path(out)
    standing(path, f"{option} {out}")
    if path.is_dir():
        raise ConfigError(f"{option} {out}: is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {out}: there is no folder '{path.parent}'. Make it, or choose another place.")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{option} {out}: nothing can be written in '{path.parent}'. Choose another place.")
    if path.exists():
        if not path.is_file():
            raise ConfigError(f"{option} {out}: is a device or a pipe, not a file. Name a file.")
        if any(path.samefile(read) for name in inputs for read in local_files(name)):
            raise ConfigError(f"{option} {out}: is the file that is read; choose another name.")
        if not overwrite:
            raise ConfigError(
                f"{option} {out}: the file exists. Choose another name, or pass --overwrite to replace it."
            )
    return path


def shell_word(path: Path) -> str:
    """A path as it can be typed."""
    text = str(path)
    if os.name == "nt":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text)
