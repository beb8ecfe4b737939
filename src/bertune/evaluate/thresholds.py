"""Where to cut the probabilities of a task with any number of labels.

On the rows that thresholds are chosen on they always look good; on others, thresholds of rare labels may cost more than
they bring. So each way to choose is judged out of fold, and the simplest that is clearly not worse is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bertune.evaluate.metrics import METRICS, Array, f1_of, sigmoid
from bertune.evaluate.resample import Scores, differences, folds_of, too_few

FEWEST_ROWS, FEWEST_POSITIVES = 100, 50  # fewer say too little about where to cut
SHRINK = 25  # rows with a label that the threshold of all labels counts for, beside those that the label has
CANDIDATES = 200
OBJECTIVES = ("micro_f1", "macro_f1", "sample_f1", "subset_accuracy", "hamming_loss")
BY_LABEL = ("micro_f1", "macro_f1")  # objectives that thresholds of single labels can be chosen for

Way = Callable[[Array, Array], Array]  # calibrated logits and truth -> thresholds [L], on the scale of logits


def choose(
    logits: Array, targets: Array, *, objective: str, way: str, groups: Sequence[object] | None = None
) -> tuple[Array | None, dict[str, Any]]:
    """Thresholds as probabilities [L] (None: one half), and what is to be told about them.

    logits: calibrated, [n, L]. way: 'auto', or 'half', 'global' (one for all labels), 'label' (one each). Told: {"way",
    "objective", "out_of_fold": {way: value of the objective on rows that thresholds were not chosen on}}.
    """
    truth = np.asarray(targets) > 0.5
    ways = ways_for(objective)
    few = len(logits) < FEWEST_ROWS or int(truth.sum()) < FEWEST_POSITIVES or too_few(groups)
    names = ["half"] if way == "half" or (way == "auto" and few) else list(ways) if way == "auto" else ["half", way]
    told: dict[str, Any] = {"objective": objective, "out_of_fold": {}}
    scores = {name: _out_of_fold(ways[name], logits, truth, groups) for name in names} if not few else {}
    told["out_of_fold"] = {
        name: float(side(np.ones((1, side.rows)), [objective])[objective][0]) for name, side in scores.items()
    }
    chosen = _simplest(scores, objective, groups) if way == "auto" and scores else names[-1]
    told["way"] = chosen
    if chosen == "half":
        return None, told
    return sigmoid(ways[chosen](np.asarray(logits, np.float64), truth)), told


def ways_for(objective: str) -> dict[str, Way]:
    """The ways to choose for an objective, the simplest first."""
    found: dict[str, Way] = {
        "half": lambda logits, truth: np.zeros(logits.shape[1]),
        "global": lambda logits, truth: np.full(logits.shape[1], one_for_all(logits, truth, objective)),
    }
    if objective in BY_LABEL:
        found["label"] = lambda logits, truth: one_a_label(logits, truth, objective)
    return found


def _out_of_fold(way: Way, logits: Array, truth: Array, groups: Sequence[object] | None) -> Scores:
    """The answers to each row by thresholds that were chosen on other rows."""
    said = np.empty(truth.shape, bool)
    exact = np.asarray(logits, np.float64)
    for inside, outside in folds_of(len(logits), groups=groups):
        said[outside] = exact[outside] >= way(exact[inside], truth[inside])
    return Scores("multi", logits, truth, said=said)


def _simplest(scores: dict[str, Scores], objective: str, groups: Sequence[object] | None) -> str:
    """The last way of those that, one after another, were better than what was chosen so far beyond one standard error
    of the difference."""
    chosen, *others = scores
    sign = 1 if METRICS[objective].higher_is_better else -1
    for name in others:
        found = differences(scores[name], scores[chosen], [objective], groups=groups, draws=200)[objective]
        error = (found["high"] - found["low"]) / 3.92
        if sign * found["difference"] > error:
            chosen = name
    return chosen


def one_for_all(logits: Array, truth: Array, objective: str) -> float:
    """The threshold that is best for all labels together, among quantiles of the logits; of equal ones the nearest to
    one half."""
    grid = np.unique(np.quantile(logits, np.linspace(0, 1, CANDIDATES)))
    tried = np.append((grid[1:] + grid[:-1]) / 2, 0.0)
    tried = tried[np.argsort(np.abs(tried), kind="stable")]
    sign = 1 if METRICS[objective].higher_is_better else -1
    values = [sign * measure(objective, logits >= cut, truth) for cut in tried]
    return float(tried[int(np.argmax(values))])


def one_a_label(logits: Array, truth: Array, objective: str) -> Array:
    """Thresholds [L], each the best for its label, drawn to the one for all labels the more the rarer the label is.

    macro_f1: each label's own F1. micro_f1: what the labels' counts add to the whole (Dinkelbach's method: hits are
    worth 2 and calls cost F1, until F1 stays).
    """
    middle = one_for_all(logits, truth, objective)
    positives = truth.sum(axis=0)
    columns = [_Cuts(logits[:, label], truth[:, label]) for label in range(truth.shape[1])]
    if objective == "macro_f1":
        best = np.array([cuts.best(f1_of(cuts.hits, cuts.calls, cuts.support)) for cuts in columns])
    else:
        value, before = measure("micro_f1", logits >= middle, truth), -1.0
        while value > before + 1e-12:
            best = np.array([cuts.best(2 * cuts.hits - value * cuts.calls) for cuts in columns])
            before, value = value, measure("micro_f1", logits >= best, truth)
    return np.asarray((positives * best + SHRINK * middle) / (positives + SHRINK))


def for_precision(logits: Array, targets: Array, precision: float) -> Array:
    """Thresholds as probabilities [L]: each the lowest at which its label was right often enough on these rows, with
    one error more than was seen; 1 (never said) where there is none."""
    found = np.ones(logits.shape[1])
    for label in range(logits.shape[1]):
        cuts = _Cuts(np.asarray(logits[:, label], np.float64), targets[:, label] > 0.5)
        good = np.flatnonzero((cuts.calls > 0) & (cuts.hits >= precision * (cuts.calls + 1)))
        if len(good):
            found[label] = sigmoid(cuts.places[good[-1]])
    return found


def measure(objective: str, said: Array, truth: Array) -> float:
    """One of OBJECTIVES, as `metrics.evaluate` defines it."""
    if objective == "subset_accuracy":
        return float((said == truth).all(axis=1).mean())
    if objective == "hamming_loss":
        return float((said != truth).mean())
    axis = {"micro_f1": None, "macro_f1": 0, "sample_f1": 1}[objective]
    both = said & truth
    hits, calls, support = (np.asarray(part.sum(axis=axis)) for part in (both, said, truth))
    return float(f1_of(hits, calls, support).mean())


class _Cuts:
    """All ways to cut one label's logits: how many rows are called and hit, and where the cut then lies."""

    def __init__(self, logits: Array, truth: Array) -> None:
        order = np.argsort(-logits, kind="stable")
        ranked = logits[order]
        last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))  # equal logits are called together
        self.calls = np.append(0, last + 1)
        self.hits = np.append(0, np.cumsum(truth[order])[last])
        self.support = np.asarray(truth.sum())
        edges = np.concatenate([[ranked[0] + 2], ranked[last], [ranked[-1] - 2]])
        self.places = (edges[1:] + edges[:-1]) / 2

    def best(self, worth: Array) -> float:
        """Where to cut for the highest worth; of equal ones the nearest to one half."""
        top = np.flatnonzero(worth >= worth.max() - 1e-12)
        return float(self.places[top[np.argmin(np.abs(self.places[top]))]])
