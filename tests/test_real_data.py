"""The data sets that lie beside the project are read as they are, and Chinese goes all the way through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bertune
from bertune.config import DataConfig
from bertune.data.read import read_table
from bertune.data.tasks import encode_labels, infer_task


def read(path: Path, **options: object):
    data = DataConfig.model_validate(options)
    table = read_table(path, data)
    task, _ = infer_task(table, data)
    return table, task, encode_labels(task, table)


def test_papers_are_found_to_be_multi_label_over_six_subjects_with_the_documented_counts(shared_data):
    table, task, targets = read(shared_data / "papers/papers.csv", text=["TITLE", "ABSTRACT"])
    assert task.kind == "multi" and len(table) == 17_972
    assert dict(zip(task.labels, targets.sum(axis=0).astype(int).tolist(), strict=True)) == {
        "Computer Science": 8_900, "Physics": 6_239, "Mathematics": 5_830, "Statistics": 3_767,
        "Quantitative Biology": 495, "Quantitative Finance": 216,
    }  # fmt: skip
    assert int((targets.sum(axis=1) > 1).sum()) == 6_315


@pytest.mark.parametrize(("name", "rows"), [("train_subset", 55_977), ("dev", 9_842), ("test", 9_824)])
def test_snli_is_read_whole_with_its_quotes_as_they_are(shared_data, name, rows):
    table, task, _ = read(
        shared_data / f"snli/{name}.tsv", text=["sentence1"], text_pair=["sentence2"], label=["gold_label"]
    )
    assert len(table) == rows
    assert task.labels == ("contradiction", "entailment", "neutral") and task.is_pair


def test_trec_is_read_with_its_own_layout_and_either_label(shared_data):
    for label, classes in (("label", 6), ("fine_label", 50)):
        table, task, _ = read(shared_data / "trec/train.txt", layout="trec", label=[label])
        assert len(table) == 5_452 and task.num_labels == classes
    assert len(read(shared_data / "trec/test.txt", layout="trec")[0]) == 500


def test_ag_news_is_read_without_a_header(shared_data):
    table, task, targets = read(
        shared_data / "ag_news/test.csv", header="no", columns=["class", "title", "description"],
        text=["title", "description"], label=["class"],
    )
    assert len(table) == 7_600 and task.labels == ("1", "2", "3", "4")
    assert np.bincount(targets).tolist() == [1_900] * 4


def test_goemotions_is_multi_label_over_the_28_names_of_its_label_file(shared_data):
    folder = shared_data / "goemotions"
    table, task, targets = read(
        folder / "train.tsv", header="no", columns=["text", "emotions", "id"], text=["text"], label=["emotions"],
        label_sep=",", label_names=str(folder / "labels.txt"),
    )
    assert len(table) == 43_410 and task.kind == "multi" and task.num_labels == 28
    assert task.labels[0] == "admiration" and task.labels[27] == "neutral"
    assert targets.sum(axis=1).min() >= 1


def test_mrpc_is_read_in_spite_of_its_byte_order_mark(shared_data):
    table, task, _ = read(shared_data / "mrpc/msr_paraphrase_train.txt")
    assert len(table) == 4_076 and task.is_pair and task.labels == ("0", "1")


@pytest.mark.parametrize("pairs", [False, True])
def test_chinese_is_trained_and_predicted_end_to_end(shared_data, tmp_path, pairs):
    transformers = pytest.importorskip("transformers")
    vocabulary = (shared_data / "vocab/bert-base-chinese-vocab.txt").read_text(encoding="utf-8")
    model = tmp_path / "model"
    config = transformers.BertConfig(
        vocab_size=len(vocabulary.splitlines()), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )
    transformers.BertModel(config).save_pretrained(model)
    (model / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    source = read_table(shared_data / ("zh/dev.json" if pairs else "zh/waimai_10k.csv"), DataConfig())
    # Every 40th row: the file of reviews is in class order.
    rows = source.take(np.arange(0, len(source), 40 if not pairs else 12))
    columns = {"text": "sentence1", "text_pair": "sentence2"} if pairs else {"text": "review"}
    result = bertune.train(
        rows, out=tmp_path / "out", model=model, epochs=1, label="label", settings={"train.threads": 1}, **columns
    )
    assert result.metrics["test"]["rows"] > 15
    # Characters are words here: hardly any of them may be unknown.
    tokenizer = result.predictor().tokenizer
    ids = tokenizer.encode(result.predictor().rows([("很快，好吃", "味道足")] if pairs else ["很快，好吃，味道足"]),
                           max_length=None, truncation="longest-first").ids  # fmt: skip
    assert "".join(tokenizer.tokens(ids)).count("[UNK]") == 0 and len(ids) >= 10
    answer = bertune.load(tmp_path / "out").predict([("很快", "很慢")] if pairs else ["很快，好吃"])
    assert answer[0] in result.task.labels
