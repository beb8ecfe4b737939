"""The judge gives scikit-learn's values, copes with absent labels, and says what it cannot judge."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from bertune.errors import ConfigError, DataError, TrainingError
from bertune.evaluate.metrics import (
    METRICS,
    check_metric,
    decide,
    evaluate,
    is_better,
    log_softmax,
    metric_value,
    probabilities,
    sigmoid,
    softmax,
)  # fmt: skip

seeds = st.integers(0, 10_000)


def names(count: int) -> list[str]:
    return [f"label {index}" for index in range(count)]


def single_case(seed: int, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, width)).round(1).astype(np.float32)  # rounded: ties occur
    return logits, random.integers(0, max(1, width - seed % 2), rows)  # sometimes the last label is absent


def multi_case(seed: int, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, width)).round(1).astype(np.float32)
    return logits, (random.random((rows, width)) < random.choice([0.1, 0.5, 0.9], width)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, rows=st.integers(1, 60), width=st.integers(2, 6))
def test_single_label_metrics_equal_scikit_learn(seed: int, rows: int, width: int) -> None:
    logits, truth = single_case(seed, rows, width)
    found = evaluate("single", names(width), logits, truth)
    said = logits.argmax(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns about absent labels
        expected = {
            "rows": rows,
            "accuracy": sk.accuracy_score(truth, said),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, said),
            "macro_f1": sk.f1_score(truth, said, average="macro"),
            "weighted_f1": sk.f1_score(truth, said, average="weighted"),
            "mcc": sk.matthews_corrcoef(truth, said),
            "log_loss": sk.log_loss(truth, softmax(logits), labels=range(width)),
        }
        table = sk.precision_recall_fscore_support(truth, said, labels=range(width), zero_division=0)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-7)
    assert found["confusion_matrix"] == sk.confusion_matrix(truth, said, labels=range(width)).tolist()
    for name, values in zip(("precision", "recall", "f1", "support"), table, strict=True):
        assert [row[name] for row in found["per_label"]] == pytest.approx(list(values))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, rows=st.integers(1, 60), width=st.integers(1, 6))
def test_multi_label_metrics_equal_scikit_learn(seed: int, rows: int, width: int) -> None:
    logits, truth = multi_case(seed, rows, width)
    found = evaluate("multi", names(width), logits, truth)
    said = (1 / (1 + np.exp(-logits.astype(np.float64))) >= 0.5).astype(int)
    table = sk.precision_recall_fscore_support(truth.reshape(rows, -1), said, average=None, zero_division=0)
    if width == 1:  # scikit-learn takes one column for a binary task with two classes
        table = sk.precision_recall_fscore_support(truth.ravel(), said.ravel(), labels=[1], zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), table, strict=True):
        assert [row[name] for row in found["per_label"]] == pytest.approx(list(values))
    both = [column for column in range(width) if 0 < truth[:, column].sum() < rows]
    some = [column for column in range(width) if truth[:, column].any()]
    areas = {column: sk.roc_auc_score(truth[:, column], logits[:, column]) for column in both}
    precisions = {column: sk.average_precision_score(truth[:, column], logits[:, column]) for column in some}
    for column, row in enumerate(found["per_label"]):
        assert row["roc_auc"] == (pytest.approx(areas[column]) if column in areas else None)
        assert row["average_precision"] == (pytest.approx(precisions[column]) if column in precisions else None)
    assert found["roc_auc_macro"] == (pytest.approx(np.mean(list(areas.values()))) if areas else None)
    assert found["average_precision_macro"] == (pytest.approx(np.mean(list(precisions.values()))) if some else None)
    losses = [sk.log_loss(truth[:, column], sigmoid(logits)[:, column], labels=[0, 1]) for column in range(width)]
    expected = {
        "rows": rows,
        "subset_accuracy": np.mean([sk.accuracy_score(t, s) == 1 for t, s in zip(truth, said, strict=True)]),
        "hamming_loss": sk.hamming_loss(truth.ravel(), said.ravel()),
        "micro_f1": sk.f1_score(truth.ravel(), said.ravel(), zero_division=0),
        "log_loss": np.mean(losses),
    }
    if width > 1:
        for average, name in (("macro", "macro_f1"), ("weighted", "weighted_f1"), ("samples", "sample_f1")):
            expected[name] = sk.f1_score(truth, said, average=average, zero_division=0)
        if 0 < truth.sum() < truth.size:
            expected["roc_auc_micro"] = sk.roc_auc_score(truth.ravel(), logits.ravel())
            expected["average_precision_micro"] = sk.average_precision_score(truth, logits, average="micro")
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-7)


def test_macro_averages_of_scikit_learn_hold_where_all_are_defined() -> None:
    logits, truth = multi_case(3, 200, 5)
    found = evaluate("multi", names(5), logits, truth)
    assert found["roc_auc_macro"] == pytest.approx(sk.roc_auc_score(truth, logits, average="macro"))
    assert found["average_precision_macro"] == pytest.approx(sk.average_precision_score(truth, logits, average="macro"))


def test_absent_labels_warn_nobody_and_count_for_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = evaluate("single", names(3), np.array([[0, 1, 0], [2, 0, 0]]), np.array([1, 1]))
        multi = evaluate("multi", names(2), np.array([[1, -1], [-1, -1]]), np.array([[1, 0], [0, 0]]))
        none = evaluate("multi", names(2), np.array([[1, -1]]), np.array([[0, 0]]))
    assert single["balanced_accuracy"] == 0.5 and single["mcc"] == 0
    assert single["per_label"][2] == {
        "label": "label 2", "precision": 0, "recall": 0, "f1": 0, "support": 0, "predicted": 0,
    }  # fmt: skip
    assert multi["per_label"][1]["roc_auc"] is None and multi["roc_auc_macro"] == 1 == multi["micro_f1"]
    assert none["roc_auc_macro"] is None is none["average_precision_micro"] and none["weighted_f1"] == 0


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_results_are_plain_json_with_every_metric_of_the_kind(kind: str) -> None:
    logits, truth = single_case(1, 30, 3) if kind == "single" else multi_case(1, 30, 3)
    found = evaluate(kind, names(3), logits, truth)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {name for name, metric in METRICS.items() if kind in metric.kinds} <= set(found)
    same = evaluate(kind, names(3), logits.astype(np.float64), truth.astype(np.int8))
    assert {name: same[name] for name in METRICS if name in same} == pytest.approx(
        {name: found[name] for name in METRICS if name in found}
    )


def test_huge_logits_neither_overflow_nor_lose_the_loss() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert evaluate("single", names(2), logits, np.array([0, 0]))["log_loss"] == pytest.approx(1e4)
        assert evaluate("multi", names(2), logits, np.array([[1, 1], [0, 1]]))["log_loss"] == pytest.approx(2500)
        assert softmax(logits).tolist() == [[1, 0], [0, 1]] == sigmoid(logits).tolist()
        assert log_softmax(logits)[0, 1] == -2e4


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_probabilities_agree_with_decisions(seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(20, 4)).astype(np.float32)
    single, multi = probabilities("single", logits), probabilities("multi", logits)
    assert single.dtype == multi.dtype == np.float64
    assert single.sum(axis=1) == pytest.approx(np.ones(20))
    assert (decide("single", logits) == single.argmax(axis=1)).all()
    assert (decide("multi", logits) == (multi >= 0.5)).all()
    assert np.exp(log_softmax(logits)) == pytest.approx(single)


def test_what_cannot_be_judged_is_an_error() -> None:
    with pytest.raises(DataError, match="no rows to evaluate"):
        evaluate("single", names(2), np.zeros((0, 2)), np.zeros(0, np.int64))
    with pytest.raises(TrainingError, match="1 of 2 rows are not finite"):
        evaluate("single", names(2), np.array([[0, np.nan], [0, 1]]), np.array([0, 1]))
    with pytest.raises(ValueError, match="do not fit"):
        evaluate("multi", names(2), np.zeros((3, 2)), np.zeros(3))


def test_metric_names_are_checked_against_the_task() -> None:
    assert check_metric("auto", "single") == "accuracy" and check_metric("auto", "multi") == "micro_f1"
    assert check_metric("loss", "multi") == "log_loss"
    with pytest.raises(ConfigError, match=r"--metric roc_auc_macro: not a metric of a single-label task.*accuracy"):
        check_metric("roc_auc_macro", "single")
    with pytest.raises(ConfigError, match=r"did you mean 'micro_f1'\? Choices: auto, loss, micro_f1"):
        check_metric("microf1", "multi")


def test_better_follows_the_metric_and_ties_keep_the_earlier() -> None:
    assert is_better("accuracy", 0.5, None) and is_better("accuracy", 0.6, 0.5) and not is_better("accuracy", 0.5, 0.5)
    assert is_better("log_loss", 0.5, 0.6) and not is_better("hamming_loss", 0.6, 0.5)
    assert metric_value("mcc", {"mcc": 1, "rows": 3}) == 1.0
    with pytest.raises(ConfigError, match="--metric roc_auc_macro: undefined on these 3 rows"):
        metric_value("roc_auc_macro", {"roc_auc_macro": None, "rows": 3})
