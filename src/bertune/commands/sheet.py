"""What `bertune predict` writes: the columns that came in, then `prediction`, then `prob:<label>` for each label, or
`logit:<label>`."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TextIO

from bertune.errors import ConfigError, DataError, listed, nearest, printable

if TYPE_CHECKING:
    import numpy as np

    from bertune.data.read import Table
    from bertune.data.tasks import Task

PREDICTION, PROBABILITY, LOGIT = "prediction", "prob:", "logit:"
FORMS = ("csv", "tsv", "jsonl", "lines")
SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
# Between the labels of a cell: the first of these that no label holds.
SEPARATORS = ("|", ";", ",", "/", "||")
SHOWN = 80  # characters of a text in `lines`


def format_of(name: str) -> str:
    """csv, tsv or jsonl by the ending of a file name."""
    suffix = PurePath(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(
            f"--out {name}: its ending tells no format; use one of {', '.join(SUFFIXES)}, or pass --output-format."
        )
    return SUFFIXES[suffix]


def check_columns(table: Table, task: Task, *, raw: bool = False) -> None:
    """DataError where a text column is missing, or where one has the name of a column that is added."""
    for names, flag in ((task.text, "--text"), (task.text_pair, "--text-pair")):
        for name in names:
            if name not in table.columns:
                near = nearest(name, table.columns) or f"; columns: {listed(table.columns)}."
                raise DataError(
                    f"{table.files[0]}: no column '{name}'{near} Pass {flag} COLUMN for a column with another name, or "
                    "--columns A,B,C for a file without a header."
                )
    added = added_columns(task, raw=raw)
    for name in table.columns:
        if name in added:
            raise DataError(
                f"{table.files[0]}: has a column '{name}' already, and the output would have it twice. "
                "Rename it there, or remove it."
            )


def added_columns(task: Task, *, raw: bool) -> list[str]:
    """The names of what is added to a row: the answer, and a probability or logit a label."""
    return [PREDICTION, *((LOGIT if raw else PROBABILITY) + label for label in task.labels)]


def separator(task: Task) -> str:
    """What stands between the labels of a cell: as in the training data, else |, or the next that no label holds."""
    choices = (task.label_sep, *SEPARATORS) if task.label_sep else SEPARATORS
    for choice in choices:
        if not any(choice in label for label in task.labels):
            return choice
    raise ConfigError("The labels hold every separator that a cell could have; pass --output-format jsonl.")


class _LineFeeds:
    """Takes rows that end with \\r\\n and writes them with \\n: older csv modules quote the characters of their own
    line end alone, and a bare \\r in a cell would come back as a line break."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, row: str) -> None:
        self.stream.write(row.removesuffix("\r\n") + "\n")


class Sheet:
    """Writes rows as csv, tsv, jsonl, or `lines`: the answer and the beginning of the text, for people.

    `task` names the text columns as they are called in this input. raw: logits stand in place of probabilities.
    """

    def __init__(self, stream: TextIO, form: str, columns: Sequence[str], task: Task, *, raw: bool = False) -> None:
        self.stream, self.form, self.task, self.raw = stream, form, task, raw
        self.names = [*columns, *added_columns(task, raw=raw)]
        self.texts = [place for place, name in enumerate(columns) if name in (*task.text, *task.text_pair)]
        self.is_table = form in ("csv", "tsv")
        self.joint = separator(task) if self.is_table and task.kind == "multi" else ""
        self.table = csv.writer(_LineFeeds(stream), delimiter="\t" if form == "tsv" else ",", lineterminator="\r\n")
        if self.is_table:
            self.table.writerow(self.names)

    def write(self, cells: Sequence[Sequence[Any]], predictions: Sequence[Any], shares: np.ndarray) -> None:
        """cells: a list a column; predictions: a label, or a list of labels, a row; shares: probabilities or logits,
        [rows, labels]."""
        rows = list(zip(zip(*cells, strict=True), predictions, shares.tolist(), strict=True))
        if self.form == "lines":
            self._write_lines(rows)
            return
        for row, prediction, share in rows:
            probabilities = [float(f"{value:.6g}") for value in share]
            if self.is_table:
                said = self.joint.join(prediction) if isinstance(prediction, list) else prediction
                self.table.writerow([*map(cell_text, row), said, *probabilities])
            else:
                record = dict(zip(self.names, [*map(plain, row), prediction, *probabilities], strict=True))
                self.stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

    def _write_lines(self, rows: list[tuple[Any, Any, list[float]]]) -> None:
        from bertune.evaluate.tables import text_width

        answers = [printable(self._answer(prediction, share)) for _, prediction, share in rows]
        wide = min(48, max(map(text_width, answers)))
        for answer, (row, _, _) in zip(answers, rows, strict=True):
            pad = " " * max(0, wide - text_width(answer))
            texts = " | ".join(cell_text(row[place]) for place in self.texts)
            self.stream.write(f"{answer}{pad}  {shortened(texts)}\n")

    def _answer(self, prediction: Any, share: list[float]) -> str:
        """`Physics 0.93`; of several labels the most probable first; `none (Physics 0.31)` where there is none."""
        ranked = sorted(zip(share, self.task.labels, strict=True), key=lambda pair: -pair[0])
        said = prediction if isinstance(prediction, list) else [prediction]
        chosen = [f"{label} {value:.2f}" for value, label in ranked if label in said]
        return ", ".join(chosen) or f"none ({ranked[0][1]} {ranked[0][0]:.2f})"


def cell_text(value: Any) -> str:
    """A cell of any format as text: nothing for a missing one, JSON for a list."""
    if value is None:
        return ""
    return json.dumps(plain(value), ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def plain(value: Any) -> Any:
    """A value as JSON has it; dates and the like as text, NaN and infinities as null."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, str | int) else str(value)


def shortened(text: str) -> str:
    """The beginning of a text, on one line and without control characters."""
    start = text[: 4 * SHOWN]
    line = " ".join(printable(start).split())
    return line if len(line) <= SHOWN and start == text else line[: SHOWN - 1] + "…"
