"""How a result stands: how sure its figures are, and what simple models get on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bertune.config import Config
from bertune.data.splits import groups_of
from bertune.data.tasks import rows_of
from bertune.evaluate.baseline import baseline_logits, plain_texts
from bertune.evaluate.metrics import METRICS, evaluate
from bertune.evaluate.resample import RANKED, Scores, differences, intervals
from bertune.training.listen import Listener
from bertune.training.prepare import Prepared, Split

# What a baseline says is meant as an answer, not as a probability.
UNCALIBRATED = {"log_loss"}


def standing(
    config: Config, prepared: Prepared, logits: Mapping[str, np.ndarray], listener: Listener, *, metric: str
) -> dict[str, Any]:
    """`intervals` and `baselines` of metrics.json; nothing where no rows were measured.

    logits: those of the result, by split.

    intervals: {split: as `resample.intervals` returns them}. baselines: {name: {split: {metric: value}}}, each also
    with `gain`: by how much the result is better in `metric` (or worse, if negative), with its paired 95 % interval.
    """
    if not logits:
        return {}
    task, splits = prepared.task, prepared.splits
    found: dict[str, Any] = {"intervals": {}, "baselines": {}}
    groups = {name: _groups(splits[name], config.data.group) for name in logits}
    for name, values in logits.items():
        found["intervals"][name] = intervals(task.kind, values, splits[name].targets, groups=groups[name])
    if not config.report.baselines:
        return found
    texts = {name: plain_texts(rows_of(task, split.table, allow_empty=True)) for name, split in splits.items()}
    parts = {name: texts[name] for name in logits}
    with listener.work("Measuring simple models to compare with", len(prepared.train)):
        simple = baseline_logits(
            texts["train"], prepared.train.targets, parts, kind=task.kind, num_labels=task.num_labels
        )
    for baseline, answers in simple.items():
        hidden = UNCALIBRATED | (RANKED if baseline == "majority" else set())
        found["baselines"][baseline] = {}
        for name, theirs in answers.items():
            targets = splits[name].targets
            measured = evaluate(task.kind, task.labels, theirs, targets)
            shown = {key: measured[key] for key in METRICS if key in measured and key not in hidden}
            if metric in shown:
                ours, other = Scores(task.kind, logits[name], targets), Scores(task.kind, theirs, targets)
                shown["gain"] = _gain(ours, other, metric, groups[name])
            found["baselines"][baseline][name] = shown
    return found


def _gain(ours: Scores, theirs: Scores, metric: str, groups: list[object] | None) -> dict[str, float] | None:
    """The paired difference with its interval, positive where ours is better; None where the metric is undefined."""
    one, other = (ours, theirs) if METRICS[metric].higher_is_better else (theirs, ours)
    return differences(one, other, [metric], groups=groups).get(metric)


def _groups(split: Split, column: str | None) -> list[object] | None:
    return groups_of(split.table, column) if column else None
