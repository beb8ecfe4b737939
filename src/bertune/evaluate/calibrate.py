"""Do probabilities mean what they say? Temperatures that make them, and figures that tell.

Guo et al. 2017 (arXiv 1706.04599): a network's logits divided by one number, fitted on rows it did not train on, are
calibrated about as well as by any richer method, and no answer changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bertune.evaluate.metrics import Array, log_softmax, probabilities
from bertune.evaluate.resample import folds_of

BINS = 15
FEWEST_ROWS = 100  # to fit one temperature; fewer say too little
FEWEST_CASES = 20  # rows with a label, and without it, for a temperature of its own
RANGE = (0.05, 20.0)


def temperatures(kind: str, logits: Array, targets: Array) -> tuple[float, ...]:
    """One temperature ('single'), or one a label ('multi'), fitted on these rows; () where the model is left as it is:
    on few rows, or where fitting on some rows does not lower the log loss of others (five folds).

    A label with few cases takes the temperature of all labels together.
    """
    if len(logits) < FEWEST_ROWS:
        return ()
    out_of_fold = np.empty(np.shape(logits), np.float64)
    for inside, outside in folds_of(len(logits)):
        out_of_fold[outside] = logits[outside] / np.asarray(_fit(kind, logits[inside], targets[inside]))
    if _cost(kind, out_of_fold, targets) >= _cost(kind, logits, targets):
        return ()
    return _fit(kind, logits, targets)


def _fit(kind: str, logits: Array, targets: Array) -> tuple[float, ...]:
    together = _best(kind, logits, targets)
    if kind == "single":
        return (together,)
    found = []
    for label in range(logits.shape[1]):
        positives = int((targets[:, label] > 0.5).sum())
        enough = min(positives, len(targets) - positives) >= FEWEST_CASES
        own = slice(label, label + 1)
        found.append(_best(kind, logits[:, own], targets[:, own]) if enough else together)
    return tuple(found)


def _best(kind: str, logits: Array, targets: Array) -> float:
    """The temperature of the least log loss; it has one minimum, since the loss is convex in its inverse."""
    from scipy.optimize import minimize_scalar

    exact = np.asarray(logits, np.float64)
    low, high = np.log(RANGE)
    found = minimize_scalar(
        lambda power: _cost(kind, exact / np.exp(power), targets), bounds=(low, high), method="bounded"
    )
    return float(np.exp(found.x))


def _cost(kind: str, logits: Array, targets: Array) -> float:
    """Mean log loss over rows, and labels of a multi-label task."""
    if kind == "single":
        return float(-log_softmax(logits)[np.arange(len(targets)), targets].mean())
    exact = np.asarray(logits, np.float64)
    return float((np.logaddexp(0, exact) - np.where(targets > 0.5, exact, 0)).mean())


def calibration(kind: str, logits: Array, targets: Array) -> dict[str, Any]:
    """How well the probabilities of logits [n, L] are calibrated: {"log_loss", "brier", "ece", "reliability"}.

    brier: squared distance to the outcome, summed over labels ('single') or averaged over them ('multi'). ece, the
    expected calibration error, and reliability, its bins, are about the probability of the label that is named
    ('single'), or of every label by itself ('multi'): in each of 15 equal bins of probability, how far the mean
    probability is from the share that was right.
    """
    shares = probabilities(kind, logits)
    if kind == "single":
        truth = np.arange(shares.shape[1]) == targets[:, None]
        brier = float(((shares - truth) ** 2).sum(axis=1).mean())
        sure, right = shares.max(axis=1), shares.argmax(axis=1) == targets
    else:
        truth = targets > 0.5
        brier = float(((shares - truth) ** 2).mean())
        sure, right = shares.ravel(), truth.ravel()
    bins = reliability(sure, right)
    error = sum(row["count"] * abs(row["probability"] - row["right"]) for row in bins) / len(sure)
    return {"log_loss": _cost(kind, logits, targets), "brier": brier, "ece": float(error), "reliability": bins}


def reliability(sure: Array, right: Array) -> list[dict[str, float]]:
    """Of probabilities [n] and outcomes bool [n], for each bin with rows: {"low", "high", "count", "probability" (its
    mean), "right" (the share that was)}."""
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, sure, side="right") - 1, 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    means, shares = (np.bincount(place, weights=values, minlength=BINS) for values in (sure, right.astype(float)))
    return [
        {"low": float(edges[number]), "high": float(edges[number + 1]), "count": int(counts[number]),
         "probability": float(means[number] / counts[number]), "right": float(shares[number] / counts[number])}
        for number in range(BINS) if counts[number]
    ]  # fmt: skip
