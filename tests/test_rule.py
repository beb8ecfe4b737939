"""The decision rule: temperatures calibrate, thresholds cut where the objective is best, and overfitting is refused."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import minimize
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, f1_score, log_loss

from bertune.config import DecideConfig
from bertune.evaluate.bends import Curve, fit_curve
from bertune.evaluate.calibrate import FEWEST_ROWS, calibration, fit
from bertune.evaluate.choose import choose_rule, fixed_rule
from bertune.evaluate.metrics import decide, sigmoid, softmax
from bertune.evaluate.resample import folds_of
from bertune.evaluate.rule import Rule, logit
from bertune.evaluate.thresholds import choose, for_precision, measure, one_a_label, one_for_all


def single(rows: int, *, heat: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `heat` times as sure as they may be, and targets drawn from what is true."""
    random = np.random.default_rng(seed)
    true = 1.5 * random.normal(size=(rows, 3))
    targets = (softmax(true).cumsum(axis=1) < random.random((rows, 1))).sum(axis=1)
    return (heat * true).astype(np.float32), targets


def multi(rows: int, *, heat: Any = 1.0, base: Any = (0.0, -1.0, -3.0), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same for labels that stand alone; `base` makes some rarer than others."""
    random = np.random.default_rng(seed)
    true = np.asarray(base) + 1.5 * random.normal(size=(rows, len(base)))
    targets = (random.random(true.shape) < sigmoid(true)).astype(np.float32)
    return (np.asarray(heat) * true).astype(np.float32), targets


@pytest.mark.parametrize("heat", [0.4, 1.7, 5.0])
def test_a_temperature_undoes_what_made_logits_too_sure(heat: float) -> None:
    logits, targets = single(6000, heat=heat)
    (found,) = fit("single", logits, targets).temperatures
    assert found == pytest.approx(heat, rel=0.08)
    wanted = minimize(lambda t: log_loss(targets, softmax(logits / t[0])), [1.0], method="Nelder-Mead").x[0]
    assert found == pytest.approx(wanted, rel=1e-3)
    assert (decide("single", logits / found) == decide("single", logits)).all()


def test_each_label_has_a_temperature_of_its_own_but_rare_ones_that_of_all() -> None:
    logits, targets = multi(6000, heat=(3.0, 0.5, 1.0, 1.0), base=(0.0, 0.0, -1.0, -12.0))
    found = fit("multi", logits, targets).temperatures
    assert found[:3] == pytest.approx((3.0, 0.5, 1.0), rel=0.12)
    assert targets[:, 3].sum() < 20
    assert 0.5 < found[3] < 3.0 and found[3] not in found[:3]


def test_labels_that_are_rarer_here_than_in_training_are_corrected_by_biases() -> None:
    logits, targets = single(6000, heat=1.0)
    move = np.array([0.0, 1.5, -1.0], np.float32)
    rule = fit("single", logits + move, targets)
    assert np.allclose(np.subtract(rule.biases, np.mean(rule.biases)), move.mean() - move, atol=0.12)
    before, after = (np.mean(rule.decide("single", logits + move) == targets) for rule in (Rule(), rule))
    assert after > before + 0.05
    alone, truth = multi(6000)
    assert np.allclose(fit("multi", alone + move, truth).biases, -move, atol=0.25)


def test_where_a_temperature_is_enough_there_are_no_biases() -> None:
    found = [fit("single", *single(800, heat=3.0, seed=seed)) for seed in range(10)]
    assert all(rule.temperatures for rule in found)
    assert sum(not rule.biases for rule in found) >= 7


def test_few_rows_and_calibrated_logits_are_left_alone() -> None:
    logits, targets = single(FEWEST_ROWS - 1, heat=4.0)
    assert fit("single", logits, targets) == Rule()
    left = sum(fit("single", *single(150, heat=1.0, seed=seed)) == Rule() for seed in range(20))
    assert left >= 10  # on the rows themselves every one would have gained


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(2, 80))
def test_calibration_figures_are_those_of_scikit_learn(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    logits, targets = 3 * random.normal(size=(rows, 1)), random.integers(0, 2, (rows, 1)).astype(float)
    found, shares = calibration("multi", logits, targets), sigmoid(logits)[:, 0]
    assert found["brier"] == pytest.approx(brier_score_loss(targets[:, 0], shares))
    assert found["log_loss"] == pytest.approx(log_loss(targets[:, 0], shares, labels=[0, 1]))
    right, sure = calibration_curve(targets[:, 0], shares, n_bins=15)
    assert [row["right"] for row in found["reliability"]] == pytest.approx(right)
    assert [row["probability"] for row in found["reliability"]] == pytest.approx(sure)
    assert sum(row["count"] for row in found["reliability"]) == rows
    both = calibration("single", np.hstack([np.zeros((rows, 1)), logits]), targets[:, 0].astype(int))
    assert both["brier"] == pytest.approx(2 * found["brier"])  # over both classes


def test_the_expected_calibration_error_by_hand() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]]))
    found = calibration("single", logits, np.array([0, 1, 0, 1]))
    # .9 twice with half right: .4; .6 right: .4; .7 right: .3
    assert found["ece"] == pytest.approx((2 * 0.4 + 0.4 + 0.3) / 4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(2, 12), objective=st.sampled_from(["micro_f1", "macro_f1"]))
def test_thresholds_of_labels_are_the_best_there_are(seed: int, rows: int, objective: str) -> None:
    """Against trying every way to cut, without the drawing together of rare labels."""
    random = np.random.default_rng(seed)
    logits, truth = random.normal(size=(rows, 2)).round(1), random.random((rows, 2)) < 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertune.evaluate.thresholds.SHRINK", 1e-9)
        cut = one_a_label(logits, truth, objective)
    places = [[-9.0, *(np.unique(column) + 0.05)] for column in logits.T]
    best = max(measure(objective, logits >= np.array(pair), truth) for pair in product(*places))
    # a label without positives takes the common threshold, whatever its own would be
    if truth.any(axis=0).all():
        assert measure(objective, logits >= cut, truth) == pytest.approx(best)


@pytest.mark.parametrize("objective", ["micro_f1", "macro_f1", "sample_f1", "subset_accuracy", "hamming_loss"])
def test_one_threshold_for_all_is_better_than_one_half_on_its_own_rows(objective: str) -> None:
    logits, targets = multi(500)
    cut = one_for_all(logits, targets > 0.5, objective)
    found, half = (measure(objective, logits >= place, targets > 0.5) for place in (cut, 0.0))
    assert found <= half if objective == "hamming_loss" else found >= half


def test_measures_are_those_of_scikit_learn() -> None:
    logits, targets = multi(200)
    said = logits >= 0
    for average in ("micro", "macro", "samples"):
        name = f"{average.removesuffix('s')}_f1"
        wanted = f1_score(targets, said, average=average, zero_division=0)
        assert measure(name, said, targets > 0.5) == pytest.approx(wanted)


def test_rare_labels_are_found_by_thresholds_and_the_gain_holds_on_other_rows() -> None:
    logits, targets = multi(4000, base=(0.0, -2.0, -4.0), seed=1)
    cut, told = choose(logits, targets, objective="macro_f1", way="auto")
    assert told["way"] in ("global", "label") and cut is not None
    assert told["out_of_fold"][told["way"]] > told["out_of_fold"]["half"] + 0.05
    fresh, truth = multi(4000, base=(0.0, -2.0, -4.0), seed=2)
    gain = measure("macro_f1", sigmoid(fresh) >= cut, truth > 0.5) - measure("macro_f1", fresh >= 0, truth > 0.5)
    assert gain > 0.05


def test_thresholds_that_chance_alone_would_move_mostly_stay_at_one_half() -> None:
    """For the Hamming loss one half is the best there is when probabilities are right."""
    fresh, truth = multi(20_000, seed=99)
    best, moved, costs = measure("hamming_loss", fresh >= 0, truth > 0.5), 0, []
    for seed in range(20):
        cut, _ = choose(*multi(300, seed=seed), objective="hamming_loss", way="auto")
        moved += cut is not None
        said = fresh >= 0 if cut is None else sigmoid(fresh) >= cut
        costs.append(measure("hamming_loss", said, truth > 0.5) - best)
    assert moved <= 8
    assert np.mean(costs) < 0.003  # of .15


def test_of_few_rows_thresholds_are_chosen_only_when_asked_for() -> None:
    few = choose(*multi(60), objective="macro_f1", way="auto")
    assert few == (None, {"objective": "macro_f1", "out_of_fold": {}, "way": "half"})
    asked, told = choose(*multi(60), objective="macro_f1", way="label")
    assert asked is not None and told["way"] == "label"


def test_a_precision_holds_or_the_label_is_never_given() -> None:
    logits, targets = multi(3000, base=(0.0, -1.0, -6.0))
    targets[:, 2] = 0
    cut = for_precision(logits, targets, 0.8)
    fresh, truth = multi(20_000, base=(0.0, -1.0, -6.0), seed=7)
    said = sigmoid(fresh) >= cut
    assert cut[2] == 1 and not said[:, 2].any()
    for label in (0, 1):
        assert said[:, label].sum() > 500
        assert (truth[said[:, label], label]).mean() > 0.77
    looser = for_precision(logits, targets, 0.6)
    assert (looser[:2] < cut[:2]).all()


def test_a_miss_that_costs_more_moves_the_threshold_down() -> None:
    logits, targets = multi(400)
    rule, told = choose_rule(DecideConfig(miss_cost=4), "multi", logits, targets, metric="micro_f1")
    assert rule.thresholds == pytest.approx([0.2] * 3)  # a false label may be four times as likely as a miss
    assert told["way"] == "cost"


def test_a_rule_says_what_it_is_told_to() -> None:
    logits = np.array([[2.0, 1.0, -1.0], [-3.0, -1.0, -2.0]], np.float32)
    assert (Rule().decide("multi", logits) == (logits >= 0)).all()
    assert Rule().calibrated("single", logits) is logits
    rule = Rule(temperatures=(2.0, 1.0, 1.0), thresholds=(0.75, 0.5, 0.2))
    # 2 / 2 lies under logit(.75) = 1.0986; 1 and -1 reach theirs
    assert rule.decide("multi", logits).tolist() == [[False, True, True], [False, False, False]]
    assert rule.probabilities("multi", logits)[0, 0] == pytest.approx(sigmoid(np.array(1.0)))
    at_least = rule.model_copy(update={"min_labels": 1})
    assert at_least.decide("multi", logits).tolist() == [[False, True, True], [False, False, True]]
    at_most = Rule(max_labels=1)
    assert at_most.decide("multi", logits).tolist() == [[True, False, False], [False, False, False]]
    assert Rule(thresholds=(1.0, 0.0, 0.5)).decide("multi", 50 * logits)[0].tolist() == [False, True, False]
    assert rule.with_threshold(0.5, 3).thresholds == (0.5,) * 3
    rule = rule.model_copy(update={"biases": (0.1, -0.2, 0.5)})
    turned = rule.ordered([2, 0, 1])
    assert (turned.decide("multi", logits[:, [2, 0, 1]]) == rule.decide("multi", logits)[:, [2, 0, 1]]).all()


@pytest.mark.parametrize("values", [
    {"temperatures": [0]}, {"thresholds": [1.5]}, {"min_labels": -1}, {"max_labels": 0}, {"other": 1}
])  # fmt: skip
def test_a_rule_that_means_nothing_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rule(**values)


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5))
def test_logits_of_probabilities_are_the_inverse_of_the_sigmoid(shares: list[float]) -> None:
    assert sigmoid(logit(shares)) == pytest.approx(shares)


def test_without_rows_to_choose_on_only_what_is_given_counts() -> None:
    assert fixed_rule(DecideConfig(), "multi", 2) == Rule()
    assert fixed_rule(DecideConfig(threshold=0.3, max_labels=2), "multi", 2) == Rule(
        thresholds=(0.3, 0.3), max_labels=2
    )
    assert fixed_rule(DecideConfig(miss_cost=3), "multi", 2) == Rule(thresholds=(0.25, 0.25))
    assert fixed_rule(DecideConfig(), "single", 2) == Rule()


def test_rows_of_a_group_are_on_one_side_of_every_fold() -> None:
    groups = [f"author {number % 17}" for number in range(300)]
    seen = []
    for inside, outside in folds_of(300, groups=groups):
        assert not {groups[row] for row in inside} & {groups[row] for row in outside}
        seen += outside.tolist()
    assert sorted(seen) == list(range(300))


def test_copies_of_rows_do_not_make_a_choice_look_sure() -> None:
    """Ten copies of forty rows: alone they seem enough to move thresholds, as groups they are forty."""
    moved = {"rows": 0, "groups": 0}
    for seed in range(15):
        logits, targets = (np.repeat(part, 10, axis=0) for part in multi(40, seed=seed))
        for name, groups in (("rows", None), ("groups", list(np.repeat(np.arange(40), 10)))):
            moved[name] += choose(logits, targets, objective="hamming_loss", way="auto", groups=groups)[0] is not None
    assert moved["groups"] < moved["rows"] / 2
    few = choose(logits, targets, objective="macro_f1", way="auto", groups=[0] * 400)
    assert few[0] is None


def test_beta_curves_are_those_of_the_paper_and_isotonic_ones_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    odds = random.normal(0, 3, 4000)
    bent_truth = 0.3 * -np.logaddexp(0, -odds) + 2 * np.logaddexp(0, odds) - 1
    wanted = random.random(4000) < sigmoid(bent_truth)
    a, b, c = fit_curve("beta", odds, wanted).beta or (0, 0, 0)
    assert (a, b, c) == pytest.approx((0.3, 2, -1), abs=0.25)
    shares = sigmoid(odds)
    inputs = np.column_stack([np.log(shares), -np.log1p(-shares)])
    other = LogisticRegression(C=np.inf, max_iter=1000).fit(inputs, wanted)
    assert (a, b, c) == pytest.approx((*other.coef_[0], other.intercept_[0]), abs=0.02)
    steps = fit_curve("isotonic", odds, wanted)
    known = IsotonicRegression(out_of_bounds="clip").fit(odds, wanted).predict(odds)
    inside = (known > 0.01) & (known < 0.99)
    assert np.abs(sigmoid(steps(odds)) - known)[inside].max() < 0.02
    assert (np.diff(steps(np.linspace(-9, 9, 200))) >= 0).all()


def test_curves_are_taken_where_a_temperature_is_too_stiff_and_only_there() -> None:
    random = np.random.default_rng(1)
    odds = random.normal(0, 2, (4000, 2))
    true = np.stack([2.5 * np.logaddexp(0, odds[:, 0]) - 1.5, odds[:, 1]], axis=1)  # level to the left, then steep
    targets = (random.random(true.shape) < sigmoid(true)).astype(float)
    rule = fit("multi", odds, targets)
    assert rule.curves
    new = random.normal(0, 2, (4000, 2))
    right = np.stack([2.5 * np.logaddexp(0, new[:, 0]) - 1.5, new[:, 1]], axis=1)
    assert np.abs(rule.probabilities("multi", new) - sigmoid(right)).mean() < 0.02
    assert not any(fit("single", *single(3000, heat=3.0, seed=seed)).curves for seed in range(4))


def test_a_curve_that_is_a_temperature_and_a_bias_changes_what_they_change() -> None:
    logits, _ = multi(50)
    curve = Curve(beta=(0.5, 0.5, 0.25))
    plain = Rule(temperatures=(2.0,) * 3, biases=(0.25,) * 3).calibrated("multi", logits)
    assert np.allclose(Rule(curves=(curve,) * 3).calibrated("multi", logits), plain, atol=1e-6)


def test_curves_of_one_label_a_row_leave_probabilities_that_sum_to_one_and_travel() -> None:
    logits, _ = single(50, heat=1.0)
    rule = Rule(curves=tuple(Curve(beta=(1.0, heat, 0.1)) for heat in (0.5, 1.0, 2.0)))
    shares = rule.probabilities("single", logits)
    assert np.allclose(shares.sum(axis=1), 1) and np.isfinite(rule.calibrated("single", logits * 1e3)).all()
    assert (rule.decide("single", logits) == shares.argmax(axis=1)).all()
    again = Rule.model_validate_json(rule.model_dump_json())
    assert (again.probabilities("single", logits) == shares).all()
    turned = rule.ordered([2, 0, 1])
    assert np.allclose(turned.probabilities("single", logits[:, [2, 0, 1]]), shares[:, [2, 0, 1]])
    same = Rule(curves=(Curve(beta=(1.0, 1.0, 0.0)),) * 3)
    assert np.allclose(same.probabilities("single", logits), softmax(logits), atol=1e-6)
    with pytest.raises(ValidationError, match="a curve has beta, or as many x as y"):
        Curve(x=(1.0,), y=())
