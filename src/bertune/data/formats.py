"""One file of each format -> data frames of so many rows, in order, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bertune.config import ReadConfig
from bertune.data.cells import Kinds, series
from bertune.data.sniff import MAX_CELL, TREC_LINE, Plan, cell_limit, csv_rows, make_plan
from bertune.data.sources import BAD, NUL, Source, check_text, reading
from bertune.errors import DataError, listed

if TYPE_CHECKING:
    import polars as pl

# Parquet is cut at this many rows at least, since every cut opens a row group again.
_PARQUET_ROWS = 65_536
# JSON lines up to this size stay in memory after the look at all rows; larger files are parsed a second time.
_KEPT_CHARACTERS, _KEPT_ROWS = 50_000_000, 100_000


@dataclass(frozen=True)
class Reader:
    """A file that was looked at: its columns and their types, and its rows in frames of at most n, from the start."""

    name: str
    schema: dict[str, pl.DataType]
    frames: Callable[[int], Iterator[pl.DataFrame]]


def open_reader(source: Source, options: ReadConfig) -> Reader:
    """Find out how `source` is to be read. JSON lines are gone through once here, for their columns and types."""
    plan = make_plan(source, options)
    if plan.format in ("parquet", "arrow"):
        return _binary_reader(source, plan)
    if plan.format == "jsonl":
        return _json_reader(source, plan)
    chunks = {"delimited": _delimited_rows, "trec": _trec_rows, "text": _text_rows}[plan.format]

    import polars as pl

    schema: dict[str, pl.DataType] = dict.fromkeys(plan.columns, pl.String())

    def frames(rows: int) -> Iterator[pl.DataFrame]:
        for chunk in chunks(source, plan, rows):
            if not chunk:
                continue
            columns = zip(plan.columns, zip(*chunk, strict=True), strict=True)
            yield pl.DataFrame({name: pl.Series(name, cells, dtype=pl.String) for name, cells in columns})

    return Reader(source.name, schema, frames)


def _watched(lines: Iterable[str], record: list[str], bad: list[str]) -> Iterator[str]:
    """Pass lines on; `record` collects those of the present row, `bad` those with a NUL or an undecodable byte."""
    for line in lines:
        if "\0" in line:  # Python 3.10's csv module refuses it without a place
            line = line.replace("\0", NUL)
            bad.append(line)
        elif not line.isascii() and BAD.search(line):
            bad.append(line)
        record.append(line)
        yield line


def _delimited_rows(source: Source, plan: Plan, rows: int) -> Iterator[list[list[str]]]:
    width = len(plan.columns)
    record: list[str] = []
    bad: list[str] = []
    with source.text(plan.encoding) as stream:
        reader = csv_rows(_watched(stream, record, bad), plan.delimiter, quoted=plan.quoted, strict=True)
        before = -1 if plan.header else 0  # rows of earlier chunks; the header is row 0
        # Where a row is one cell, an empty text is written as a blank line: between others it is a row as well.
        blank, held = 0, deque[list[str]]()
        ended = False
        while not ended:
            chunk: list[list[str]] = []
            wanted = rows - min(before, 0)
            try:
                with cell_limit(MAX_CELL):
                    while len(chunk) < wanted and not ended:
                        if held:
                            chunk.append(held.popleft())
                            continue
                        row = next(reader, None)
                        if row is None:
                            ended = True
                        elif bad or len(row) != width:
                            if bad or not _is_blank(row):
                                raise _row_error(source, plan, row, before + len(chunk) + blank + 1)
                            blank += width == 1 and (before >= 0 or bool(chunk))
                        else:
                            held.extend([[""]] * blank + [row])
                            blank = 0
                        record.clear()
            except csv.Error:
                raise _record_error(source, plan, "".join(record), before + len(chunk) + blank + 1) from None
            yield chunk[1:] if before < 0 else chunk
            before += len(chunk)


def _is_blank(row: list[str]) -> bool:
    return not row or (len(row) == 1 and not row[0].strip())


def _place(source: Source, number: int) -> str:
    return f"{source.name} row {number}" if number else f"{source.name} header"


def _row_error(source: Source, plan: Plan, row: list[str], number: int) -> DataError:
    """The error for a row that was cut into cells, yet cannot be used."""
    place = _place(source, number)
    for name, cell in zip([*plan.columns, *("beyond the last" for _ in row[len(plan.columns) :])], row, strict=False):
        try:
            check_text(cell, f"{place}, column '{name}'", plan.encoding)
        except DataError as error:
            return error
    quoting = "literal if quotes belong to the texts" if plan.quoted else "quoted if quotes enclose cells"
    wanted = f"{len(plan.columns)} {'is' if len(plan.columns) == 1 else 'are'} expected"
    return DataError(
        f"{place}: has {len(row)} cell{'' if len(row) == 1 else 's'} where {wanted} ({listed(plan.columns)}); "
        f"it begins '{_start(row[0])}'. Fix the row, or pass --quoting {quoting}."
    )


def _record_error(source: Source, plan: Plan, record: str, number: int) -> DataError:
    """The error for a row that the csv module gave up on: a huge cell, or quotes that do not fit."""
    with cell_limit(len(record)):
        row = next(csv_rows(io.StringIO(record, newline=""), plan.delimiter, quoted=plan.quoted), [""])
    place = _place(source, number)
    names = [*plan.columns, *(f"number {index + 1}" for index in range(len(plan.columns), len(row)))]
    for name, cell in zip(names, row, strict=False):
        if len(cell) > MAX_CELL:
            literal = " (a quote that is never closed does this), or pass --quoting literal" if plan.quoted else ""
            return DataError(
                f"{place}, column '{name}': the cell that begins '{_start(cell)}' has more than {MAX_CELL:,} "
                f"characters. Fix the row{literal}."
            )
    return DataError(
        f"{place}: its quotes do not fit; it begins '{_start(record)}'. Inside quotes a quote is doubled, and after "
        "the closing one comes the delimiter. Fix the row, or pass --quoting literal if quotes belong to the texts."
    )


def _start(text: str, length: int = 40) -> str:
    text = " ".join(text[: 4 * length].split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _lines(source: Source, plan: Plan, column: str) -> Iterator[str]:
    """Lines without their ends, checked; blank ones at the end of the file are left out."""
    blank = 0
    with source.text(plan.encoding) as stream:
        for number, line in enumerate(stream, start=1):
            text = line.rstrip("\r\n")
            if not text.strip():
                blank += 1
                continue
            place = f"{source.name} line {number}, column '{column}'"
            check_text(text.replace("\0", NUL), place, plan.encoding)
            if len(text) > MAX_CELL:
                raise DataError(f"{place}: '{_start(text)}' has more than {MAX_CELL:,} characters. Fix the line.")
            yield from [""] * blank
            blank = 0
            yield text


def _chunked(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _text_rows(source: Source, plan: Plan, rows: int) -> Iterator[list[list[str]]]:
    """One text a line. A blank line between others is a row too, so that row n is line n."""
    if len(plan.columns) != 1:
        raise DataError(f"{source.name}: one text a line has 1 column, and --columns names {len(plan.columns)}.")
    return _chunked(([line] for line in _lines(source, plan, plan.columns[0])), rows)


def _trec_rows(source: Source, plan: Plan, rows: int) -> Iterator[list[list[str]]]:
    return _chunked(_trec(source, plan), rows)


def _trec(source: Source, plan: Plan) -> Iterator[list[str]]:
    number = 0
    for line in _lines(source, plan, "text"):
        if not line.strip():
            continue
        number += 1
        parts = TREC_LINE.fullmatch(line)
        if parts is None:
            raise DataError(
                f"{source.name} row {number}: '{_start(line)}' is not 'COARSE:fine question', the TREC layout. "
                "Fix the row; or, if the file is no such one, leave out --layout trec or pass its --format."
            )
        yield [parts[1], f"{parts[1]}:{parts[2]}", parts[3]]


_Pairs = Callable[[list[tuple[str, Any]]], Any]


def _json_rows(source: Source, plan: Plan, *, pairs: _Pairs | None = None) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects, each with the length of its line."""
    with source.text(plan.encoding) as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                continue
            place = f"{source.name} line {number}"
            check_text(line.replace("\0", NUL) if "\0" in line else line, place, plan.encoding)
            try:
                row = json.loads(line, object_pairs_hook=pairs)
            except RecursionError:
                raise DataError(f"{place}: is nested too deeply. Fix the line.") from None
            except ValueError as error:
                raise DataError(
                    f"{place}: is not JSON ({error}); it begins '{_start(line)}'. Write one object {{...}} a line."
                ) from None
            if not isinstance(row, dict):
                raise DataError(f"{place}: expected an object {{...}}, found '{_start(line)}'.")
            if len(line) > MAX_CELL:
                name = max(row, key=lambda key: len(str(row[key])))
                raise DataError(
                    f"{place}, column '{name}': the row has more than {MAX_CELL:,} characters; this value begins "
                    f"'{_start(str(row[name]))}'. Fix the row."
                )
            yield row, len(line)


