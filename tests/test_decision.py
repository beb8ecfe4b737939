"""The rule is chosen on validation rows, kept with the model, and gives the same answer through every door."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import bertune
from bertune.config import Config
from bertune.errors import ConfigError, ModelError
from bertune.evaluate.metrics import sigmoid
from bertune.training.check import check_used
from bertune.training.run import Result
from shell import call, write_rows
from tiny_runs import QUICK, TOPICS, Told, multi_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread")

FEW_STEPS = QUICK | {"data.valid": 0.4, "data.test": 0.2, "train.epochs": 4, "report.baselines": False}


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, told: Told) -> Result:
    """A multi-label result whose labels have thresholds of their own."""
    patch = pytest.MonkeyPatch()
    patch.setattr("bertune.training.finish.plot_curves", lambda history, path, *, metric: None)
    result = bertune.train(
        multi_rows(500), out=tmp_path_factory.mktemp("tuned") / "out", model=tiny_bert, text="text", label=list(TOPICS),
        settings=FEW_STEPS | {"decide.threshold": "label", "decide.objective": "macro_f1"}, listener=told,
    )
    patch.undo()
    return result


def test_the_rule_is_said_and_kept_with_the_model(tuned: Result, told: Told) -> None:
    model = bertune.load(tuned.out, threads=1)
    assert len(set(model.rule.thresholds)) == 3
    assert tuned.metrics["thresholds"]["values"] == list(model.rule.thresholds)
    assert tuned.metrics["thresholds"]["labels"] == list(model.labels)
    assert set(tuned.metrics["thresholds"]["out_of_fold"]) == {"half", "label"}
    assert tuned.metrics["calibration"]["temperatures"] == list(model.rule.temperatures)
    (line,) = [line for line in told.said if line.startswith("Decision rule, from 200 validation rows: ")]
    assert "; thresholds 0." in line and "for macro_f1 (out of fold " in line
    card = (tuned.out / "README.md").read_text(encoding="utf-8")
    assert "reaches its threshold (animals 0." in card


def test_metrics_are_those_of_the_answers_that_are_given(tuned: Result) -> None:
    model = bertune.load(tuned.out, threads=1)
    table = pl.read_parquet(tuned.out / "run/predictions-test.parquet")
    logits = table.select(f"logit:{label}" for label in model.labels).to_numpy()
    calibrated = logits / np.array(model.rule.temperatures or 1.0) + np.array(model.rule.biases or 0.0)
    said = sigmoid(calibrated) >= np.array(model.rule.thresholds)
    assert table["prediction"].to_list() == model.task.names(said)
    assert np.allclose(table.select(f"prob:{label}" for label in model.labels), sigmoid(calibrated), atol=1e-6)
    truth = np.array([[label in row for label in model.labels] for row in table["label"]])
    assert tuned.metrics["test"]["subset_accuracy"] == pytest.approx((said == truth).all(axis=1).mean())
    half = tuned.metrics["thresholds"]["test"]["at_half"]["subset_accuracy"]
    assert half == pytest.approx(((calibrated >= 0) == truth).all(axis=1).mean())
    for split in ("valid", "test"):
        found = tuned.metrics["calibration"][split]
        assert set(found) == {"before", "after"}
        assert found["after"]["log_loss"] == pytest.approx(tuned.metrics[split]["log_loss"])


def test_python_and_the_command_line_give_the_same_answer(tuned: Result, tmp_path: Path) -> None:
    rows = multi_rows(60, seed=5)
    texts = [{"text": row["text"]} for row in rows]
    file, out = write_rows(tmp_path / "new.csv", texts), tmp_path / "scored.csv"
    assert call("predict", tuned.out, file, "--out", out).code == 0
    with out.open(encoding="utf-8", newline="") as stream:
        scored = list(csv.DictReader(stream))
    model = bertune.load(tuned.out, threads=1)
    wanted = model.predict([row["text"] for row in texts])
    assert [[label for label in row["prediction"].split("|") if label] for row in scored] == wanted
    shares = model.predict_proba([row["text"] for row in texts])
    found = [[float(row[f"prob:{label}"]) for label in model.labels] for row in scored]
    assert np.allclose(found, shares, atol=1e-5)

    labelled = write_rows(tmp_path / "labelled.csv", rows)
    measured = call("evaluate", tuned.out, labelled, "--json").json
    truth = [[label for label in model.labels if row[label]] for row in rows]
    right = np.mean([a == b for a, b in zip(wanted, truth, strict=True)])
    assert measured["subset_accuracy"] == pytest.approx(right)
    assert measured["calibration"]["log_loss"] == pytest.approx(measured["log_loss"])


def test_a_threshold_given_to_predict_replaces_those_of_the_model(tuned: Result, tmp_path: Path) -> None:
    texts = [row["text"] for row in multi_rows(40, seed=6)]
    model = bertune.load(tuned.out, threads=1)
    shares = model.predict_proba(texts)
    wanted = model.task.names(shares >= 0.9)
    assert model.predict(texts, threshold=0.9) == wanted != model.predict(texts)
    done = call("predict", tuned.out, "-", "--threshold", "0.9", "--json", stdin="\n".join(texts) + "\n")
    assert [row["prediction"] for row in done.json_lines] == wanted


def test_raw_gives_logits_and_the_same_answers(tuned: Result) -> None:
    texts = [row["text"] for row in multi_rows(10, seed=6)]
    model = bertune.load(tuned.out, threads=1)
    rows = call("predict", tuned.out, "-", "--raw", "--json", stdin="\n".join(texts) + "\n").json_lines
    found = [[row[f"logit:{label}"] for label in model.labels] for row in rows]
    assert np.allclose(found, model.logits(texts), atol=1e-4)
    assert [row["prediction"] for row in rows] == model.predict(texts)
    assert not any(name.startswith("prob:") for name in rows[0])


@pytest.mark.usefixtures("no_pictures")
def test_one_label_a_row_has_a_temperature_and_no_threshold(tiny_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = bertune.train(
        topic_rows(500), out=out, model=tiny_bert, text="text", label="label",
        settings=FEW_STEPS | {"train.epochs": 30, "train.lr": 2e-2},
    )
    assert "thresholds" not in result.metrics
    assert set(result.metrics["calibration"]) == {"temperatures", "curves", "biases", "valid", "test"}
    model = bertune.load(out, threads=1)
    with pytest.raises(ConfigError, match=r"--threshold 0\.3: this model gives the likeliest label"):
        model.predict(["the cat"], threshold=0.3)
    for value in ("0", "1.5"):
        assert call("predict", out, "-", "--threshold", value, stdin="cat\n").code == 2


@pytest.mark.usefixtures("no_pictures")
def test_what_is_given_counts_without_validation_rows_too(tiny_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    chosen = {"data.hold_out": False, "train.max_steps": 1, "decide.threshold": 0.2, "decide.min_labels": 1}
    bertune.train(multi_rows(30), out=out, model=tiny_bert, text="text", label=list(TOPICS), settings=QUICK | chosen)
    rule = bertune.load(out, threads=1).rule
    assert (rule.thresholds, rule.min_labels) == ((0.2, 0.2, 0.2), 1)
    assert all(bertune.load(out, threads=1).predict([row["text"] for row in multi_rows(20, seed=3)]))


def test_a_rule_for_other_labels_is_a_damaged_file(tuned: Result, tmp_path: Path) -> None:
    path = tuned.out / "bertune.json"
    before = path.read_text(encoding="utf-8")
    values = json.loads(before)
    values["decision"]["thresholds"] = [0.5]
    try:
        path.write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(ModelError, match="the decision rule is not one for 3 labels; the file is damaged"):
            bertune.load(tuned.out)
    finally:
        path.write_text(before, encoding="utf-8")


@pytest.mark.parametrize(("kind", "values", "said"), [
    ("single", {"threshold": 0.3}, "decide.threshold 0.3: belongs to a task with any number of labels a row"),
    ("single", {"min_labels": 1}, "decide.min_labels 1: belongs to a task"),
    ("multi", {"threshold": "label", "precision": 0.9}, "decide.threshold and decide.precision each say where"),
    ("multi", {"threshold": 0.3, "objective": "macro_f1"}, "decide.objective macro_f1: has no effect with"),
    ("multi", {"threshold": "label", "objective": "hamming_loss"}, "--threshold label with decide.objective hamming"),
    ("multi", {"min_labels": 3, "max_labels": 2}, "decide.min_labels 3 is above decide.max_labels 2"),
])  # fmt: skip
def test_a_part_of_the_rule_without_a_meaning_is_an_error(kind: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_used(Config().updated({"decide": values}), kind, ("train", "valid"))


@pytest.mark.parametrize(("values", "name"), [
    ({"threshold": "global"}, "--threshold global"), ({"precision": 0.9}, "decide.precision")
])  # fmt: skip
def test_what_is_chosen_on_validation_rows_needs_them(values: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: is chosen on validation rows, and there are none"):
        check_used(Config().updated({"decide": values}), "multi", ("train",))


@pytest.mark.parametrize(("value", "said"), [
    ("1.5", "a threshold lies between 0 and 1"), ("0", "a threshold lies"), ("none", "expected auto, half, global"),
])  # fmt: skip
def test_a_threshold_is_a_way_to_choose_or_a_probability(value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"'decide\.threshold' cannot be '{value}': {said}"):
        Config().updated({"decide": {"threshold": value}})
    assert Config().updated({"decide": {"threshold": "0.3"}}).decide.threshold == 0.3
