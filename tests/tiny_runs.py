"""A tiny random BERT folder and small tables that it can learn, so that a whole training takes less than a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from bertune.training.listen import Silent
from bertune.training.loop import Step

TOPICS = {
    "animals": ["cat", "dog", "horse", "bird", "fish"],
    "plants": ["tree", "flower", "grass", "leaf", "root"],
    "tools": ["hammer", "saw", "nail", "drill", "wrench"],
}
PLAIN = [
    "the", "a", "is", "was", "in", "on", "of", "and", "my", "old", "new", "big", "small", "green", "red", "very",
    "house", "garden", "street", "box", "near", "under", "with", "two", "some", "we", "saw", "found", "left",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = list(dict.fromkeys([*SPECIAL, ".", ",", "?", *PLAIN, *sum(TOPICS.values(), [])]))  # noqa: RUF017

# Settings under which tests of training are quick and the same on every machine.
QUICK: dict[str, Any] = {
    "train.threads": 1, "train.device": "cpu", "train.precision": "fp32", "train.lr": 5e-3, "train.batch_size": 8,
    "train.epochs": 2, "model.max_length": 24,
}  # fmt: skip


class Told(Silent):
    """Remembers what a run said, did and measured."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[Step] = []
        self.records: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def step(self, step: Step) -> None:
        self.steps.append(step)

    def evaluated(self, record: dict[str, Any], metric: str) -> None:
        self.records.append(record)


def make_tiny_bert(
    folder: Path, *, layers: int = 2, hidden: int = 16, heads: int = 2, ffn: int = 32, positions: int = 64,
    dropout: float = 0.1, seed: int = 0,
) -> Path:
    """A folder as the hub has it: config.json, model.safetensors with random weights, and vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}

    def matrix(name: str, *shape: int) -> None:
        tensors[name] = torch.randn(*shape, generator=random) * 0.2

    def linear(name: str, rows: int, columns: int) -> None:
        matrix(f"{name}.weight", rows, columns)
        matrix(f"{name}.bias", rows)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = 1 + torch.randn(hidden, generator=random) * 0.1
        tensors[f"{name}.bias"] = torch.randn(hidden, generator=random) * 0.1

    for name, rows in (("word", len(VOCABULARY)), ("position", positions), ("token_type", 2)):
        matrix(f"embeddings.{name}_embeddings.weight", rows, hidden)
    norm("embeddings.LayerNorm")
    for number in range(layers):
        place = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            linear(f"{place}.attention.self.{part}", hidden, hidden)
        linear(f"{place}.attention.output.dense", hidden, hidden)
        norm(f"{place}.attention.output.LayerNorm")
        linear(f"{place}.intermediate.dense", ffn, hidden)
        linear(f"{place}.output.dense", hidden, ffn)
        norm(f"{place}.output.LayerNorm")
    linear("pooler.dense", hidden, hidden)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": len(VOCABULARY), "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": ffn, "hidden_act": "gelu",
        "max_position_embeddings": positions, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
        "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "initializer_range": 0.02,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return folder


def sentence(random: np.random.Generator, topics: list[str], *, words: int | None = None) -> str:
    """Plain words of varying number, with one word of each topic somewhere among them."""
    count = int(random.integers(2, 12)) if words is None else words
    chosen = list(random.choice(PLAIN, count))
    for topic in topics:
        chosen.insert(int(random.integers(0, len(chosen) + 1)), str(random.choice(TOPICS[topic])))
    return " ".join(map(str, chosen)) + " ."


def topic_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows `text`, `label`: one of three topics."""
    random = np.random.default_rng(seed)
    names = [list(TOPICS)[number] for number in random.integers(0, len(TOPICS), count)]
    return [{"text": sentence(random, [name]), "label": name} for name in names]


def multi_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows `text` and a 0/1 column a topic; some rows have no topic, others several."""
    random = np.random.default_rng(seed)
    rows = []
    for drawn in random.random((count, len(TOPICS))) < 0.4:
        topics = [name for name, there in zip(TOPICS, drawn, strict=True) if there]
        rows.append({"text": sentence(random, topics)} | {name: int(name in topics) for name in TOPICS})
    return rows


def pair_rows(count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows `first`, `second`, `label`: whether both sentences are about the same topic."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        left, right = (str(name) for name in random.choice(list(TOPICS), 2))
        label = "same" if left == right else "other"
        rows.append({"first": sentence(random, [left]), "second": sentence(random, [right]), "label": label})
    return rows
