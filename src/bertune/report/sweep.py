"""What every threshold would come to, counted over all rows: the numbers behind the slider.

A page cannot hold every row's probabilities, but counts at a hundred thresholds are exact and small, whatever the
number of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bertune.evaluate.abstain import confidence, is_right
from bertune.evaluate.metrics import Array, f1_of
from bertune.report.gather import Answers

STEPS = 100
MARKS = np.arange(STEPS + 1) / STEPS
LABELS = 200  # that the slider offers


def sweep(answers: Answers) -> dict[str, Any]:
    """Counts at thresholds 0, 0.01, ... 1, and under the rule as it is stored.

    Any number of labels: {"kind", "rows", "all", "labels"}; each label has "name", "support", "calls" and "hits" [101],
    and "stored" {"threshold", "calls", "hits"}; "all" has these summed over every label, and "exact" [101], rows whose
    labels are all right. One label a row: {"kind", "rows", "answered", "right", "stored"}, by the probability of the
    answer.
    """
    return _labels(answers) if answers.task.kind == "multi" else _answered(answers)


def at_least(values: Array) -> list[int]:
    """How many of the values reach each mark."""
    return [int(count) for count in len(values) - np.searchsorted(np.sort(values), MARKS, side="left")]


def _labels(answers: Answers) -> dict[str, Any]:
    shares, truth, given = answers.shares, answers.truth, answers.given
    cuts = answers.rule.thresholds or (0.5,) * answers.task.num_labels
    found: list[dict[str, Any]] = []
    for place, name in enumerate(answers.task.labels):
        own, has = shares[:, place], truth[:, place]
        found.append({
            "name": name, "support": int(has.sum()), "calls": at_least(own), "hits": at_least(own[has]),
            "stored": {"threshold": float(cuts[place]), "calls": int(given[:, place].sum()),
                       "hits": int((given[:, place] & has).sum())},
        })  # fmt: skip
    # All labels of a row are right where the lowest true one is said and the highest false one is not.
    lowest, highest = np.where(truth, shares, np.inf).min(axis=1), np.where(truth, -np.inf, shares).max(axis=1)
    exact = np.subtract(at_least(lowest), at_least(np.minimum(lowest, highest)))
    sums = {key: np.sum([label[key] for label in found], axis=0) for key in ("calls", "hits", "support")}
    stored = {key: sum(label["stored"][key] for label in found) for key in ("calls", "hits")}
    same = len(set(cuts)) == 1
    frequent = sorted(sorted(range(len(found)), key=lambda place: -found[place]["support"])[:LABELS])
    return {
        "kind": "multi", "rows": len(shares),
        "all": {
            "support": int(sums["support"]), "calls": sums["calls"].tolist(), "hits": sums["hits"].tolist(),
            "exact": exact.tolist(),
            "stored": {"threshold": float(cuts[0]) if same else None, **stored,
                       "exact": int((given == truth).all(axis=1).sum())},
        },
        "labels": [found[place] for place in frequent],
    }  # fmt: skip


def _answered(answers: Answers) -> dict[str, Any]:
    sure = confidence("single", answers.shares, answers.said)
    right = is_right("single", answers.said, answers.targets)
    return {
        "kind": "single", "rows": len(sure), "answered": at_least(sure), "right": at_least(sure[right]),
        "stored": answers.rule.abstain,
    }  # fmt: skip


def shown(found: dict[str, Any]) -> dict[str, float | None]:
    """The numbers that the slider begins with: all labels under the stored rule, or every row answered."""
    if found["kind"] == "single":
        return {"share": 1.0, "accuracy": found["right"][0] / found["rows"]}
    whole = found["all"]
    hits, calls, support = whole["stored"]["hits"], whole["stored"]["calls"], whole["support"]
    f1 = float(f1_of(np.array(hits), np.array(calls), np.array(support)))
    return {
        "precision": hits / calls if calls else 0.0, "recall": hits / support if support else 0.0, "f1": f1,
        "share": calls / found["rows"], "exact": whole["stored"]["exact"] / found["rows"],
    }  # fmt: skip
