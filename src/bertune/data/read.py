"""Any table -> one `Table` that knows the file and row of each of its rows.

`read_chunks` goes through files of any size in bounded memory; `read_table` is its chunks put together, so both give
the same rows, row numbers and types. `sniff` tells what kind of table a file is, `sources` what a name can stand for.

Cells of CSV, TSV and plain text are always text: 'NA', 'null' and '007' stay as they are written. JSON lines, Parquet,
Arrow and data frames keep numbers, booleans and lists.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertune.config import ReadConfig
from bertune.data.cells import frame_of_columns, frame_of_pandas, frame_of_rows
from bertune.data.formats import Reader, open_reader, plain_types
from bertune.data.sources import find_sources
from bertune.errors import ConfigError, DataError, listed, nearest

if TYPE_CHECKING:
    import polars as pl

FRAME = "data frame"
# Rows at a time where a whole table is wanted.
_ROWS = 65_536
# (file, column, value) -> how many rows were left out for it
_Dropped = Counter[tuple[str, str, str]]


class Table:
    """Columns of equal length; each row knows where it came from.

    `frame` holds the cells, `files` the names as the user gave them, `file_index` [n] int32 and `row_numbers` [n] int64
    the place of every row (numbers count the data rows of a file from 1), `notes` sentences for the user.
    """

    def __init__(
        self,
        frame: pl.DataFrame,
        *,
        files: tuple[str, ...] = (FRAME,),
        file_index: np.ndarray | None = None,
        row_numbers: np.ndarray | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        rows = frame.height
        self.frame = frame
        self.files = files
        self.file_index = np.zeros(rows, np.int32) if file_index is None else file_index
        self.row_numbers = np.arange(1, rows + 1, dtype=np.int64) if row_numbers is None else row_numbers
        self.notes = list(notes)

    def __len__(self) -> int:
        return self.frame.height

    def __repr__(self) -> str:
        return f"Table({listed(self.files, 3)}: {len(self):,} rows; {listed(self.columns)})"

    @property
    def columns(self) -> list[str]:
        return self.frame.columns

    def column(self, name: str) -> list[Any]:
        """The cells of a column as Python values (None: missing); a `DataError` where there is no such column."""
        if name not in self.frame.columns:
            raise DataError(self._no_column(name))
        return self.frame.get_column(name).to_list()

    def place(self, row: int) -> str:
        """`train.csv row 812`, for messages about row `row` (counted from 0) of this table."""
        return f"{self.files[self.file_index[row]]} row {self.row_numbers[row]}"

    @property
    def short_names(self) -> list[str]:
        """Names of the files without their folders; whole where two would be the same."""
        names = [Path(file).name for file in self.files]
        return names if len(set(names)) == len(names) else list(self.files)

    def take(self, indices: Sequence[int] | np.ndarray) -> Table:
        """The rows at `indices` (counted from 0), in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Table(
            self.frame[chosen],
            files=self.files,
            file_index=self.file_index[chosen],
            row_numbers=self.row_numbers[chosen],
            notes=self.notes,
        )

    def _no_column(self, name: str) -> str:
        near = nearest(name, self.columns) or f"; columns: {listed(self.columns) or 'none'}."
        text = f"{listed(self.files, 3)}: no column '{name}'{near}"
        if self.columns[:1] == ["column_1"]:
            text += " No header was found: pass --header yes if the first row is one, or --columns A,B,C."
        return text


def read_table(source: Any, options: ReadConfig | None = None, *, keep_all: bool = False) -> Table:
    """Read a table whole.

    source: a path, a pattern such as `parts/*.csv`, a list of these, a pandas, polars or Arrow frame, a list of dicts,
        a dict of columns, or a Table (which comes back as it is).
    options: how files are read; the defaults where None. Where it is a `DataConfig`, its column names help to find a
        header and the label column. `columns` is for files without names of their own, and ignored elsewhere.
    keep_all: leave no row out, whatever its label (what `predict` needs).

    Raises DataError for anything that cannot be used, ConfigError for options that cannot.
    """
    if isinstance(source, Table):
        return source
    import polars as pl

    chunks = list(read_chunks(source, options, rows=_ROWS, keep_all=keep_all))
    return Table(
        pl.concat([chunk.frame for chunk in chunks], rechunk=True),
        files=chunks[0].files,
        file_index=np.concatenate([chunk.file_index for chunk in chunks]),
        row_numbers=np.concatenate([chunk.row_numbers for chunk in chunks]),
        notes=chunks[-1].notes,
    )


