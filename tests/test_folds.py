"""Cross-validation: every row is answered once by a model that has not seen it, and nothing is lost."""

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
from bertune.data.splits import fold_numbers
from bertune.errors import ConfigError
from bertune.evaluate.metrics import evaluate
from bertune.evaluate.rule import Rule
from bertune.training.finish import write_predictions
from shell import Done, call
from tiny_runs import QUICK, Told, multi_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", ["single", "multi", "grouped"])
def test_folds_are_even_and_keep_label_shares_or_groups(kind: str) -> None:
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, 300) if kind != "multi" else (random.random((300, 3)) < 0.3).astype(np.float32)
    groups = random.integers(0, 60, 300).tolist() if kind == "grouped" else None
    owner = fold_numbers(targets, "multi" if kind == "multi" else "single", folds=5, seed=1, groups=groups)
    again = fold_numbers(targets, "multi" if kind == "multi" else "single", folds=5, seed=1, groups=groups)
    assert (owner == again).all()
    sizes = np.bincount(owner)
    assert len(sizes) == 5 and (abs(sizes - 60) <= (12 if kind == "grouped" else 2)).all()
    if groups is not None:
        assert all(len({owner[row] for row in range(300) if groups[row] == group}) == 1 for group in set(groups))
    elif kind == "single":
        counts = np.array([np.bincount(targets[owner == fold], minlength=3) for fold in range(5)])
        assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()


def test_more_folds_than_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="--folds 9: 4 rows do not fill so many folds"):
        fold_numbers(np.array([0, 1, 0, 1]), "single", folds=9, seed=0)


