"""The encoders of the book Dive into Deep Learning: what their published files hold, and the config.json they lack.

Published are `vocab.json`, a list of words, and `pretrained.params`, a state dict with

    encoder.token_embedding.weight [V, h]    encoder.segment_embedding.weight [2, h]    encoder.pos_embedding [1, P, h]
    encoder.blks.N.attention.W_{q,k,v,o}.{weight,bias}    encoder.blks.N.ffn.dense{1,2}.{weight,bias}
    encoder.blks.N.addnorm{1,2}.ln.{weight,bias}          hidden.0.{weight,bias} (then tanh)
    mlm.mlp.{0,2,3}.{weight,bias} and nsp.output.{weight,bias}: heads of the pre-training, kept in files, never loaded

All sizes are read from these shapes. Converted folders keep the names; model/names.py maps them to our own.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bertune.errors import ModelError, listed
from bertune.hub import D2L_FILES
from bertune.model.archive import open_archive
from bertune.model.weights import load_pickled

MODEL_TYPE = "d2l-bert"
SPECIAL_TOKENS = ("<unk>", "<pad>", "<mask>", "<cls>", "<sep>")
_PARAMS, _VOCABULARY = D2L_FILES
_LARGEST_PARAMS, _LARGEST_VOCABULARY = 8 * 2**30, 256 * 2**20  # bytes

_EMBEDDINGS = ("encoder.token_embedding.weight", "encoder.segment_embedding.weight", "encoder.pos_embedding")
_LAYER_PARTS = (
    "attention.W_q", "attention.W_k", "attention.W_v", "attention.W_o", "addnorm1.ln", "ffn.dense1", "ffn.dense2",
    "addnorm2.ln",
)  # fmt: skip


def read_published(source: Path) -> tuple[dict[str, Tensor], list[str]]:
    """State dict and words of the book's archive (.zip, .tar.gz), read in place, or of the folder it unpacks to."""
    if source.is_dir():
        try:
            words = (source / _VOCABULARY).read_bytes()
        except OSError as error:
            raise ModelError(f"{source / _VOCABULARY}: {error.strerror}.") from None
        state = load_pickled(source / _PARAMS, place=str(source / _PARAMS))
        return state, _words(words, str(source / _VOCABULARY))
    with open_archive(source) as archive:
        folder = archive.folder_of(_PARAMS, _VOCABULARY)
        if folder is None:
            raise ModelError(
                f"{source}: expected one folder with {_PARAMS} and {_VOCABULARY}; it holds {archive.contents()}."
            )
        words = archive.read(folder + _VOCABULARY, limit=_LARGEST_VOCABULARY)
        params = archive.read(folder + _PARAMS, limit=_LARGEST_PARAMS)
    state = load_pickled(io.BytesIO(params), place=f"{source}: {folder}{_PARAMS}")
    return state, _words(words, f"{source}: {folder}{_VOCABULARY}")


def default_heads(hidden: int) -> int:
    """Number of attention heads, which no shape tells: 4 for bert.small's 256, 12 for bert.base's 768, else 64 wide."""
    return {256: 4, 768: 12}.get(hidden, max(1, hidden // 64))


def config_of(state: Mapping[str, Tensor], words: list[str], *, place: str, heads: int | None = None) -> dict[str, Any]:
    """What config.json says of a published state dict: all sizes from its shapes, `heads` by `default_heads`.

    Raises ModelError where names or shapes are not the book's.
    """
    layers = _count_layers(state)
    expected = _expected(layers)
    missing = [name for name in expected if name not in state]
    unexpected = sorted(name for name in state if name not in expected and not name.startswith(("mlm.", "nsp.")))
    if missing or unexpected or not layers:
        raise ModelError(
            f"{place}: these are not the weights of the book's encoder; layers: {layers}. "
            f"Missing: {listed(missing, 6) or 'none'}. Unexpected: {listed(unexpected, 6) or 'none'}."
        )
    vocabulary, hidden = _two_sizes(state, "encoder.token_embedding.weight", place)
    ffn, _ = _two_sizes(state, "encoder.blks.0.ffn.dense1.weight", place)
    _check_shapes(state, layers, hidden, ffn, place)
    if vocabulary != len(words):
        raise ModelError(f"{place}: {vocabulary} token embeddings, but {_VOCABULARY} lists {len(words)} words.")
    heads = default_heads(hidden) if heads is None else heads
    if heads < 1 or hidden % heads:
        raise ModelError(f"{place}: {heads} attention heads do not divide the hidden size {hidden}; give their number.")
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["BertuneD2LModel"],
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "max_position_embeddings": state[_EMBEDDINGS[2]].shape[1],
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-5,
        "hidden_act": "relu",
        # The book's program passes .1 to its loader, which ignores it and builds with .2.
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.2,
        "classifier_dropout": 0.0,
        "pad_token_id": words.index("<pad>"),
    }


def _words(content: bytes, place: str) -> list[str]:
    try:
        words = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise ModelError(f"{place}: not readable as a JSON list of words: {error}.") from None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ModelError(f"{place}: expected a JSON list of words, found {type(words).__name__}.")
    absent = [token for token in SPECIAL_TOKENS if token not in words]
    if absent:
        raise ModelError(f"{place}: the word list has no {listed(absent)}.")
    return words


def _count_layers(state: Mapping[str, Tensor]) -> int:
    """How many layers there are names of; where they are not 0, 1, 2 ..., some of `_expected` will be missing."""
    return len({found[1] for name in state if (found := re.match(r"encoder\.blks\.(\d+)\.", name))})


def _expected(layers: int) -> list[str]:
    places = [f"encoder.blks.{number}.{part}" for number in range(layers) for part in _LAYER_PARTS]
    return [*_EMBEDDINGS, *(f"{place}.{kind}" for place in (*places, "hidden.0") for kind in ("weight", "bias"))]


def _two_sizes(state: Mapping[str, Tensor], name: str, place: str) -> tuple[int, int]:
    shape = tuple(state[name].shape)
    if len(shape) != 2:
        raise ModelError(f"{place}: '{name}' has shape {shape}, expected two sizes.")
    return shape


def _check_shapes(state: Mapping[str, Tensor], layers: int, hidden: int, ffn: int, place: str) -> None:
    positions = tuple(state[_EMBEDDINGS[2]].shape)
    if len(positions) != 3 or positions[0] != 1 or positions[2] != hidden:
        raise ModelError(f"{place}: '{_EMBEDDINGS[2]}' has shape {positions}, expected (1, longest input, {hidden}).")
    expected: dict[str, tuple[int, ...]] = {
        "encoder.segment_embedding.weight": (2, hidden),
        "hidden.0.weight": (hidden, hidden),
        "hidden.0.bias": (hidden,),
    }
    for number in range(layers):
        prefix = f"encoder.blks.{number}."
        for part in _LAYER_PARTS:
            rows = ffn if part == "ffn.dense1" else hidden
            columns = ffn if part == "ffn.dense2" else hidden
            expected[f"{prefix}{part}.weight"] = (hidden,) if part.endswith(".ln") else (rows, columns)
            expected[f"{prefix}{part}.bias"] = (rows,)
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise ModelError(f"{place}: '{name}' has shape {tuple(state[name].shape)}, expected {shape}.")
