"""How good are these logits? One judge for every backend: arrays in, plain numbers out.

Values equal scikit-learn's. Conventions where a label or a quantity is missing:

- A ratio without cases (the precision of a label that is never predicted) is 0.
- Macro F1 of a single-label task averages over the labels that occur in targets or predictions; of a multi-label task
  over all labels. Both are scikit-learn's defaults.
- ROC AUC needs rows with and without the label, average precision needs rows with it. Where they are absent the value
  is None, and the macro average goes over the labels that have one.
- Log loss comes from the logits without clipping probabilities; of a multi-label task it is the mean binary
  cross-entropy over rows and labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bertune.errors import ConfigError, DataError, TrainingError, nearest

Array = NDArray[Any]


class Metric(NamedTuple):
    """What a name of metrics.json can be asked for: the task kinds that have it, and which direction is better."""

    kinds: tuple[str, ...]
    higher_is_better: bool = True


_SINGLE, _MULTI, _BOTH = ("single",), ("multi",), ("single", "multi")

METRICS: dict[str, Metric] = {
    "accuracy": Metric(_SINGLE),
    "balanced_accuracy": Metric(_SINGLE),
    "micro_f1": Metric(_MULTI),
    "macro_f1": Metric(_BOTH),
    "weighted_f1": Metric(_BOTH),
    "sample_f1": Metric(_MULTI),
    "mcc": Metric(_SINGLE),
    "subset_accuracy": Metric(_MULTI),
    "hamming_loss": Metric(_MULTI, higher_is_better=False),
    "roc_auc_macro": Metric(_MULTI),
    "roc_auc_micro": Metric(_MULTI),
    "average_precision_macro": Metric(_MULTI),
    "average_precision_micro": Metric(_MULTI),
    "log_loss": Metric(_BOTH, higher_is_better=False),
}


def check_metric(name: str, kind: str) -> str:
    """The name in `METRICS` that `name` stands for: 'auto' is accuracy or micro_f1, 'loss' is log_loss.

    Raises ConfigError with the choices where a task of this kind has no such metric.
    """
    if name == "auto":
        return "accuracy" if kind == "single" else "micro_f1"
    resolved = "log_loss" if name == "loss" else name
    choices = [known for known, metric in METRICS.items() if kind in metric.kinds]
    if resolved not in choices:
        task = "single-label" if kind == "single" else "multi-label"
        hint = nearest(name, choices) or "."
        raise ConfigError(
            f"--metric {name}: not a metric of a {task} task{hint} Choices: auto, loss, {', '.join(choices)}."
        )
    return resolved


def metric_value(name: str, results: Mapping[str, Any]) -> float:
    """`name` (as `check_metric` returns it) in the results of `evaluate`; ConfigError where it is undefined."""
    value = results[name]
    if value is None:
        raise ConfigError(
            f"--metric {name}: undefined on these {results['rows']} rows, because no label has rows both with and "
            "without it. Choose another metric or a larger validation split."
        )
    return float(value)


def is_better(name: str, value: float, best: float | None) -> bool:
    """Whether `value` beats the `best` so far (None: there is none yet); ties keep the earlier one."""
    if best is None:
        return True
    return value > best if METRICS[name].higher_is_better else value < best


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis, float64; no overflow."""
    exact = np.asarray(logits, np.float64)
    powers = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def log_softmax(logits: Array) -> Array:
    """Logarithm of `softmax`, float64, finite for finite logits."""
    exact = np.asarray(logits, np.float64)
    shifted = exact - exact.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def row_losses(kind: str, logits: Array, targets: Array) -> Array:
    """The log loss of each row, of several labels their mean, float64 [n]. targets: int [n], or 0/1 [n, L]."""
    if kind == "single":
        return np.asarray(-log_softmax(logits)[np.arange(len(targets)), targets])
    exact = np.asarray(logits, np.float64)
    return np.asarray((np.logaddexp(0, exact) - np.where(np.asarray(targets) > 0.5, exact, 0)).mean(axis=1))


def sigmoid(logits: Array) -> Array:
    """Probability of each label by itself, float64; no overflow."""
    small = np.exp(-np.abs(logits), dtype=np.float64)
    return np.where(np.asarray(logits) >= 0, 1.0, small) / (1.0 + small)


def probabilities(kind: str, logits: Array) -> Array:
    """softmax ('single') or sigmoid ('multi') of logits [n, L] -> float64 [n, L]."""
    return softmax(logits) if kind == "single" else sigmoid(logits)


def decide(kind: str, logits: Array) -> Array:
    """The prediction for logits [n, L]: the index of the largest one, int64 [n] ('single'; the first of equal ones), or
    the labels with a probability of at least one half, bool [n, L] ('multi')."""
    return np.argmax(logits, axis=-1) if kind == "single" else np.asarray(logits) >= 0


def check_finite(logits: np.ndarray) -> None:
    """Raise TrainingError where logits, [rows, labels], are no numbers."""
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise TrainingError(f"The model's outputs for {broken} of {len(logits)} rows are not finite (NaN or infinite).")


