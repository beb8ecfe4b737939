"""Sets of labels that hold the right one as often as was asked for: split conformal prediction.

On rows that chose nothing else, every right label gets a score of how strange it looks; the set of a new row has all
labels that look no stranger than the quantile of these scores. Where rows are exchangeable, the sets hold the right
label with at least the coverage asked for, whatever the model (Vovk et al. 2005).

One label a row: adaptive sets (Romano et al. 2020, arXiv 2006.02544) with the penalty on ranks beyond the fifth of
Angelopoulos et al. 2021 (arXiv 2009.14193), without drawing lots, so that a row has the same set at every time; the
likeliest label is always in, so that no set is empty. Several labels a row: a cut for each label, so that of the rows
that have it the share asked for is caught (label-conditional).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from bertune.evaluate.metrics import Array

PENALTY, FREE = 0.01, 5
FEWEST_CASES = 50  # rows with a label; below, its coverage is told, but swings by several points


class Sets(BaseModel):
    """coverage: what was asked for; cutoffs: the largest score that is let in ('single'), or for each label the least
    probability ('multi')."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    coverage: float = Field(gt=0, lt=1)
    cutoffs: tuple[float, ...]

    def of(self, kind: str, probabilities: Array) -> Array:
        """The sets, bool [n, L]."""
        if kind == "multi":
            return np.asarray(probabilities >= np.asarray(self.cutoffs))
        return strangeness(probabilities) <= self.cutoffs[0]


def strangeness(probabilities: Array) -> Array:
    """How strange each label looks in each row, float64 [n, L]: 0 for the likeliest; for others the probability of all
    labels that are at least as likely, and a penalty on ranks beyond the fifth."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.cumsum(np.take_along_axis(np.asarray(probabilities, np.float64), order, axis=1), axis=1)
    rank = np.arange(1, ranked.shape[1] + 1)
    ranked += PENALTY * np.maximum(0, rank - FREE)
    ranked[:, 0] = 0
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, ranked, axis=1)
    return scores


def fit_sets(kind: str, probabilities: Array, targets: Array, coverage: float) -> Sets:
    """Cutoffs from calibrated probabilities [n, L] and targets of rows that chose nothing else; of one label a row
    there have to be `fewest_rows`."""
    if kind == "multi":
        cuts = [_least(probabilities[targets[:, label] > 0.5, label], coverage) for label in range(targets.shape[1])]
        return Sets(coverage=coverage, cutoffs=tuple(cuts))
    scores = np.sort(strangeness(probabilities)[np.arange(len(targets)), targets])
    place = math.ceil((len(targets) + 1) * coverage - 1e-9)
    return Sets(coverage=coverage, cutoffs=(float(scores[place - 1]),))


def fewest_rows(coverage: float) -> int:
    """How many rows it takes to promise this coverage with less than all labels."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def _least(probabilities: Array, coverage: float) -> float:
    """The cut that lets in the share asked for of such rows; 0, everything, where they are too few to tell."""
    place = math.floor((len(probabilities) + 1) * (1 - coverage) + 1e-9)
    return float(np.sort(probabilities)[place - 1]) if place else 0.0


def judge_sets(kind: str, labels: list[str] | tuple[str, ...], sets: Array, targets: Array) -> dict[str, Any]:
    """What sets bool [n, L] come to: {"coverage", "mean_size", "per_label": [{"label", "rows", "coverage", "size"}]}.

    coverage: the share of right labels that the sets hold, of all rows ('single'; a row has one) or averaged over
    labels that some row has ('multi'); per_label: of the rows that have the label; size: share of all rows whose set
    has it.
    """
    hot = targets > 0.5 if kind == "multi" else targets[:, None] == np.arange(len(labels))
    rows = hot.sum(axis=0)
    caught = (hot & sets).sum(axis=0)
    per_label: list[dict[str, Any]] = [
        {"label": label, "rows": int(rows[at]), "coverage": float(caught[at] / rows[at]) if rows[at] else None,
         "size": float(sets[:, at].mean())} for at, label in enumerate(labels)
    ]  # fmt: skip
    coverage: float | None
    shares = [each["coverage"] for each in per_label if each["coverage"] is not None]
    if kind == "single":
        coverage = float(caught.sum() / rows.sum())
    else:
        coverage = sum(shares) / len(shares) if shares else None
    return {
        "coverage": coverage, "mean_size": float(sets.sum(axis=1).mean()), "per_label": per_label,
    }  # fmt: skip
