"""Tiny random transformers models with weights far from zero, and the batches that both sides compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from bertune.data.batch import Batch
from bertune.model.classifier import ClassifierModel
from bertune.model.heads import HeadConfig, decide_head
from bertune.model.load import LoadReport, load_model, read_config, read_source

VOCABULARY = 90
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 80,
}  # fmt: skip
# Name of a case -> (model type, what differs from COMMON).
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {"classifier_dropout": 0.3}),
    "bert with tanh gelu": ("bert", {"hidden_act": "gelu_new"}),
    "bert with relu": ("bert", {"hidden_act": "relu", "layer_norm_eps": 1e-5}),
    "roberta": ("roberta", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta with types": ("roberta", {"type_vocab_size": 2}),
    "xlm-roberta": ("xlm-roberta", {"type_vocab_size": 1}),
    "camembert": ("camembert", {"type_vocab_size": 1}),
    "distilbert": ("distilbert", {}),
    "electra": ("electra", {"embedding_size": 32}),
    "electra with small embeddings": ("electra", {"embedding_size": 20}),
    "modernbert": ("modernbert", {"local_attention": 12, "num_hidden_layers": 5, "pad_token_id": 0}),
    "modernbert with biases, mean": (
        "modernbert",
        {"local_attention": 8, "pad_token_id": 0, "norm_bias": True, "attention_bias": True, "mlp_bias": True,
         "classifier_bias": True, "classifier_pooling": "mean", "classifier_activation": "silu",
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5000.0},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}}},
    ),
}  # fmt: skip


def tiny(case: str, *, head: str = "", labels: int = 3, seed: int = 0) -> Any:
    """The transformers model of a case: bare, or with the head whose class ends in `head`."""
    kind, changes = CASES[case]
    config = transformers.AutoConfig.for_model(kind, **(COMMON | changes), num_labels=labels)
    auto = getattr(transformers, f"AutoModelFor{head}") if head else transformers.AutoModel
    return scrambled(auto.from_config(config), seed=seed)


def scrambled(model: Any, *, seed: int = 0) -> Any:
    """Weights of a size at which a wrong activation, norm or mask is seen at once."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * (0.2 if parameter.ndim > 1 else 0.3))
        for part in model.modules():
            if type(part).__name__ == "LayerNorm":
                part.weight.add_(1.0)
    return model.eval()


def batch_of(rows: list[list[int]], types: list[list[int]] | None = None) -> Batch:
    """Rows of token ids as a batch without padding."""
    lengths = [len(row) for row in rows]
    flat = [np.asarray(part, dtype=np.int64) for part in rows]
    zeros = [np.zeros(length, dtype=np.int64) for length in lengths]
    return Batch(
        ids=np.concatenate(flat),
        types=np.concatenate(zeros if types is None else [np.asarray(part, dtype=np.int64) for part in types]),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        cu=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rows=np.arange(len(rows)),
    )


def random_rows(lengths: list[int], *, seed: int = 0, vocabulary: int = VOCABULARY) -> list[list[int]]:
    """Token ids without those below 5, which may be special."""
    random = np.random.default_rng(seed)
    return [random.integers(5, vocabulary, length).tolist() for length in lengths]


def types_of(rows: list[list[int]]) -> list[list[int]]:
    """The second half of each row as its second side."""
    return [[int(2 * place >= len(row)) for place in range(len(row))] for row in rows]


def padded(rows: list[list[int]], types: list[list[int]] | None = None, *, pad: int = 0) -> dict[str, Tensor]:
    """The same rows as transformers takes them."""
    width = max(len(row) for row in rows)
    arguments = {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }
    if types is not None:
        arguments["token_type_ids"] = torch.tensor([row + [0] * (width - len(row)) for row in types])
    return arguments


def own_head(
    folder: Path, *, labels: int = 3, pooling: str = "auto", head: str = "auto", **more: Any
) -> HeadConfig:
    config = read_config(folder)
    return decide_head(
        config, pooling=pooling, head=head, num_labels=labels, head_hidden=7, head_dropout=None, **more
    )


def loaded(folder: Path, *, keep_head: bool = False, pooling: str = "auto", head: str = "auto", labels: int = 3,
           seed: int = 0, **more: Any) -> tuple[ClassifierModel, LoadReport]:  # fmt: skip
    chosen = own_head(folder, labels=labels, pooling=pooling, head=head, **more)
    return load_model(folder, head=chosen, keep_head=keep_head, seed=seed)


def hidden_of(model: ClassifierModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.encoder(model.inputs(batch))


def logits_of(model: ClassifierModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(model.inputs(batch))


def configure(folder: Path, **changes: Any) -> None:
    """Change the fields of a config.json; `...` takes one out."""
    raw = {key: value for key, value in (read_source(folder) | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
