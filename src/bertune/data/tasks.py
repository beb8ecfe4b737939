"""Task: what the labels of a table are, in which fixed order they stand, and how cells become targets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from bertune.config import DataConfig
from bertune.data.columns import Columns, find_columns, zero_one
from bertune.data.rows import Rows, is_missing, rows_from_python, rows_of
from bertune.errors import ConfigError, DataError, listed, nearest

if TYPE_CHECKING:
    from bertune.data.read import Table

__all__ = ["Rows", "Task", "encode_labels", "infer_task", "rows_from_python", "rows_of", "sort_labels"]

# What a label may be in a cell: text, numbers, booleans, dates.
_LABEL_TYPES = (str, int, float, Decimal, date, time, timedelta, type(None))
LabelFormat = Literal["column", "columns", "delimited", "list"]


@dataclass(frozen=True)
class Task:
    """What is read and what is predicted. Row i of a target or logit array goes by the order of `labels`."""

    kind: Literal["single", "multi"]
    labels: tuple[str, ...]
    text: tuple[str, ...]
    text_pair: tuple[str, ...] = ()  # empty: one text, not a pair
    label: tuple[str, ...] = ()  # label columns; with format "columns" they are the labels, in the same order
    label_format: LabelFormat = "column"
    label_sep: str | None = None  # between the labels of a cell, format "delimited"
    label_ids: bool = False  # cells hold line numbers of a label-names file (or names)
    label_base: int = 0  # number of the first line there

    def __post_init__(self) -> None:
        twice = [label for index, label in enumerate(self.labels) if label in self.labels[:index]]
        if twice:
            raise ConfigError(f"label '{twice[0]}' is listed twice; each label has one place in the order.")
        if not self.labels or not self.text:
            raise ConfigError("a task needs at least one label and one text column.")
        if self.label_format == "columns" and self.label != self.labels:
            raise ConfigError("a task over 0/1 columns needs one label per column, in the same order.")

    @property
    def is_pair(self) -> bool:
        return bool(self.text_pair)

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    @property
    def problem_type(self) -> str:
        """The name that transformers has for the kind."""
        return f"{self.kind}_label_classification"

    @property
    def activation(self) -> str:
        """What turns logits into probabilities."""
        return "softmax" if self.kind == "single" else "sigmoid"

    def names(self, decided: np.ndarray) -> list[Any]:
        """Label names of decisions: one a row for int [n], a list a row for bool [n, labels]."""
        if self.kind == "single":
            return [self.labels[number] for number in decided]
        return [[self.labels[number] for number in np.flatnonzero(row)] for row in decided]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; tuples are lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """The task that `to_dict` wrote; an unknown, missing or mistyped field is a `ConfigError`."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"task: expected its fields, found {type(values).__name__}.")
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = nearest(key, known) or f"; they are {', '.join(known)}."
                raise ConfigError(f"task: '{key}' is not one of its fields{near}")
        try:
            return TypeAdapter(cls).validate_python(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"task: '{first['loc'][0]}': {first['msg'][0].lower()}{first['msg'][1:]}.") from None


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Distinct labels in an order that no row order changes: numbers by value, otherwise by string."""
    distinct = set(labels)
    values: dict[str, float] = {}
    for label in distinct:
        try:
            values[label] = float(label)
        except ValueError:
            return sorted(distinct)
    if not all(math.isfinite(value) for value in values.values()):
        return sorted(distinct)
    return sorted(distinct, key=lambda label: (values[label], label))


def infer_task(table: Table, data: DataConfig, *, fixed: Task | None = None) -> tuple[Task, str]:
    """The task of `table` and the one line to say about it; `data` forces what the table would otherwise tell.

    With `fixed` (the task of a trained model) kind and labels are its own; only the columns may have other names here.
    Raises `DataError` or `ConfigError` for columns, cells and options that make no task; cells are checked one by one
    only in `encode_labels`.
    """
    if not len(table):
        raise DataError(f"{listed(table.files, 3)}: no rows; a task needs some.")
    if data.label_sep == "":
        raise ConfigError("--label-sep is empty; pass the character between labels, for example --label-sep ','.")
    columns = find_columns(table, data, fixed)
    if fixed is not None:
        task, notes = _fitted(table, data, columns, fixed)
    elif len(columns.label) > 1:
        task, notes = _task_of_columns(data, columns), []
    else:
        task, notes = _task_of_cells(table, data, columns)
    return task, " ".join([_sentence(task), *notes])


def _sentence(task: Task) -> str:
    plural = "" if task.num_labels == 1 else "s"
    parts = [f"Task: {task.kind}-label over {task.num_labels} label{plural} ({listed(task.labels, 6)})"]
    if task.label_format != "columns":
        parts.append(f"label = {task.label[0]}")
    parts.append(f"text = {' + '.join(task.text)}")
    if task.is_pair:
        parts.append(f"second text = {' + '.join(task.text_pair)}")
    return ", ".join(parts) + "."


def _task_of_columns(data: DataConfig, columns: Columns) -> Task:
    for flag, value in (("--label-sep", data.label_sep), ("--label-names", data.label_names)):
        if value is not None:
            raise ConfigError(f"{flag} goes with one label column; here are several: {listed(columns.label)}.")
    if data.labels and sorted(data.labels) != sorted(columns.label):
        raise ConfigError(
            f"--labels {listed(data.labels)}: with 0/1 columns it gives their order, so it names each of them once: "
            f"{listed(columns.label, 40)}."
        )
    labels = tuple(data.labels) or columns.label
    kind: Literal["single", "multi"] = "single" if data.task == "single" else "multi"
    return Task(kind, labels, columns.text, columns.text_pair, labels, "columns")


@dataclass(frozen=True)
class _Cells:
    """What the cells of one label column hold."""

    format: LabelFormat
    sep: str | None
    ids: bool
    base: int
    found: list[str]  # distinct labels (or line numbers), in order of appearance
    blank: int  # rows without any
    notes: list[str]


def _task_of_cells(table: Table, data: DataConfig, columns: Columns) -> tuple[Task, list[str]]:
    name = columns.label[0]
    if data.labels and data.label_names:
        raise ConfigError("--labels and --label-names both give the order of labels; pass one of them.")
    names = _read_label_names(data.label_names) if data.label_names else None
    cells = _look_at_cells(table, name, data.label_sep, names)
    place = f"{listed(table.files, 3)}, column '{name}'"
    if data.label_sep is not None and cells.format == "list":
        raise ConfigError(f"{place} holds lists of labels already; leave --label-sep out.")
    vector = _length_of_vectors(table.column(name)) if cells.format == "list" else 0
    if vector:
        raise DataError(
            f"{place}: every cell is a list of {vector} zeros and ones, which looks like a 0/1 vector over {vector} "
            "labels without their names. Make a 0/1 column of each place, named as its label, or lists of label names."
        )
    if not cells.found:
        choices = listed(table.columns, 20)
        raise DataError(f"{place}: no row has a label. Name the label column with --label; the columns are {choices}.")
    kind = data.task if data.task != "auto" else "single" if cells.format == "column" else "multi"
    if len(cells.found) == 1 and (kind == "single" or not cells.blank):
        raise DataError(
            f"{place}: every row has the label '{cells.found[0]}', and one class leaves nothing to learn. "
            "Add rows with other labels, or name another column with --label."
        )
    labels = names or data.labels or sort_labels(cells.found)
    task = Task(
        kind, tuple(labels), columns.text, columns.text_pair, columns.label,
        cells.format, cells.sep, cells.ids, cells.base,
    )
    notes = cells.notes + _note_of_ids(task)
    if cells.format == "delimited" and cells.blank and kind == "multi":
        notes.append(f"Rows without any label: {cells.blank:,}.")
    joined = next((label for label in cells.found if re.fullmatch(r"\d+(,\d+)+", label)), None)
    if joined and kind == "single":
        notes.append(f"Cells such as '{joined}' look like joined ids; --label-sep ',' reads them as several labels.")
    return task, notes


def _fitted(table: Table, data: DataConfig, columns: Columns, fixed: Task) -> tuple[Task, list[str]]:
    """`fixed` over the columns of this table."""
    if data.task not in ("auto", fixed.kind):
        raise ConfigError(f"--task {data.task}: the model's task is {fixed.kind}-label; leave --task out.")
    labels = _read_label_names(data.label_names) if data.label_names else data.labels
    if labels and tuple(labels) != fixed.labels:
        choices = listed(fixed.labels, 40)
        raise ConfigError(f"--labels: those of the model are {choices}, in this order; leave the option out.")
    placed = replace(fixed, text=columns.text, text_pair=columns.text_pair)
    if len(columns.label) > 1:
        if sorted(columns.label) != sorted(fixed.labels):
            raise ConfigError(
                f"--label {listed(columns.label)}: 0/1 columns must be named as the labels of the model: "
                f"{listed(fixed.labels, 40)}."
            )
        placed = replace(placed, label=fixed.labels, label_format="columns")
        return replace(placed, label_sep=None, label_ids=False, label_base=0), []
    names = list(fixed.labels) if data.label_names or fixed.label_ids else None
    cells = _look_at_cells(table, columns.label[0], data.label_sep or fixed.label_sep, names)
    # Line numbers count from where they did in training: another file may lack the lowest or the highest.
    base = fixed.label_base if fixed.label_ids else cells.base
    task = replace(placed, label=columns.label, label_format=cells.format, label_sep=cells.sep)
    task = replace(task, label_ids=cells.ids, label_base=base)
    return task, cells.notes + _note_of_ids(task)


def _note_of_ids(task: Task) -> list[str]:
    if not task.label_ids:
        return []
    return [f"Label cells are line numbers of the label names, counted from {task.label_base}."]


def _look_at_cells(table: Table, name: str, sep: str | None, names: list[str] | None) -> _Cells:
    cells = table.column(name)
    _check_labels(table, name, cells)
    lists = any(isinstance(cell, list | tuple) for cell in cells)
    if lists:
        sep = None
    parts = [_parts(cell, sep) for cell in cells]
    found = list(dict.fromkeys(part for row in parts for part in row))
    notes: list[str] = []
    ids, base = False, 0
    if names is not None:
        if sep is None and not lists and any("," in label for label in found if label not in names):
            split = list(dict.fromkeys(part for cell in cells for part in _parts(cell, ",")))
            if all(part.isdecimal() and int(part) < len(names) for part in split):
                found, sep = split, ","
                notes.append("Label cells hold line numbers joined by ','.")
        ids, base = _numbering(found, names)
    kind: LabelFormat = "list" if lists else "column" if sep is None else "delimited"
    return _Cells(kind, sep, ids, base, found, sum(not row for row in parts), notes)


def _check_labels(table: Table, name: str, cells: list[Any]) -> None:
    """DataError for the first cell that holds what is no label: bytes, a struct, an object of Python's."""
    for row, cell in enumerate(cells):
        for value in cell if isinstance(cell, list | tuple) else [cell]:
            if not isinstance(value, _LABEL_TYPES):
                raise DataError(
                    f"{table.place(row)}, column '{name}': expected a label, found {type(value).__name__} "
                    f"({value!r:.60}). Name a column of labels with --label."
                )


