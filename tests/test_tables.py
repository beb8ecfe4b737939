"""Tables align whatever the labels are, and the verdict says what the intervals say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bertune.evaluate.metrics import METRICS, evaluate
from bertune.evaluate.tables import format_table, label_table, result_columns, result_table, verdict


def test_tables_align_also_chinese_labels_and_break_no_terminal() -> None:
    random = np.random.default_rng(1)
    found = evaluate("single", ["好", "\x1b[31mred\n"], random.normal(size=(1200, 2)), random.integers(0, 2, 1200))
    lines = format_table(label_table(found)).split("\n")
    assert len(lines) == 4 and "\x1b" not in "".join(lines)
    assert lines[2].startswith("好  ") and lines[0].startswith("label") and lines[1].startswith("---")
    rows = result_table({"valid": found, "test": found}, "single")
    assert rows[0] == ["", "valid", "test"] and rows[1] == ["rows", "1,200", "1,200"]
    assert rows[2] == ["accuracy", *[f"{found['accuracy']:.4f}"] * 2]
    assert result_table({"train": {"rows": 5}}, "single")[1:3] == [["rows", "5"], ["accuracy", "-"]]


def measured(low: float, high: float) -> dict[str, Any]:
    """metrics.json of a run, as far as tables read it."""
    return {
        "metric": "accuracy",
        "train": {"rows": 80, "accuracy": 0.9},
        "valid": {"rows": 10, "accuracy": 0.7},
        "test": {"rows": 10, "accuracy": 0.8},
        "intervals": {"valid": {"accuracy": [0.4, 0.9]}, "test": {"level": 0.95, "accuracy": [0.5, 1.0], "mcc": None}},
        "slices": {"test": {"metric": "accuracy", "by": {}, "worst": None}},
        "baselines": {
            "tfidf": {"test": {"accuracy": 0.7, "gain": {"difference": (low + high) / 2, "low": low, "high": high}}},
            "majority": {"test": {"accuracy": 0.5}},
        },
    }


def test_intervals_and_baselines_stand_beside_the_split_that_counts() -> None:
    columns = result_columns(measured(0.1, 0.3))
    assert list(columns) == ["train", "valid", "test", "test, 95 %", "TF-IDF", "majority"]
    table = result_table(columns, "single")
    assert table[1] == ["rows", "80", "10", "10", "-", "10", "10"]
    assert table[2] == ["accuracy", "0.9000", "0.7000", "0.8000", "0.5000 to 1.0000", "0.7000", "0.5000"]
    assert [row[4] for row in table[3:]] == ["-"] * (len(table) - 3)
    assert {row[0] for row in table[2:]} == {name for name, metric in METRICS.items() if "single" in metric.kinds}


def test_without_rows_to_measure_there_is_only_training() -> None:
    found = measured(0.1, 0.3) | {"intervals": {}, "baselines": {}}
    del found["valid"], found["test"]
    assert list(result_columns(found)) == ["train"]
    assert verdict(found) == []


@pytest.mark.parametrize(("low", "high", "said"), [
    (0.1, 0.3, "better by 0.2000 (0.1000 to 0.3000)"),
    (-0.3, -0.1, "worse by 0.2000 (0.1000 to 0.3000)"),
    (-0.1, 0.3, "the difference, +0.1000 (-0.1000 to +0.3000), is noise"),
])  # fmt: skip
def test_the_verdict_is_what_the_intervals_say(low: float, high: float, said: str) -> None:
    assert verdict(measured(low, high)) == [
        "accuracy on the test split: 0.8000 (95 %: 0.5000 to 1.0000).", f"Against TF-IDF (0.7000): {said}."
    ]  # fmt: skip
