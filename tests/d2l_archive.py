"""Archives in the published format of the book's encoders, with small random weights, and a plain computation."""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertune.errors import ModelError
from bertune.model.source import convert

SPECIAL = ["<unk>", "<pad>", "<mask>", "<cls>", "<sep>"]
WORDS = [
    *SPECIAL, "a", "the", "man", "woman", "dog", "is", "not", "sleeping", "playing", "outside", "on", "bench", ".", ",",
    "two", "people", "guitar", "park", "n't", "does",
]  # fmt: skip


def make_state(
    *, hidden: int = 256, layers: int = 2, ffn: int = 512, max_len: int = 64,
    words: Sequence[str] = WORDS, seed: int = 0,
) -> OrderedDict[str, torch.Tensor]:
    """A state dict with the published names and shapes; weights large enough for every part to matter."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    state: OrderedDict[str, torch.Tensor] = OrderedDict()

    def linear(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.weight"] = normal(outputs, inputs, scale=1.5 / math.sqrt(inputs))
        state[f"{name}.bias"] = normal(outputs, scale=0.2)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = 1 + normal(width, scale=0.2)
        state[f"{name}.bias"] = normal(width, scale=0.2)

    state["encoder.pos_embedding"] = normal(1, max_len, hidden)
    state["encoder.token_embedding.weight"] = normal(len(words), hidden)
    state["encoder.segment_embedding.weight"] = normal(2, hidden)
    for number in range(layers):
        prefix = f"encoder.blks.{number}."
        for name in ("W_q", "W_k", "W_v", "W_o"):
            linear(f"{prefix}attention.{name}", hidden, hidden)
        norm(f"{prefix}addnorm1.ln", hidden)
        linear(f"{prefix}ffn.dense1", hidden, ffn)
        linear(f"{prefix}ffn.dense2", ffn, hidden)
        norm(f"{prefix}addnorm2.ln", hidden)
    linear("hidden.0", hidden, hidden)
    linear("mlm.mlp.0", hidden, hidden)
    norm("mlm.mlp.2", hidden)
    linear("mlm.mlp.3", hidden, len(words))
    linear("nsp.output", hidden, 2)
    return state


def saved(state: Any, *, legacy: bool = False) -> bytes:
    """What torch.save writes, in its zip format or in the older one."""
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


class Malicious:
    """Unpickling it would create a file, as an attacker's would run a program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def malicious_params(victim: Path, *, form: str) -> bytes:
    """A tensor file of torch.save (zip or legacy), or a bare pickle, that creates `victim` when code in it runs."""
    if form == "bare pickle":
        return pickle.dumps({"encoder.token_embedding.weight": Malicious(victim)}, protocol=2)
    return saved({"encoder.token_embedding.weight": Malicious(victim)}, legacy=form == "legacy")


def make_archive(
    path: Path, *, hidden: int = 256, layers: int = 2, ffn: int = 512, max_len: int = 64,
    words: Sequence[str] = WORDS, folder: str = "bert.small.torch", legacy: bool = False, seed: int = 0,
) -> OrderedDict[str, torch.Tensor]:
    """Write an archive as it is published, and return its state dict."""
    state = make_state(hidden=hidden, layers=layers, ffn=ffn, max_len=max_len, words=words, seed=seed)
    write_archive(path, saved(state, legacy=legacy), json.dumps(list(words)).encode("utf-8"), folder=folder)
    return state


def write_archive(path: Path, params: bytes, vocabulary: bytes, *, folder: str = "bert.small.torch") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{folder}/", b"")  # archives made from a folder list the folder too
        archive.writestr(f"{folder}/vocab.json", vocabulary)
        archive.writestr(f"{folder}/pretrained.params", params)


def plain_forward(
    state: Mapping[str, torch.Tensor], tokens: np.ndarray, segments: np.ndarray, valid_len: Sequence[int], heads: int
) -> tuple[np.ndarray, np.ndarray]:
    """(hidden states [rows, length, h], pooled [rows, h]) in float64, row by row and head by head.

    tokens, segments: [rows, length], padded; valid_len: tokens of each row, which alone are attended to. pooled is
    tanh(hidden.0 of the first token), and logits are pooled @ output.weight.T + output.bias.
    """
    weights = {name: value.detach().double().numpy() for name, value in state.items()}
    layers = len({name.split(".")[2] for name in weights if name.startswith("encoder.blks.")})
    length = tokens.shape[1]
    rows = []
    for row, valid in enumerate(valid_len):
        x = weights["encoder.token_embedding.weight"][tokens[row]]
        x = x + weights["encoder.segment_embedding.weight"][segments[row]]
        x = x + weights["encoder.pos_embedding"][0, :length]
        for number in range(layers):
            prefix = f"encoder.blks.{number}."
            x = _norm(weights, f"{prefix}addnorm1.ln", x + _attention(weights, f"{prefix}attention.", x, valid, heads))
            inner = np.maximum(_linear(weights, f"{prefix}ffn.dense1", x), 0.0)
            x = _norm(weights, f"{prefix}addnorm2.ln", x + _linear(weights, f"{prefix}ffn.dense2", inner))
        rows.append(x)
    states = np.stack(rows)
    return states, np.tanh(_linear(weights, "hidden.0", states[:, 0]))


def _linear(weights: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _attention(weights: Mapping[str, np.ndarray], prefix: str, x: np.ndarray, valid: int, heads: int) -> np.ndarray:
    query, key, value = (_linear(weights, f"{prefix}{name}", x) for name in ("W_q", "W_k", "W_v"))
    size = x.shape[1] // heads
    parts = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        scores = query[:, own] @ key[:valid, own].T / math.sqrt(size)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        parts.append(shares / shares.sum(axis=1, keepdims=True) @ value[:valid, own])
    return _linear(weights, f"{prefix}W_o", np.concatenate(parts, axis=1))


def refusal(path: Path, out: Path) -> str:
    """The error text of a conversion that fails, and leaves nothing."""
    with pytest.raises(ModelError) as caught:
        convert(path, out)
    assert not out.exists(), "nothing may stay of a failed conversion"
    assert not list(out.parent.glob(".bertune-tmp-*"))
    return str(caught.value)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