def table_of(data: Any) -> Table:
    """Data in memory as `read_table` reads it, with all of its rows, or none."""
    return data if isinstance(data, Table) else Table(_frame(data))


def read_chunks(
    source: Any, options: ReadConfig | None = None, *, rows: int = 8192, keep_all: bool = False
) -> Iterator[Table]:
    """The rows of `read_table` in tables of at most `rows` rows, none of them empty; the last one carries the notes.

    Memory is bounded by the rows of two chunks; only Parquet that is packed or on the hub is held whole. Whether the
    files exist and have the same columns is checked before the first chunk comes; so is every row of JSON lines.
    """
    options = options or ReadConfig()
    if rows < 1:
        raise ConfigError(f"rows: a chunk has at least 1 row, not {rows}.")
    import polars as pl

    readers = _open(source, options)
    schema = _common_schema(readers)
    _check_layout(readers, options)
    marks = {} if keep_all else _labels_to_drop(list(schema), options)
    files = tuple(reader.name for reader in readers)
    dropped: _Dropped = Counter()
    held: Table | None = None
    for index, reader in enumerate(readers):
        first = 1
        dropped.update({(reader.name, column, value): 0 for column, values in marks.items() for value in values})
        for frame in reader.frames(rows):
            numbers = np.arange(first, first + frame.height, dtype=np.int64)
            first += frame.height
            kept = _kept(frame, reader.name, marks, dropped)
            if not kept.any():
                continue
            if held is not None:
                yield held
            if frame.schema != schema:
                frame = pl.DataFrame({name: frame.get_column(name).cast(kind) for name, kind in schema.items()})
            if not kept.all():
                frame, numbers = frame.filter(kept), numbers[kept]
            held = Table(frame, files=files, file_index=np.full(len(numbers), index, np.int32), row_numbers=numbers)
    notes = _notes(dropped, options)
    if held is None:
        raise DataError(f"{listed(files, 3)}: no rows are left. {' '.join(notes)}")
    held.notes = notes
    yield held


def _open(source: Any, options: ReadConfig) -> list[Reader]:
    """Readers for whatever `source` is."""
    if isinstance(source, str | Path):
        return [open_reader(file, options) for file in find_sources(source)]
    if isinstance(source, Sequence) and source and all(isinstance(item, str | Path) for item in source):
        return [open_reader(file, options) for item in source for file in find_sources(item)]
    frame = _frame(source)
    if not frame.width or not frame.height:
        raise DataError(f"{FRAME}: has no rows (columns: {listed(frame.columns) or 'none'}).")
    return [Reader(FRAME, dict(frame.schema), frame.iter_slices)]


def _frame(source: Any) -> pl.DataFrame:
    import polars as pl
    from polars.exceptions import PolarsError

    if isinstance(source, pl.DataFrame | pl.LazyFrame):
        return plain_types(source.lazy()).collect()
    pandas = sys.modules.get("pandas")  # a pandas frame can only come from where pandas is imported
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return frame_of_pandas(source, FRAME)
    if isinstance(source, Mapping):
        return frame_of_columns(source, FRAME)
    if isinstance(source, Sequence):
        return frame_of_rows(source, FRAME)
    if hasattr(source, "__arrow_c_stream__") and not isinstance(source, pl.Series):
        names = list(getattr(source, "column_names", ()))
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{FRAME}: '{twice}' names two columns. Rename one.")
        with suppress(PolarsError):  # a column alone, such as a Series
            return plain_types(pl.DataFrame(source).lazy()).collect()
    raise DataError(
        f"a table cannot be read from {type(source).__name__}; expected a file name or several, a pattern, "
        "a pandas, polars or Arrow frame, a list of dicts or a dict of columns."
    )


