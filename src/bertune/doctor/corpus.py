"""All rows of all splits, one after another, as the doctor looks at them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bertune.data.ragged import Encoded
from bertune.data.read import Table
from bertune.data.rows import Rows
from bertune.data.tasks import Task
from bertune.doctor.findings import Place


@dataclass(frozen=True)
class Part:
    """One split. rows: its texts, blank ones allowed; targets: as `tasks.encode_labels` gives them; encoded: its
    tokens, cut as they are for training."""

    table: Table
    rows: Rows
    targets: np.ndarray
    encoded: Encoded


class Corpus:
    """n rows in the order of the splits. split [n]: index into `names`; targets [n] or [n, labels]; sides: one list of
    n texts, or for pairs two (the columns of a side joined by a space)."""

    def __init__(self, task: Task, parts: Mapping[str, Part]) -> None:
        self.task = task
        self.parts = dict(parts)
        self.names = tuple(parts)
        self._tables = [(part.table, part.table.short_names) for part in parts.values()]
        self.split = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts.values()])
        self.targets = np.concatenate([part.targets for part in parts.values()])
        self.starts = np.searchsorted(self.split, np.arange(len(parts)))
        sides = [part.rows.sides() for part in parts.values()]
        self.sides = [[text for part in column for text in part] for column in zip(*sides, strict=True)]

    def __len__(self) -> int:
        return len(self.split)

    @cached_property
    def keys(self) -> list[tuple[str, ...]]:
        """The normalised text of each row, a string a side: rows that share it say the same."""
        return list(zip(*([normalised(text) for text in side] for side in self.sides), strict=True))

    @cached_property
    def hot(self) -> np.ndarray:
        """Which labels each row has, bool [n, labels]."""
        if self.task.kind == "multi":
            return np.asarray(self.targets > 0.5)
        return np.asarray(self.targets[:, None] == np.arange(self.task.num_labels))

    def where(self, name: str) -> np.ndarray:
        """Numbers of the rows of a split."""
        return np.flatnonzero(self.split == self.names.index(name)) if name in self.names else np.array([], np.int64)

    def place(self, row: int) -> Place:
        """Where row `row` stands."""
        number = int(self.split[row])
        (table, files), index = self._tables[number], row - int(self.starts[number])
        file = files[table.file_index[index]]
        return {"split": self.names[number], "file": file, "row": int(table.row_numbers[index])}

    def places(self, rows: Iterable[int]) -> tuple[Place, ...]:
        return tuple(self.place(int(row)) for row in rows)

    def said(self, row: int) -> tuple[str, ...]:
        """The labels of a row."""
        target = self.targets[row]
        chosen = [int(target)] if self.task.kind == "single" else np.flatnonzero(target)
        return tuple(self.task.labels[number] for number in chosen)


def normalised(text: str) -> str:
    """The text without what a reader would not notice: case, width and composition of characters, runs of space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())