def evaluate(
    kind: str, labels: Sequence[str], logits: Array, targets: Array, *, said: Array | None = None
) -> dict[str, Any]:
    """All metrics of the task kind ('single' or 'multi') as plain Python numbers, for metrics.json.

    logits: float [n, L]; targets: int [n] of label numbers ('single') or 0/1 [n, L] ('multi'); said: what a rule
    answered, as `decide` gives it, and by default that. Besides the names of `METRICS` the result has `rows`,
    `per_label` (one dict a label, in label order) and, for 'single', `confusion_matrix` (rows: targets, columns:
    predictions). Memory: a few times the logits.

    Raises DataError for no rows, TrainingError for logits that are not finite, ValueError for shapes that disagree.
    """
    logits, targets = np.asarray(logits), np.asarray(targets)
    count, width = len(logits), len(labels)
    expected = (count,) if kind == "single" else (count, width)
    if logits.shape != (count, width) or targets.shape != expected:
        raise ValueError(f"logits {logits.shape} and targets {targets.shape} do not fit rows {count}, labels {width}")
    if count == 0:
        raise DataError("There are no rows to evaluate: the split or the file is empty.")
    check_finite(logits)
    said = decide(kind, logits) if said is None else said
    if kind == "single":
        return _single(labels, logits, said, targets.astype(np.int64))
    return _multi(labels, logits, said, targets > 0.5)


def _single(labels: Sequence[str], logits: Array, predicted: Array, targets: Array) -> dict[str, Any]:
    width = len(labels)
    confusion = np.bincount(targets * width + predicted, minlength=width * width).reshape(width, width)
    hits, support, calls = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    scores = f1_of(hits, calls, support)
    recall = _ratio(hits, support)
    log_likelihood = log_softmax(logits)[np.arange(len(targets)), targets]
    return {
        "rows": len(targets),
        "accuracy": float(hits.sum() / len(targets)),
        "balanced_accuracy": float(recall[support > 0].mean()),
        "macro_f1": float(scores[(support + calls) > 0].mean()),
        "weighted_f1": float(np.average(scores, weights=support)),
        "mcc": _correlation(hits, calls, support),
        "log_loss": float(-log_likelihood.mean()),
        "per_label": _label_rows(labels, hits, calls, support),
        "confusion_matrix": confusion.tolist(),
    }


def _multi(labels: Sequence[str], logits: Array, predicted: Array, truth: Array) -> dict[str, Any]:
    both = predicted & truth
    hits, support, calls = (part.sum(axis=0) for part in (both, truth, predicted))
    scores = f1_of(hits, calls, support)
    total = support.sum()
    per_label = _label_rows(labels, hits, calls, support)
    for column, row in enumerate(per_label):
        row["roc_auc"], row["average_precision"] = _ranking(logits[:, column], truth[:, column])
    auc_micro, precision_micro = _ranking(logits.ravel(), truth.ravel())
    # log(1 + exp(-|x|)) + max(x, 0) - x * y is the binary cross-entropy of a logit x, without overflow for any x.
    exact = logits.astype(np.float64)
    loss = np.log1p(np.exp(-np.abs(exact))) + np.maximum(exact, 0) - np.where(truth, exact, 0)
    return {
        "rows": len(truth),
        "micro_f1": float(f1_of(hits.sum(), calls.sum(), total)),
        "macro_f1": float(scores.mean()),
        "weighted_f1": float(np.average(scores, weights=support)) if total else 0.0,
        "sample_f1": float(f1_of(both.sum(axis=1), predicted.sum(axis=1), truth.sum(axis=1)).mean()),
        "subset_accuracy": float((predicted == truth).all(axis=1).mean()),
        "hamming_loss": float((predicted != truth).mean()),
        "roc_auc_macro": _mean_of_known(row["roc_auc"] for row in per_label),
        "roc_auc_micro": auc_micro,
        "average_precision_macro": _mean_of_known(row["average_precision"] for row in per_label),
        "average_precision_micro": precision_micro,
        "log_loss": float(loss.mean()),
        "per_label": per_label,
    }


def f1_of(hits: Array, calls: Array, support: Array) -> Array:
    """F1 from counts: right ones, predicted ones, true ones; 0 where there is nothing to count."""
    return _ratio(2 * hits, calls + support)


def _correlation(hits: Array, calls: Array, support: Array) -> float:
    """Matthews correlation of targets and predictions from their counts per label; 0 where one of them is constant."""
    count = float(support.sum())
    spread = float((count**2 - (calls.astype(float) ** 2).sum()) * (count**2 - (support.astype(float) ** 2).sum()))
    return float(hits.sum() * count - (calls * support).sum()) / spread**0.5 if spread > 0 else 0.0


def _ratio(part: Array, whole: Array) -> Array:
    return np.asarray(part / np.maximum(whole, 1), dtype=np.float64)


def _ranking(scores: Array, truth: Array) -> tuple[float | None, float | None]:
    """ROC AUC and average precision of one score, None where undefined."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    positives = int(truth.sum())
    area = float(roc_auc_score(truth, scores)) if 0 < positives < len(truth) else None
    return area, float(average_precision_score(truth, scores)) if positives else None


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _label_rows(labels: Sequence[str], hits: Array, calls: Array, support: Array) -> list[dict[str, Any]]:
    precision, recall, scores = _ratio(hits, calls), _ratio(hits, support), f1_of(hits, calls, support)
    return [
        {
            "label": label,
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(scores[index]),
            "support": int(support[index]),
            "predicted": int(calls[index]),
        }
        for index, label in enumerate(labels)
    ]
