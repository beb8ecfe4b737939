"""Simple answers that a model must beat are learned from the training rows alone, and stand beside every result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bertune
from bertune.data.rows import Rows
from bertune.evaluate import baseline
from bertune.evaluate.baseline import TfidfLinear, baseline_logits, majority_logits, plain_texts
from bertune.evaluate.metrics import decide
from tiny_runs import QUICK, TOPICS, multi_rows, pair_rows, topic_rows


def said(texts: Any, targets: list[Any], new: Any, kind: str = "single", num_labels: int = 2) -> list[Any]:
    model = TfidfLinear(texts, np.array(targets), kind=kind, num_labels=num_labels)
    return decide(kind, model.logits(new)).tolist()


def test_the_linear_model_learns_words_sides_characters_and_several_labels() -> None:
    texts = ["red apple", "green pear", "red cherry", "green lime"] * 5
    assert said(texts, [0, 1, 0, 1] * 5, ["red grape", "green kiwi"]) == [0, 1]
    assert said([("up", "down"), ("down", "up")] * 10, [0, 1] * 10, [("up", "x"), ("x", "up")]) == [0, 1]
    assert said(["很好吃", "不好吃"] * 5, [0, 1] * 5, ["不吃", "很快"]) == [1, 0]
    many = [[1, 1, 0], [0, 1, 0]] * 10
    assert said(texts[:2] * 10, many, ["red", "green"], "multi", 3) == [[True, True, False], [False, True, False]]


def test_texts_without_a_word_leave_the_majority() -> None:
    assert said(["😀", "!!", "😀"], [1, 1, 0], ["?", "a word"]) == [1, 1]


def test_of_very_many_rows_the_linear_model_sees_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, targets = ["red apple", "green pear"] * 50, [0, 1] * 50
    whole = TfidfLinear(texts, np.array(targets), kind="single", num_labels=2).logits(["red"])
    monkeypatch.setattr(baseline, "LARGEST", 20)
    part = TfidfLinear(texts, np.array(targets), kind="single", num_labels=2)
    assert decide("single", part.logits(["red", "green"])).tolist() == [0, 1]
    assert (part.logits(["red"]) != whole).any()


def test_the_majority_is_a_label_or_a_set_of_labels() -> None:
    assert decide("single", majority_logits(np.array([2, 1, 1, 0]), kind="single", num_labels=4)) == 1
    assert decide("single", majority_logits(np.array([2, 1, 1, 2]), kind="single", num_labels=4)) == 1
    sets = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]], np.float32)
    assert decide("multi", majority_logits(sets, kind="multi", num_labels=3)).tolist() == [False, True, False]


def test_of_pairs_the_second_side_is_also_taken_alone() -> None:
    train = [("x", "never"), ("y", "also"), ("z", "never"), ("x", "also")] * 5
    found = baseline_logits(train, np.array([0, 1] * 10), {"test": [("y", "never")]}, kind="single", num_labels=2)
    assert list(found) == ["tfidf", "second_only", "majority"]
    assert decide("single", found["second_only"]["test"]).tolist() == [0]
    assert "second_only" not in baseline_logits(["a", "b"], np.array([0, 1]), {}, kind="single", num_labels=2)


def test_columns_of_a_text_are_joined() -> None:
    assert plain_texts(Rows((["a", "b"], ["c", "d"]))) == ["a c", "b d"]
    assert plain_texts(Rows((["a", "b"],), (["c", "d"],))) == [("a", "c"), ("b", "d")]


KINDS: list[tuple[Any, dict[str, Any], list[str]]] = [
    (topic_rows, {"text": "text"}, ["tfidf", "majority"]),
    (pair_rows, {"text": "first", "text_pair": "second"}, ["tfidf", "second_only", "majority"]),
    (multi_rows, {"text": "text", "label": list(TOPICS)}, ["tfidf", "majority"]),
]


@pytest.mark.usefixtures("one_thread", "no_pictures")
@pytest.mark.parametrize(("make", "columns", "names"), KINDS, ids=["single", "pair", "multi"])
def test_every_run_tells_intervals_and_baselines(
    make: Any, columns: dict[str, Any], names: list[str], tiny_bert: Path, tmp_path: Path
) -> None:
    result = bertune.train(make(120), out=tmp_path / "out", model=str(tiny_bert), settings=QUICK, **columns)
    metrics = result.metrics
    assert list(metrics["intervals"]) == ["valid", "test"]
    assert list(metrics["baselines"]) == names
    metric = metrics["metric"]
    for split in ("valid", "test"):
        low, high = metrics["intervals"][split][metric]
        assert low <= metrics[split][metric] <= high
        for name in names:
            found = metrics["baselines"][name][split]
            assert found["gain"]["difference"] == pytest.approx(metrics[split][metric] - found[metric])
            assert "log_loss" not in found
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "TF-IDF" in card and f"{metric} on the test split" in card


@pytest.mark.usefixtures("one_thread", "no_pictures")
def test_baselines_can_be_left_out_and_groups_are_drawn_whole(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [row | {"author": number // 4} for number, row in enumerate(topic_rows(120))]
    result = bertune.train(
        rows, out=tmp_path / "out", model=str(tiny_bert), text="text", label="label",
        settings=QUICK | {"report.baselines": False, "data.group": "author"},
    )
    assert result.metrics["baselines"] == {}
    assert result.metrics["intervals"]["test"]["by"] == "groups"
