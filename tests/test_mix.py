"""Labels that are more or less frequent than before: Bayes' rule, EM, and the doors to both."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import expit, softmax
from scipy.stats import norm

import bertune
from bertune.errors import ConfigError, DataError
from bertune.evaluate.mix import estimated_shares, shift
from bertune.evaluate.rule import Rule
from shell import call
from tiny_runs import QUICK, TOPICS, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def posteriors(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Exact probabilities of three labels, each a normal distribution of its own, that have these shares."""
    likely = norm.pdf(values[:, None], loc=np.array([-1.5, 0, 1.5])) * shares
    return likely / likely.sum(axis=1, keepdims=True)


def test_bayes_rule_gives_the_probabilities_under_other_shares() -> None:
    values = np.linspace(-3, 3, 50)
    old, new = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    moved = softmax(np.log(posteriors(values, old)) + shift("single", old, new), axis=1)
    assert np.allclose(moved, posteriors(values, new))
    yes = posteriors(values, old)[:, :1]
    one = expit(np.log(yes) - np.log1p(-yes) + shift("multi", old[:1], np.array([0.6])))
    likely = yes / old[0] * 0.6
    assert np.allclose(one, likely / (likely + (1 - yes) / 0.8 * 0.4))


@pytest.mark.parametrize("new", [(0.2, 0.3, 0.5), (0.7, 0.2, 0.1), (0.05, 0.9, 0.05)])
def test_em_finds_the_shares_of_unlabelled_rows(new: tuple[float, ...]) -> None:
    random = np.random.default_rng(0)
    old = np.array([0.2, 0.3, 0.5])
    labels = random.choice(3, 20_000, p=new)
    values = random.normal(np.array([-1.5, 0, 1.5])[labels])
    shares = np.bincount(labels) / len(labels)
    assert estimated_shares("single", posteriors(values, old), old) == pytest.approx(shares, abs=0.015)


def test_em_is_the_estimate_of_greatest_likelihood() -> None:
    random = np.random.default_rng(1)
    old = np.array([0.2, 0.3, 0.5])
    values = random.normal(size=300)
    found = estimated_shares("single", posteriors(values, old), old)

    def likelihood(shares: np.ndarray) -> float:
        return float(np.log((norm.pdf(values[:, None], loc=np.array([-1.5, 0, 1.5])) * shares).sum(axis=1)).sum())

    best = likelihood(found)
    for _ in range(200):
        other = np.clip(found + random.normal(0, 0.02, 3), 1e-4, 1)
        assert likelihood(other / other.sum()) <= best + 1e-4


def test_labels_that_stand_alone_are_estimated_alone() -> None:
    random = np.random.default_rng(2)
    old, new = np.array([0.3, 0.1]), np.array([0.3, 0.4])
    truth = random.random((20_000, 2)) < new
    signal = random.normal(size=truth.shape) + 2 * truth
    odds = old / (1 - old) * norm.pdf(signal, loc=2) / norm.pdf(signal)
    assert estimated_shares("multi", odds / (1 + odds), old) == pytest.approx(truth.mean(axis=0), abs=0.015)


def test_a_rule_for_other_shares_moves_biases_and_promises_nothing() -> None:
    rule = Rule(temperatures=(2.0,), biases=(0.1, 0.2, 0.3), shares=(0.2, 0.3, 0.5), abstain=0.4)
    logits = np.random.default_rng(0).normal(size=(5, 3))
    moved = rule.with_shares("single", np.array([0.5, 0.3, 0.2]))
    wanted = softmax(np.log(rule.probabilities("single", logits)) + np.log([2.5, 1, 0.4]), axis=1)
    assert np.allclose(moved.probabilities("single", logits), wanted, atol=1e-6)
    assert moved.abstain is None and moved.shares == (0.5, 0.3, 0.2)
    assert rule.ordered([2, 0, 1]).shares == (0.5, 0.2, 0.3)


