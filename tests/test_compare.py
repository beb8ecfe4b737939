"""Two runs on the same rows: tests agree with scipy and with cases worked by hand, and the words with the numbers."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import bertune
from bertune.errors import ConfigError, DataError, ModelError
from bertune.evaluate.compare import compare, holm, judgement, mcnemar, permutation
from bertune.evaluate.metrics import METRICS
from bertune.evaluate.resample import RANKED, Scores
from shell import call
from tiny_runs import QUICK, TOPICS, multi_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def answers(right: np.ndarray, truth: np.ndarray) -> Scores:
    """A single-label side that is right where told."""
    said = np.where(right, truth, (truth + 1) % 3)
    return Scores("single", np.eye(3)[said] * 4, truth)


def test_mcnemar_counts_the_rows_that_one_alone_gets_right() -> None:
    right_a = np.array([True] * 1 + [False] * 9 + [True] * 50)
    right_b = np.array([False] * 1 + [True] * 9 + [True] * 50)
    assert mcnemar(right_a, right_b) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(right_a, right_a) == 1


def test_holm_adjusts_for_the_number_of_rivals() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_permutation_test_agrees_with_scipy() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 120)
    right_a, right_b = random.random(120) < 0.6, random.random(120) < 0.74
    wanted = stats.permutation_test(
        (right_a.astype(float), right_b.astype(float)), lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        permutation_type="samples", vectorized=True, n_resamples=5000, rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip
    a, b = answers(right_a, truth), answers(right_b, truth)
    assert 0.005 < wanted < 0.2
    assert permutation(a, b, ["accuracy"])["accuracy"] == pytest.approx(wanted, abs=0.012)


def test_the_same_answers_are_noise_and_metrics_of_order_have_no_test() -> None:
    random = np.random.default_rng(1)
    truth = (random.random((50, 3)) < 0.4).astype(float)
    side = Scores("multi", random.normal(size=(50, 3)), truth)
    found = compare(side, side, metric="micro_f1")
    assert set(found["metrics"]) == {name for name, metric in METRICS.items() if "multi" in metric.kinds}
    assert {name for name, values in found["metrics"].items() if values["p"] is None} == RANKED
    assert found["p"] == 1 and found["test"] == "paired permutation"
    assert judgement(found) == "noise"
    assert found["only_first"] == found["only_second"] == []


def test_groups_are_exchanged_whole_so_that_alike_rows_prove_less() -> None:
    groups = np.repeat(np.arange(12), 20)
    truth = np.arange(240) % 3
    right_a, right_b = groups < 5, (groups > 0) & (groups < 9)  # one group for a alone, four for b alone
    a, b = answers(right_a, truth), answers(right_b, truth)
    alone = compare(a, b, metric="accuracy")
    together = compare(a, b, metric="accuracy", groups=list(groups))
    assert alone["test"] == "McNemar, exact" and together["test"] == "paired permutation"
    assert alone["p"] < 0.001
    assert together["p"] == pytest.approx(2 * (1 + 5) / 2**5, abs=0.03)
    assert (judgement(alone), judgement(together)) == ("better", "noise")


def test_better_follows_the_direction_of_the_metric() -> None:
    random = np.random.default_rng(2)
    truth = random.integers(0, 3, 200)
    weak, strong = answers(random.random(200) < 0.5, truth), answers(random.random(200) < 0.9, truth)
    assert judgement(compare(weak, strong, metric="log_loss")) == "better"
    assert judgement(compare(strong, weak, metric="log_loss")) == "worse"
    found = compare(strong, weak, metric="macro_f1")
    values = found["metrics"]["macro_f1"]
    assert values["difference"] == pytest.approx(values["second"] - values["first"])
    assert values["low"] < values["difference"] < values["high"] < 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """Results in one folder: `bad` and `good` on the same rows, `other` on others, `multi` of another kind."""
    folder = tmp_path_factory.mktemp("runs")

    def train(name: str, rows: list[dict[str, Any]], *, label: Any = "label", **settings: Any) -> None:
        chosen = QUICK | {"report.baselines": False, "train.epochs": 30} | settings
        bertune.train(rows, out=folder / name, model=tiny_bert, text="text", label=label, settings=chosen)

    patch = pytest.MonkeyPatch()
    patch.setattr("bertune.training.finish.plot_curves", lambda history, path, *, metric: None)
    rows = topic_rows(300)
    part = {"data.test": 0.4, "data.valid": 0.1}
    train("good", rows, **part)
    train("bad", rows, **part, **{"train.max_steps": 1, "train.lr": 1e-6})
    train("other", rows, **part, **{"data.split_seed": 1, "train.max_steps": 1})
    train("none", rows, **{"data.hold_out": False, "train.max_steps": 1})
    train("turned", rows, **part, **{"train.max_steps": 1, "data.labels": "tools,plants,animals"})
    train("grouped", [row | {"by": number // 3} for number, row in enumerate(rows)], **part,
          **{"train.max_steps": 1, "data.group": "by"})  # fmt: skip
    swapped = [row | {"label": {"animals": "plants", "plants": "animals"}.get(row["label"], "tools")} for row in rows]
    # Labels in this order have the numbers that they had before, so the same rows fall into each split.
    train("swapped", swapped, **part, **{"train.max_steps": 1, "data.labels": "plants,animals,tools"})
    changed = [row | {"label": "plants" if row["label"] == "animals" else "animals"} for row in rows]
    train("changed", changed, **part, **{"train.max_steps": 1, "data.labels": "animals,plants"})
    train("multi", multi_rows(100), label=list(TOPICS), **{"train.max_steps": 1})
    patch.undo()
    return folder


def test_a_folder_may_have_a_pattern_for_a_name(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "good", tmp_path / "r[1]*")
    assert bertune.compare(tmp_path / "r[1]*", runs / "good")[0]["judgement"] == "noise"


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "damaged, Expecting value"), ("{}", "damaged, 'metric' is missing"), ("[1]", "damaged"), (None, "missing")],
)
def test_a_record_that_is_damaged_is_said_to_be(runs: Path, tmp_path: Path, content: str | None, said: str) -> None:
    record = shutil.copytree(runs / "good", tmp_path / "run") / "run" / "metrics.json"
    record.unlink()
    if content is not None:
        record.write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=rf"metrics\.json: {said}.*Copy the folder again, or train anew"):
        bertune.compare(tmp_path / "run", runs / "good")


def test_a_trained_model_is_better_than_an_untrained_one(runs: Path) -> None:
    (found,) = bertune.compare(runs / "bad", runs / "good")
    accuracy = found["metrics"]["accuracy"]
    assert found["judgement"] == "better" and found["metric"] == "accuracy" and found["split"] == "test"
    assert accuracy["difference"] > 0.2 and accuracy["p"] < 0.001
    assert len(found["only_second"]) - len(found["only_first"]) == round(accuracy["difference"] * found["rows"])
    flip = found["only_second"][0]
    assert flip["second"] == flip["label"] != flip["first"]
    (back,) = bertune.compare(runs / "good", runs / "bad", metric="macro_f1")
    assert back["judgement"] == "worse" and back["test"] == "paired permutation"


def test_labels_in_another_order_and_several_rivals_are_no_hindrance(runs: Path) -> None:
    same, found = bertune.compare(runs / "bad", runs / "bad", runs / "turned")
    assert same["judgement"] == "noise" and same["p"] == 1
    (alone,) = bertune.compare(runs / "bad", runs / "turned")
    assert found["metrics"] == alone["metrics"]
    assert found["p"] == pytest.approx(min(1, 2 * alone["p"]))


def test_rows_of_a_group_count_together(runs: Path) -> None:
    (found,) = bertune.compare(runs / "grouped", runs / "grouped")
    assert found["test"] == "paired permutation"


@pytest.mark.parametrize(("first", "second", "error", "said"), [
    ("good", "other", DataError, "were not measured on the same test rows: 120 and 120, of which"),
    ("good", "multi", DataError, "gives one label a row and"),
    ("good", "changed", DataError, "do not have the same labels; only one has tools"),
    ("good", "swapped", DataError, "has another label in one than in the other"),
    ("good", "absent", ModelError, "no such folder"),
    ("good", "none", ModelError, "has no answers on the test split (predictions-test.parquet is absent)."),
])  # fmt: skip
def test_what_cannot_be_compared_is_said(
    runs: Path, first: str, second: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=re.escape(said)):
        bertune.compare(runs / first, runs / second)


def test_one_run_alone_and_unknown_metrics_are_usage_errors(runs: Path) -> None:
    with pytest.raises(ConfigError, match="takes two runs or more"):
        bertune.compare(runs / "good")
    with pytest.raises(ConfigError, match="--metric micro_f1: not a metric of a single-label task"):
        bertune.compare(runs / "good", runs / "bad", metric="micro_f1")


def test_the_command_says_it_in_a_table_and_in_words(runs: Path, tmp_path: Path) -> None:
    bad, good, flips = runs / "bad", runs / "good", tmp_path / "flips.csv"
    done = call("compare", bad, good, "--flips", flips)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == [str(bad), str(good), "difference", "95", "%", "p"]
    assert lines[-2].startswith(f"{good} is better than {bad} in accuracy: +")
    assert lines[-2].endswith("McNemar, exact).")
    with flips.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    said = call("compare", bad, good, "--json").json["comparisons"][0]
    assert len(rows) == len(said["only_first"]) + len(said["only_second"])
    assert all(row[f"{row['right']}_says"] == row["label"] for row in rows)
    assert call("compare", bad, bad, "--split", "valid").out.splitlines()[-2].startswith("The difference in accuracy")


@pytest.mark.parametrize(("arguments", "said"), [
    (["--split", "train"], "--split train: expected test or valid."),
    (["--set", "train.lr=1"], "--set train.lr=1: has no effect here; what has is train.metric, train.seed."),
])  # fmt: skip
def test_usage_errors_end_with_2(runs: Path, arguments: list[str], said: str) -> None:
    done = call("compare", runs / "good", runs / "bad", *arguments)
    assert done.code == 2 and said in done.err
