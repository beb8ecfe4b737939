"""How sure is a difference between two ways to train, each tried with some seeds, on the same test rows?

Rows and seeds both make a difference vary. Rows are drawn anew (`resample`); over seeds it takes a variance, which two
or three of them hardly tell. Where several ways were tried with the same seeds, they tell it together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bertune.evaluate.metrics import Array
from bertune.evaluate.resample import LEVEL, Interval, Scores, draws_for, percentiles, resamples


@dataclass(frozen=True)
class SeedVariance:
    """Variance of one training over seeds, beyond what a seed does to all ways alike, and its degrees of freedom."""

    variance: float
    freedom: int


def seed_variance(values: Mapping[Hashable, Mapping[int, float]]) -> SeedVariance | None:
    """What all ways tell together, {way: {seed: value}}: the variance that is left where a value is the sum of a part
    of its way and one of its seed, fitted by least squares, as not all ways have all seeds (the residual of randomized
    blocks: Fisher 1935, The Design of Experiments). None where nothing is left."""
    known = [(way, seed, value) for way, of in values.items() for seed, value in of.items() if math.isfinite(value)]
    ways, seeds = (list(dict.fromkeys(one[part] for one in known)) for part in (0, 1))
    design = np.zeros((len(known), len(ways) + len(seeds)))
    for place, (way, seed, _) in enumerate(known):
        design[place, [ways.index(way), len(ways) + seeds.index(seed)]] = 1
    found = np.array([value for *_, value in known])
    fitted, _, rank, _ = np.linalg.lstsq(design, found, rcond=None)
    freedom = len(known) - int(rank)
    return SeedVariance(float(((found - design @ fitted) ** 2).sum()) / freedom, freedom) if freedom else None


def seed_differences(
    metric: str, ours: Sequence[Scores], theirs: Sequence[Scores], *, draws: int | None = None,
    pooled: SeedVariance | None = None,
) -> tuple[float, float, float]:
    """Mean over seeds of ours - theirs on the same rows, seed by seed, and its 95 % interval: as `interval_over_seeds`
    has it, or, of one seed and without `pooled`, when rows are drawn anew. NaN where the metric is undefined.

    Raises ValueError where the two were measured on different rows.
    """
    if any((a.truth != b.truth).any() for a, b in zip([*ours, *theirs], [*theirs, *ours], strict=True)):
        raise ValueError("the two were measured on different rows")
    rows = ours[0].rows

    def apart(weights: Array) -> Array:  # [draws, rows] -> [draws, seeds]
        one, other = ([side(weights, [metric])[metric] for side in sides] for sides in (ours, theirs))
        return np.stack(one, axis=1) - np.stack(other, axis=1)

    whole = apart(np.ones((1, rows)))[0]
    weights = resamples(rows, draws=draws or draws_for(rows, ours[0].width))
    drawn = np.concatenate([apart(part).mean(axis=1) for part in weights])
    if len(whole) > 1 or pooled is not None:
        known = drawn[np.isfinite(drawn)]
        low, high = interval_over_seeds(whole, float(known.var()) if len(known) else math.nan, rows, pooled=pooled)
    else:
        low, high = percentiles(drawn) or (math.nan, math.nan)
    return float(whole.mean()), low, high


def interval_over_seeds(
    values: Array, variance: float, rows: int, *, pooled: SeedVariance | None = None
) -> Interval:
    """95 % interval of a mean of `values`, differences of one seed each, that has this variance over `rows` rows, too.

    Both variances add up. That over seeds is known from few of them, which Student's t allows for, with degrees of
    freedom as Satterthwaite 1946 (An approximate distribution of estimates of variance components) has them. Seeds that
    are drawn from themselves, as rows are, would leave much too little room: of two, such an interval holds the truth
    three times in five.

    `pooled` is what all ways that were tried tell of it, which is sharper and assumes that they vary alike. So that one
    that varies more is not taken for the others, its own variance counts where it is larger, with at most twice the
    freedom that it has: it was the larger one of two. Raises ValueError for a single value without `pooled`.
    """
    from scipy.stats import t

    seeds = len(values)
    if seeds < 2 and pooled is None:
        raise ValueError("one seed does not tell how far seeds lie apart")
    over_seeds, freedom = (float(np.var(values, ddof=1)) / seeds, seeds - 1) if seeds > 1 else (0.0, 1)
    if pooled is not None:
        shared = 2 * pooled.variance / seeds
        freedom = pooled.freedom if over_seeds <= shared else min(pooled.freedom, 2 * freedom)
        over_seeds = max(over_seeds, shared)
    total, mean = over_seeds + variance, float(values.mean())
    if not total > 0:
        return (mean, mean) if total == 0 else (math.nan, math.nan)
    free = total**2 / (over_seeds**2 / freedom + variance**2 / max(rows - 1, 1))
    half = float(t.ppf((1 + LEVEL) / 2, free)) * math.sqrt(total)
    return mean - half, mean + half
