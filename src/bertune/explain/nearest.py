"""The training rows that a model sees as most alike: nearest by the state that its head reads.

A row's state is what the encoder makes of it, pooled as the head pools it; likeness is the cosine between two states.
The training rows are read again from where the run says they were, or from where they lie now, and are known by the
fingerprint that the run kept. Their states are kept in the cache, by the hashes of the model and of the rows.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bertune.bundle import Bundle
from bertune.config import Config
from bertune.data.batch import evaluation_batches
from bertune.data.cache import read_entry, write_entry
from bertune.data.ragged import Encoded
from bertune.data.read import Table, read_table
from bertune.data.tasks import Rows, Task, encode_labels, rows_of
from bertune.data.tokens import encode_cached
from bertune.doctor.plan import read_plan
from bertune.errors import DataError, InputError, listed
from bertune.explain.explanation import Neighbor
from bertune.explain.words import side_texts
from bertune.folder import read_record
from bertune.model.classifier import ClassifierModel
from bertune.paths import cache_root
from bertune.ship.predict import Predictor, readable_task

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Says what is done with how many rows, and is then told how many are done.
Work = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]

_FORMAT = 1  # of cached states; raised whenever the same model and rows would give others
_BLOCK = 65_536  # training rows that are compared at once


@dataclass(frozen=True)
class TrainingRows:
    """The rows a model was trained on. labels: those it was trained with, a tuple a row."""

    table: Table
    rows: Rows
    encoded: Encoded
    labels: list[tuple[str, ...]]


def training_rows(predictor: Predictor, data: Any = None) -> TrainingRows | str:
    """The training rows of a model; a sentence that says why, where they cannot be had.

    data: where they lie now, or the data itself (as `bertune.train` takes it); None: where the run says. DataError
    where the rows there are not those that the model was trained on.
    """
    folder = predictor.bundle.folder
    run = None if folder is None else folder / "run"
    if run is None or not all((run / name).is_file() for name in ("config.yaml", "splits.csv", "data.json")):
        return "No neighbors: the folder of the model has no record of its training rows in run/."
    config = Config.load(run / "config.yaml")
    if data is None and not config.data.files:
        return "No neighbors: the model was trained on data in memory; pass it, or files that hold it, as data."
    try:
        table = read_table(config.data.files if data is None else data, config.data)
    except InputError as error:
        if data is not None:
            raise
        return f"No neighbors: the training data cannot be read ({str(error).rstrip('.')}); say where it lies now."
    table = table.take(_places(table, run / "splits.csv", folder))
    task = predictor.task
    rows = rows_of(readable_task(task, table.columns, predictor.tokenizer), table, allow_empty=True)
    encoded = encode_cached(predictor.tokenizer, rows, **predictor.bundle.reading, cache=cache_root())
    known = read_record(run / "data.json").get("train")
    if known is not None and known != encoded.fingerprint():  # results of old versions have none
        raise DataError(_wrong(table, folder, "the texts of its training rows are others there"))
    return TrainingRows(table, rows, encoded, _labels(task, table, config.data.plan))


def _places(table: Table, splits: Path, folder: Path | None) -> list[int]:
    """Which rows of the table were trained on, in the order of the training."""
    with splits.open(encoding="utf-8", newline="") as stream:
        wanted = [(row["file"], int(row["row"])) for row in csv.DictReader(stream) if row["split"] == "train"]
    names = [Path(file).name for file in table.files]
    old = {file for file, _ in wanted}
    if len(old) == len(names) == 1:
        names = list(old)  # the one file may have another name by now
    where = {
        (names[file], number): row
        for row, (file, number) in enumerate(zip(table.file_index.tolist(), table.row_numbers.tolist(), strict=True))
    }
    missing = sum(place not in where for place in wanted)
    if missing:
        raise DataError(_wrong(table, folder, f"{missing:,} of its {len(wanted):,} training rows are not there"))
    return [where[place] for place in wanted]


def _wrong(table: Table, folder: Path | None, why: str) -> str:
    return (
        f"{listed(table.files, 3)}: not the data that {folder} was trained on: {why}. Pass the right files with "
        "--data, or --neighbors 0."
    )


def _labels(task: Task, table: Table, plan: str | None) -> list[tuple[str, ...]]:
    """The labels of training rows, where a plan of repairs relabelled them those of the plan."""
    targets = encode_labels(task, table)
    names = task.names(targets if task.kind == "single" else targets > 0.5)
    labels = [(name,) if isinstance(name, str) else tuple(name) for name in names]
    if plan is None or not Path(plan).is_file():
        return labels
    new = {(entry.file, entry.row): tuple(entry.label) for entry in read_plan(plan).rows if entry.action == "relabel"}
    short = table.short_names
    places = zip(table.file_index.tolist(), table.row_numbers.tolist(), strict=True)
    return [new.get((short[file], number), own) for (file, number), own in zip(places, labels, strict=True)]


class Memory:
    """Training rows with their states, ready to be searched."""

    def __init__(self, trained: TrainingRows, states: NDArray[np.float32]) -> None:
        self.trained, self.states = trained, states

    @classmethod
    def of(cls, trained: TrainingRows, model: ClassifierModel, bundle: Bundle, *, budget: int, work: Work) -> Memory:
        """States from the cache, or computed now and put there."""
        parts = [_FORMAT, sorted(bundle.files.items()), astuple(model.head.config), trained.encoded.fingerprint()]
        key = hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()
        found = read_entry(cache_root(), "states", key)
        if found is not None:
            return cls(trained, found[0]["states"])
        with work("Reading the training rows with the encoder", len(trained.rows)) as advance:
            states = unit_states(model, trained.encoded, budget=budget, advance=advance)
        write_entry(cache_root(), "states", key, {"states": states}, {})
        return cls(trained, states)

    def nearest(self, states: np.ndarray, count: int) -> list[tuple[Neighbor, ...]]:
        """For each of the states [rows, hidden], of length 1, the `count` most similar training rows."""
        rows, similar = most_similar(states, self.states, count)
        return [
            tuple(self._neighbor(int(row), float(value)) for row, value in zip(*found, strict=True))
            for found in zip(rows, similar, strict=True)
        ]

    def _neighbor(self, row: int, similarity: float) -> Neighbor:
        table = self.trained.table
        return Neighbor(
            file=table.short_names[table.file_index[row]], row=int(table.row_numbers[row]),
            texts=tuple(text for text, _ in side_texts(self.trained.rows, row)), labels=self.trained.labels[row],
            similarity=round(similarity, 6),
        )  # fmt: skip


def unit_states(
    model: ClassifierModel, encoded: Encoded, *, budget: int, advance: Callable[[int], None] = lambda done: None
) -> NDArray[np.float32]:
    """What the head reads of each row, float32 [rows, hidden], scaled to length 1."""
    states = np.empty((len(encoded), model.head.config.width(model.encoder.config)), dtype=np.float32)
    done = 0
    with torch.inference_mode():
        for batch in evaluation_batches(encoded, budget=budget):
            states[batch.rows] = model.pooled(model.inputs(batch)).cpu().numpy()
            done += len(batch)
            advance(done)
    return states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)


def most_similar(
    asked: np.ndarray, known: np.ndarray, count: int
) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    """For each state of `asked` the numbers of the `count` rows of `known` with the largest product, and the products,
    largest first; of equal ones the first row."""
    rows = [np.zeros(0, dtype=np.int64) for _ in asked]
    similar = [np.zeros(0, dtype=np.float32) for _ in asked]
    for begin in range(0, len(known), _BLOCK):
        products = asked @ np.asarray(known[begin : begin + _BLOCK]).T
        for place, values in enumerate(products):
            both = np.concatenate((similar[place], values))
            best = np.argsort(-both, kind="stable")[:count]
            numbers = np.concatenate((rows[place], np.arange(begin, begin + len(values))))
            rows[place], similar[place] = numbers[best], both[best]
    return rows, similar
