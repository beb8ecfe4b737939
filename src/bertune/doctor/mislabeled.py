"""Rows whose label is probably wrong: confident learning over probabilities from models that did not see the row.

Northcutt, Jiang and Chuang 2021 (arXiv 1911.00068): a row counts as another label's where its probability of that label
reaches the mean that rows given the label have; rows are ranked by how far the given label falls behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEAREST = 10  # rows whose labels are evidence


@dataclass(frozen=True)
class Suspects:
    """Rows whose label is doubted, the likeliest error first; arrays of one length.

    rows int64; suggested: int64 labels, or bool [rows, labels]; label int64: the one that is in doubt (of one label a
    row the suggested one, of several the one doubted most); score float64: 0 is as wrong as can be, 1 as right; given,
    better float64: probability of what was given and of what is suggested (of several labels: about `label`).
    """

    rows: np.ndarray
    suggested: np.ndarray
    label: np.ndarray
    score: np.ndarray
    given: np.ndarray
    better: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def doubted(targets: np.ndarray, probabilities: np.ndarray, kind: str, *, known: np.ndarray | None = None) -> Suspects:
    """The rows that confident learning doubts. targets: int [n] or 0/1 [n, labels]; probabilities [n, labels].

    known bool [labels]: which labels the probabilities know enough about; others are neither doubted nor suggested.
    """
    known = np.ones(probabilities.shape[1], bool) if known is None else known
    judge = _doubted_single if kind == "single" else _doubted_multi
    return judge(targets, probabilities, known)


def label_quality(targets: np.ndarray, probabilities: np.ndarray, kind: str) -> np.ndarray:
    """For each row how well its label fits, float64 [n] in [0, 1], by which all rows can be ranked.

    One label a row: the normalised margin, (p(given) - the largest other p + 1) / 2. Several: that of the label which
    fits worst, each being a question of yes or no.
    """
    if kind == "single":
        rows = np.arange(len(targets))
        own = probabilities[rows, targets]
        others = probabilities.copy()
        others[rows, targets] = -1
        return np.asarray((own - others.max(axis=1) + 1) / 2, np.float64)
    return np.asarray(np.where(targets > 0.5, probabilities, 1 - probabilities).min(axis=1), np.float64)


def _doubted_single(targets: np.ndarray, probabilities: np.ndarray, known: np.ndarray) -> Suspects:
    counted = confident_labels(targets, probabilities)
    rows = np.flatnonzero((counted >= 0) & (counted != targets) & known[counted] & known[targets])
    score = label_quality(targets, probabilities, "single")[rows]
    order = np.argsort(score, kind="stable")
    rows, score = rows[order], score[order]
    suggested = counted[rows]
    given, better = probabilities[rows, targets[rows]], probabilities[rows, suggested]
    return Suspects(rows, suggested, suggested, score, given, better)


def confident_labels(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The label that each row counts as, int64 [n]: the likeliest of those whose threshold it reaches, -1 for none.

    The threshold of a label is the mean probability that the rows given it have of it; a label without rows has none.
    """
    labels = probabilities.shape[1]
    sums = np.bincount(targets, weights=probabilities[np.arange(len(targets)), targets], minlength=labels)
    counts = np.bincount(targets, minlength=labels)
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)


def _doubted_multi(targets: np.ndarray, probabilities: np.ndarray, known: np.ndarray) -> Suspects:
    """Each label by itself as a task of yes and no; a row is doubted where any of its labels is."""
    hot = targets > 0.5
    wrong = np.zeros(hot.shape, bool)
    for label in np.flatnonzero(known):
        yes = probabilities[:, label]
        counted = confident_labels(hot[:, label].astype(np.int64), np.stack([1 - yes, yes], axis=1))
        wrong[:, label] = (counted >= 0) & (counted != hot[:, label])
    own = np.where(hot, probabilities, 1 - probabilities)
    worst = np.where(wrong, own, np.inf).argmin(axis=1)
    rows = np.flatnonzero(wrong.any(axis=1))
    score = own[rows, worst[rows]]
    order = np.argsort(score, kind="stable")
    rows, score = rows[order], score[order]
    return Suspects(rows, hot[rows] ^ wrong[rows], worst[rows], score, score, 1 - score)


def nearest_rows(states: np.ndarray, rows: np.ndarray, groups: np.ndarray, count: int = NEAREST) -> np.ndarray:
    """The rows nearest to each of `rows` by cosine, int64 [rows, count], nearest first.

    states float [n, hidden]; groups int [n]: rows of one group, copies of one another, are no evidence for each other.
    """
    unit = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
    count = min(count, len(states) - 1)
    found = np.empty((len(rows), count), np.int64)
    for begin in range(0, len(rows), 512):
        chosen = rows[begin : begin + 512]
        near = unit[chosen] @ unit.T
        near[groups[chosen][:, None] == groups[None, :]] = -2
        best = np.argpartition(-near, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(near, best, axis=1), axis=1, kind="stable")
        found[begin : begin + 512] = np.take_along_axis(best, order, axis=1)
    return found
