"""The command line for tests: as a real process, or in this one where starting Python anew would take too long."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, "-m", "bertune")


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What is on stdout, which has to be one JSON value on one line."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}  # as bad as a console can be


def bertune(*arguments: str | Path, stdin: str | bytes = b"") -> Done:
    """Run `bertune ...` as a process of its own."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)], input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True, timeout=120, check=False, env=environment(),
    )  # fmt: skip
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def call(*arguments: str | Path, stdin: str | bytes = b"") -> Done:
    """The same in this process, from sys.argv to the exit code."""
    from bertune.cli import main

    raw = stdin.encode() if isinstance(stdin, str) else stdin
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(2))
    log = logging.getLogger("bertune")
    saved = sys.argv, sys.stdin, sys.stdout, sys.stderr, sys.excepthook
    logged = log.handlers, log.level, log.propagate
    sys.argv, sys.stdin, sys.stdout, sys.stderr = (
        ["bertune", *map(str, arguments)], io.TextIOWrapper(io.BytesIO(raw)), out, err
    )  # fmt: skip
    try:
        main()
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr, sys.excepthook = saved
        log.handlers, log.level, log.propagate = logged
    for stream in (out, err):
        stream.flush()
    return Done(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Dicts with the same keys as CSV, or as TSV or JSON lines by the name."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return path
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    """A CSV or TSV as dicts."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
