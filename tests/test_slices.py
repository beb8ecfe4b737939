"""Metrics on parts of the rows: right values, honest words, and columns that have to be there before the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bertune.evaluate.metrics import evaluate
from bertune.evaluate.resample import Scores
from bertune.evaluate.slices import MISSING, OTHERS, attributes, column_values, slices, worst_in_words
from shell import call
from tiny_runs import QUICK, topic_rows


def scores_with(bad: np.ndarray, rate: float, *, seed: int = 0) -> Scores:
    """Answers that are wrong by `rate` where `bad`, and in a tenth of the other rows."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, len(bad))
    wrong = random.random(len(bad)) < np.where(bad, rate, 0.1)
    return Scores("single", np.eye(3)[np.where(wrong, (truth + 1) % 3, truth)] * 3.0, truth)


def test_a_slice_has_the_value_that_its_rows_alone_have() -> None:
    place = np.repeat(["north", "south"], [30, 70])
    scores = scores_with(place == "north", 0.5)
    found = slices(scores, "macro_f1", {"place": place.tolist()})["by"]["place"]
    labels = [str(number) for number in range(3)]
    for each in found:
        chosen = place == each["value"]
        for mask, key in ((chosen, "score"), (~chosen, "rest")):
            targets = scores.truth[mask].argmax(axis=1)
            assert each[key] == pytest.approx(evaluate("single", labels, scores.logits[mask], targets)["macro_f1"])
        assert each["rows"] == chosen.sum()


def test_the_worst_slice_is_named_and_chance_is_called_chance() -> None:
    place = np.repeat(["north", "south", "west"], [60, 200, 5])
    found = slices(scores_with(place == "north", 0.5), "accuracy", {"place": place.tolist()})
    assert found["worst"]["value"] == "north" and found["worst"]["high"] < 0
    assert (worst_in_words(found) or "").startswith("Worst slice: place north (60 rows), accuracy 0.")
    assert "(worse by 0." in (worst_in_words(found) or "")
    even = slices(scores_with(place == "", 0), "accuracy", {"place": place.tolist()})
    assert (worst_in_words(even) or "").endswith("among so many slices that may be chance.")


def test_a_metric_where_less_is_better_has_its_worst_slice_above() -> None:
    place = np.repeat(["a", "b"], [80, 80])
    found = slices(scores_with(place == "b", 0.6), "log_loss", {"place": place.tolist()})
    assert found["worst"]["value"] == "b" and found["worst"]["low"] > 0


def test_of_many_slices_without_a_difference_hardly_ever_one_is_called_worse() -> None:
    called = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        place = random.integers(0, 12, 600).astype(str).tolist()
        found = slices(scores_with(np.zeros(600, bool), 0, seed=seed), "accuracy", {"place": place})
        called += bool(found["worst"] and found["worst"]["high"] < 0)
    assert called <= 6  # 5 % at most are expected over both directions


def test_columns_become_values_quarters_and_rest() -> None:
    assert column_values(["x", None, " ", float("nan"), "y"]) == ["x", MISSING, MISSING, MISSING, "y"]
    quarters = column_values([*range(1, 101), None])
    assert sorted(set(quarters)) == sorted({"1 to 25.75", "25.75 to 50.5", "50.5 to 75.25", "75.25 to 100", MISSING})
    assert [quarters[0], quarters[25], quarters[99]] == ["1 to 25.75", "25.75 to 50.5", "75.25 to 100"]
    assert column_values(["1", "2", "1"]) == ["1", "2", "1"]
    many = column_values([f"v{number}" for number in range(30) for _ in range(30 - number)])
    assert len(set(many)) == 21 and many[-1] == OTHERS


def test_lengths_are_counted_before_cutting() -> None:
    by = attributes(np.array([16, 17, 300, 5000]), np.array([16, 17, 256, 256]), {"place": ["a", "b", "a", "b"]})
    assert by == {"length": ["up to 16", "17 to 32", "257 to 512", "over 4096"],
                  "truncated": ["no", "no", "yes", "yes"], "place": ["a", "b", "a", "b"]}  # fmt: skip


def test_a_run_and_evaluate_measure_by_column(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{**row, "source": "web" if number % 3 else "mail"} for number, row in enumerate(topic_rows(200))]
    data = tmp_path / "rows.csv"
    pl.DataFrame(rows).write_csv(data)
    settings = [item for name, value in (QUICK | {"train.epochs": 1}).items() for item in ("--set", f"{name}={value}")]
    common = ("train", data, "--model", tiny_bert, "--text", "text", "--label", "label", *settings)
    refused = call(*common, "--slice", "sorce", "--out", tmp_path / "no")
    assert refused.code == 2 and "no column 'sorce'; did you mean 'source'?" in refused.err
    assert not (tmp_path / "no").exists()
    done = call(*common, "--slice", "source", "--out", tmp_path / "run", "--json")
    found = done.json["metrics"]["slices"]["test"]
    assert {each["value"] for each in found["by"]["source"]} == {"web", "mail"}
    again = call("evaluate", tmp_path / "run", data, "--slice", "source", "--json").json["slices"]
    assert sum(each["rows"] for each in again["by"]["source"]) == 200
