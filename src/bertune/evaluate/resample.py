"""How sure are these figures? Metrics under weights of the rows, and bootstrap intervals from them.

A bootstrap draws as many rows as there are, with replacement; how often each row was drawn is its weight. `Scores`
computes every metric for many such draws at once, with the definitions of `metrics.evaluate`. Intervals are percentiles
(Efron and Tibshirani 1993, chapter 13). Where rows belong to groups, whole groups are drawn (the cluster bootstrap),
since rows of one group are alike and count for less than as many independent ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bertune.evaluate.metrics import METRICS, Array, decide, f1_of, row_losses
from bertune.evaluate.rule import Rule

LEVEL = 0.95
DRAWS = 1000
FEWEST = 200  # draws, however large the data is
WORK = 400_000_000  # rows x labels x draws at most beyond that; on so many rows intervals are narrow anyway
STEPS = 4096  # of a ranking
AT_ONCE = 4_000_000  # weights in memory, 32 MB

# Metrics that come from the order of the logits, not from sums over rows.
RANKED = {"roc_auc_macro", "roc_auc_micro", "average_precision_macro", "average_precision_micro"}

Interval = tuple[float, float]


class Scores:
    """Metrics of one set of answers under weights of its rows.

    logits: float [n, L]; targets: int [n] ('single') or 0/1 [n, L] ('multi'); said: what a rule answered, as
    `metrics.decide` gives it, and by default that.
    """

    def __init__(self, kind: str, logits: Array, targets: Array, *, said: Array | None = None) -> None:
        self.kind, self.rows, self.width = kind, len(logits), logits.shape[1]
        said = decide(kind, logits) if said is None else said
        if kind == "single":
            targets = targets.astype(np.int64)
            labels = np.arange(self.width)
            said, truth = said[:, None] == labels, targets[:, None] == labels
        else:
            truth = np.asarray(targets) > 0.5
        self.said, self.truth, self.logits = said, truth, np.asarray(logits, np.float64)
        # Whatever is a mean over rows, or made of sums over rows, comes from one matrix product.
        self.right = (said == truth).all(axis=1)
        own = [self.right, row_losses(kind, self.logits, targets)]
        if kind == "multi":
            own.append(f1_of((said & truth).sum(axis=1), said.sum(axis=1), truth.sum(axis=1)))
            own.append((said != truth).mean(axis=1))
        self.columns = np.column_stack([*own, said & truth, said, truth]).astype(np.float64)

    def __call__(self, weights: Array, metrics: Collection[str] | None = None) -> dict[str, Array]:
        """weights: float [draws, n] -> each of `metrics` (None: all of the kind), float64 [draws]; NaN where a draw
        leaves it undefined."""
        wanted = [name for name, metric in METRICS.items() if self.kind in metric.kinds] if metrics is None else metrics
        found = self.from_sums(weights @ self.columns, weights.sum(axis=1))
        if RANKED & set(wanted):
            found |= self._ranked(weights)
        return {name: found[name] for name in wanted}

    def from_sums(self, sums: Array, total: Array) -> dict[str, Array]:
        """The metrics that need no order of the logits. sums: of `columns`, [draws, k]; total: weight, [draws]."""
        own = sums.shape[1] - 3 * self.width
        means = sums[:, :own] / total[:, None]
        hits, calls, support = np.split(sums[:, own:], 3, axis=1)
        scores = f1_of(hits, calls, support)
        weighted = np.nan_to_num(_share((scores * support).sum(axis=1), support.sum(axis=1)))
        if self.kind == "multi":
            return {
                "subset_accuracy": means[:, 0], "log_loss": means[:, 1], "sample_f1": means[:, 2],
                "hamming_loss": means[:, 3], "macro_f1": scores.mean(axis=1), "weighted_f1": weighted,
                "micro_f1": f1_of(hits.sum(axis=1), calls.sum(axis=1), support.sum(axis=1)),
            }  # fmt: skip
        recall = np.nan_to_num(_share(hits, support))
        return {
            "accuracy": means[:, 0], "log_loss": means[:, 1], "weighted_f1": weighted,
            "balanced_accuracy": recall.sum(axis=1) / (support > 0).sum(axis=1),
            "macro_f1": scores.sum(axis=1) / ((support + calls) > 0).sum(axis=1),
            "mcc": _correlation(hits.sum(axis=1), calls, support, total),
        }  # fmt: skip

    @cached_property
    def _orders(self) -> tuple[list[_Order], _Order]:
        """Of each label's logits, and of all together."""
        rows = np.arange(self.rows)
        alone = [_Order(self.logits[:, label], self.truth[:, label], rows) for label in range(self.width)]
        return alone, _Order(self.logits.ravel(), self.truth.ravel(), np.repeat(rows, self.width))

    def _ranked(self, weights: Array) -> dict[str, Array]:
        by_label, together = self._orders
        areas, precisions = zip(*(order.ranking(weights) for order in by_label), strict=True)
        micro = together.ranking(weights)
        return {
            "roc_auc_macro": _mean_of_known(np.column_stack(areas)), "roc_auc_micro": micro[0],
            "average_precision_macro": _mean_of_known(np.column_stack(precisions)), "average_precision_micro": micro[1],
        }  # fmt: skip


