"""When to ask a person: an answer that is not sure enough is not given.

The less sure answers are left out, the more of the rest are right (Geifman and El-Yaniv 2017, arXiv 1705.08500). How
sure an answer is: the probability that all of it is right, by the calibrated model.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bertune.evaluate.metrics import Array

RISK = 0.05  # chance that the accuracy that was promised is missed
STEPS = 50  # shares of answered rows that are tried


def confidence(kind: str, probabilities: Array, said: Array) -> Array:
    """Probability that the answer is right, float64 [n]: of the label said, or of every label being as said."""
    if kind == "single":
        return np.asarray(probabilities[np.arange(len(said)), said], np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(np.where(said, probabilities, 1 - probabilities)).sum(axis=1)))


def is_right(kind: str, said: Array, targets: Array) -> Array:
    """Whether all of each answer is right, bool [n]."""
    return said == targets if kind == "single" else np.asarray((said == (targets > 0.5)).all(axis=1))


def fewest_answers(accuracy: float) -> int:
    """How many answers it takes to promise this accuracy, all of them being right."""
    return math.ceil(math.log(RISK) / math.log(accuracy))


def fit_threshold(sure: Array, right: Array, accuracy: float) -> float | None:
    """The least confidence from which answers are right in the share asked for, with a chance of 95 %; None where no
    confidence promises it.

    Ever more rows are answered, the surest first, as long as the lower bound (Clopper and Pearson 1934) of the accuracy
    among them reaches what was asked for; the first that does not ends it. Tests in a fixed order need no correction
    for their number (Angelopoulos et al. 2021, Learn then Test, arXiv 2110.01052).
    """
    order = np.argsort(-sure, kind="stable")
    fewest = fewest_answers(accuracy)
    found = None
    for count in np.unique(np.linspace(fewest, len(sure), STEPS).astype(int)) if fewest <= len(sure) else ():
        least = float(sure[order[count - 1]])
        answered = sure >= least  # rows as sure as the last one are answered, too
        if _lower_bound(int(right[answered].sum()), int(answered.sum())) < accuracy:
            break
        found = least
    return found


def _lower_bound(right: int, count: int) -> float:
    from scipy.stats import beta

    return float(beta.ppf(RISK, right, count - right + 1)) if right else 0.0


def judge_abstention(sure: Array, right: Array, threshold: float | None) -> dict[str, Any]:
    """{"curve": [{"answered", "accuracy", "confidence"}, ...]}, from the surest twentieth of the rows to all of them;
    with a threshold also {"answered" (share), "accuracy" (among these; None: no row is)}."""
    order = np.argsort(-sure, kind="stable")
    counts = np.unique(np.maximum(1, np.round(np.linspace(0.05, 1, 20) * len(sure)).astype(int)))
    hits = np.cumsum(right[order])
    curve = [
        {"answered": count / len(sure), "accuracy": float(hits[count - 1] / count),
         "confidence": float(sure[order[count - 1]])} for count in counts.tolist()
    ]  # fmt: skip
    if threshold is None:
        return {"curve": curve}
    given = sure >= threshold
    return {
        "answered": float(given.mean()), "accuracy": float(right[given].mean()) if given.any() else None,
        "curve": curve,
    }  # fmt: skip
