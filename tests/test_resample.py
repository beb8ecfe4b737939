"""Intervals: metrics under weights are those of the drawn rows, and percentiles of them are what a bootstrap gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bertune.evaluate.metrics import METRICS, evaluate
from bertune.evaluate.resample import DRAWS, FEWEST, Scores, differences, draws_for, intervals, percentiles, resamples


def case(kind: str, seed: int, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, width)).round(1).astype(np.float32)  # rounded: ties occur
    if kind == "single":
        return logits, random.integers(0, width, rows)
    return logits, (random.random((rows, width)) < random.choice([0.1, 0.5], width)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["single", "multi"]), seed=st.integers(0, 10_000), rows=st.integers(1, 40),
    width=st.integers(2, 5),
)
def test_metrics_under_weights_are_those_of_the_drawn_rows(kind: str, seed: int, rows: int, width: int) -> None:
    logits, truth = case(kind, seed, rows, width)
    drawn = np.random.default_rng(seed).integers(0, rows, (3, rows))
    weights = np.stack([np.bincount(chosen, minlength=rows) for chosen in drawn]).astype(float)
    found = Scores(kind, logits, truth)(weights)
    assert set(found) == {name for name, metric in METRICS.items() if kind in metric.kinds}
    for place, chosen in enumerate(drawn):
        names = [str(label) for label in range(width)]
        wanted = evaluate(kind, names, logits[chosen], truth[chosen])
        for name, values in found.items():
            if wanted[name] is None:
                assert np.isnan(values[place]), name
            else:
                assert values[place] == pytest.approx(wanted[name], abs=1e-9), name


def test_an_interval_agrees_with_scipy() -> None:
    logits, truth = case("single", 1, 300, 3)
    right = (logits.argmax(axis=1) == truth).astype(float)
    wanted = stats.bootstrap(
        (right,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    found = intervals(Scores("single", logits, truth))["accuracy"]
    assert found == pytest.approx([wanted.low, wanted.high], abs=0.012)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_every_metric_has_an_interval_that_holds_its_value(kind: str) -> None:
    logits, truth = case(kind, 3, 200, 4)
    found = intervals(Scores(kind, logits, truth))
    value = evaluate(kind, list("abcd"), logits, truth)
    assert (found["level"], found["draws"], found["by"]) == (0.95, DRAWS, "rows")
    for name, metric in METRICS.items():
        if kind in metric.kinds:
            low, high = found[name]
            assert low < value[name] < high, name
    assert intervals(Scores(kind, logits, truth)) == found
    assert intervals(Scores(kind, logits, truth), seed=1) != found


def test_rows_of_a_group_are_drawn_together() -> None:
    groups = [number // 10 for number in range(100)]
    (weights,) = resamples(100, draws=50, groups=groups)
    blocks = weights.reshape(50, 10, 10)
    assert (blocks == blocks[:, :, :1]).all()
    assert (blocks[:, :, 0].sum(axis=1) == 10).all()


def test_rows_that_are_alike_count_for_less_when_grouped() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    logits = np.repeat(random.normal(size=(40, 3)), 10, axis=0)
    truth = np.repeat(random.integers(0, 3, 40), 10)
    side = Scores("single", logits, truth)
    alone, together = (intervals(side, groups=given)["accuracy"] for given in (None, list(groups)))
    assert intervals(side, groups=list(groups))["by"] == "groups"
    # 400 rows that are 40 of 10 each: the deviation is larger by the root of 10
    assert (together[1] - together[0]) / (alone[1] - alone[0]) == pytest.approx(10**0.5, rel=0.15)


@pytest.mark.parametrize("sign", [1, -1])
def test_all_right_or_all_wrong_is_not_certainty(sign: int) -> None:
    truth = np.array([0, 1] * 18)
    logits = sign * np.where(np.arange(2) == truth[:, None], 1.0, -1.0)
    exact = stats.binomtest(36 if sign > 0 else 0, 36).proportion_ci(0.95, method="exact")
    assert intervals(Scores("single", logits, truth))["accuracy"] == pytest.approx([exact.low, exact.high])


def test_a_metric_that_no_draw_defines_has_no_interval() -> None:
    logits, truth = case("multi", 0, 20, 2)
    found = intervals(Scores("multi", logits, np.zeros_like(truth)))
    assert found["roc_auc_macro"] is None
    assert found["average_precision_micro"] is None
    assert found["hamming_loss"] is not None
    assert percentiles(np.array([np.nan, np.nan])) is None


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "mcc", "log_loss"])
def test_a_paired_difference_has_the_interval_of_resampling_by_hand(metric: str) -> None:
    random = np.random.default_rng(5)
    one, truth = case("single", 5, 150, 3)
    other = (one + 0.7 * random.normal(size=one.shape)).astype(np.float32)
    found = differences(Scores("single", one, truth), Scores("single", other, truth), [metric])[metric]

    def value(logits: np.ndarray, rows: Any) -> float:
        return float(evaluate("single", list("abc"), logits[rows], truth[rows])[metric])

    every = np.arange(150)
    assert found["difference"] == pytest.approx(value(one, every) - value(other, every))
    drawn = [random.integers(0, 150, 150) for _ in range(1500)]
    low, high = np.percentile([value(one, rows) - value(other, rows) for rows in drawn], [2.5, 97.5])
    width = high - low
    assert abs(found["low"] - low) < 0.15 * width
    assert abs(found["high"] - high) < 0.15 * width


def test_the_same_answers_differ_by_nothing() -> None:
    logits, truth = case("multi", 2, 60, 3)
    one = Scores("multi", logits, truth)
    assert differences(one, one, ["micro_f1"])["micro_f1"] == {"difference": 0, "low": 0, "high": 0}
    with pytest.raises(ValueError, match="different rows"):
        differences(one, Scores("multi", logits, 1 - truth), ["micro_f1"])


def test_very_many_rows_are_drawn_fewer_times() -> None:
    assert draws_for(1_000, 6) == DRAWS
    assert FEWEST < draws_for(100_000, 6) < DRAWS
    assert draws_for(10_000_000, 28) == FEWEST


def test_of_many_different_scores_neighbours_share_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    truth = (random.random((3000, 2)) < 0.3).astype(np.float32)
    logits = random.normal(size=(3000, 2)) + truth
    weights = np.ones((1, 3000))
    exact = Scores("multi", logits, truth)(weights)
    monkeypatch.setattr("bertune.evaluate.resample.STEPS", 100)
    rough = Scores("multi", logits, truth)(weights)
    for name in ("roc_auc_macro", "roc_auc_micro"):
        assert 0 < abs(exact[name][0] - rough[name][0]) < 0.01, name
    assert rough["average_precision_macro"] == pytest.approx(exact["average_precision_macro"], abs=0.01)
