"""Files and tables as a stream of texts that knows where documents begin; nothing is held but a few rows.

A *source* is one file or table. Its texts come in order, each with whether a new document begins there. A *unit* is
what is tokenised at once: a sentence where sentences matter, else as many lines of a document as are handy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bertune.config import ReadConfig
from bertune.data.columns import known_texts
from bertune.data.read import Table, read_chunks
from bertune.data.rows import cell_texts
from bertune.data.sources import find_sources
from bertune.errors import ConfigError, DataError, listed

Texts = Iterator[tuple[str, bool]]

_BLOCK = 10_000  # characters of a unit where sentences do not matter; bounds what one text costs
_LOOK = 20_000  # rows that tell what ends a document of plain text
_SENTENCE = re.compile(r"""[.!?…]["'”’)\]]*\s+|[。！？]["”’」』）]*\s*""")


@dataclass(frozen=True)
class TextSource:
    """One file or table: its name for messages, the way to read it from the start, and its text columns.

    rule: row, blank or double-blank; auto has been decided. without: rows that are passed over, as `row_key` has them.
    """

    name: str
    tables: Callable[[], Iterator[Table]]
    columns: tuple[str, ...]
    rule: str
    without: frozenset[str] = frozenset()

    def texts(self) -> Texts:
        """Every text that is not blank, and whether a document begins with it."""
        needed = {"row": 0, "blank": 1, "double-blank": 2}[self.rule]
        blanks = needed
        for table in self.tables():
            for cells in row_cells(table, self.columns):
                if self.without and row_key(cells) in self.without:
                    continue
                lines = [cell for cell in cells if cell and not cell.isspace()]
                if not lines:
                    blanks += 1
                for place, line in enumerate(lines):
                    yield line, place == 0 and blanks >= needed
                    blanks = 0


def row_cells(table: Table, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The texts of each row; a missing one is empty."""
    return zip(*(cell_texts(table, name, allow_empty=True) for name in columns), strict=True)


def row_key(cells: Iterable[str]) -> str:
    """What rows have in common that say the same, whatever lies between their words or columns."""
    return " ".join(" ".join(cells).split())


def file_sources(
    names: Iterable[str], read: ReadConfig, *, columns: tuple[str, ...] = (), wanted: tuple[str, ...] = (), rule: str
) -> list[TextSource]:
    """A source for each file that the names stand for; they need not have the same columns.

    columns: the text columns, which must be there; wanted: those to take where a file has them, else well-known names.
    """
    found = []
    for name in names:
        for file in find_sources(name):
            def tables(path: str = str(file.name)) -> Iterator[Table]:
                return read_chunks(path, read, keep_all=True)

            first = next(tables())
            chosen = text_columns(first, columns, wanted)
            found.append(TextSource(file.name, tables, chosen, _rule(rule, first, chosen, tables)))
    return found


def table_source(table: Table, columns: tuple[str, ...], *, name: str) -> TextSource:
    """Rows in memory, each a document."""
    return TextSource(name, lambda: iter([table]), columns, "row")


def text_columns(table: Table, columns: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """`columns`, which must be there; else `wanted` where all are there, whatever their case; else well-known names."""
    if columns:
        for name in columns:
            table.column(name)  # raises where it is missing
        return columns
    by_name = {name.casefold(): name for name in reversed(table.columns)}
    if wanted and all(name.casefold() in by_name for name in wanted):
        return tuple(by_name[name.casefold()] for name in wanted)
    text, pair = known_texts(table.columns)
    if text:
        return text + pair
    if len(table.columns) == 1:
        return tuple(table.columns)
    advice = f"Give it a header that names {listed(wanted)}, or text" if wanted else "Pass --text COLUMN"
    raise ConfigError(
        f"{listed(table.files, 3)}: which column is the text? {advice}; the columns are {listed(table.columns, 20)}."
    )


def _rule(rule: str, first: Table, columns: tuple[str, ...], tables: Callable[[], Iterator[Table]]) -> str:
    """What ends a document: as asked, else by the blank lines of plain text; every row of a table is one."""
    if rule != "auto":
        return rule
    if list(columns) != first.columns or len(columns) != 1:
        return "row"
    seen, row, best = 0, 0, 0
    for table in tables():
        for text in cell_texts(table, columns[0], allow_empty=True):
            row += 1
            seen = 0 if text and not text.isspace() else seen + 1
            best = max(best, seen)
            if best == 2:
                return "double-blank"
        if row >= _LOOK:
            break
    return "blank" if best else "row"


def units(sources: Iterable[TextSource], *, sentences: bool) -> Texts:
    """The texts of all sources as units, and whether a document begins with each."""
    for source in sources:
        yield from (_sentences if sentences else _blocks)(source.texts())


def _sentences(texts: Texts) -> Texts:
    for text, begins in texts:
        place = 0
        for end in [match.end() for match in _SENTENCE.finditer(text)] + [len(text)]:
            part = text[place:end]
            if part and not part.isspace():
                yield part, begins
                begins = False
            place = end


def _blocks(texts: Texts) -> Texts:
    held: list[str] = []
    size, begun = 0, True
    for text, begins in texts:
        if held and (begins or size > _BLOCK):
            yield "\n".join(held), begun
            held, size, begun = [], 0, begins
        elif not held:
            begun = begins
        held.append(text)
        size += len(text)
    if held:
        yield "\n".join(held), begun


@dataclass(frozen=True)
class Survey:
    """What one pass over a corpus found. digest: SHA-256 of its units and of where documents begin; longer: documents
    of two units or more."""

    digest: str
    documents: int
    longer: int
    units: int
    characters: int


def survey(sources: list[TextSource], *, sentences: bool, advance: Callable[[int], None] | None = None) -> Survey:
    """Go through the corpus once; DataError where it holds no text."""
    digest = hashlib.sha256(b"sentences" if sentences else b"blocks")
    documents = longer = count = characters = 0
    alone = False  # whether the document has one unit so far
    for text, begins in units(sources, sentences=sentences):
        content = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d %d " % (begins, len(content)))
        digest.update(content)
        documents += begins
        longer += alone and not begins
        alone = begins
        count += 1
        characters += len(text)
        if advance is not None and begins and documents % 256 == 0:
            advance(documents)
    if not count:
        names = listed([source.name for source in sources], 3)
        raise DataError(f"{names}: no text to pre-train on; every row is blank in {listed(sources[0].columns)}.")
    return Survey(digest.hexdigest(), documents, longer, count, characters)
