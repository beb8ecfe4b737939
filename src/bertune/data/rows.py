"""The texts of rows: from a table's columns, or from what a Python caller hands in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bertune.errors import DataError, listed, nearest

if TYPE_CHECKING:
    from bertune.data.read import Table
    from bertune.data.tasks import Task


@dataclass(frozen=True)
class Rows:
    """Texts of n rows: `first` has one list of n texts per text column, `second` the same for the other side of a pair.

    The columns of a side are joined by the tokenizer's separator token later. A text that was given whole for a side of
    several columns stands in the first of them, with '' in the others: empty columns after the first are not joined.
    """

    first: tuple[list[str], ...]
    second: tuple[list[str], ...] | None = None

    def __post_init__(self) -> None:
        lengths = {len(column) for column in self.first + (self.second or ())}
        if not self.first or self.second == () or len(lengths) != 1:
            raise ValueError(f"Rows needs columns of one length on each side, found lengths {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.first[0])

    def sides(self) -> list[list[str]]:
        """A list of n texts for each side, its columns joined by a space."""
        sides = [self.first] if self.second is None else [self.first, self.second]
        return [columns[0] if len(columns) == 1 else [" ".join(cells) for cells in zip(*columns, strict=True)]
                for columns in sides]  # fmt: skip

    def slice(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop` (excluded)."""
        first = tuple(column[start:stop] for column in self.first)
        return Rows(first, None if self.second is None else tuple(column[start:stop] for column in self.second))

    @classmethod
    def stacked(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of one or more `Rows` with the same columns, in order."""

        def side(columns: Sequence[tuple[list[str], ...]]) -> tuple[list[str], ...]:
            return tuple([text for texts in same for text in texts] for same in zip(*columns, strict=True))

        seconds = [part.second for part in parts if part.second is not None]
        return cls(side([part.first for part in parts]), side(seconds) if seconds else None)


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: null, NaN, or white space only."""
    if isinstance(value, str):
        return not value or value.isspace()
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas' NA is neither equal nor unequal to anything
        return True


def rows_of(task: Task, table: Table, *, allow_empty: bool) -> Rows:
    """The texts of `table`, one row each, in its order.

    Numbers become text. A cell that is null, and a side whose columns are all blank, is a `DataError` that names the
    row unless `allow_empty` (null is '' then); a cell that is neither text nor number always is one.
    """
    first = _side(table, task.text, allow_empty)
    return Rows(first, _side(table, task.text_pair, allow_empty) if task.is_pair else None)


def _side(table: Table, names: tuple[str, ...], allow_empty: bool) -> tuple[list[str], ...]:
    columns = tuple(cell_texts(table, name, allow_empty) for name in names)
    if not allow_empty:
        for row, cells in enumerate(zip(*columns, strict=True)):
            if all(is_missing(cell) for cell in cells):
                where = ", ".join(f"'{name}'" for name in names)
                plural = "s" if len(names) > 1 else ""
                raise DataError(
                    f"{table.place(row)}, column{plural} {where}: the text is empty. Fill it in, or remove the row."
                )
    return columns


def cell_texts(table: Table, name: str, allow_empty: bool) -> list[str]:
    """The cells of a column as texts, as `rows_of` reads them."""
    texts = []
    for row, cell in enumerate(table.column(name)):
        if isinstance(cell, str):
            texts.append(cell)
        elif is_missing(cell):
            if not allow_empty:
                place = f"{table.place(row)}, column '{name}'"
                raise DataError(f"{place}: the text is missing. Fill it in, or remove the row.")
            texts.append("")
        elif isinstance(cell, int | float):
            texts.append(str(cell))
        else:
            raise DataError(
                f"{table.place(row)}, column '{name}': expected text, found {type(cell).__name__} ({_short(cell)}). "
                "Name a column of texts with --text or --text-pair."
            )
    return texts


def rows_from_python(task: Task, rows: Any) -> Rows:
    """The texts of `rows`: a list with one item a row, a data frame, a dict of columns, or a `Table`; order is kept.

    An item is a string (the whole text), a tuple or list (both sides of a pair, or one text per text column), or a dict
    by column name. Empty texts are allowed. Anything else is a `DataError` that names the item.
    """
    columns = task.text + task.text_pair
    if isinstance(rows, np.ndarray) and not rows.ndim:  # an array without axes holds one value
        rows = rows.item()
    if isinstance(rows, str | bytes):
        kind = type(rows).__name__
        raise DataError(f"expected a list of rows, found one {kind}; write [{_short(rows)}] for one row.")
    if isinstance(rows, Mapping) and any(isinstance(value, str) for value in rows.values()):
        raise DataError("expected a list of rows, found one dict; write [{...}] for one row.")
    if isinstance(rows, Mapping) or hasattr(rows, "columns") or hasattr(rows, "column_names"):
        from bertune.data.read import table_of

        return rows_of(task, table_of(rows), allow_empty=True)
    if not isinstance(rows, Iterable):
        raise DataError(f"expected a list of rows, found {type(rows).__name__}.")
    cells = [_cells(task, item, f"rows[{index}]") for index, item in enumerate(rows)]
    by_column = tuple([row[index] for row in cells] for index in range(len(columns)))
    sides = len(task.text)
    return Rows(by_column[:sides], by_column[sides:] if task.is_pair else None)


def _cells(task: Task, item: object, place: str) -> list[str]:
    """One text per column of the task, those of the first side before those of the second."""
    columns = task.text + task.text_pair
    if isinstance(item, str):
        if task.is_pair:
            raise DataError(f"{place}: this task reads pairs, (first, second); found one text ({_short(item)}).")
        return [item] + [""] * (len(columns) - 1)
    if isinstance(item, Mapping):
        return [_cell_of_dict(item, name, place) for name in columns]
    if isinstance(item, tuple | list | np.ndarray):
        texts = [_text(value, f"{place}[{index}]") for index, value in enumerate(item)]
        if len(texts) == len(columns):
            return texts
        if task.is_pair and len(texts) == 2:
            blank = [""] * (len(task.text) - 1), [""] * (len(task.text_pair) - 1)
            return [texts[0], *blank[0], texts[1], *blank[1]]
        wanted = f"{len(columns)} text{'' if len(columns) == 1 else 's'} ({listed(columns)})"
        raise DataError(f"{place}: expected {wanted}, found {len(texts)}.")
    wanted = "(first, second)" if task.is_pair else "a string"
    raise DataError(f"{place}: expected {wanted} or a dict by column, found {type(item).__name__} ({_short(item)}).")


def _cell_of_dict(item: Mapping[Any, Any], name: str, place: str) -> str:
    if name not in item:
        keys = [str(key) for key in item]
        near = nearest(name, keys) or f"; it has {listed(keys) or 'none'}."
        raise DataError(f"{place}: no column '{name}'{near}")
    value = item[name]
    if is_missing(value) and not isinstance(value, str):
        return ""
    if isinstance(value, int | float):
        return str(value)
    return _text(value, f"{place}['{name}']")


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: expected text, found {type(value).__name__} ({_short(value)}).")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
