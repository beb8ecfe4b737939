"""What a model promises: sets that hold the right label as often as asked, and answers that are right as often."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

import bertune
from bertune.config import Config
from bertune.errors import ConfigError
from bertune.evaluate.abstain import confidence, fewest_answers, fit_threshold, is_right, judge_abstention
from bertune.evaluate.rule import Rule
from bertune.evaluate.sets import Sets, fewest_rows, fit_sets, judge_sets, strangeness
from bertune.training.prepare import keep_apart, read_splits
from shell import Done, call
from tiny_runs import QUICK, TOPICS, multi_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(random: np.random.Generator, rows: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities of one label a row, and labels drawn by them."""
    shares = random.dirichlet(np.full(labels, 0.4), rows)
    return shares, np.array([random.choice(labels, p=row) for row in shares])


def test_strangeness_by_hand() -> None:
    found = strangeness(np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]))
    assert found == pytest.approx(np.array([[1.0, 0, 0.8], [0.9, 1.0, 0]]))
    many = strangeness(np.array([[0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05]]))
    assert many[0] == pytest.approx([0, 0.5, 0.65, 0.77, 0.87, 0.95 + 0.01, 1 + 0.02])


def test_the_cutoff_is_the_quantile_by_hand() -> None:
    shares = np.array([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
    # Strangeness of the right labels: 0, 1, 0, 0. Of 4 rows the ceil(5 x 0.6) = 3rd smallest is 0, the 4th is 1.
    targets = np.array([0, 1, 0, 1])
    assert fit_sets("single", shares, targets, 0.6).cutoffs == (0.0,)
    assert fit_sets("single", shares, targets, 0.8).cutoffs == (1.0,)
    hot = np.array([[1.0, 0], [1, 0], [1, 1], [1, 0]])
    # The first label's probabilities: .2 .6 .7 .9, of which floor(5 x .4) = 2 may be missed at 60 %, and .6 is let in.
    assert fit_sets("multi", shares, hot, 0.6).cutoffs == (0.6, 0.0)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_hold_the_right_label_as_often_as_theory_says(coverage: float) -> None:
    """Over many draws: misses on new rows follow the beta-binomial law of split conformal prediction."""
    held, new, repeats = 99, 200, 300
    random = np.random.default_rng(1)
    caught = []
    for _ in range(repeats):
        shares, targets = drawn(random, held + new, 4)
        rule = fit_sets("single", shares[:held], targets[:held], coverage)
        sets = rule.of("single", shares[held:])
        assert sets.any(axis=1).all()
        caught.append(int(sets[np.arange(new), targets[held:]].sum()))
    place = int(np.ceil((held + 1) * coverage - 1e-9))
    law = stats.betabinom(new, place, held + 1 - place)
    right_by_itself = np.mean([shares.argmax(1) == targets for shares, targets in [drawn(random, 4000, 4)]])
    assert right_by_itself < 0.8  # else the likeliest label alone would be more than was asked for
    assert np.mean(caught) == pytest.approx(law.mean(), abs=4 * law.std() / repeats**0.5)
    assert np.std(caught) == pytest.approx(law.std(), rel=0.2)


def test_of_many_labels_each_is_caught_as_often_as_asked() -> None:
    random = np.random.default_rng(2)
    shares = random.random((6000, 3)) ** np.array([1, 2, 4])
    hot = (random.random(shares.shape) < shares).astype(float)
    rule = fit_sets("multi", shares[:3000], hot[:3000], 0.9)
    told = judge_sets("multi", ["a", "b", "c"], rule.of("multi", shares[3000:]), hot[3000:])
    for each in told["per_label"]:
        assert each["coverage"] == pytest.approx(0.9, abs=0.035)
    assert told["coverage"] == pytest.approx(np.mean([each["coverage"] for each in told["per_label"]]))
    assert fit_sets("multi", shares[:5], np.zeros((5, 3)), 0.9).cutoffs == (0, 0, 0)


def test_judged_sets_by_hand() -> None:
    sets = np.array([[True, False], [True, True], [False, True]])
    told = judge_sets("single", ["a", "b"], sets, np.array([0, 0, 0]))
    assert told["coverage"] == pytest.approx(2 / 3) and told["mean_size"] == pytest.approx(4 / 3)
    assert told["per_label"][1] == {"label": "b", "rows": 0, "coverage": None, "size": pytest.approx(2 / 3)}


def test_how_many_rows_a_promise_takes() -> None:
    assert [fewest_rows(share) for share in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    assert [fewest_answers(share) for share in (0.5, 0.95)] == [5, 59]


def test_answers_that_are_promised_are_right_as_often_in_all_but_a_few_draws() -> None:
    random = np.random.default_rng(0)
    broken = given = 0
    for _ in range(200):
        sure = random.uniform(0.4, 1, 400)
        least = fit_threshold(sure, random.random(400) < sure, 0.9)
        if least is not None:
            given += 1
            broken += (least + 1) / 2 < 0.9  # the accuracy of answers that are spread evenly above `least`
    assert given > 100
    assert broken <= stats.binom(200, 0.05).ppf(0.999)


def test_a_confidence_that_nothing_supports_is_not_made_up() -> None:
    assert fit_threshold(np.linspace(0, 1, 200), np.zeros(200, bool), 0.9) is None
    assert fit_threshold(np.ones(20), np.ones(20, bool), 0.95) is None  # too few
    assert fit_threshold(np.linspace(0.5, 1, 200), np.ones(200, bool), 0.9) == 0.5


def test_confidence_is_the_probability_that_all_of_the_answer_is_right() -> None:
    shares = np.array([[0.9, 0.2], [0.6, 0.7]])
    said = np.array([[True, False], [False, True]])
    assert confidence("multi", shares, said) == pytest.approx([0.9 * 0.8, 0.4 * 0.7])
    assert confidence("single", shares, np.array([0, 1])) == pytest.approx([0.9, 0.7])
    assert is_right("multi", said, np.array([[1, 0], [1, 1]])).tolist() == [True, False]


def test_the_curve_goes_from_the_surest_rows_to_all() -> None:
    told = judge_abstention(np.linspace(0, 1, 100), np.arange(100) >= 30, 0.5)
    assert told["answered"] == pytest.approx(0.5) and told["accuracy"] == 1
    assert told["curve"][0] == {"answered": 0.05, "accuracy": 1.0, "confidence": pytest.approx(95 / 99)}
    assert told["curve"][-1]["answered"] == 1 and told["curve"][-1]["accuracy"] == pytest.approx(0.7)
    assert judge_abstention(np.zeros(3), np.ones(3, bool), 2.0)["accuracy"] is None


def test_a_rule_keeps_its_promises_when_labels_change_places() -> None:
    rule = Rule(sets=Sets(coverage=0.9, cutoffs=(0.1, 0.2, 0.3)), abstain=0.4)
    logits = np.random.default_rng(0).normal(size=(20, 3))
    turned = rule.ordered([2, 0, 1])
    assert (turned.label_sets("multi", logits[:, [2, 0, 1]]) == rule.label_sets("multi", logits)[:, [2, 0, 1]]).all()
    assert rule.with_threshold(0.3, 3).abstain is None and rule.with_threshold(0.3, 3).sets == rule.sets


def test_the_rows_that_promise_choose_nothing(tmp_path: Path) -> None:
    pl.DataFrame(topic_rows(200)).write_csv(tmp_path / "rows.csv")
    config = Config().updated({"data": {"files": [str(tmp_path / "rows.csv")], "valid": 0.3}})
    before = read_splits(None, config.data, lambda line: None)
    after = keep_apart(before, config.data)
    rows = {name: set(split.table.row_numbers.tolist()) for name, split in after.splits.items()}
    assert list(after.splits) == ["train", "valid", "conformal"]
    assert rows["train"] == set(before.train.table.row_numbers.tolist())
    assert not rows["valid"] & rows["conformal"]
    assert rows["valid"] | rows["conformal"] == set(before.splits["valid"].table.row_numbers.tolist())


def train(tmp_path: Path, model: Path, rows: list[dict[str, object]], *more: str) -> Done:
    pl.DataFrame(rows).write_csv(tmp_path / "rows.csv")
    settings = [item for name, value in (QUICK | {"train.epochs": 3}).items() for item in ("--set", f"{name}={value}")]
    return call("train", tmp_path / "rows.csv", "--model", model, "--valid", "0.4", "--test", "0.2", "--out",
                tmp_path / "run", *settings, *more)  # fmt: skip


def test_sets_and_abstention_from_training_to_every_door(tmp_path: Path, tiny_bert: Path) -> None:
    done = train(tmp_path, tiny_bert, topic_rows(300), "--coverage", "0.9", "--accuracy", "0.6", "--json")
    assert done.code == 0, done.err
    metrics = done.json["metrics"]
    assert "Of the validation rows 60 are kept for what is promised, and 60 choose." in done.err
    assert "Sets for a coverage of 0.9, from 60 rows: valid 0." in done.err
    promised, abstention = metrics["conformal"], metrics["abstention"]
    assert promised["coverage"] == 0.9 and promised["rows"] == 60 and len(promised["cutoffs"]) == 1
    assert 0.7 < promised["test"]["coverage"] <= 1
    assert abstention["accuracy"] == 0.6 and abstention["test"]["curve"][-1]["answered"] == 1
    assert "conformal" not in {"train", "valid", "test"} & set(metrics)
    with (tmp_path / "run/run/splits.csv").open(encoding="utf-8") as file:
        assert sum(row["split"] == "conformal" for row in csv.DictReader(file)) == 60

    model = bertune.load(tmp_path / "run")
    texts = [str(row["text"]) for row in topic_rows(40, seed=9)]
    sets, asked = model.predict_set(texts), model.abstains(texts)
    for said, held in zip(model.predict(texts), sets, strict=True):
        assert held[0] == said  # the likeliest label is always in
    out = tmp_path / "scored.csv"
    pl.DataFrame({"text": texts}).write_csv(tmp_path / "new.csv")
    assert call("predict", tmp_path / "run", tmp_path / "new.csv", "--out", out).code == 0
    with out.open(encoding="utf-8", newline="") as file:
        scored = list(csv.DictReader(file))
    assert list(scored[0]) == ["text", "prediction", *(f"prob:{name}" for name in TOPICS), "set", "abstain"]
    assert [row["set"].split("|") for row in scored] == sets
    assert [row["abstain"] == "yes" for row in scored] == asked.tolist()
    lines = call("predict", tmp_path / "run", "-", stdin="\n".join(texts)).out.splitlines()
    assert all(("{" + ", ".join(held) + "}" in line) for line, held in zip(lines, sets, strict=True))
    assert [line.startswith("ask a person: ") for line in lines] == asked.tolist()
    records = call("predict", tmp_path / "run", "-", "--json", stdin="\n".join(texts)).json_lines
    assert [(record["set"], record["abstain"]) for record in records] == list(zip(sets, asked.tolist(), strict=True))

    again = call("evaluate", tmp_path / "run", tmp_path / "rows.csv", "--json").json
    assert set(again["conformal"]) == {"coverage", "mean_size", "per_label"} and "answered" in again["abstention"]


def test_many_labels_have_sets_too_and_a_threshold_breaks_the_other_promise(tmp_path: Path, tiny_bert: Path) -> None:
    assert train(tmp_path, tiny_bert, multi_rows(300), "--coverage", "0.8", "--accuracy", "0.3").code == 0
    bundle = json.loads((tmp_path / "run/bertune.json").read_text(encoding="utf-8"))
    assert len(bundle["decision"]["sets"]["cutoffs"]) == 3
    records = call("predict", tmp_path / "run", "-", "--json", stdin="a cat\n").json_lines
    assert list(records[0])[-2:] == ["set", "abstain"]
    records = call("predict", tmp_path / "run", "-", "--json", "--threshold", "0.5", stdin="a cat\n").json_lines
    assert list(records[0])[-1] == "set"


def test_a_promise_that_nothing_supports_leaves_all_to_a_person(tmp_path: Path, tiny_bert: Path) -> None:
    random = np.random.default_rng(0)
    rows = [{**row, "label": str(random.choice(["a", "b", "c"]))} for row in topic_rows(300)]
    done = train(tmp_path, tiny_bert, rows, "--accuracy", "0.95")
    assert done.code == 0, done.err
    assert "No confidence promises an accuracy of 0.95, so that every answer is left to a person." in done.err
    assert call("predict", tmp_path / "run", "-", stdin="a cat\n").out.startswith("ask a person: ")


@pytest.mark.parametrize(("flag", "value", "fewest"), [("--coverage", "0.99", 99), ("--accuracy", "0.97", 99)])
def test_too_few_rows_for_a_promise_are_refused_before_training(
    flag: str, value: str, fewest: int, tmp_path: Path, tiny_bert: Path
) -> None:
    done = train(tmp_path, tiny_bert, topic_rows(100), flag, value)
    assert done.code == 2
    wanted = f"{flag} {value}: half of the validation rows are kept to promise it, and 20 are fewer than the {fewest}"
    assert wanted in done.err
    assert not (tmp_path / "run").exists()


def test_a_promise_needs_validation_rows(tmp_path: Path, tiny_bert: Path) -> None:
    pl.DataFrame(topic_rows(60)).write_csv(tmp_path / "rows.csv")
    done = call("train", tmp_path / "rows.csv", "--model", tiny_bert, "--test", "0.2", "--coverage", "0.9",
                "--out", tmp_path / "run")  # fmt: skip
    assert done.code == 2 and "Error: --coverage: needs validation rows, and there are none." in done.err


def test_a_model_that_promises_nothing_says_how_it_would(tmp_path: Path, tiny_bert: Path) -> None:
    assert train(tmp_path, tiny_bert, topic_rows(60)).code == 0
    model = bertune.load(tmp_path / "run")
    with pytest.raises(ConfigError, match="train it with --coverage"):
        model.predict_set(["a cat"])
    with pytest.raises(ConfigError, match="train it with --accuracy"):
        model.abstains(["a cat"])
