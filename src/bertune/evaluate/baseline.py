"""What a model must beat: TF-IDF with a linear classifier, and an interval for the difference of two predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from bertune.errors import ConfigError
from bertune.evaluate.metrics import Array, evaluate, f1_of

Texts = Sequence[str] | Sequence[tuple[str, str]]

# A word, or one Chinese character: words of Chinese text are not set apart, and their characters carry meaning.
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
_CERTAIN = 10.0  # logit of a label that all training rows share; its negative where none has it


def tfidf_baseline(
    texts_train: Texts, y_train: Array, texts_eval: Texts, y_eval: Array, kind: str, labels: Sequence[str]
) -> dict[str, Any]:
    """`evaluate` of `tfidf_logits`. Its log loss is that of support-vector margins read as logits: not calibrated."""
    logits = tfidf_logits(texts_train, y_train, texts_eval, kind, len(labels))
    return evaluate(kind, labels, logits, y_eval)


def tfidf_logits(texts_train: Texts, y_train: Array, texts_eval: Texts, kind: str, num_labels: int) -> Array:
    """Margins [n, num_labels] for the evaluation texts, float32; `decide` of metrics.py turns them into predictions.

    Words and word pairs weighted by TF-IDF with sublinear counts (vocabulary from the training texts alone), then a
    linear support vector machine a label against the rest, with scikit-learn's defaults and a fixed seed. In a task of
    text pairs, given as (first, second), every word carries a mark of its side.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    vectorizer = TfidfVectorizer(analyzer=_terms, sublinear_tf=True, dtype=np.float32)
    train, rows = vectorizer.fit_transform(texts_train), vectorizer.transform(texts_eval)
    logits = np.empty((rows.shape[0], num_labels), np.float32)
    for label in range(num_labels):
        wanted = y_train == label if kind == "single" else np.asarray(y_train)[:, label] > 0.5
        if wanted.all() or not wanted.any():
            logits[:, label] = _CERTAIN if wanted.all() else -_CERTAIN
        else:
            logits[:, label] = LinearSVC(random_state=0).fit(train, wanted).decision_function(rows)
    return logits


def paired_bootstrap(
    metric: str, kind: str, pred_a: Array, pred_b: Array, targets: Array, *, seed: int = 0, n: int = 2000
) -> tuple[float, float, float]:
    """metric(a) - metric(b) on the same rows, with its 95 % percentile interval over `n` resamples of the rows.

    Predictions are what `decide` returns (int [rows], or bool [rows, L]); targets have the same shape. Metrics:
    accuracy and macro_f1 ('single'); micro_f1, macro_f1 and subset_accuracy ('multi'), as `evaluate` defines them.
    Returns (difference, low, high).
    """
    statistics_a, score = _statistics(metric, kind, pred_a, targets)
    statistics_b, _ = _statistics(metric, kind, pred_b, targets)
    both = np.hstack([statistics_a, statistics_b])
    rows, width = statistics_a.shape

    def difference(totals: Array) -> Array:
        return score(totals[:, :width]) - score(totals[:, width:])

    random = np.random.default_rng(seed)
    drawn = np.empty(n)
    step = max(1, 4_000_000 // max(rows, 1))  # resamples at once: some 32 MB of counts
    for start in range(0, n, step):
        size = min(step, n - start)
        counts = np.stack([np.bincount(random.integers(0, rows, rows), minlength=rows) for _ in range(size)])
        drawn[start : start + size] = difference(counts.astype(np.float64) @ both)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(difference(both.sum(axis=0, keepdims=True))[0]), float(low), float(high)


def _terms(text: str | tuple[str, str]) -> list[str]:
    """Words and neighbouring pairs of one text, or of both sides of a pair, each marked."""
    if isinstance(text, str):
        words = _WORD.findall(text.lower())
        return words + [f"{a} {b}" for a, b in pairwise(words)]
    return [f"{side}:{term}" for side, part in enumerate(text) for term in _terms(part)]


def _statistics(metric: str, kind: str, predicted: Array, targets: Array) -> tuple[Array, Any]:
    """Numbers per row [rows, k], and the function from their totals [resamples, k] to the metric [resamples]."""
    predicted, targets = np.asarray(predicted), np.asarray(targets)
    if kind == "multi":
        predicted, targets = predicted > 0.5, targets > 0.5
    if (metric, kind) in (("accuracy", "single"), ("subset_accuracy", "multi")):
        right = predicted == targets if kind == "single" else (predicted == targets).all(axis=1)
        return np.column_stack([right, np.ones(len(right))]).astype(np.float64), lambda sums: sums[:, 0] / sums[:, 1]
    if (metric, kind) not in (("macro_f1", "single"), ("macro_f1", "multi"), ("micro_f1", "multi")):
        raise ConfigError(
            f"No interval for the metric '{metric}' of a task of kind '{kind}'. Choices: accuracy, macro_f1 (single); "
            "micro_f1, macro_f1, subset_accuracy (multi)."
        )
    if kind == "single":
        names = np.arange(max(predicted.max(), targets.max()) + 1)
        predicted, targets = predicted[:, None] == names, targets[:, None] == names
    parts = [predicted & targets, predicted, targets]
    if metric == "micro_f1":
        return np.column_stack([part.sum(axis=1) for part in parts]).astype(np.float64), lambda sums: f1_of(*sums.T)
    return np.hstack(parts).astype(np.float64), _macro(kind)


def _macro(kind: str) -> Any:
    def score(sums: Array) -> Array:
        hits, calls, support = np.split(sums, 3, axis=1)
        scores = f1_of(hits, calls, support)
        if kind == "multi":
            return np.asarray(scores.mean(axis=1))
        return np.asarray(scores.sum(axis=1) / ((calls + support) > 0).sum(axis=1))

    return score
