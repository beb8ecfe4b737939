"""Python values -> typed columns: JSON lines, lists of dicts, dicts of columns, pandas frames.

A column gets one type from all its values, so that a file read in pieces equals the file read at once: text, whole
numbers, numbers, booleans, bytes, or lists of one of these. Values that do not go together (3 and "three") become text,
as JSON writes them; None stays None, and a NaN among texts is None. Bytes go with nothing: they are not text, which is
an error where they stand among texts, and where they are used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bertune.errors import DataError

if TYPE_CHECKING:
    import polars as pl

_Scalar = Literal["text", "int", "float", "bool", "bytes"]
_INT64 = 2**63


@dataclass
class Kinds:
    """The kinds of value seen in a column, and in its lists."""

    values: set[type] = field(default_factory=set)
    items: set[type] = field(default_factory=set)

    def add(self, value: Any) -> None:
        kind = type(value)
        if kind is list:
            self.items.update(_kind(item) for item in value)
        self.values.add(_kind(value) if kind is int else kind)

    @property
    def scalar(self) -> _Scalar:
        return _scalar(self.items if self.is_list else self.values)

    @property
    def is_list(self) -> bool:
        return self.values - {type(None)} == {list} and not self.items & {list, dict}

    def dtype(self) -> pl.DataType:
        import polars as pl

        types: dict[_Scalar, pl.DataType] = {
            "text": pl.String(), "int": pl.Int64(), "float": pl.Float64(), "bool": pl.Boolean(), "bytes": pl.Binary(),
        }  # fmt: skip
        inner = types[self.scalar]
        return pl.List(inner) if self.is_list else inner


def _kind(value: Any) -> type:
    """Its type; `dict`, the type that never goes with another, for a number beyond 64 bits."""
    return dict if type(value) is int and not -_INT64 <= value < _INT64 else type(value)


def _scalar(kinds: set[type]) -> _Scalar:
    kinds = kinds - {type(None)}
    if kinds == {int}:
        return "int"
    if kinds in ({float}, {int, float}):
        return "float"
    return "bool" if kinds == {bool} else "bytes" if kinds == {bytes} else "text"


def series(name: str, values: Sequence[Any], kinds: Kinds, place: str, *, first: int = 1) -> pl.Series:
    """One column; `place` names the table and `first` the row of the first value in errors (invalid Unicode, bytes)."""
    import polars as pl

    cells: Sequence[Any] = values
    if kinds.scalar == "text" and bytes in kinds.values | kinds.items:
        raise DataError(_bytes_among_others(name, values, place, first))
    if kinds.scalar == "text":
        plain = {str, type(None)}
        if kinds.is_list:
            if not kinds.items <= plain:
                cells = [None if cell is None else [_text(item) for item in cell] for cell in values]
        elif not kinds.values <= plain:
            cells = [_text(cell) for cell in values]
    elif kinds.scalar == "float" and not kinds.is_list:
        cells = [None if cell is None else float(cell) for cell in values]
    elif kinds.scalar == "float":
        cells = [None if cell is None else [None if item is None else float(item) for item in cell] for cell in values]
    try:
        return pl.Series(name, cells, dtype=kinds.dtype(), strict=True)
    except UnicodeEncodeError:
        raise DataError(_broken_text(name, values, place, first)) from None


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _bytes_among_others(name: str, values: Sequence[Any], place: str, first: int) -> str:
    row, found = next(
        (row, item) for row, value in enumerate(values, start=first)
        for item in (value if isinstance(value, list) else [value]) if type(item) is bytes
    )  # fmt: skip
    return f"{place} row {row}, column '{name}': expected text, found bytes ({found!r:.60}). Decode them first."


def _broken_text(name: str, values: Sequence[Any], place: str, first: int) -> str:
    for row, value in enumerate(values, start=first):
        text = _text(value) or ""
        broken = next((character for character in text if "\ud800" <= character <= "\udfff"), None)
        if broken is not None:
            half = f"\\u{ord(broken):04x}"
            return f"{place} row {row}, column '{name}': {half} is half of a character. Fix the row."
    return f"{place}, column '{name}': a character that is not valid Unicode. Fix the row."


def frame_of_columns(columns: Mapping[Any, Iterable[Any]], place: str) -> pl.DataFrame:
    """A frame from a dict of columns; lengths that differ are a `DataError`."""
    import polars as pl

    made: dict[str, pl.Series] = {}
    for key, column in columns.items():
        name = str(key)
        if isinstance(column, str | bytes) or not isinstance(column, Iterable):
            raise DataError(f"{place}, column '{name}': expected a list of values, found {column!r:.60}.")
        if name in made:
            raise DataError(f"{place}: '{name}' names two columns. Rename one.")
        values = [_plain(value) for value in column]
        kinds = Kinds()
        for value in values:
            kinds.add(value)
        if kinds.scalar == "text":
            values = [[_said(item) for item in value] if kinds.is_list and value else _said(value) for value in values]
        made[name] = series(name, values, kinds, place)
    lengths = {name: len(column) for name, column in made.items()}
    if len(set(lengths.values())) > 1:
        shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
        raise DataError(
            f"{place}: column '{shortest}' has {lengths[shortest]} values and column '{longest}' has "
            f"{lengths[longest]}; all columns must be equally long."
        )
    return pl.DataFrame(made)


def frame_of_rows(rows: Sequence[Any], place: str) -> pl.DataFrame:
    """A frame from a list of dicts; a key that a row lacks is None there."""
    names: dict[Any, None] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise DataError(f"{place} row {number}: expected a dict by column, found {row!r:.60}.")
        names.update(dict.fromkeys(row))
    return frame_of_columns({name: [row.get(name) for row in rows] for name in names}, place)


def frame_of_pandas(frame: Any, place: str) -> pl.DataFrame:
    """A frame from pandas; missing values of every kind become None."""
    columns: dict[str, list[Any]] = {}
    for index, label in enumerate(frame.columns):
        name, column = str(label), frame.iloc[:, index]
        if name in columns:
            raise DataError(f"{place}: '{name}' names two columns. Rename one.")
        columns[name] = [None if gone else cell for cell, gone in zip(column.tolist(), column.isna(), strict=True)]
    return frame_of_columns(columns, place)


def _said(value: Any) -> Any:
    """Numbers and booleans of Python among texts as labels of their own kind are written: 1 for 1.0, True for True."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, bool) else value


def _plain(value: Any) -> Any:
    """numpy scalars and arrays, tuples and sets as plain Python; a set in sorted order."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