def _json_reader(source: Source, plan: Plan) -> Reader:
    seen: dict[str, Kinds] = {}
    number = characters = 0
    kept: list[dict[str, Any]] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{source.name} row {number + 1}: key '{twice}' stands twice in an object. Fix the row.")
        return row

    for row, length in _json_rows(source, plan, pairs=unique):
        number += 1
        characters += length
        if characters <= _KEPT_CHARACTERS and number <= _KEPT_ROWS:
            kept.append(row)
        else:
            kept.clear()
        for name, value in row.items():
            if name not in seen:
                seen[name] = Kinds()
            seen[name].add(value)
    if not seen:
        raise DataError(f"{source.name}: its objects have no keys, so there are no columns.")

    import polars as pl

    def frames(rows: int) -> Iterator[pl.DataFrame]:
        first = 1
        for chunk in _chunked(kept or (row for row, _ in _json_rows(source, plan)), rows):
            yield pl.DataFrame(
                {
                    name: series(name, [row.get(name) for row in chunk], kinds, source.name, first=first)
                    for name, kinds in seen.items()
                }
            )
            first += len(chunk)

    return Reader(source.name, {name: kinds.dtype() for name, kinds in seen.items()}, frames)


@contextmanager
def _polars_errors(source: Source, plan: Plan) -> Iterator[None]:
    from polars.exceptions import PolarsError

    try:
        with reading(source.name):
            yield
    except PolarsError as error:
        reason = " ".join(str(error).split())[:200]
        kind = plan.format.capitalize()
        raise DataError(f"{source.name}: is not a readable {kind} file ({reason}). Write it again.") from None