def table(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    pl.DataFrame(rows).write_csv(tmp_path / "rows.csv")
    return tmp_path / "rows.csv"


def train(data: Path, model: Path, out: Path, *more: str) -> Done:
    settings = [item for name, value in QUICK.items() for item in ("--set", f"{name}={value}")]
    return call("train", data, "--model", model, "--out", out, *settings, *more)


@pytest.mark.parametrize("rows", [topic_rows(90), multi_rows(90)], ids=["single", "multi"])
def test_every_row_is_answered_by_a_model_that_has_not_seen_it(
    rows: list[dict[str, Any]], tmp_path: Path, tiny_bert: Path
) -> None:
    out = tmp_path / "cv"
    done = train(table(tmp_path, rows), tiny_bert, out, "--folds", "3", "--json")
    assert done.code == 0, done.err
    found = done.json["metrics"]
    refused = call("predict", out, "-", stdin="a cat\n")
    assert refused.code == 2 and "several trainings, and no model of its own. Each is a result" in refused.err
    assert found == json.loads((out / "run/metrics.json").read_text(encoding="utf-8"))
    answers = pl.read_parquet(out / "run/predictions-out-of-fold.parquet")
    assert sorted(answers["row"].to_list()) == list(range(1, 91))
    for fold in (1, 2, 3):
        with (out / f"run/folds/{fold}/run/splits.csv").open(encoding="utf-8") as file:
            split = {int(row["row"]): row["split"] for row in csv.DictReader(file)}
        mine = answers.filter(pl.col("fold") == fold)["row"].to_list()
        assert len(mine) == 30 and {split[row] for row in mine} == {"test"} and len(split) == 90
        assert sorted(split.values()).count("valid") in (5, 6, 7)

    model = bertune.load(out / "run/folds/1")
    labels = model.labels
    said, truth = answers["prediction"].to_list(), answers["label"].to_list()
    if model.task.kind == "single":
        right = np.mean([a == b for a, b in zip(said, truth, strict=True)])
        assert found["out_of_fold"]["accuracy"] == pytest.approx(right)
    else:
        hot = [np.array([[label in row for label in labels] for row in side]) for side in (said, truth)]
        shown = evaluate("multi", labels, np.zeros(hot[0].shape), hot[1].astype(float), said=hot[0])
        assert found["out_of_fold"]["micro_f1"] == pytest.approx(shown["micro_f1"])
    metric = found["metric"]
    values = [test[metric] for test in found["test"]]
    assert found["mean"][metric] == pytest.approx(np.mean(values))
    assert found["sd"][metric] == pytest.approx(np.std(values, ddof=1))
    low, high = found["intervals"]["out_of_fold"][metric]
    assert low <= found["out_of_fold"][metric] <= high
    assert metric in found["baselines"]["tfidf"]
    assert "Fold 3 (3 of 3):" in done.err and done.err.count("Check: ") == 1


def test_a_fold_that_gives_no_row_a_label_stands_beside_the_others(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsure(task: Any, rule: Any, split: Any, logits: Any, path: Path, *, group: Any) -> None:
        sign = -1 if "folds/1" in path.as_posix() else 1
        write_predictions(task, Rule(), split, sign * (1 + np.abs(logits)), path, group=group)

    monkeypatch.setattr("bertune.training.finish.write_predictions", unsure)
    done = train(table(tmp_path, multi_rows(60)), tiny_bert, tmp_path / "cv", "--folds", "2")
    assert done.code == 0, done.err
    said = pl.read_parquet(tmp_path / "cv/run/predictions-out-of-fold.parquet").group_by("fold").agg("prediction")
    assert {fold: {len(labels) for labels in rows} for fold, rows in said.iter_rows()} == {1: {0}, 2: {3}}


def test_folds_go_on_where_they_were_stopped_and_are_replaced_only_on_request(tmp_path: Path, tiny_bert: Path) -> None:
    data, out = table(tmp_path, topic_rows(60)), tmp_path / "cv"
    assert "mean of folds" in train(data, tiny_bert, out, "--folds", "2").out
    whole = (out / "run/metrics.json").read_bytes()
    refused = train(data, tiny_bert, out, "--folds", "2")
    assert refused.code == 2 and "holds an earlier run" in refused.err

    (out / "run/folds/2/run/metrics.json").unlink()
    (out / "run/metrics.json").unlink()
    again = train(data, tiny_bert, out, "--folds", "2", "--resume")
    assert again.code == 0 and "folds/1 holds a complete run already" in again.err
    assert without_time(out / "run/metrics.json") == without_time(whole)

    wrong = train(data, tiny_bert, out, "--folds", "2", "--overwrite", "--label", "labl")
    assert wrong.code == 2 and (out / "run/metrics.json").is_file()
    fresh = train(data, tiny_bert, out, "--folds", "3", "--overwrite")
    assert fresh.code == 0 and (out / "run/folds/3").is_dir()


def without_time(source: Path | bytes) -> dict[str, Any]:
    found = json.loads(source if isinstance(source, bytes) else source.read_bytes())
    return {key: found[key] for key in ("out_of_fold", "mean", "sd", "intervals")}


def test_groups_stay_together_in_memory_too(tiny_bert: Path, tmp_path: Path) -> None:
    rows = [{**row, "author": f"a{number % 20}"} for number, row in enumerate(topic_rows(80))]
    told = Told()
    result = bertune.cross_validate(
        rows, out=tmp_path / "cv", folds=2, model=tiny_bert, listener=told, text="text", label="label",
        settings={**QUICK, "data.group": "author", "train.epochs": 1},
    )  # fmt: skip
    answers = pl.read_parquet(tmp_path / "cv/run/predictions-out-of-fold.parquet")
    assert answers.group_by("group").agg(pl.col("fold").n_unique())["fold"].max() == 1
    assert result.metrics["intervals"]["out_of_fold"]["by"] == "groups"


def test_a_fold_can_be_run_by_itself_and_makes_no_sense_with_a_test_split(tmp_path: Path, tiny_bert: Path) -> None:
    data = table(tmp_path, topic_rows(60))
    done = train(data, tiny_bert, tmp_path / "one", "--set", "data.fold=2/3")
    assert done.code == 0 and "(fold 2/3, split seed 0)" in done.err
    done = train(data, tiny_bert, tmp_path / "two", "--folds", "3", "--test", "0.2")
    assert done.code == 2 and "--test 0.2: every fold is the test split once; leave it out." in done.err
    done = train(data, tiny_bert, tmp_path / "two", "--folds", "1")
    assert done.code == 2 and "--folds 1: cross-validation takes at least 2." in done.err
    for wrong in ("4/3", "0/3", "1/1"):
        with pytest.raises(ConfigError, match="of at least 2 folds"):
            Config().updated({"data": {"fold": wrong}})
