"""Several seeds: the best on the validation rows is kept, the spread is told, and an ensemble is measured fairly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import bertune
from shell import Done, call
from tiny_runs import QUICK, multi_rows, topic_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def train(tmp_path: Path, model: Path, *more: str, out: str = "run") -> Done:
    settings = [item for name, value in QUICK.items() for item in ("--set", f"{name}={value}")]
    return call("train", tmp_path / "rows.csv", "--model", model, "--out", tmp_path / out, *settings, *more)


def test_the_best_on_valid_is_kept_and_works_through_every_door(tmp_path: Path, tiny_bert: Path) -> None:
    pl.DataFrame(topic_rows(200)).write_csv(tmp_path / "rows.csv")
    done = train(tmp_path, tiny_bert, "--seeds", "3", "--seed", "5", "--metric", "log_loss", "--json")
    assert done.code == 0, done.err
    metrics = done.json["metrics"]
    told, name = metrics["seeds"], metrics["metric"]
    assert told["all"] == [5, 6, 7]
    folders = {seed: tmp_path / f"run/run/seeds/{seed}" for seed in (5, 6, 7)}
    each = {seed: json.loads((place / "run/metrics.json").read_text("utf-8")) for seed, place in folders.items()}
    valid = {seed: found["valid"][name] for seed, found in each.items()}
    assert valid[told["best"]] == min(valid.values()) and len(set(valid.values())) > 1
    values = [found["test"][name] for found in each.values()]
    assert told["test"][name]["mean"] == pytest.approx(np.mean(values))
    assert told["test"][name]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert metrics["test"][name] == each[told["best"]]["test"][name]

    best = bertune.load(folders[told["best"]])
    kept = bertune.load(tmp_path / "run")
    assert (kept.logits(["a cat", "a tree"]) == best.logits(["a cat", "a tree"])).all()
    frames = [pl.read_parquet(place / "run/predictions-test.parquet") for place in folders.values()]
    columns = [f"logit:{label}" for label in kept.labels]
    shares = np.mean([
        bertune.load(place).probabilities(frame.select(columns).to_numpy())
        for place, frame in zip(folders.values(), frames, strict=True)
    ], axis=0)  # fmt: skip
    said = [kept.labels[place] for place in shares.argmax(axis=1)]
    joint = told["ensemble"]["accuracy"]
    assert joint["value"] == pytest.approx(np.mean(np.array(said) == frames[0]["label"].to_numpy()))
    assert joint["low"] <= joint["difference"] <= joint["high"]

    compared = call("compare", tmp_path / "run", folders[told["best"]], "--json")
    assert compared.json["comparisons"][0]["judgement"] == "noise"


def test_seeds_go_on_where_they_were_stopped_and_print_their_spread(tmp_path: Path, tiny_bert: Path) -> None:
    pl.DataFrame(multi_rows(120)).write_csv(tmp_path / "rows.csv")
    done = train(tmp_path, tiny_bert, "--seeds", "2")
    assert done.code == 0 and "2 seeds, micro_f1 on test: 0." in done.out
    assert "is the best on valid, and is kept." in done.out
    assert "Ensemble of all seeds, micro_f1 on test: 0." in done.out
    before = (tmp_path / "run/run/metrics.json").read_bytes()
    (tmp_path / "run/run/seeds/1/run/metrics.json").unlink()
    assert train(tmp_path, tiny_bert, "--seeds", "2").code == 2
    again = train(tmp_path, tiny_bert, "--seeds", "2", "--resume")
    assert again.code == 0 and "seeds/0 holds a complete run already" in again.err
    assert json.loads((tmp_path / "run/run/metrics.json").read_bytes())["seeds"] == json.loads(before)["seeds"]
    assert train(tmp_path, tiny_bert, "--seeds", "2", "--overwrite").code == 0


def test_options_that_make_no_sense_with_seeds_are_refused(tmp_path: Path, tiny_bert: Path) -> None:
    pl.DataFrame(topic_rows(60)).write_csv(tmp_path / "rows.csv")
    assert "--seeds 1: takes at least 2; for one, pass --seed." in train(tmp_path, tiny_bert, "--seeds", "1").err
    assert "--folds and --seeds: one at a time" in train(tmp_path, tiny_bert, "--seeds", "2", "--folds", "2").err
    done = train(tmp_path, tiny_bert, "--seeds", "2", "--set", "data.hold_out=no")
    assert done.code == 2 and "--seeds: the best is chosen on validation rows, and there are none." in done.err
    assert not (tmp_path / "run").exists()
