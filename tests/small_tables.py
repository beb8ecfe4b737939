"""Small files and tables for tests of reading and of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertune.config import DataConfig, ReadConfig
from bertune.data.read import Table, read_table
from bertune.data.tasks import Task, infer_task


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def rows(table: Table) -> list[tuple[object, ...]]:
    return table.frame.rows()


def table(columns: Mapping[str, Any]) -> Table:
    return read_table(columns, ReadConfig())


def csv(folder: Path, text: str, name: str = "train.csv") -> Table:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_table(path, ReadConfig())


def infer(columns: Mapping[str, Any], **options: Any) -> tuple[Task, str]:
    return infer_task(table(columns), DataConfig(**options))


def papers() -> dict[str, list[Any]]:
    """Two text columns and three 0/1 columns."""
    return {
        "ID": ["17", "18", "19"], "TITLE": ["t1", "t2", "t3"], "ABSTRACT": ["a1", "a2", "a3"],
        "Computer Science": ["1", "0", "1"], "Physics": ["0", "1", "1"], "Mathematics": ["0", "0", "0"],
    }


def reviews(**more: list[Any]) -> dict[str, list[Any]]:
    """One label a row."""
    return {"text": ["good", "bad", "so so"], "label": ["pos", "neg", "neutral"]} | more
