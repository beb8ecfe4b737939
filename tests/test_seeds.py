"""Several seeds: the best on the validation rows is kept, the spread is told, and an ensemble is measured fairly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import bertune
from bertune.config import Config
from bertune.training.unite import soup
from shell import Done, call
from tiny_runs import QUICK, Told, multi_rows, topic_rows

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


def test_a_soup_is_one_model_whose_weights_are_the_mean(tmp_path: Path, tiny_bert: Path) -> None:
    pl.DataFrame(topic_rows(200)).write_csv(tmp_path / "rows.csv")
    done = train(tmp_path, tiny_bert, "--seeds", "3", "--keep", "soup", "--json")
    assert done.code == 0, done.err
    metrics = done.json["metrics"]
    told = metrics["seeds"]
    assert told["kept"] == "soup" and told["best"] in told["members"]
    out = tmp_path / "run"
    weights = [load_file(out / f"run/seeds/{seed}/model.safetensors") for seed in told["members"]]
    kept = load_file(out / "model.safetensors")
    for name, value in kept.items():
        assert torch.allclose(value, torch.stack([state[name] for state in weights]).mean(dim=0), atol=1e-6)
    frame = pl.read_parquet(out / "run/predictions-test.parquet")
    right = float((frame["label"] == frame["prediction"]).mean())
    assert metrics["test"]["accuracy"] == pytest.approx(right)
    assert told["soup"]["accuracy"]["value"] == pytest.approx(right)
    assert metrics == json.loads((out / "run/metrics.json").read_text(encoding="utf-8"))
    assert "the mean of those of" in (out / "README.md").read_text(encoding="utf-8")
    assert AutoModelForSequenceClassification.from_pretrained(out).config.num_labels == 3
    assert call("evaluate", out, tmp_path / "rows.csv", "--quiet").code == 0


def test_a_soup_leaves_out_what_makes_it_worse(tmp_path: Path, tiny_bert: Path) -> None:
    pl.DataFrame(topic_rows(200)).write_csv(tmp_path / "rows.csv")
    assert train(tmp_path, tiny_bert, "--seeds", "2").code == 0
    folders = [tmp_path / f"run/run/seeds/{seed}" for seed in (0, 1)]
    broken = {name: -9 * value for name, value in load_file(folders[1] / "model.safetensors").items()}
    save_file(broken, folders[1] / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "soup"
    (out / "run").mkdir(parents=True)
    (out / "run/card.json").write_bytes((folders[0] / "run/card.json").read_bytes())
    config = Config.load(folders[0] / "run/config.yaml")
    chosen, judged = soup(out, folders, config, source=None, metric="accuracy", listener=Told())
    assert chosen == [0]
    texts = [row["text"] for row in topic_rows(20, seed=3)]
    assert (bertune.load(out).logits(texts) == bertune.load(folders[0]).logits(texts)).all()
    assert set(judged) >= {"valid", "test", "intervals", "baselines", "calibration"}


@pytest.mark.parametrize("rows", [topic_rows(200), multi_rows(200)], ids=["single", "multi"])
def test_an_ensemble_answers_as_was_told(rows: list[dict[str, object]], tmp_path: Path, tiny_bert: Path) -> None:
    pl.DataFrame(rows).write_csv(tmp_path / "rows.csv")
    done = train(tmp_path, tiny_bert, "--seeds", "2", "--keep", "ensemble", "--json")
    assert done.code == 0, done.err
    metrics, out = done.json["metrics"], tmp_path / "run"
    name = metrics["metric"]
    assert metrics["test"][name] == pytest.approx(metrics["seeds"]["ensemble"][name]["value"])
    model = bertune.load(out)
    texts = [row["text"] for row in topic_rows(30, seed=4)]
    members = [bertune.load(out / f"run/seeds/{seed}") for seed in (0, 1)]
    mean = np.mean([member.predict_proba(texts) for member in members], axis=0)
    logits = model.logits(texts)
    kind = model.task.kind
    raw = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) if kind == "single" else 1 / (1 + np.exp(-logits))
    assert np.allclose(raw, mean, atol=1e-5)
    (out / "members/1/model.safetensors").write_bytes(b"")
    broken = call("predict", out, "-", stdin="a cat\n")
    assert broken.code == 2 and "members/1/model.safetensors" in broken.err


def test_an_ensemble_is_no_model_to_train_on(tmp_path: Path, tiny_bert: Path) -> None:
    pl.DataFrame(topic_rows(80)).write_csv(tmp_path / "rows.csv")
    assert train(tmp_path, tiny_bert, "--seeds", "2", "--keep", "ensemble").code == 0
    done = call("train", tmp_path / "rows.csv", "--model", tmp_path / "run", "--out", tmp_path / "more")
    assert done.code == 2 and "is an ensemble of 2 models; name one of them" in done.err
    explained = call("explain", tmp_path / "run", "a cat")
    assert explained.code == 2 and "is an ensemble of 2 models, and words are explained of one" in explained.err
    (tmp_path / "run/members/0/mine.txt").write_text("", encoding="utf-8")
    refused = train(tmp_path, tiny_bert, "--seeds", "2", "--keep", "soup", "--overwrite")
    assert refused.code == 2 and "also holds members, which bertune did not write" in refused.err
    (tmp_path / "run/members/0/mine.txt").unlink()
    again = train(tmp_path, tiny_bert, "--seeds", "2", "--keep", "soup", "--overwrite")
    assert again.code == 0, again.err
    assert not (tmp_path / "run/members").exists()
    assert "--seeds" in train(tmp_path, tiny_bert, "--keep", "soup", out="other").err
    assert "--keep stew: choose one of best, soup, ensemble." in train(
        tmp_path, tiny_bert, "--seeds", "2", "--keep", "stew", out="other"
    ).err


def test_options_that_make_no_sense_with_seeds_are_refused(tmp_path: Path, tiny_bert: Path) -> None:
    pl.DataFrame(topic_rows(60)).write_csv(tmp_path / "rows.csv")
    assert "--seeds 1: takes at least 2; for one, pass --seed." in train(tmp_path, tiny_bert, "--seeds", "1").err
    assert "--folds and --seeds: one at a time" in train(tmp_path, tiny_bert, "--seeds", "2", "--folds", "2").err
    done = train(tmp_path, tiny_bert, "--seeds", "2", "--set", "data.hold_out=no")
    assert done.code == 2 and "--seeds: the best is chosen on validation rows, and there are none." in done.err
    assert not (tmp_path / "run").exists()
