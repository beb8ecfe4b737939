"""Is one set of answers better than another on the same rows, or is the difference noise?

Three looks at it: the paired bootstrap interval of each metric's difference, McNemar's exact test over the rows that
only one of them gets right, and a paired permutation test. With several rivals, p values are Holm's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bertune.evaluate.metrics import METRICS, Array
from bertune.evaluate.resample import RANKED, Scores, cluster, differences

PERMUTATIONS = 5000
ALPHA = 0.05
AT_ONCE = 4_000_000  # exchanged or not, in memory, 32 MB


def mcnemar(right_a: Array, right_b: Array) -> float:
    """Two-sided p of McNemar's exact test: bool [n] each, whether a row was answered rightly (McNemar 1947).

    Rows that both get right, or both wrong, say nothing; of the others each side would have half by chance.
    """
    from scipy.stats import binomtest

    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def permutation(
    a: Scores, b: Scores, metrics: Sequence[str], *, groups: Sequence[object] | None = None, seed: int = 0,
    draws: int = PERMUTATIONS,
) -> dict[str, float]:
    """Two-sided p of each metric's difference under random exchange of the two answers to a row, or to all rows of a
    group (Fisher 1935; as Yeh 2000, arXiv cs/0008005, for F1). `metrics` that come from the order of logits have none.
    """
    counted = [name for name in metrics if name not in RANKED]
    everything = np.ones((1, a.rows))
    sums_a, sums_b = everything @ a.columns, everything @ b.columns
    total = np.full(1, a.rows)

    def gap(one: Array, other: Array, size: Array) -> dict[str, Array]:
        first, second = a.from_sums(one, size), b.from_sums(other, size)
        return {name: np.abs(first[name] - second[name]) for name in counted}

    seen = gap(sums_a, sums_b, total)
    random = np.random.default_rng(seed)
    member, units = cluster(a.rows, groups)
    step = max(1, AT_ONCE // a.rows)
    as_large = dict.fromkeys(counted, 1)  # the order that was found is one of those that chance could give
    apart = b.columns - a.columns
    for start in range(0, draws, step):
        size = min(step, draws - start)
        exchanged = random.integers(0, 2, (size, units), dtype=np.int8)
        moved = (exchanged if member is None else exchanged[:, member]).astype(np.float64) @ apart
        found = gap(sums_a + moved, sums_b - moved, np.full(size, a.rows))
        for name in counted:
            as_large[name] += int((found[name] >= seen[name][0] - 1e-12).sum())
    return {name: count / (draws + 1) for name, count in as_large.items()}


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979), in the order given."""
    order = np.argsort(values, kind="stable")
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted


def compare(
    a: Scores, b: Scores, *, metric: str, groups: Sequence[object] | None = None, seed: int = 0
) -> dict[str, Any]:
    """b against a on the same rows, for JSON.

    metrics: {metric: {"first", "second", "difference" (b - a), "low", "high", "p"}}, p None where there is no test;
    only_first, only_second: places of the rows that one alone gets right; `test` and `p` of `metric`: McNemar's for
    accuracy over single rows, else the permutation test.
    """
    names = [name for name, found in METRICS.items() if a.kind in found.kinds]
    everything = np.ones((1, a.rows))
    first, second = a(everything), b(everything)
    apart = differences(b, a, names, groups=groups, seed=seed)
    chances = permutation(a, b, names, groups=groups, seed=seed)
    metrics: dict[str, Any] = {}
    for name in names:
        values = {"first": first[name][0], "second": second[name][0]}
        known = {key: float(value) if np.isfinite(value) else None for key, value in values.items()}
        found = apart.get(name, dict.fromkeys(("difference", "low", "high")))
        metrics[name] = {**known, **found, "p": chances.get(name)}
    exact = metric == "accuracy" and groups is None
    return {
        "rows": a.rows, "metric": metric, "metrics": metrics,
        "test": "McNemar, exact" if exact else None if metric in RANKED else "paired permutation",
        "p": mcnemar(a.right, b.right) if exact else chances.get(metric),
        "only_first": np.flatnonzero(a.right & ~b.right).tolist(),
        "only_second": np.flatnonzero(b.right & ~a.right).tolist(),
    }  # fmt: skip


def judgement(found: dict[str, Any]) -> str:
    """better, worse or noise: what `compare` found for its metric. Better or worse takes an interval without 0 and,
    where there is a test, p under 5 %."""
    name = found["metric"]
    values, p = found["metrics"][name], found["p"]
    if values["low"] is None or (p is not None and p >= ALPHA) or values["low"] <= 0 <= values["high"]:
        return "noise"
    return "better" if (values["difference"] > 0) == METRICS[name].higher_is_better else "worse"
