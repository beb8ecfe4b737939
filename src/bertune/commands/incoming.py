"""What `bertune predict` reads: files, or stdin as a table or as one text a line; in tables of bounded size."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from bertune.commands.opening import with_model_columns
from bertune.config import DataConfig
from bertune.data.sources import BAD, check_encoding, reading
from bertune.errors import ConfigError, DataError
from bertune.progress import Display

if TYPE_CHECKING:
    from bertune.data.read import Table
    from bertune.data.tasks import Task

ROWS = 8192  # in memory at once
STDIN = "stdin"


def tables_of_files(files: list[str], data: DataConfig, task: Task) -> tuple[Task, Iterator[Table]]:
    """The task over the columns that hold the texts here, and the rows."""
    from bertune.data.read import read_chunks

    named = with_model_columns(data, task, label=False)
    tables = read_chunks(files, named, rows=ROWS, keep_all=True)
    first = next(tables)
    text = tuple(named.text)
    if not data.text and not task.is_pair and first.columns == ["text"]:
        text = ("text",)  # a file of one text a line, whatever the columns were called in training
    return replace(task, text=text, text_pair=tuple(named.text_pair)), chain([first], tables)


def stdin_bytes() -> BinaryIO:
    """Standard input; ConfigError where the process was started without one."""
    if sys.stdin is None:
        raise ConfigError("-: there is no standard input, it is closed; pipe the rows in, or name a file.")
    return sys.stdin.buffer


@contextmanager
def spooled() -> Iterator[str]:
    """Stdin as a file, since a table is looked at before it is read; errors call it `stdin`."""
    with tempfile.TemporaryDirectory(prefix="bertune-") as folder:
        path = Path(folder) / STDIN
        with path.open("wb") as file:
            shutil.copyfileobj(stdin_bytes(), file, 1 << 20)
        try:
            yield str(path)
        except (DataError, ConfigError) as error:
            raise type(error)(str(error).replace(str(path), STDIN)) from None


def tables_of_lines(stream: BinaryIO, data: DataConfig, task: Task, display: Display) -> tuple[Task, Iterator[Table]]:
    """The task over the columns that lines are put in, and the rows. A blank line is a row too.

    A line is a whole text, or both sides of a pair with a tab between. A byte that is not of the encoding becomes the
    replacement character, with a word, since no row may be lost. At a terminal every line is answered at once.
    """
    import polars as pl

    from bertune.data.read import Table

    simple = len(task.text) == 1 and len(task.text_pair) <= 1
    names = [*task.text, *task.text_pair] if simple else ["text", "text_pair"][: 1 + task.is_pair]
    placed = replace(task, text=(names[0],), text_pair=tuple(names[1:]))
    rows = 1 if stream.isatty() else ROWS
    if stream.isatty():
        display.say("One pair a line, a tab between its sides." if task.is_pair else "One text a line.")

    def tables() -> Iterator[Table]:
        done = 0
        lines = _lines(stream, data.encoding or "utf-8", display)
        while chunk := list(islice(lines, rows)):
            numbered = enumerate(chunk, done + 1)
            cells = [_pair(line, number) for number, line in numbered] if task.is_pair else [(line,) for line in chunk]
            columns = zip(names, zip(*cells, strict=True), strict=True)
            frame = pl.DataFrame([pl.Series(name, texts, dtype=pl.String) for name, texts in columns])
            yield Table(frame, files=(STDIN,))
            done += len(chunk)
        if not done:
            raise DataError(f"{STDIN}: is empty; expected one text a line.")

    return placed, tables()


def _lines(stream: BinaryIO, encoding: str, display: Display) -> Iterator[str]:
    """Lines without their ends."""
    text = io.TextIOWrapper(stream, encoding=check_encoding(encoding), errors="surrogateescape", newline="\n")
    damaged = 0
    with reading(STDIN):  # of UTF-16 and the like not every byte can be replaced
        for line in text:
            if not line.isascii() and BAD.search(line):
                damaged += 1
                line = BAD.sub("\ufffd", line)
            yield line.removesuffix("\n").removesuffix("\r")
    if damaged:
        display.line(
            f"{STDIN}: lines with bytes that are not {encoding}: {damaged:,}; read with replacement characters. "
            "Pass the --encoding that it was written in, for example latin-1."
        )


def _pair(line: str, number: int) -> tuple[str, ...]:
    sides = tuple(line.split("\t")) if line else ("", "")
    if len(sides) != 2:
        raise DataError(
            f"{STDIN} line {number}: expected the two texts of a pair with one tab between, found "
            f"{len(sides)} {'text' if len(sides) == 1 else 'texts'}. Fix the line, or pass --format csv or jsonl."
        )
    return sides
