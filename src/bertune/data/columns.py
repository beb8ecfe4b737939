"""Which columns of a table are texts and which are labels: as the flags say, else as the table looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bertune.config import DataConfig
from bertune.data.rows import is_missing
from bertune.errors import ConfigError, DataError, listed, nearest

if TYPE_CHECKING:
    from bertune.data.read import Table
    from bertune.data.tasks import Task

# Names are compared without case, in this order.
LABEL_NAMES = (
    "gold_label", "label", "labels", "class", "category", "target", "quality", "sentiment", "topic", "intent", "stance",
)
PAIR_NAMES = (
    ("sentence1", "sentence2"), ("#1 string", "#2 string"), ("premise", "hypothesis"), ("question1", "question2"),
    ("text1", "text2"), ("text_a", "text_b"),
)
TEXT_NAMES = (
    ("text",), ("sentence",), ("review",), ("title", "abstract"), ("title", "description"), ("content",), ("comment",),
    ("question",), ("tweet",), ("message",), ("document",), ("body",), ("description",), ("abstract",), ("title",),
)
ID_NAMES = {"id", "idx", "index"}  # never a label by itself, even where a few rows are numbered 0 and 1
SAMPLE = 200  # rows that tell whether a column is worth reading whole
NEARLY = 0.9  # a column with this share of 0/1 cells was meant to be one

_ZERO_ONE: dict[object, int] = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, 0: 0, 1: 1}  # 0.0, 1.0, False, True equal 0, 1


@dataclass(frozen=True)
class Columns:
    """Column names, each in the order of the flags, or of the file where they were found."""

    text: tuple[str, ...]
    text_pair: tuple[str, ...]
    label: tuple[str, ...]


def zero_one(value: object) -> int | None:
    """0 or 1 for a cell that says so as a string, number or boolean; else None."""
    if isinstance(value, str):
        return _ZERO_ONE.get(value.strip())
    return _ZERO_ONE.get(value) if isinstance(value, int | float) else None


def find_columns(table: Table, data: DataConfig, fixed: Task | None = None) -> Columns:
    """The columns named by `data`, else those of `fixed`, else those that names and cells give away.

    Raises `DataError` for a column that is not there, `ConfigError` for one named twice or where none can be told.
    """
    text, pair, label = tuple(data.text), tuple(data.text_pair), tuple(data.label)
    if fixed is not None:
        if pair and not fixed.is_pair:
            raise ConfigError(f"--text-pair {pair[0]}: the model reads one text, not pairs; leave it out.")
        text, pair, label = text or fixed.text, pair or fixed.text_pair, label or fixed.label
    _check_names(table, text, pair, label, data)
    if pair and not text:
        raise ConfigError(f"--text-pair {pair[0]} names the second side of a pair; pass the first with --text.")
    taken = {*label, data.group}
    if not text:
        text, pair = known_texts([name for name in table.columns if name not in taken])
    if not label:
        label = _find_label(table, [name for name in table.columns if name not in {*text, *pair, data.group}])
    if not text and len(table.columns) == 2 and len(label) == 1:
        text = tuple(name for name in table.columns if name not in label)
    if not text:
        raise ConfigError(f"{_files(table)}: which column is the text? Pass --text COLUMN; {_choices(table)}.")
    return Columns(text, pair, label)


def _check_names(
    table: Table, text: tuple[str, ...], pair: tuple[str, ...], label: tuple[str, ...], data: DataConfig
) -> None:
    flags = [("--text", name) for name in text] + [("--text-pair", name) for name in pair]
    flags += [("--label", name) for name in label]
    first: dict[str, str] = {}
    for flag, name in flags:
        if name not in table.columns:
            near = nearest(name, table.columns) or "."
            raise DataError(f"{_files(table)}: no column '{name}'{near} Pass {flag} COLUMN; {_choices(table)}.")
        other = first.setdefault(name, flag)
        if flags.count((flag, name)) > 1:
            raise ConfigError(f"{flag} {name} is given twice; name each column once.")
        if other != flag:
            raise ConfigError(f"column '{name}' is given as {other} and as {flag}; it can be only one of them.")
    if data.group is not None and data.group in label:
        raise ConfigError(f"column '{data.group}' is given as --group and as --label; it can be only one of them.")


def known_texts(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Text and pair columns of a well-known layout, or empty."""
    by_name = {name.casefold(): name for name in reversed(names)}
    for one, two in PAIR_NAMES:
        if one in by_name and two in by_name:
            return (by_name[one],), (by_name[two],)
    for group in TEXT_NAMES:
        if all(name in by_name for name in group):
            return tuple(by_name[name] for name in group), ()
    return (), ()


def _find_label(table: Table, names: list[str]) -> tuple[str, ...]:
    by_name = {name.casefold(): name for name in reversed(names)}
    named = next((by_name[name] for name in LABEL_NAMES if name in by_name), None)
    flags = [name for name in names if name != named and name.casefold() not in ID_NAMES and _is_zero_one(table, name)]
    if named is not None and len(flags) > 1:
        raise ConfigError(
            f"{_files(table)}: is the label the column '{named}', or are the 0/1 columns {listed(flags)} the labels? "
            f"Pass --label '{named}', or --label for each of the others."
        )
    if named is not None:
        return (named,)
    if flags:
        return tuple(flags)
    raise ConfigError(
        f"{_files(table)}: which column is the label? Pass --label COLUMN, several times for 0/1 columns; "
        f"{_choices(table)}."
    )


def _is_zero_one(table: Table, name: str) -> bool:
    """Whether every cell is 0 or 1; empty cells are passed over here, so that encoding can name them as errors."""
    series = table.frame.get_column(name)
    if not _share_zero_one(series.head(SAMPLE).to_list()) >= NEARLY:
        return False
    cells = table.column(name)
    share = _share_zero_one(cells)
    if NEARLY <= share < 1:
        row = next(row for row, cell in enumerate(cells) if not is_missing(cell) and zero_one(cell) is None)
        raise DataError(
            f"{table.place(row)}, column '{name}': {cells[row]!r} is neither 0 nor 1, unlike nearly all cells above "
            "and below. Fix it, or name the label columns with --label."
        )
    return share == 1


def _share_zero_one(cells: list[object]) -> float:
    """Share of 0/1 cells among those that are not empty; 0.0 where all are."""
    present = [cell for cell in cells if not is_missing(cell)]
    return sum(zero_one(cell) is not None for cell in present) / len(present) if present else 0.0


def _files(table: Table) -> str:
    return listed(table.files, 3)


def _choices(table: Table) -> str:
    unnamed = all(name == f"column_{number}" for number, name in enumerate(table.columns, 1))
    hint = " (name them with --columns a,b,c)" if unnamed else ""
    return f"the columns are {listed(table.columns, 20)}{hint}"