def _length_of_vectors(cells: list[Any]) -> int:
    """The one length, at least 2, of lists that hold nothing but the numbers 0 and 1; else 0."""
    lists = [cell for cell in cells if isinstance(cell, list | tuple)]
    length = len(lists[0])
    same = length > 1 and all(len(cell) == length for cell in lists)
    flags = same and all(not isinstance(item, str) and zero_one(item) is not None for cell in lists for item in cell)
    return length if flags else 0


def _numbering(found: list[str], names: list[str]) -> tuple[bool, int]:
    """Whether cells are line numbers, and of which the first is: 0, unless they run from 1 to the count exactly."""
    numbers = {int(label) for label in found if label.isdecimal()}
    if not numbers or set(found) <= set(names):
        return False, 0
    return True, int(numbers == set(range(1, len(names) + 1)))


def _read_label_names(path: str) -> list[str]:
    """Label names, one a line; blank lines may stand at the end only."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise ConfigError(f"--label-names {path}: no such file; pass a text file with one label a line.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--label-names {path}: not readable as UTF-8 text: {error}") from None
    while lines and not lines[-1]:
        lines.pop()
    first: dict[str, int] = {}
    for number, label in enumerate(lines, 1):
        if not label:
            raise ConfigError(f"--label-names {path} line {number}: blank; each line has to name a label.")
        if first.setdefault(label, number) != number:
            raise ConfigError(f"--label-names {path} line {number}: '{label}' stands in line {first[label]} already.")
    if len(lines) < 2:
        raise ConfigError(f"--label-names {path}: {len(lines)} names; a task needs at least two.")
    return lines


def _parts(cell: object, sep: str | None) -> list[str]:
    """The labels that a cell holds, as text."""
    if isinstance(cell, list | tuple):
        return [text for item in cell if (text := _label_text(item))]
    if is_missing(cell):
        return []
    if sep is not None and isinstance(cell, str):
        return [part.strip() for part in cell.split(sep) if part.strip()]
    return [_label_text(cell)]


def _label_text(value: object) -> str:
    """A label as text: surrounding space is cut, and a whole number is the same from every format (1.0 is '1')."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if is_missing(value) else str(value).strip()