def plain_types(table: pl.LazyFrame) -> pl.LazyFrame:
    """Categories become their text, fixed-size arrays lists; other types stay."""
    import polars as pl
    import polars.selectors as cs

    schema = table.collect_schema()
    categories = [name for name, kind in schema.items() if kind in (pl.Categorical, pl.Enum)]
    arrays = [name for name, kind in schema.items() if isinstance(kind, pl.Array)]
    if categories or arrays:  # names as such: pl.col would take '*' and '^a.*$' as patterns
        return table.with_columns(cs.by_name(categories).cast(pl.String), cs.by_name(arrays).as_expr().arr.to_list())
    return table


def _binary_reader(source: Source, plan: Plan) -> Reader:
    """Parquet or Arrow; an ordinary local file is read piece by piece, anything packed or remote is held in memory."""
    import polars as pl

    path = source.plain_path()
    scan = pl.scan_parquet if plan.format == "parquet" else pl.scan_ipc
    with _polars_errors(source, plan):
        if path is not None:
            table = scan(path, glob=False) if plan.format == "parquet" else scan(path)
        else:
            with source.open() as raw:
                data = io.BytesIO(raw.read())
            table = (pl.read_parquet(data) if plan.format == "parquet" else pl.read_ipc(data)).lazy()
        table = plain_types(table)
        schema = dict(table.collect_schema())
        height = table.select(pl.len()).collect().item()
    if not schema or not height:
        raise DataError(f"{source.name}: has no rows (columns: {listed(schema) or 'none'}).")

    def frames(rows: int) -> Iterator[pl.DataFrame]:
        step = rows * math.ceil(_PARQUET_ROWS / rows)
        for start in range(0, height, step):
            with _polars_errors(source, plan):
                piece = table.slice(start, step).collect()
            yield from piece.iter_slices(rows)

    return Reader(source.name, schema, frames)
