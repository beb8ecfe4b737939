"""From a source to encoded splits: read, tell the task, split, tokenize. No model is involved yet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bertune.config import DataConfig
from bertune.data.read import Table, read_table
from bertune.data.splits import fold_numbers, groups_of, share_of_rows, split_rows
from bertune.data.tasks import Rows, Task, encode_labels, infer_task, rows_of
from bertune.data.tokens import Encoded, Tokenizer, encode_cached
from bertune.doctor.plan import apply_plan, read_plan
from bertune.errors import ConfigError
from bertune.files import write_atomic
from bertune.longtext import LongText
from bertune.paths import cache_root
from bertune.ship.predict import readable_task

Say = Callable[[str], None]


@dataclass
class Split:
    """One part of the data. targets: int64 [rows] or float32 [rows, labels]."""

    name: str
    table: Table
    targets: np.ndarray
    encoded: Encoded | None = None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def tokens(self) -> Encoded:
        assert self.encoded is not None, "tokenize first"
        return self.encoded


@dataclass
class Prepared:
    """The task and its splits; `rule` says in one line how the splits came about."""

    task: Task
    splits: dict[str, Split]
    rule: str

    @property
    def train(self) -> Split:
        return self.splits["train"]


def read_splits(source: Any, data: DataConfig, say: Say) -> Prepared:
    """Read `source` (or, where it is None, the configured files) and divide it as configured."""
    if source is None and not data.files:
        raise ConfigError("No data: name one or more files, for example bertune train papers.csv --out runs/papers.")
    table = read_table(data.files if source is None else source, data)
    # A validation or test file has the layout of the training file, so its labels never widen the task.
    given = {
        name: read_table(value, data)
        for name, value in (("valid", data.valid), ("test", data.test))
        if isinstance(value, str)
    }
    for read in (table, *given.values()):
        for note in read.notes:
            say(note)
    task, sentence = infer_task(table, data)
    say(sentence)
    targets = encode_labels(task, table)
    fractions = data.fractions()
    groups = groups_of(table, data.group) if data.group else None
    if data.fold is not None:
        chosen = _fold(data, targets, task, groups)
        splits = {name: Split(name, table.take(rows), targets[rows]) for name, rows in chosen.items()}
    elif any(fractions.values()):
        parts = split_rows(
            targets, task.kind, valid=fractions["valid"], test=fractions["test"], seed=data.split_seed, groups=groups
        )
        drawn = {"train": parts.train, "valid": parts.valid, "test": parts.test}
        splits = {
            name: Split(name, table.take(rows), targets[rows]) for name, rows in drawn.items() if rows is not None
        }
    else:
        splits = {"train": Split("train", table, targets)}
    for name, part in given.items():
        splits[name] = Split(name, part, encode_labels(task, part))
    ordered: dict[str, Split] = {name: splits[name] for name in ("train", "valid", "test") if name in splits}
    if data.plan:
        ordered["train"] = _planned(ordered, task, data.plan, say)
    if data.share < 1:
        ordered["train"] = _shared(ordered["train"], task, data)
    if data.group and given:
        _refuse_shared_groups(ordered, given, data.group)
    rule = _rule(data, fractions, task)
    if data.share < 1:
        rule += f"; {data.share:.3g} of the training rows, share seed {data.share_seed}"
    prepared = Prepared(task, ordered, rule)
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in ordered.items())
    say(f"Splits: {sizes} rows ({prepared.rule}).")
    return prepared


def _fold(
    data: DataConfig, targets: np.ndarray, task: Task, groups: list[object] | None
) -> dict[str, np.ndarray]:
    """Rows by split where one fold of several is the test split: the rest trains, but for the share that validates."""
    assert data.fold is not None
    if data.test is not None:
        raise ConfigError(f"--test {data.test}: every fold is the test split once; leave it out.")
    number, folds = map(int, data.fold.split("/"))
    owner = fold_numbers(targets, task.kind, folds=folds, seed=data.split_seed, groups=groups)
    rest = np.flatnonzero(owner != number - 1)
    found = {"train": rest, "test": np.flatnonzero(owner == number - 1)}
    share = data.valid if isinstance(data.valid, float) else 0.1 if data.valid is None and data.hold_out else None
    if share is not None:
        own = None if groups is None else [groups[row] for row in rest]
        parts = split_rows(targets[rest], task.kind, valid=share, test=None, seed=data.split_seed, groups=own)
        assert parts.valid is not None
        found |= {"train": rest[parts.train], "valid": rest[parts.valid]}
    return found


def _rule(data: DataConfig, fractions: dict[str, float | None], task: Task) -> str:
    if data.fold is not None:
        return f"fold {data.fold}, split seed {data.split_seed}"
    drawn = {name: share for name, share in fractions.items() if share}
    if not drawn:
        return "files as given" if data.valid or data.test else "all rows train"
    train = round(100 * (1 - sum(drawn.values())))
    shares = "/".join([f"{train}", *(f"{round(100 * share)}" for share in drawn.values())])
    stratified = "stratified" if task.kind == "single" else "iteratively stratified"
    how = f"grouped by {data.group}" if data.group else stratified
    return f"{shares} of the rows, {how}, split seed {data.split_seed}"


def _planned(splits: dict[str, Split], task: Task, path: str, say: Say) -> Split:
    """The training rows as a plan of `bertune check --fix` wants them."""
    train = splits["train"]
    others = [split.table for name, split in splits.items() if name != "train"]
    targets, rows = apply_plan(read_plan(path), task, train.table, train.targets, others, say)
    if not len(rows):
        raise ConfigError(f"--plan {path}: drops every training row. Keep some.")
    return Split("train", train.table.take(rows), targets[rows])


def _shared(train: Split, task: Task, data: DataConfig) -> Split:
    """The share of the training rows that was asked for."""
    groups = groups_of(train.table, data.group) if data.group else None
    rows = share_of_rows(train.targets, task.kind, share=data.share, seed=data.share_seed, groups=groups)
    return Split("train", train.table.take(rows), train.targets[rows])


def keep_apart(prepared: Prepared, data: DataConfig) -> Prepared:
    """Half of the validation rows become the split `conformal`: they choose nothing, and so can promise something."""
    valid = prepared.splits["valid"]
    groups = groups_of(valid.table, data.group) if data.group else None
    halves = split_rows(
        valid.targets, prepared.task.kind, valid=0.5, test=None, seed=data.split_seed, groups=groups
    )
    assert halves.valid is not None
    parts = {
        name: Split(name, valid.table.take(rows), valid.targets[rows])
        for name, rows in (("valid", halves.train), ("conformal", halves.valid))
    }
    splits: dict[str, Split] = {}
    for name, split in prepared.splits.items():
        splits |= parts if name == "valid" else {name: split}
    return Prepared(prepared.task, splits, f"{prepared.rule}; half of the validation rows promise, and choose nothing")


def _refuse_shared_groups(splits: dict[str, Split], given: Collection[str], group: str) -> None:
    """ConfigError where two splits share a group; `given` are those that have a file of their own."""
    groups = {name: set(groups_of(split.table, group)) for name, split in splits.items()}
    for one, other in combinations(groups, 2):
        shared = groups[one] & groups[other]
        if shared:
            example = sorted(map(str, shared))[0]
            raise ConfigError(
                f"--group {group}: the {one} and {other} rows share {len(shared):,} group"
                f"{'' if len(shared) == 1 else 's'}, for example '{example}'. Leave those rows out of one of them, "
                f"or pass --{other if other in given else one} as a fraction."
            )


def texts_of(prepared: Prepared, split: Split, tokenizer: Tokenizer, *, allow_empty: bool = False) -> Rows:
    """The texts of a split, as the tokenizer reads them best."""
    return rows_of(readable_task(prepared.task, split.table.columns, tokenizer), split.table, allow_empty=allow_empty)


def tokenize(
    prepared: Prepared, tokenizer: Tokenizer, *, max_length: int, truncation: str, say: Say, allow_empty: bool = False,
    long_text: LongText = LongText(),
) -> None:
    """Encode every split, and say what was cut from the training rows."""
    if truncation == "only-second" and not prepared.task.is_pair:
        raise ConfigError("--truncation only-second is for pairs; pass --text-pair, or longest-first.")
    readable = readable_task(prepared.task, prepared.train.table.columns, tokenizer)
    if readable != prepared.task:
        say(f"Words come from the parse columns {', '.join(readable.text + readable.text_pair)}.")
    for split in prepared.splits.values():
        rows = texts_of(prepared, split, tokenizer, allow_empty=allow_empty)
        split.encoded = encode_cached(
            tokenizer, rows, max_length=max_length, truncation=truncation, cache=cache_root(), long_text=long_text
        )
    told = prepared.train.tokens.truncation()
    # Subwords spell any word; a list of whole words may lack many, so the share is told even where it is none.
    every = " All words are in the vocabulary." if tokenizer.takes_parses and not told.unknown_share else ""
    say(told.sentence() + every)


def write_split_rows(prepared: Prepared, path: Path) -> None:
    """A CSV of split, file and row number (from 1, within the file)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "file", "row"])
    for name, split in prepared.splits.items():
        files = split.table.files
        for file, row in zip(split.table.file_index.tolist(), split.table.row_numbers.tolist(), strict=True):
            writer.writerow([name, Path(files[file]).name, row])
    write_atomic(path, text.getvalue())