def _common_schema(readers: Sequence[Reader]) -> pl.Schema:
    """The columns of all files, in the order of the first; numbers widen, a number beside text becomes text."""
    import polars as pl

    head = readers[0]
    schema = pl.Schema(head.schema)
    for reader in readers[1:]:
        missing = [name for name in schema if name not in reader.schema]
        extra = [name for name in reader.schema if name not in schema]
        if missing or extra:
            odd, name, place = (reader, missing[0], head) if missing else (head, extra[0], reader)
            raise DataError(
                f"{odd.name}: has no column '{name}', which {place.name} has; its columns: {listed(odd.schema)}. "
                "Files that are read together need the same columns."
            )
        for name, kind in reader.schema.items():
            if kind == schema[name]:
                continue
            nested = schema[name].is_nested() or kind.is_nested()
            if schema[name] == pl.Null:
                schema[name] = kind
            elif nested and kind != pl.Null:
                raise DataError(
                    f"{reader.name}, column '{name}': holds {kind}, where {head.name} holds {schema[name]}. "
                    "Files that are read together need the same columns."
                )
            elif kind != pl.Null:
                numbers = schema[name].is_numeric() and kind.is_numeric()
                whole = numbers and schema[name].is_integer() and kind.is_integer()
                schema[name] = pl.Int64() if whole else pl.Float64() if numbers else pl.String()
    return schema


def _check_layout(readers: Sequence[Reader], options: ReadConfig) -> None:
    if options.layout == "snli" and _layout_label(list(readers[0].schema)) is None:
        wanted = "gold_label, sentence1, sentence2"
        raise DataError(
            f"{readers[0].name}: --layout snli expects columns {wanted}; found {listed(readers[0].schema)}. "
            f"Drop the option, or name the columns with --columns."
        )


def _layout_label(columns: Sequence[str]) -> str | None:
    """The label column of SNLI's layout (gold_label) or OCNLI's (label, beside the annotators' label0); else None."""
    if not {"sentence1", "sentence2"} <= set(columns):
        return None
    if "gold_label" in columns:
        return "gold_label"
    return "label" if {"label", "label0"} <= set(columns) else None


def _labels_to_drop(columns: Sequence[str], options: ReadConfig) -> dict[str, list[str]]:
    """Column -> values whose rows are left out: `drop_label`, and '-' (annotators disagree) in SNLI and OCNLI."""
    named = [name for name in getattr(options, "label", []) if name in columns]
    marks: dict[str, list[str]] = {}
    if options.drop_label:
        labels = named or [name for name in ("label", "gold_label") if name in columns][:1]
        if not labels and not getattr(options, "label", []):
            raise ConfigError(
                f"--drop-label: no column 'label' among {listed(columns)}; name the label column with --label."
            )
        marks = {name: list(dict.fromkeys(options.drop_label)) for name in labels}
    layout = _layout_label(columns)
    if layout is not None and (layout in named or not getattr(options, "label", [])):
        values = marks.setdefault(layout, [])
        if "-" not in values:
            values.append("-")
    return marks


def _kept(frame: pl.DataFrame, file: str, marks: Mapping[str, Sequence[str]], dropped: _Dropped) -> np.ndarray:
    """bool [rows]; every row that goes is counted once, under the first column and value that it goes for."""
    import polars as pl

    kept = np.ones(frame.height, dtype=bool)
    for column, values in marks.items():
        if frame.schema[column].is_nested():
            raise ConfigError(f"--drop-label: column '{column}' of {file} holds lists, not single values.")
        if frame.schema[column] in (pl.Binary, pl.Object):  # no text; where labels are read, that is said with its row
            continue
        cells = frame.get_column(column).cast(pl.String)
        for value in values:
            hit = (cells == value).fill_null(False).to_numpy() & kept
            dropped[file, column, value] += int(hit.sum())
            kept &= ~hit
    return kept


def _notes(dropped: _Dropped, options: ReadConfig) -> list[str]:
    """One sentence for each file and value. That nothing was dropped is said only where the user asked for it."""
    return [
        f"{file}: left out {count:,} row{'' if count == 1 else 's'} whose {column} is '{value}'."
        for (file, column, value), count in dropped.items()
        if count or value in options.drop_label
    ]
