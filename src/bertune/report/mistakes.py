"""The costliest errors: wrong answers with the highest loss, and the texts that they were given to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertune.data.read import Table, read_table
from bertune.data.tasks import encode_labels, rows_of
from bertune.errors import BertuneError
from bertune.evaluate.abstain import is_right
from bertune.evaluate.metrics import row_losses

if TYPE_CHECKING:
    from bertune.config import Config
    from bertune.report.gather import Answers

SHOWN = 20  # mistakes on a page
LABELS = 8  # probabilities told of each


@dataclass(frozen=True)
class Mistake:
    """A row that was answered wrongly.

    position: its place in run/predictions-SPLIT.parquet, counted from 0, by which attributions are handed over.
    shares: the labels that the answer turned on, each with its probability. texts: (column, text), if they are there.
    """

    position: int
    file: str
    row: int
    truth: tuple[str, ...]
    said: tuple[str, ...]
    shares: tuple[tuple[str, float], ...]
    loss: float
    texts: tuple[tuple[str, str], ...] = ()


def costliest(answers: Answers, frame: Any, limit: int = SHOWN) -> tuple[Mistake, ...]:
    """The wrong answers with the highest loss, the worst first; frame: the predictions, with file and row."""
    labels, kind = answers.task.labels, answers.task.kind
    losses = row_losses(kind, answers.rule.calibrated(kind, answers.logits), answers.targets)
    wrong = np.flatnonzero(~is_right(kind, answers.said, answers.targets))
    found = []
    for position in wrong[np.argsort(-losses[wrong], kind="stable")][:limit].tolist():
        truth, said, shares = answers.truth[position], answers.given[position], answers.shares[position]
        apart = np.flatnonzero(truth | said)
        turned = apart[np.argsort(-np.abs(truth[apart] - shares[apart]), kind="stable")][:LABELS]
        found.append(Mistake(
            position, str(frame["file"][position]), int(frame["row"][position]),
            tuple(labels[place] for place in np.flatnonzero(truth)),
            tuple(labels[place] for place in np.flatnonzero(said)),
            tuple((labels[place], float(shares[place])) for place in turned), float(losses[position]),
        ))  # fmt: skip
    return tuple(found)


def with_texts(
    mistakes: Sequence[Mistake], answers: Answers, config: Config | None, source: Any
) -> tuple[tuple[Mistake, ...], str | None]:
    """The mistakes with their texts, read again from the data of the run; or as they are, and why."""
    mistakes = tuple(mistakes)
    if not mistakes:
        return mistakes, None
    if config is None:
        return mistakes, "The result has no run/config.yaml that names the data, so the texts are not shown."
    given = getattr(config.data, answers.split, None)
    place = given if isinstance(given, str) else source if source is not None else config.data.files
    if place is None or (isinstance(place, list) and not place):
        return mistakes, "The data was in memory when the model was trained, so the texts are not shown."
    names = [place] if isinstance(place, str) else place if place is config.data.files else []
    if any(name.startswith("hf://") for name in names):
        return mistakes, "The data lies on the hub, and a page is made without the network, so its texts are not shown."
    try:
        found = _found(read_table(place, config.data), mistakes)
        if found is None:
            return mistakes, "The data no longer holds these rows, so the texts are not shown."
        same = encode_labels(answers.task, found) == answers.targets[[mistake.position for mistake in mistakes]]
        if not np.all(same):
            return mistakes, "The data has other labels now than in the training, so the texts are not shown."
        rows = rows_of(answers.task, found, allow_empty=True)
    except BertuneError:
        return mistakes, "The data could not be read again where it was for the training, so the texts are not shown."
    columns = [*zip(answers.task.text, rows.first, strict=True)]
    columns += zip(answers.task.text_pair, rows.second or (), strict=True)
    return tuple(
        replace(mistake, texts=tuple((name, cells[number]) for name, cells in columns))
        for number, mistake in enumerate(mistakes)
    ), None


def _found(table: Table, mistakes: Sequence[Mistake]) -> Table | None:
    """The rows of the mistakes, in their order; None where one is absent, or two are called the same."""
    wanted = {(mistake.file, mistake.row) for mistake in mistakes}
    names = [Path(file).name for file in table.files]
    rows = {row for _, row in wanted}
    where: dict[tuple[str, int], int] = {}
    for place in np.flatnonzero(np.isin(table.row_numbers, list(rows))).tolist():
        key = names[table.file_index[place]], int(table.row_numbers[place])
        if key in where and key in wanted:
            return None
        where[key] = place
    if not wanted <= where.keys():
        return None
    return table.take([where[mistake.file, mistake.row] for mistake in mistakes])
