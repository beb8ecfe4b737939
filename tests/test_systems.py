"""The two systems of the tutorials, run from their recipes on small stand-ins for their data and encoders."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import bertune
from bertune.config import Config
from d2l_archive import make_archive
from tiny_runs import Told

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SUBJECTS = ["Computer Science", "Physics", "Mathematics", "Statistics", "Quantitative Biology", "Quantitative Finance"]
HEADER = ["gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse",
          "sentence1", "sentence2", "pairID"]  # fmt: skip


def official_snli(path: Path) -> Path:
    """A zip laid out as the official one, with parse columns, and a row in every five without a gold label."""
    subjects = ["a man", "two people", "the woman", "a dog"]
    endings = {"entailment": "is outside", "contradiction": "is sleeping", "neutral": "is playing guitar"}

    def lines(count: int) -> str:
        rows = ["\t".join(HEADER)]
        for number in range(count):
            label = list(endings)[number % 3] if number % 5 else "-"
            subject = subjects[number % 4]
            first, second = f"{subject} on the bench.", f"{subject} {endings.get(label, 'is not outside')}."
            parses = [f"( ( {side.removesuffix('.')} ) . )" for side in (first, second)]
            rows.append("\t".join([label, *parses, "(ROOT)", "(ROOT)", first, second, f"{number}#0"]))
        return "\n".join(rows) + "\n"

    with zipfile.ZipFile(path, "w") as archive:
        for name, count in (("train", 60), ("dev", 20), ("test", 20)):
            archive.writestr(f"snli_1.0/snli_1.0_{name}.txt", lines(count))
    return path


@pytest.mark.usefixtures("one_thread")
def test_system_b_trains_from_the_official_archive_and_the_published_encoder_as_the_book_does(tmp_path):
    snli = official_snli(tmp_path / "snli_1.0.zip")
    encoder = tmp_path / "bert.small.torch.zip"
    state = make_archive(encoder, hidden=32, ffn=64, max_len=160)
    config = Config.load(RECIPES / "snli-d2l-small.yaml").updated(
        {"train": {"epochs": 2, "batch_size": 16, "threads": 1}}
    )
    told = Told()
    result = bertune.train(
        snli, valid=f"{snli}!dev", test=f"{snli}!test", model=encoder, out=tmp_path / "out", config=config,
        listener=told,
    )
    said = " ".join(told.said)
    assert "Words come from the parse columns sentence1_binary_parse, sentence2_binary_parse." in said
    assert "All words are in the vocabulary." in said
    assert "12" in said and "'-'" in said, "rows without a gold label are counted"
    assert result.task.labels == ("entailment", "contradiction", "neutral")
    assert result.metrics["train"]["rows"] == 48

    history = [json.loads(line) for line in (tmp_path / "out/run/history.jsonl").read_text().splitlines()]
    curves = {(r["split"], r["epoch"]) for r in history if r["kind"] == "eval" and "accuracy" in r["metrics"]}
    assert {("train", 1.0), ("test", 1.0), ("train", 2.0), ("test", 2.0)} <= curves
    rates = {r["lr"] for r in history if r["kind"] == "step"}
    assert rates == {1e-4}, "a constant rate, without warm-up"

    saved = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(saved["encoder.pos_embedding"], state["encoder.pos_embedding"]), "positions get no gradient"
    name = "encoder.blks.0.attention.W_q.weight"
    assert not torch.equal(saved[name], state[name])
    assert not any(name.startswith(("mlm.", "nsp.")) for name in saved)
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "d2l-bert"
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="d2l-bert"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    # "bench." in plain text is split as the parse columns have it, so both give the same answer.
    model = bertune.load(tmp_path / "out")
    plain = model.logits([("A man on the bench.", "A man is outside.")])
    parsed = model.logits([("( ( a man on the bench ) . )", "( ( a man is outside ) . )")])
    assert (plain == parsed).all()
    # Rows by column name give their parses, as a file with these columns does.
    row = {"sentence1": "Zzz", "sentence2": "zzz", "sentence1_binary_parse": "( ( a man on the bench ) . )",
           "sentence2_binary_parse": "( ( a man is outside ) . )"}  # fmt: skip
    columns = {name: [text] for name, text in row.items()}
    assert all((model.logits(rows) == plain).all() for rows in ([row], iter([row]), columns, pl.DataFrame(columns)))


@pytest.mark.usefixtures("one_thread")
def test_system_a_puts_the_published_head_on_bert_and_trains_on_logits(tmp_path, tiny_bert):
    sample = RECIPES.parent / "src/bertune/samples/papers.csv"
    config = Config.load(RECIPES / "papers-bert.yaml").updated(
        {"model": {"name": str(tiny_bert), "max_length": 32}, "train": {"epochs": 1, "threads": 1}}
    )
    result = bertune.train(sample, out=tmp_path / "out", config=config)
    assert list(result.task.labels) == SUBJECTS
    head = result.predictor().backend.model.head
    assert head.config.pooling == "cls" and head.config.dropout == 0.3
    assert head.dense.out_features == 50 and head.classifier.out_features == 6
    # At the start all logits are near 0, where the loss is log 2.
    assert 0.3 < result.metrics["train"]["loss"] < 0.75


@pytest.mark.usefixtures("one_thread")
def test_system_a_with_a_frozen_encoder_trains_the_head_alone(tmp_path, tiny_bert):
    sample = RECIPES.parent / "src/bertune/samples/papers.csv"
    config = Config.load(RECIPES / "papers-bert.yaml").updated(
        {"model": {"name": str(tiny_bert), "max_length": 32, "freeze": "encoder"}, "train": {"epochs": 1, "threads": 1}}
    )
    bertune.train(sample, out=tmp_path / "out", config=config)
    before = load_file(tiny_bert / "model.safetensors")
    after = load_file(tmp_path / "out/model.safetensors")
    shared = {name.removeprefix("bert."): value for name, value in after.items()}
    frozen = [name for name in before if name in shared and not name.startswith("pooler")]
    assert len(frozen) > 20
    assert all(torch.equal(before[name], shared[name]) for name in frozen)
