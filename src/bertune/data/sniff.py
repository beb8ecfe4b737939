"""What kind of table a file is: format, encoding, delimiter, quoting, header. Its beginning decides, and always alike.

Format     `--format`; else the file name; else the content: `{` opens JSON lines, `COARSE:fine ` lines are TREC, equal
           numbers of tabs are TSV, three or more rows of equally many cells between commas are CSV; any other .txt is
           one text a line.
Encoding   `--encoding`; else UTF-16 where its byte order mark stands; else UTF-8 with or without one. TREC: latin-1.
Delimiter  TSV: tab. CSV: comma; but semicolon or tab where the first row has no comma and it cuts all rows into equally
           many cells.
Quoting    `--quoting`; else CSV: quoted, and TSV: literal unless it is consistently quoted (`consistently_quoted`).
Header     `--header`; with `--columns` only where the first row repeats them; else yes where a column that the user
           asks for stands in the first row; else by looks (`looks_like_header`). Without one: column_1, column_2 ...
"""

from __future__ import annotations

import codecs
import csv
import io
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from bertune.config import ReadConfig
from bertune.data.sources import NUL, SUFFIXES, Source, check_encoding, check_text
from bertune.errors import DataError, listed

log = logging.getLogger("bertune")

# Longest cell, in characters: far more than any text to classify, and what keeps an unclosed quote from eating a file.
MAX_CELL = 10_000_000
TREC_LINE = re.compile(r"([A-Z]+):(\w+) (.*)", re.DOTALL)
# The first size decides nearly always; the second is for files whose first rows are longer than that.
_SAMPLE_BYTES = (2**20, 2**26)
_SAMPLE_ROWS = 200
_CONTENT = 100_000  # characters that tell the format where the name does not
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Plan:
    """How to read one file. `format` is delimited, jsonl, parquet, arrow, text or trec; the rest is for text."""

    format: str
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    quoted: bool = True
    header: bool = False
    columns: tuple[str, ...] = ()


def make_plan(source: Source, options: ReadConfig) -> Plan:
    """Look at the beginning of `source`; an empty file, an unknown kind or an unusable header is a `DataError`."""
    for size in _SAMPLE_BYTES:
        with source.open() as raw:
            start = raw.read(size)
            plan = _plan(source, options, start, complete=len(start) < size)
        if plan is not None:
            return plan
    raise DataError(
        f"{source.name} row 1: has a cell of more than {MAX_CELL:,} characters. Fix the row, or pass --quoting literal."
    )


def _plan(source: Source, options: ReadConfig, start: bytes, *, complete: bool) -> Plan | None:
    """None: the sample is too short to tell."""
    if not start:
        raise DataError(f"{source.name}: the file is empty.")
    encoding = _encoding(options, start)
    sample = codecs.getincrementaldecoder(encoding)("surrogateescape").decode(start, final=complete).replace("\0", NUL)
    kind = _format(source, options, start, sample, complete=complete)
    if kind in ("parquet", "arrow"):
        return Plan(kind)
    if not sample.strip("\ufeff \t\r\n"):
        raise DataError(f"{source.name}: the file is empty.")
    if kind == "trec":
        return Plan(kind, encoding if options.encoding else "latin-1", columns=("label", "fine_label", "text"))
    if kind == "text":
        return Plan(kind, encoding, columns=tuple(options.columns) or ("text",))
    if kind == "jsonl":
        if sample.lstrip()[:1] == "[":
            raise DataError(f"{source.name}: holds one JSON array; write it as JSON lines, one object {{...}} a line.")
        return Plan(kind, encoding)
    return _delimited_plan(source, options, kind, encoding, sample, complete=complete)


