"""bertune predict over a joint training: every task answers every row, in `TASK.prediction` and `TASK.prob:<label>`.

A file is read once for each task, in chunks of the same rows, since each names its own text columns.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bertune.commands.incoming import tables_of_files
from bertune.commands.opening import trained_task
from bertune.commands.sheet import LineFeeds, added_columns, cell_text, check_columns, plain, separator
from bertune.config import Config
from bertune.errors import DataError
from bertune.progress import Display

if TYPE_CHECKING:
    from bertune.data.tasks import Task


def predict_all(
    folder: str, tasks: Sequence[str], files: list[str], config: Config, form: str, *, raw: bool, display: Display,
    open_output: Callable[[], TextIO], show: bool,
) -> int:
    """Write the rows of `files` with the answers of all tasks; the number of rows."""
    placed: dict[str, Task] = {}
    readers = {}
    for name in tasks:
        task = trained_task(str(Path(folder) / "tasks" / name))
        placed[name], tables = tables_of_files(files, config.data, task)
        first = next(tables)
        try:
            check_columns(first, placed[name])
        except DataError as error:
            raise DataError(f"task {name}: {error} Pass --task for the answers of one task alone.") from None
        readers[name] = chain([first], tables)
    added = {name: [f"{name}.{column}" for column in added_columns(task, raw=raw)] for name, task in placed.items()}
    twice = [column for column in first.columns if column in sum(added.values(), [])]  # noqa: RUF017
    if twice:
        raise DataError(f"{first.files[0]}: has a column '{twice[0]}' already. Rename it there, or remove it.")

    import torch

    from bertune.ship.tasks import TaskPredictors

    machine = config.train
    torch.manual_seed(machine.seed)
    predictors = TaskPredictors.load(
        folder, device=machine.device, precision=machine.precision, threads=machine.threads
    )
    stream = open_output()
    joints = {name: separator(task) for name, task in placed.items() if form != "jsonl" and task.kind == "multi"}
    writer = csv.writer(LineFeeds(stream), delimiter="\t" if form == "tsv" else ",", lineterminator="\r\n")
    names = [*first.columns, *chain.from_iterable(added.values())]
    if form != "jsonl":
        writer.writerow(names)
    done = 0
    with display.measure(None, "rows") if show else nullcontext() as meter:
        for chunk in zip(*readers.values(), strict=True):
            answers: list[Sequence[Any]] = []
            for table, name in zip(chunk, tasks, strict=True):
                predictor = predictors[name]
                logits = predictor.logits_of_table(table, placed[name])
                said = predictor.names(logits)
                values = logits if raw else predictor.probabilities(logits)
                answers.append([joints[name].join(one) for one in said] if name in joints else said)
                answers += [[float(f"{value:.6g}") for value in column] for column in values.T.tolist()]
            cells = [chunk[0].column(name) for name in chunk[0].columns]
            for row in zip(*cells, *answers, strict=True):
                before, after = row[: len(cells)], row[len(cells) :]
                if form == "jsonl":
                    record = dict(zip(names, [*map(plain, before), *after], strict=True))
                    stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
                else:
                    writer.writerow([*map(cell_text, before), *after])
            stream.flush()
            done += len(chunk[0])
            if meter is not None:
                meter.advance(done)
    return done
