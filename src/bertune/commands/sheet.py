"""What `bertune predict` writes: the columns that came in, then `prediction`, then `prob:<label>` for each label, or
`logit:<label>`, then `set` and `abstain` where the model promises something."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TextIO

from bertune.errors import ConfigError, DataError, listed, nearest, printable

if TYPE_CHECKING:
    import numpy as np

    from bertune.data.read import Table
    from bertune.data.tasks import Task
    from bertune.evaluate.rule import Rule

PREDICTION, PROBABILITY, LOGIT, SET, ABSTAIN = "prediction", "prob:", "logit:", "set", "abstain"
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


def check_columns(table: Table, task: Task, *, raw: bool = False, extra: Sequence[str] = ()) -> None:
    """DataError where a text column is missing, or where one has the name of a column that is added."""
    for names, flag in ((task.text, "--text"), (task.text_pair, "--text-pair")):
        for name in names:
            if name not in table.columns:
                near = nearest(name, table.columns) or f"; columns: {listed(table.columns)}."
                raise DataError(
                    f"{table.files[0]}: no column '{name}'{near} Pass {flag} COLUMN for a column with another name, or "
                    "--columns A,B,C for a file without a header."
                )
    added = added_columns(task, raw=raw, extra=extra)
    for name in table.columns:
        if name in added:
            raise DataError(
                f"{table.files[0]}: has a column '{name}' already, and the output would have it twice. "
                "Rename it there, or remove it."
            )


def added_columns(task: Task, *, raw: bool, extra: Sequence[str] = ()) -> list[str]:
    """The names of what is added to a row: the answer, a probability or logit a label, and what the model promises."""
    return [PREDICTION, *((LOGIT if raw else PROBABILITY) + label for label in task.labels), *extra]


def promised_columns(rule: Rule) -> list[str]:
    """`set` where the model tells sets of labels, `abstain` where it leaves some rows to a person."""
    return [name for name, there in ((SET, rule.sets), (ABSTAIN, rule.abstain)) if there is not None]


def separator(task: Task) -> str:
    """What stands between the labels of a cell: as in the training data, else |, or the next that no label holds."""
    choices = (task.label_sep, *SEPARATORS) if task.label_sep else SEPARATORS
    for choice in choices:
        if not any(choice in label for label in task.labels):
            return choice
    raise ConfigError("The labels hold every separator that a cell could have; pass --output-format jsonl.")


class LineFeeds:
    """Takes rows that end with \\r\\n and writes them with \\n: older csv modules quote the characters of their own
    line end alone, and a bare \\r in a cell would come back as a line break."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, row: str) -> None:
        self.stream.write(row.removesuffix("\r\n") + "\n")


class Sheet:
    """Writes rows as csv, tsv, jsonl, or `lines`: the answer and the beginning of the text, for people.

    `task` names the text columns as they are called in this input. raw: logits stand in place of probabilities; extra:
    of `promised_columns`.
    """

    def __init__(
        self, stream: TextIO, form: str, columns: Sequence[str], task: Task, *, raw: bool = False,
        extra: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.stream, self.form, self.task, self.raw, self.extra = stream, form, task, raw, tuple(extra)
        self.names = [*columns, *added_columns(task, raw=raw, extra=extra)]
        self.texts = [place for place, name in enumerate(columns) if name in (*task.text, *task.text_pair)]
        self.is_table = form in ("csv", "tsv")
        self.joint = separator(task) if self.is_table and (task.kind == "multi" or SET in self.extra) else ""
        self.table = csv.writer(LineFeeds(stream), delimiter="\t" if form == "tsv" else ",", lineterminator="\r\n")
        if self.is_table:
            self.table.writerow(self.names)

    def write(
        self, cells: Sequence[Sequence[Any]], predictions: Sequence[Any], shares: np.ndarray,
        promised: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:  # fmt: skip
        """cells: a list a column; predictions: a label, or a list of labels, a row; shares: probabilities or logits,
        [rows, labels]; promised: for each of `extra` what it says of each row."""
        more = [(promised or {})[name] for name in self.extra]
        told = list(zip(*more, strict=True)) if more else [()] * len(predictions)
        rows = list(zip(zip(*cells, strict=True), predictions, shares.tolist(), told, strict=True))
        if self.form == "lines":
            self._write_lines(rows)
            return
        for row, prediction, share, said in rows:
            probabilities = [float(f"{value:.6g}") for value in share]
            if self.is_table:
                self.table.writerow([
                    *map(cell_text, row), self._cell(prediction), *probabilities, *map(self._cell, said)
                ])  # fmt: skip
            else:
                record = dict(zip(self.names, [*map(plain, row), prediction, *probabilities, *said], strict=True))
                self.stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

    def _cell(self, value: Any) -> Any:
        """Labels joined; yes and no."""
        if isinstance(value, bool):
            return "yes" if value else "no"
        return self.joint.join(value) if isinstance(value, list) else value

    def _write_lines(self, rows: list[tuple[Any, Any, list[float], tuple[Any, ...]]]) -> None:
        from bertune.evaluate.tables import text_width

        answers = [printable(self._answer(prediction, share, said)) for _, prediction, share, said in rows]
        wide = min(48, max(map(text_width, answers)))
        for answer, (row, *_) in zip(answers, rows, strict=True):
            pad = " " * max(0, wide - text_width(answer))
            texts = " | ".join(cell_text(row[place]) for place in self.texts)
            self.stream.write(f"{answer}{pad}  {shortened(texts)}\n")

    def _answer(self, prediction: Any, share: list[float], promised: tuple[Any, ...]) -> str:
        """`Physics 0.93`; of several labels the most probable first; `none (Physics 0.31)` where there is none. Then
        `{Physics, Mathematics}` where the model tells sets, and before it all `ask a person: `."""
        ranked = sorted(zip(share, self.task.labels, strict=True), key=lambda pair: -pair[0])
        said = prediction if isinstance(prediction, list) else [prediction]
        chosen = [f"{label} {value:.2f}" for value, label in ranked if label in said]
        text = ", ".join(chosen) or f"none ({ranked[0][1]} {ranked[0][0]:.2f})"
        told = dict(zip(self.extra, promised, strict=True))
        if SET in told:
            text += f" {{{', '.join(told[SET])}}}"
        return f"ask a person: {text}" if told.get(ABSTAIN) else text


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