def _encoding(options: ReadConfig, start: bytes) -> str:
    if options.encoding:
        return check_encoding(options.encoding)
    return "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _format(source: Source, options: ReadConfig, start: bytes, sample: str, *, complete: bool) -> str:
    if options.layout == "trec":
        return "trec"
    if options.format != "auto":
        return options.format
    if source.suffix in SUFFIXES:
        return SUFFIXES[source.suffix]
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:6] == b"ARROW1":
        return "arrow"
    if sample.lstrip()[:1] == "{":
        return "jsonl"
    complete = complete and len(sample) <= _CONTENT
    lines = [line for line in _LINE_END.split(sample[:_CONTENT]) if line.strip()][:50]
    if lines and all(TREC_LINE.match(line) for line in lines[:20]):
        return "trec"
    tabs = [line.count("\t") for line in lines]
    if lines and tabs[0] > 0 and tabs.count(tabs[0]) > len(tabs) / 2:
        return "tsv"
    rows = _rows(sample[:_CONTENT], ",", quoted=True, complete=complete)
    if len(rows) >= 3 and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
        return "csv"
    if source.suffix in (".txt", ".text") and NUL not in sample:
        return "text"
    raise DataError(
        f"{source.name}: neither its name nor its content tells its format; "
        "pass --format csv, tsv, jsonl, parquet or text."
    )


def _delimited_plan(
    source: Source, options: ReadConfig, kind: str, encoding: str, sample: str, *, complete: bool
) -> Plan | None:
    delimiter = "\t" if kind == "tsv" else _delimiter(sample, options, complete=complete)
    if options.quoting != "auto":
        quoted = options.quoting == "quoted"
    else:
        quoted = delimiter != "\t" or (options.layout != "snli" and consistently_quoted(sample, complete=complete))
    rows = _rows(sample, delimiter, quoted=quoted, complete=complete)
    if len(rows) < 2 and not complete:
        return None
    header = _has_header(rows, options)
    if not header and options.header == "auto" and options.columns and looks_like_header(rows[0], rows[1:]):
        log.warning(
            "%s: --columns is for files without a header, so the first row (%s) is read as data; "
            "pass --header yes if it is a header.", source.name, listed(rows[0], 6),
        )  # fmt: skip
    if header and len(rows) == 1:
        raise DataError(
            f"{source.name}: has a header ({listed(rows[0])}) and no rows. If that line is a row, pass --header no."
        )
    columns = _columns(source, options, rows[0], header=header, encoding=encoding)
    return Plan("delimited", encoding, delimiter, quoted, header, columns)


def _delimiter(sample: str, options: ReadConfig, *, complete: bool) -> str:
    quoted = options.quoting != "literal"
    first = _rows(sample, ",", quoted=quoted, complete=complete)[:1]
    if first and len(first[0]) == 1:
        for other in ";\t":
            rows = _rows(sample, other, quoted=quoted, complete=complete)
            if len(rows) > 1 and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
                return other
    return ","


def _rows(sample: str, delimiter: str, *, quoted: bool, complete: bool) -> list[list[str]]:
    """The first rows that are not blank, leniently read; the last of a sample that was cut is left out."""
    with cell_limit(len(sample)):
        reader = csv_rows(io.StringIO(sample, newline=""), delimiter, quoted=quoted)
        rows = list(islice((row for row in reader if row), _SAMPLE_ROWS + 1))
    if not complete or len(rows) > _SAMPLE_ROWS:
        del rows[-1:]
    if any(len(row) > 1 for row in rows):  # a line of spaces is a row only where there is a single column
        rows = [row for row in rows if len(row) > 1 or row[0].strip()]
    return rows


def csv_rows(lines: Iterable[str], delimiter: str, *, quoted: bool, strict: bool = False) -> Iterator[list[str]]:
    """Cells of each row; not `quoted`: quotes are plain characters; `strict`: quotes that do not fit are an error."""
    if quoted:
        return csv.reader(lines, delimiter=delimiter, strict=strict)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=strict)


