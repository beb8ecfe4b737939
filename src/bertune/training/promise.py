"""What a result promises, on rows that chose nothing else: sets that hold the right label, answers that are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from bertune.config import DecideConfig
from bertune.data.tasks import Task
from bertune.errors import ConfigError, listed
from bertune.evaluate.abstain import confidence, fewest_answers, fit_threshold, is_right, judge_abstention
from bertune.evaluate.rule import Rule
from bertune.evaluate.sets import FEWEST_CASES, fewest_rows, fit_sets, judge_sets
from bertune.training.prepare import Split

NEVER = 2.0  # a confidence that no answer has


def check_enough(config: DecideConfig, kind: str, rows: int) -> None:
    """Raise ConfigError, before anything is trained, where so many rows cannot promise what is asked for."""
    asked = [("coverage", config.coverage, fewest_rows)] if kind == "single" else []
    for name, wanted, fewest in (*asked, ("accuracy", config.accuracy, fewest_answers)):
        if wanted is not None and rows < fewest(wanted):
            raise ConfigError(
                f"--{name} {wanted:g}: half of the validation rows are kept to promise it, and {rows:,} are fewer than "
                f"the {fewest(wanted):,} that it takes. Give more validation rows, or ask for less."
            )


def promise(config: DecideConfig, task: Task, rule: Rule, held: Split, logits: np.ndarray) -> Rule:
    """The rule with sets and with a confidence to answer from, as far as they are asked for; held: rows that chose
    nothing, and their logits."""
    shares = rule.probabilities(task.kind, logits)
    if config.coverage is not None:
        rule = rule.model_copy(update={"sets": fit_sets(task.kind, shares, held.targets, config.coverage)})
    if config.accuracy is not None:
        said = rule.decide(task.kind, logits)
        sure, right = confidence(task.kind, shares, said), is_right(task.kind, said, held.targets)
        least = fit_threshold(sure, right, config.accuracy)
        rule = rule.model_copy(update={"abstain": NEVER if least is None else least})
    return rule


def judge_promises(rule: Rule, task: Task, logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """{"abstention", and where the rule has sets "conformal"}: what came of the promises on these rows."""
    kind = task.kind
    said = rule.decide(kind, logits)
    sure, right = confidence(kind, rule.probabilities(kind, logits), said), is_right(kind, said, targets)
    found = {"abstention": judge_abstention(sure, right, rule.abstain)}
    if rule.sets is not None:
        found["conformal"] = judge_sets(kind, task.labels, rule.label_sets(kind, logits), targets)
    return found


def kept_promises(
    config: DecideConfig, task: Task, rule: Rule, splits: Mapping[str, Split], logits: Mapping[str, np.ndarray],
    held: Split | None, *, say: Callable[[str], None],
) -> dict[str, Any]:
    """`abstention` and, where sets are asked for, `conformal` of metrics.json: what was promised, and by split what
    came of it."""
    rows = 0 if held is None else len(held)
    found: dict[str, Any] = {"abstention": {"accuracy": config.accuracy, "confidence": rule.abstain, "rows": rows}}
    if rule.sets is not None:
        found["conformal"] = {**rule.sets.model_dump(mode="json"), "rows": rows, "labels": list(task.labels)}
    judged = {name: judge_promises(rule, task, values, splits[name].targets) for name, values in logits.items()}
    for name, parts in judged.items():
        for part, told in parts.items():
            found[part][name] = told
    if held is not None:
        for line in _in_words(config, task, rule, judged, held):
            say(line)
    return found


def _in_words(
    config: DecideConfig, task: Task, rule: Rule, judged: Mapping[str, Mapping[str, Any]], held: Split
) -> Iterator[str]:
    if rule.sets is not None:
        told = [f"{name} {parts['conformal']['coverage']:.3f} with {parts['conformal']['mean_size']:.2f} labels a row"
                for name, parts in judged.items() if parts["conformal"]["coverage"] is not None]  # fmt: skip
        yield f"Sets for a coverage of {rule.sets.coverage:g}, from {len(held):,} rows: {'; '.join(told)}."
        counts = (held.targets > 0.5).sum(axis=0) if task.kind == "multi" else np.array([])
        few = [label for label, count in zip(task.labels, counts, strict=False) if count < FEWEST_CASES]
        if few:
            yield f"Labels with fewer than {FEWEST_CASES} such rows, whose coverage swings: {listed(few)}."
    if rule.abstain == NEVER:
        yield f"No confidence promises an accuracy of {config.accuracy:g}, so that every answer is left to a person."
    elif rule.abstain is not None:
        told = [f"{name} {100 * parts['abstention']['answered']:.0f} % of the rows answered, "
                f"{parts['abstention']['accuracy']:.4f} of these right"
                for name, parts in judged.items() if parts["abstention"]["accuracy"] is not None]  # fmt: skip
        yield f"Answers with a confidence below {rule.abstain:.3f} are left to a person: {'; '.join(told)}."
