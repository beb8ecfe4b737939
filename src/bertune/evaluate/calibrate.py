"""Do probabilities mean what they say? Temperatures and biases that make them, and figures that tell.

Guo et al. 2017 (arXiv 1706.04599): a network's logits divided by one number, fitted on rows it did not train on, are
calibrated about as well as by any richer method. Where labels are more or less frequent than in training, a bias a
label corrects for it, and then answers change too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from bertune.evaluate.bends import Curve, Way, fit_curve, log_odds
from bertune.evaluate.metrics import Array, probabilities, row_losses
from bertune.evaluate.resample import folds_of, too_few
from bertune.evaluate.rule import Rule

BINS = 15
FEWEST_ROWS = 100  # to fit one temperature; fewer say too little
FEWEST_CASES = 20  # rows with a label, and without it, for a calibration of its own
RANGE = (0.05, 20.0)
# Rows for curves, and rows with a label, and without it, for a curve of its own: the freer it is, the more of them.
CURVE_ROWS: dict[Way, int] = {"beta": 500, "isotonic": 2000}
CURVE_CASES: dict[Way, int] = {"beta": 50, "isotonic": 200}


def fit(kind: str, logits: Array, targets: Array, *, groups: Sequence[object] | None = None) -> Rule:
    """The calibration of these rows: none, temperatures, temperatures with a bias a label, beta curves, or isotonic
    steps, whichever is the simplest that is clearly not worse on rows that it was not fitted on (five folds; one
    standard error of the log loss).

    One temperature ('single'), or one a label ('multi'; a label with few cases takes that of all labels together).
    Curves need more rows (`CURVE_ROWS`). On few rows, or where fewer than five groups hold them, the model is left as
    it is.
    """
    best = Rule()
    if len(logits) < FEWEST_ROWS or too_few(groups):
        return best
    chosen, lowest = None, row_losses(kind, logits, targets)
    ways: list[Callable[[str, Array, Array], Rule]] = [_temperatures, _with_biases]
    ways += [partial(_bent, curve) for curve, rows in CURVE_ROWS.items() if len(logits) >= rows]
    for way in ways:
        out_of_fold = np.empty(np.shape(logits), np.float64)
        for inside, outside in folds_of(len(logits), groups=groups):
            out_of_fold[outside] = way(kind, logits[inside], targets[inside]).calibrated(kind, logits[outside])
        costs = row_losses(kind, out_of_fold, targets)
        gains = lowest - costs
        if gains.mean() > gains.std() / len(gains) ** 0.5:
            chosen, lowest = way, costs
    return best if chosen is None else chosen(kind, logits, targets)


def _temperatures(kind: str, logits: Array, targets: Array) -> Rule:
    together = _best(kind, logits, targets)
    if kind == "single":
        return Rule(temperatures=(together,))
    found = []
    for label in range(logits.shape[1]):
        own = slice(label, label + 1)
        enough = _enough(targets[:, label])
        found.append(_best(kind, logits[:, own], targets[:, own]) if enough else together)
    return Rule(temperatures=tuple(found))


def _with_biases(kind: str, logits: Array, targets: Array) -> Rule:
    """Temperature and biases together: for one label a row Alexandari et al. 2020 (arXiv 1901.06852), who correct for
    labels that are rarer or more frequent here than in training; for labels that stand alone Platt 1999."""
    if kind == "single":
        heat, biases = _best_with_biases(kind, logits, targets)
        return Rule(temperatures=(heat,), biases=tuple(biases))
    plain = _temperatures(kind, logits, targets)
    found = []
    for label, heat in enumerate(plain.temperatures):
        own = slice(label, label + 1)
        if _enough(targets[:, label]):
            heat, (bias,) = _best_with_biases(kind, logits[:, own], targets[:, own])
            found.append((heat, bias))
        else:
            found.append((heat, 0.0))
    heats, moves = zip(*found, strict=True)
    return Rule(temperatures=heats, biases=moves)


def _bent(way: Way, kind: str, logits: Array, targets: Array) -> Rule:
    """A curve for each label; for one with few cases the curve that its temperature and bias make."""
    odds = log_odds(kind, logits)
    together = _best(kind, logits, targets) if kind == "multi" else 1.0
    truth = targets > 0.5 if kind == "multi" else targets[:, None] == np.arange(logits.shape[1])
    curves = []
    for label in range(logits.shape[1]):
        own = slice(label, label + 1)
        if _enough(truth[:, label], CURVE_CASES[way]):
            curves.append(fit_curve(way, odds[:, label], truth[:, label]))
        elif _enough(truth[:, label]):
            heat, (bias,) = _best_with_biases("multi", odds[:, own], truth[:, own])
            curves.append(Curve(beta=(1 / heat, 1 / heat, bias)))
        else:
            curves.append(Curve(beta=(1 / together, 1 / together, 0.0)))
    return Rule(curves=tuple(curves))


def _enough(targets: Array, fewest: int = FEWEST_CASES) -> bool:
    positives = int((targets > 0.5).sum())
    return min(positives, len(targets) - positives) >= fewest


def _best(kind: str, logits: Array, targets: Array) -> float:
    """The temperature of the least log loss; it has one minimum, since the loss is convex in its inverse."""
    from scipy.optimize import minimize_scalar

    exact = np.asarray(logits, np.float64)
    low, high = np.log(RANGE)
    found = minimize_scalar(
        lambda power: row_losses(kind, exact / np.exp(power), targets).mean(), bounds=(low, high), method="bounded"
    )
    return float(np.exp(found.x))


def _best_with_biases(kind: str, logits: Array, targets: Array) -> tuple[float, list[float]]:
    """Temperature and biases [L] of the least log loss; a normal prior on the biases lets few rows move little."""
    from scipy.optimize import minimize

    exact, count = np.asarray(logits, np.float64), len(logits)
    truth = np.arange(exact.shape[1]) == targets[:, None] if kind == "single" else targets > 0.5

    def cost(point: Array) -> tuple[float, Array]:
        scaled = exact * np.exp(point[0])
        moved = scaled + point[1:]
        value = row_losses(kind, moved, targets).mean() + (point[1:] ** 2).sum() / (2 * count)
        slope = (probabilities(kind, moved) - truth) / count
        return float(value), np.append((slope * scaled).sum(), slope.sum(axis=0) + point[1:] / count)

    limit = -np.log(RANGE[1]), -np.log(RANGE[0])
    begin = np.zeros(exact.shape[1] + 1)
    found = minimize(cost, begin, jac=True, method="L-BFGS-B", bounds=[limit, *[(-20, 20)] * exact.shape[1]])
    return float(np.exp(-found.x[0])), [float(bias) for bias in found.x[1:]]


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
    loss = float(row_losses(kind, logits, targets).mean())
    return {"log_loss": loss, "brier": brier, "ece": float(error), "reliability": bins}


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