@contextmanager
def cell_limit(characters: int) -> Iterator[None]:
    """The csv module's limit is global, so it is put back."""
    before = csv.field_size_limit(max(characters, 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


_ENCLOSED = re.compile(r'"[^"]*(?:""[^"]*)*"(?!")')
_CELL = re.compile(rf'({_ENCLOSED.pattern}|[^"\t\r\n]*)(\t|\r\n|\r|\n|\Z)')


def consistently_quoted(sample: str, *, complete: bool) -> bool:
    """Whether a TSV's quotes enclose cells, as a program writes them, instead of being part of the texts.

    Yes where every quote in the sample belongs to an enclosed cell with its inner quotes doubled, there is such a cell
    below the header, and in every column either all cells that are not empty are enclosed, or only those that must be
    (they are empty, or hold a tab, a line end or a quote).
    """
    if '"' not in sample:
        return False
    columns: dict[int, list[str]] = {}
    row: list[str] = []
    rows, at = 0, 0
    if complete and not sample.endswith(("\r", "\n")):
        sample += "\n"
    while at < len(sample):
        cell = _CELL.match(sample, at)
        if cell is None:  # a stray quote; the end of a sample that was cut may have opened one and not closed it
            if complete or sample[at] != '"' or _ENCLOSED.match(sample, at):
                return False
            break
        row.append(cell[1])
        at = cell.end()
        if cell[2] != "\t":
            if rows == 1:
                columns.clear()  # what stood there was the header
            for index, value in enumerate(row):
                columns.setdefault(index, []).append(value)
            rows += any(row)
            row = []
    filled = [[value for value in column if value] for column in columns.values()]
    enclosed = [[value for value in column if value[0] == '"'] for column in filled]
    return any(enclosed) and all(
        len(inside) == len(column) or all(_needs_quotes(value) for value in inside)
        for column, inside in zip(filled, enclosed, strict=True)
    )


def _needs_quotes(enclosed: str) -> bool:
    """Whether a writer that encloses only what it must would have enclosed this cell."""
    return enclosed == '""' or re.search(r'[\t\r\n]|""', enclosed[1:-1]) is not None


def _has_header(rows: list[list[str]], options: ReadConfig) -> bool:
    if options.header != "auto":
        return options.header == "yes"
    if options.columns:
        return rows[0] == options.columns
    asked = {getattr(options, "group", None)}
    for field in ("text", "text_pair", "label"):  # a DataConfig names them, a plain ReadConfig does not
        asked.update(getattr(options, field, []))
    return not asked.isdisjoint(rows[0]) or looks_like_header(rows[0], rows[1:])


def looks_like_header(first: list[str], rest: list[list[str]]) -> bool:
    """Whether the cells of the first row name columns.

    No where one of them is a number, empty (the very first may be: an unnamed index), longer than 64 characters or 4
    words, ends like a sentence, or comes again below in its column. Otherwise yes where a column below holds only
    numbers, or cells three times as long, and where all cells are single words.
    """
    if not any(first) or not all(_is_name(cell) for cell in first[1:]) or not (_is_name(first[0]) or first[0] == ""):
        return False
    evidence = all(len(cell.split()) <= 1 for cell in first)
    for index, name in enumerate(first):
        below = [row[index] for row in rest if index < len(row) and row[index].strip()]
        if name in below:
            return False
        if below:
            long = sum(map(len, below)) / len(below) > 3 * len(name) + 10
            evidence = evidence or long or all(_is_number(cell) for cell in below)
    return evidence


def _is_name(cell: str) -> bool:
    short = len(cell) <= 64 and 1 <= len(cell.split()) <= 4
    return short and not _is_number(cell) and cell.rstrip()[-1] not in ".!?。！？" and "\n" not in cell


def _is_number(cell: str) -> bool:
    """True for 3, -1.5, 4,27, 2004-08-01, 1e-5."""
    letters = any(character.isalpha() for character in re.sub(r"(?<=\d)[eE](?=[-+\d])", "", cell))
    return not letters and any(character.isdigit() for character in cell)


def _columns(source: Source, options: ReadConfig, first: list[str], *, header: bool, encoding: str) -> tuple[str, ...]:
    if options.columns and len(options.columns) != len(first):
        raise DataError(
            f"{source.name} row 1: has {len(first)} cells, and --columns names {len(options.columns)} "
            f"({listed(options.columns)}). Name every column of the file."
        )
    names = list(options.columns)
    if not names:
        names = [cell if header and cell else f"column_{index}" for index, cell in enumerate(first, start=1)]
    for index, name in enumerate(names):
        check_text(name, f"{source.name} header, column {index + 1}", encoding)
        if names.index(name) != index:
            raise DataError(
                f"{source.name} header: '{name}' names columns {names.index(name) + 1} and {index + 1}. "
                "Rename one, or name all with --header yes --columns A,B,C (--header no where that line is a row)."
            )
    return tuple(names)