def encode_labels(task: Task, table: Table, *, advice: str = "Fix the row, or pass --labels.") -> np.ndarray:
    """Targets by the order of `task.labels`: int64 [n] of a single-label task, float32 [n, labels] of 0 and 1 else.

    A missing, unknown or non-0/1 cell is a `DataError` that names row, column, value and choices; `advice` is the way
    out where a label is unknown. Empty cells of delimited labels, and empty lists, are rows without labels in a
    multi-label task.
    """
    columns = task.label_format == "columns"
    numbers = _numbers_of_columns(task, table) if columns else _numbers_of_cells(task, table, advice)
    if task.kind == "multi":
        targets = np.zeros((len(table), task.num_labels), np.float32)
        for row, chosen in enumerate(numbers):
            targets[row, list(chosen)] = 1
        return targets
    for row, chosen in enumerate(numbers):
        if len(chosen) != 1:
            where = listed([f"'{name}'" for name in task.label])
            have = listed([task.labels[number] for number in sorted(chosen)]) or "no label"
            raise DataError(
                f"{table.place(row)}, label {where}: found {have}, but a single-label task needs exactly one label "
                "in each row. Fix the row, or pass --task multi."
            )
    return np.array([next(iter(chosen)) for chosen in numbers], np.int64)


def _numbers_of_columns(task: Task, table: Table) -> list[set[int]]:
    """For each row the numbers of its labels."""
    numbers: list[set[int]] = [set() for _ in range(len(table))]
    for index, name in enumerate(task.label):
        for row, cell in enumerate(table.column(name)):
            value = zero_one(cell)
            if value is None:
                place = f"{table.place(row)}, column '{name}'"
                if is_missing(cell):
                    raise DataError(f"{place}: the label is missing; expected 0 or 1. Fill it in, or remove the row.")
                raise DataError(
                    f"{place}: {cell!r} is not 0 or 1, as the cells of several label columns must be. "
                    "Fix the row, or name one label column with --label."
                )
            if value:
                numbers[row].add(index)
    return numbers


def _numbers_of_cells(task: Task, table: Table, advice: str) -> list[set[int]]:
    name = task.label[0]
    index = {label: number for number, label in enumerate(task.labels)}
    if task.label_ids:
        index |= {str(number + task.label_base): number for number in range(task.num_labels)}
    may_be_blank = task.kind == "multi" and task.label_sep is not None
    numbers: list[set[int]] = []
    for row, cell in enumerate(table.column(name)):
        parts = _parts(cell, task.label_sep)
        if not parts and not may_be_blank and not isinstance(cell, list | tuple):
            place = f"{table.place(row)}, column '{name}'"
            raise DataError(f"{place}: the label is missing. Fill it in, or remove the row.")
        unknown = next((part for part in parts if part not in index), None)
        if unknown is not None:
            last = task.num_labels - 1 + task.label_base
            ids = f"a line number from {task.label_base} to {last}, or " if task.label_ids else ""
            raise DataError(
                f"{table.place(row)}, column '{name}': '{unknown}' is not a label of this task; "
                f"expected {ids}one of {listed(task.labels)}. {advice}"
            )
        numbers.append({index[part] for part in parts})
    return numbers