def scores_of(rule: Rule, kind: str, logits: Array, targets: Array) -> Scores:
    """The scores of the answers that a rule gives."""
    return Scores(kind, rule.calibrated(kind, logits), targets, said=rule.decide(kind, logits))


def draws_for(rows: int, width: int) -> int:
    """How often to draw: fewer times from very many rows, where it would take long and matter little."""
    return int(np.clip(WORK // (rows * width), FEWEST, DRAWS))


def resamples(
    rows: int, *, draws: int, seed: int = 0, groups: Sequence[object] | None = None
) -> Iterator[Array]:
    """Weights of bootstrap draws, float64 [some, rows] at a time; equal `groups` are drawn together."""
    random = np.random.default_rng(seed)
    member, units = cluster(rows, groups)
    step = max(1, AT_ONCE // max(rows, STEPS))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        counts = np.stack([np.bincount(random.integers(0, units, units), minlength=units) for _ in range(size)])
        yield (counts if member is None else counts[:, member]).astype(np.float64)


def cluster(rows: int, groups: Sequence[object] | None) -> tuple[Array | None, int]:
    """The group of each row as a number [rows] (None: every row is its own), and how many groups there are."""
    if groups is None:
        return None, rows
    # Not numpy.unique: groups may be whole texts, and an array of strings takes the longest one's room for each.
    names = list(map(str, groups))
    number = {name: place for place, name in enumerate(sorted(set(names)))}
    return np.array([number[name] for name in names], dtype=np.int64), len(number)


def folds_of(
    rows: int, *, groups: Sequence[object] | None = None, count: int = 5, seed: int = 0
) -> Iterator[tuple[Array, Array]]:
    """Row numbers inside and outside of each fold, at random, groups whole: something is fitted inside and judged
    outside."""
    member, units = cluster(rows, groups)
    place = np.random.default_rng(seed).permutation(units) % count
    place = place if member is None else place[member]
    for number in range(count):
        yield np.flatnonzero(place != number), np.flatnonzero(place == number)


def too_few(groups: Sequence[object] | None, count: int = 5) -> bool:
    """Whether there are not enough groups for so many folds."""
    return groups is not None and len(set(map(str, groups))) < count


def intervals(scores: Scores, *, groups: Sequence[object] | None = None, seed: int = 0) -> dict[str, Any]:
    """95 % interval of every metric: {"level", "draws", "by", metric: [low, high] or None where it is undefined}.

    Where all rows are right, or all wrong, a bootstrap sees no spread; accuracy and subset accuracy then have the exact
    binomial bound (Clopper and Pearson 1934), as long as rows are drawn one by one.
    """
    draws = draws_for(scores.rows, scores.width)
    parts = [scores(weights) for weights in resamples(scores.rows, draws=draws, seed=seed, groups=groups)]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    result: dict[str, Any] = {"level": LEVEL, "draws": draws, "by": "rows" if groups is None else "groups"}
    for name, values in found.items():
        limits = percentiles(values)
        result[name] = None if limits is None else list(limits)
    right = int(scores.right.sum())
    if groups is None and right in (0, scores.rows):
        far = ((1 - LEVEL) / 2) ** (1 / scores.rows)  # the chance of such a run would be half of 5 %
        name = "accuracy" if scores.kind == "single" else "subset_accuracy"
        result[name] = [far, 1.0] if right else [0.0, 1 - far]
    return result


def percentiles(values: Array) -> Interval | None:
    """The middle `LEVEL` of the values that are known; None where none is."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def differences(
    a: Scores, b: Scores, metrics: Sequence[str], *, groups: Sequence[object] | None = None, seed: int = 0,
    draws: int | None = None,
) -> dict[str, dict[str, float]]:
    """a - b on the same rows, {metric: {"difference", "low", "high"}} with 95 % intervals; both see the same draws."""
    if (a.truth != b.truth).any():
        raise ValueError("the two were measured on different rows")

    def minus(weights: Array) -> dict[str, Array]:
        one, other = a(weights, metrics), b(weights, metrics)
        return {name: one[name] - other[name] for name in metrics}

    whole = minus(np.ones((1, a.rows)))
    count = draws or draws_for(a.rows, a.width)
    parts = [minus(weights) for weights in resamples(a.rows, draws=count, seed=seed, groups=groups)]
    result = {}
    for name in metrics:
        limits = percentiles(np.concatenate([part[name] for part in parts]))
        if limits is not None:
            result[name] = {"difference": float(whole[name][0]), "low": limits[0], "high": limits[1]}
    return result


def _correlation(hits: Array, calls: Array, support: Array, total: Array) -> Array:
    """Matthews correlation from weighted counts, [draws]; 0 where targets or predictions are constant."""
    spread = (total**2 - (calls**2).sum(axis=1)) * (total**2 - (support**2).sum(axis=1))
    joint = hits * total - (calls * support).sum(axis=1)
    return np.where(spread > 0, joint / np.sqrt(np.maximum(spread, 1e-300)), 0)


class _Order:
    """Places by a score from the highest down, in steps of equal scores, and what follows under weights of the rows.

    scores, truth: [places]; owner: the row of each place. Of more than `STEPS` different scores neighbours share a
    step, which moves a ROC AUC by less than 1 / STEPS.
    """

    def __init__(self, scores: Array, truth: Array, owner: Array) -> None:
        from scipy.sparse import csr_array

        order = np.argsort(-scores, kind="stable")
        step = np.cumsum(np.append(False, np.diff(scores[order]) != 0))
        if step[-1] >= STEPS:
            first = np.searchsorted(step, step)  # where the step of each place begins
            step = first * STEPS // len(scores)
        shape = (int(step[-1]) + 1, int(owner.max()) + 1)
        rows, said = owner[order], truth[order]
        self.places = csr_array((np.ones(len(rows)), (step, rows)), shape=shape)
        self.positives = csr_array((np.ones(int(said.sum())), (step[said], rows[said])), shape=shape)

    def ranking(self, weights: Array) -> tuple[Array, Array]:
        """Weighted ROC AUC and average precision, [draws] each; NaN where a draw leaves them undefined."""
        turned = np.ascontiguousarray(weights.T)
        fresh = self.positives @ turned  # [steps, draws]
        hits, so_far = np.cumsum(fresh, axis=0), np.cumsum(self.places @ turned, axis=0)
        misses = so_far - hits
        positives, negatives = hits[-1], misses[-1]
        pairs = (np.diff(misses, axis=0, prepend=0) * (hits - fresh / 2)).sum(axis=0)
        precision = hits / np.maximum(so_far, 1e-300)
        return _share(pairs, positives * negatives), _share((fresh * precision).sum(axis=0), positives)


def _share(part: Array, whole: Array) -> Array:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _mean_of_known(values: Array) -> Array:
    known = np.isfinite(values)
    return _share(np.where(known, values, 0).sum(axis=1), known.sum(axis=1))