@pytest.fixture(scope="module")
def trained(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mix")
    pl.DataFrame(topic_rows(240)).write_csv(folder / "rows.csv")
    bertune.train(folder / "rows.csv", out=folder / "run", model=tiny_bert, settings={**QUICK, "train.epochs": 6})
    return folder / "run"


def test_predict_takes_a_mix_or_estimates_it(trained: Path, tmp_path: Path) -> None:
    rows = [row for row in topic_rows(300, seed=4) if row["label"] != "tools"]
    pl.DataFrame(rows).select("text").write_csv(tmp_path / "new.csv")
    (tmp_path / "mix.yaml").write_text("animals: 0.6\nplants: 0.4\ntools: 0\n", encoding="utf-8")
    scored = {}
    for mix in ("animals=0.6,plants=0.4,tools=0", str(tmp_path / "mix.yaml"), "estimate"):
        done = call("predict", trained, tmp_path / "new.csv", "--label-mix", mix, "--out", tmp_path / "out.csv",
                    "--overwrite")  # fmt: skip
        assert done.code == 0, done.err
        assert "Label mix: animals " in done.err and "(was " in done.err
        with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
            scored[mix] = list(csv.DictReader(file))
    given, file_given, estimated = scored.values()
    assert given == file_given and len(estimated) == len(rows)
    plain = bertune.load(trained)
    texts = [str(row["text"]) for row in rows]
    share = {name: np.mean([row["prediction"] == name for row in given]) for name in TOPICS}
    assert share["tools"] < np.mean([said == "tools" for said in plain.predict(texts)])
    mix = plain.estimate_mix(texts)
    assert sum(mix.values()) == pytest.approx(1, abs=0.01) and mix["tools"] < 0.2
    shares = plain.with_label_mix(mix).predict_proba(texts)
    assert [float(row["prob:tools"]) for row in estimated] == pytest.approx(shares[:, 2].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ("animals=0.5,plants=0.5", "label mix: gives no share to tools; every label needs one."),
        ("animals=0.5,plants=0.6,tools=0.2", "label mix: the shares sum to 1.3; they have to sum to 1."),
        ("animal=0.5", "label mix: 'animal' is not a label of this model; did you mean 'animals'?"),
        ("animals=2,plants=0,tools=0", "label mix: 'animals' has the share 2; shares lie between 0 and 1."),
        ("animals=many", "--label-mix animals=many: 'many' is no share; write LABEL=0.2,LABEL=0.8."),
        ("none.yaml", "none.yaml: no such file of a label mix."),
        ("estimate", "--label-mix estimate: reads the rows twice; name a file, or pass --format."),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(mix: str, said: str, trained: Path) -> None:
    done = call("predict", trained, "-", "--label-mix", mix, stdin="a cat\n")
    assert (done.code, done.err.splitlines()[-1]) == (2, f"Error: {said}")


def test_a_mix_from_python_is_shares_by_label_and_is_estimated_from_rows(trained: Path) -> None:
    model = bertune.load(trained)
    with pytest.raises(ConfigError, match="label mix: 'animals' has the share 'a'; shares are numbers from 0 to 1"):
        model.with_label_mix({"animals": "a"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"label mix: expected shares by label, .*; found \[0\.5\]"):
        model.with_label_mix([0.5])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="label mix: '1' is not a label of this model; expected animals"):
        model.with_label_mix({1: 0.5})  # type: ignore[dict-item]
    with pytest.raises(DataError, match="label mix: there are no rows to estimate it from"):
        model.estimate_mix([])


def test_a_model_without_validation_rows_knows_no_mix(tiny_bert: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "data.hold_out": False, "train.epochs": 1}
    result = bertune.train(topic_rows(40), out=tmp_path / "run", model=tiny_bert, settings=settings)
    with pytest.raises(ConfigError, match="trained without validation rows"):
        result.predictor().estimate_mix(["a cat"])
