"""How a result stands: how sure its figures are, and what simple models get on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bertune.config import Config
from bertune.data.splits import groups_of
from bertune.data.tasks import rows_of
from bertune.evaluate.baseline import baseline_logits, plain_texts
from bertune.evaluate.choose import choose_rule
from bertune.evaluate.metrics import METRICS, evaluate
from bertune.evaluate.resample import RANKED, Scores, differences, intervals, scores_of
from bertune.evaluate.rule import Rule
from bertune.evaluate.slices import attributes, slices
from bertune.training.listen import Listener
from bertune.training.prepare import Prepared, Split

# What a baseline says is meant as an answer, not as a probability.
UNCALIBRATED = {"log_loss"}


def standing(
    config: Config, prepared: Prepared, logits: Mapping[str, np.ndarray], rule: Rule, listener: Listener, *, metric: str
) -> dict[str, Any]:
    """`intervals`, `slices` and `baselines` of metrics.json.

    logits: those of the result, by split; rule: what turns them into answers. The linear models have a rule of
    their own, chosen on the validation rows in the same way, so that a gain is not that of the rule.

    intervals: {split: as `resample.intervals` returns them}; slices: {split: as `slices.slices` does}. baselines:
    {name: {split: {metric: value}}}, each also with `gain`: by how much the result is better in `metric` (or worse, if
    negative), with its paired 95 % interval.
    """
    task, splits = prepared.task, prepared.splits
    found: dict[str, Any] = {"intervals": {}, "slices": {}, "baselines": {}}
    groups = {name: _groups(splits[name], config.data.group) for name in logits}
    ours = {name: scores_of(rule, task.kind, values, splits[name].targets) for name, values in logits.items()}
    for name, scores in ours.items():
        found["intervals"][name] = intervals(scores, groups=groups[name])
        tokens = splits[name].tokens
        cells = {column: splits[name].table.column(column) for column in config.report.slices}
        by = attributes(tokens.full_lengths, tokens.lengths, cells)
        found["slices"][name] = slices(scores, metric, by, groups=groups[name])
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
        own = Rule()
        if baseline != "majority" and "valid" in answers:
            own, _ = choose_rule(
                config.decide, task.kind, answers["valid"], splits["valid"].targets, metric=metric,
                groups=groups["valid"],
            )  # fmt: skip
        for name, theirs in answers.items():
            targets = splits[name].targets
            said = own.decide(task.kind, theirs)
            measured = evaluate(task.kind, task.labels, own.calibrated(task.kind, theirs), targets, said=said)
            shown = {key: measured[key] for key in METRICS if key in measured and key not in hidden}
            if metric in shown:
                shown["gain"] = _gain(ours[name], scores_of(own, task.kind, theirs, targets), metric, groups[name])
            found["baselines"][baseline][name] = shown
    return found


def _gain(ours: Scores, theirs: Scores, metric: str, groups: list[object] | None) -> dict[str, float] | None:
    """The paired difference with its interval, positive where ours is better; None where the metric is undefined."""
    one, other = (ours, theirs) if METRICS[metric].higher_is_better else (theirs, ours)
    return differences(one, other, [metric], groups=groups).get(metric)


def _groups(split: Split, column: str | None) -> list[object] | None:
    return groups_of(split.table, column) if column else None
