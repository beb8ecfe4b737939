"""The hub's config.json, read into the few fields of `EncoderConfig`.

Defaults are those of transformers' configuration classes, because a config.json may leave out what it does not change.
A result whose head transformers does not have carries the model type `bertune-<type>`, so that transformers refuses it
instead of putting a random head on it; here the prefix is simply taken off.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bertune.errors import ModelError, listed, nearest
from bertune.model.encoder import ACTIVATIONS, EncoderConfig
from bertune.model.heads import HeadConfig

CONFIG = "config.json"
OWN_TYPE = "bertune-"
HEAD_KEY = "bertune_head"  # in config.json: the head of a saved result
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "modernbert", "d2l-bert")
_LIKE_ROBERTA = ("roberta", "xlm-roberta", "camembert")

Value = TypeVar("Value", int, float, str, bool)


def read_source(folder: Path) -> dict[str, Any]:
    """config.json of a model folder as it stands; ModelError where it is absent or damaged."""
    path = Path(folder) / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder}: no {CONFIG} here; a model folder holds {CONFIG}, model.safetensors and the tokenizer's files."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}. Fetch the file again.") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: expected an object of settings, found {type(raw).__name__}.")
    names = raw.get("architectures")
    if names is not None and not isinstance(names, list):
        raise ModelError(f"{path}: 'architectures' is {names!r}; expected a list of names. Correct it, or take it out.")
    return raw


def read_config(folder: Path) -> EncoderConfig:
    """What the encoder in `folder` looks like, from its config.json."""
    return parse_config(read_source(folder), place=str(Path(folder) / CONFIG), folder=Path(folder))


def parse_config(raw: dict[str, Any], *, place: str, folder: Path | None = None) -> EncoderConfig:
    """The same for a config.json that is read already; `place` is named in errors.

    A type that is not of the family becomes `arch='adapter'` where transformers is installed and knows an encoder
    of that type (`folder` may tell how long its inputs get); otherwise it is an error that says which are known.
    """
    kind = model_type(raw)
    fields = _Fields(raw, place)
    if kind == "bert":
        return _bert(fields, "bert")
    if kind in _LIKE_ROBERTA:
        return _bert(fields, "roberta")
    if kind == "electra":
        return _bert(fields, "electra")
    if kind == "distilbert":
        return _distilbert(fields)
    if kind == "modernbert":
        return _modernbert(fields)
    if kind == "d2l-bert":
        return _d2l(fields)
    if kind is None:
        raise ModelError(f"{place}: 'model_type' is missing; state it, as one of {listed(MODEL_TYPES)}.")
    from bertune.model.adapter import adapter_config

    hint = f"{place}: model type '{kind}' is not one of {listed(MODEL_TYPES)}{nearest(kind, MODEL_TYPES)}"
    return adapter_config(raw, kind, hint=hint, folder=folder)


def model_type(raw: dict[str, Any]) -> str | None:
    """The model type, without our prefix; old files of plain bert models do not state it."""
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind:
        return kind.removeprefix(OWN_TYPE)
    names = raw.get("architectures") or []
    looks = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"} <= raw.keys()
    named = all(str(name).startswith("Bert") for name in names)
    return "bert" if looks and named and raw.get("type_vocab_size") == 2 and "embedding_size" not in raw else None


def saved_labels(raw: dict[str, Any]) -> int | None:
    """Number of labels of the classifier that the folder holds; None where it holds none."""
    names = [str(name) for name in raw.get("architectures") or []]
    if HEAD_KEY not in raw and not any(name.endswith("ForSequenceClassification") for name in names):
        return None
    labels = raw.get("id2label")
    if isinstance(labels, dict) and labels:
        return len(labels)
    count = raw.get("num_labels", 2)
    return count if isinstance(count, int) and count > 0 else None


def saved_head(raw: dict[str, Any], config: EncoderConfig) -> HeadConfig | None:
    """The head that the folder holds: as bertune wrote it, or the architecture's own after training elsewhere."""
    count = saved_labels(raw)
    if count is None:
        return None
    spec = raw.get(HEAD_KEY)
    if isinstance(spec, dict):
        try:
            return HeadConfig(
                kind=spec["kind"], pooling=spec["pooling"], num_labels=count,
                dropout=float(spec["dropout"]), hidden=int(spec["hidden"]),
                layers=tuple(map(int, spec.get("layers", ()))), combine=spec.get("combine", "mean"),
                join=spec.get("join"),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError):
            raise ModelError(f"{CONFIG}: '{HEAD_KEY}' is not a head as bertune writes it: {spec!r}.") from None
    if config.arch == "adapter":
        return None
    return HeadConfig(kind="own", pooling=config.pooling, num_labels=count, dropout=config.head_dropout)


@dataclass
class _Fields:
    """Typed access to config.json, with the place in every error."""

    raw: dict[str, Any]
    place: str

    def get(self, *names: str, default: Value, least: float | None = None) -> Value:
        """The first of `names` (aliases) that is stated and not null, else `default`; it has the default's type."""
        for name in names:
            value = self.raw.get(name)
            if value is not None:
                break
        else:
            return default
        wanted = type(default)
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise ModelError(f"{self.place}: '{name}' is {value!r}; expected a value like {default!r}.")
        if least is not None and value < least:  # type: ignore[operator]
            raise ModelError(f"{self.place}: '{name}' is {value!r}; expected at least {least:g}.")
        return value

    def size(self, *names: str, default: int) -> int:
        return self.get(*names, default=default, least=1)

    def heads(self, *names: str, default: int, hidden: int) -> int:
        """Attention heads, which share `hidden` evenly."""
        value = self.size(*names, default=default)
        if hidden % value:
            raise ModelError(f"{self.place}: '{names[0]}' is {value}, which does not divide the hidden size, {hidden}.")
        return value

    def rate(self, *names: str, default: float) -> float:
        value = self.get(*names, default=default, least=0)
        if value >= 1:
            raise ModelError(f"{self.place}: '{names[0]}' is {value!r}; a dropout rate lies between 0 and 1.")
        return value

    def activation(self, *names: str, default: str = "gelu") -> str:
        value = self.get(*names, default=default)
        if value not in ACTIVATIONS:
            raise ModelError(f"{self.place}: '{names[0]}' is '{value}'; expected one of {listed(ACTIVATIONS, 20)}.")
        return value

    def refuse(self, name: str, allowed: Any, why: str) -> None:
        value = self.raw.get(name)
        if value is not None and value != allowed:
            raise ModelError(f"{self.place}: '{name}' is {value!r}, but {why}.")


def _bert(fields: _Fields, arch: Any) -> EncoderConfig:
    """bert, roberta and electra share their fields, and differ in a few defaults."""
    fields.refuse("position_embedding_type", "absolute", "only absolute positions are supported")
    fields.refuse("is_decoder", False, "a decoder does not see the whole text")
    fields.refuse("add_cross_attention", False, "cross-attention has nothing to attend to here")
    small = arch == "electra"
    hidden = fields.size("hidden_size", default=256 if small else 768)
    pad_id = fields.get("pad_token_id", default=1 if arch == "roberta" else 0, least=0)
    dropout = fields.rate("hidden_dropout_prob", default=0.1)
    return EncoderConfig(
        arch=arch,
        vocab_size=fields.size("vocab_size", default=30522 if fields.raw.get("model_type") != "roberta" else 50265),
        hidden=hidden,
        layers=fields.size("num_hidden_layers", default=12),
        heads=fields.heads("num_attention_heads", default=4 if small else 12, hidden=hidden),
        ffn=fields.size("intermediate_size", default=1024 if small else 3072),
        max_positions=fields.size("max_position_embeddings", default=512),
        type_vocab=fields.size("type_vocab_size", default=2),
        norm_eps=fields.get("layer_norm_eps", default=1e-12, least=0),
        activation=fields.activation("hidden_act"),
        dropout=dropout,
        attention_dropout=fields.rate("attention_probs_dropout_prob", default=0.1),
        pad_id=pad_id,
        position_offset=pad_id + 1 if arch == "roberta" else 0,
        embedding_size=fields.size("embedding_size", default=128) if small else None,
        head_dropout=fields.rate("classifier_dropout", default=dropout),
        initializer_range=fields.get("initializer_range", default=0.02, least=0),
    )


def _distilbert(fields: _Fields) -> EncoderConfig:
    hidden = fields.size("dim", "hidden_size", default=768)
    return EncoderConfig(
        arch="distilbert",
        vocab_size=fields.size("vocab_size", default=30522),
        hidden=hidden,
        layers=fields.size("n_layers", "num_hidden_layers", default=6),
        heads=fields.heads("n_heads", "num_attention_heads", default=12, hidden=hidden),
        ffn=fields.size("hidden_dim", "intermediate_size", default=3072),
        max_positions=fields.size("max_position_embeddings", default=512),
        norm_eps=1e-12,
        activation=fields.activation("activation"),
        dropout=fields.rate("dropout", default=0.1),
        attention_dropout=fields.rate("attention_dropout", default=0.1),
        pad_id=fields.get("pad_token_id", default=0, least=0),
        head_dropout=fields.rate("seq_classif_dropout", default=0.2),
        initializer_range=fields.get("initializer_range", default=0.02, least=0),
    )


def _modernbert(fields: _Fields) -> EncoderConfig:
    layers, hidden = fields.size("num_hidden_layers", default=22), fields.size("hidden_size", default=768)
    pooling = fields.get("classifier_pooling", default="cls")
    if pooling not in ("cls", "mean"):
        raise ModelError(f"{fields.place}: 'classifier_pooling' is '{pooling}'; expected one of cls, mean.")
    bias = fields.get("mlp_bias", default=False)
    rope_global, rope_local = _ropes(fields)
    return EncoderConfig(
        arch="modernbert",
        vocab_size=fields.size("vocab_size", default=50368),
        hidden=hidden,
        layers=layers,
        heads=fields.heads("num_attention_heads", default=12, hidden=hidden),
        ffn=fields.size("intermediate_size", default=1152),
        max_positions=fields.size("max_position_embeddings", default=8192),
        norm_eps=fields.get("norm_eps", "layer_norm_eps", default=1e-5, least=0),
        activation=fields.activation("hidden_activation", "hidden_act"),
        dropout=0.0,
        attention_dropout=fields.rate("attention_dropout", default=0.0),
        embedding_dropout=fields.rate("embedding_dropout", default=0.0),
        ffn_dropout=fields.rate("mlp_dropout", default=0.0),
        pad_id=fields.get("pad_token_id", default=50283, least=0),
        pre_norm=True,
        bias=bias,
        norm_bias=fields.get("norm_bias", default=False),
        attention_bias=fields.get("attention_bias", default=False),
        rope_global=rope_global,
        rope_local=rope_local,
        local_window=fields.size("local_attention", default=128) // 2,
        local_layers=_local_layers(fields, layers),
        pooling="mean" if pooling == "mean" else "cls",
        head_dropout=fields.rate("classifier_dropout", default=0.0),
        head_activation=fields.activation("classifier_activation"),
        head_bias=fields.get("classifier_bias", default=False),
        initializer_range=fields.get("initializer_range", default=0.02, least=0),
    )


def _local_layers(fields: _Fields, layers: int) -> tuple[int, ...]:
    kinds = fields.raw.get("layer_types")
    if kinds is None:
        every = fields.size("global_attn_every_n_layers", default=3)
        return tuple(number for number in range(layers) if number % every)
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise ModelError(f"{fields.place}: 'layer_types' is {kinds!r}; expected {layers} times one of {listed(known)}.")
    return tuple(number for number, kind in enumerate(kinds) if kind == "sliding_attention")


def _ropes(fields: _Fields) -> tuple[float, float]:
    """Bases of the rotary positions in global and local layers, in the older and the newer spelling."""
    thetas = []
    for kind, old, default in (("full", "global_rope_theta", 160_000.0), ("sliding", "local_rope_theta", 10_000.0)):
        both = fields.raw.get("rope_parameters") or {}
        inner = _Fields((both.get(f"{kind}_attention") or {}) if isinstance(both, dict) else {}, fields.place)
        for key in ("rope_type", "type"):
            inner.refuse(key, "default", "only plain rotary positions are supported")
        thetas.append(inner.get("rope_theta", default=fields.get(old, default=default, least=1), least=1))
    fields.refuse("rope_scaling", None, "only plain rotary positions are supported")
    return thetas[0], thetas[1]


def _d2l(fields: _Fields) -> EncoderConfig:
    """The book's encoder: no norm and no dropout after the embeddings, and ReLU; see model/d2l.py."""
    hidden = fields.size("hidden_size", default=256)
    return EncoderConfig(
        arch="d2l",
        vocab_size=fields.size("vocab_size", default=60005),
        hidden=hidden,
        layers=fields.size("num_hidden_layers", default=2),
        heads=fields.heads("num_attention_heads", default=4, hidden=hidden),
        ffn=fields.size("intermediate_size", default=512),
        max_positions=fields.size("max_position_embeddings", default=512),
        type_vocab=fields.size("type_vocab_size", default=2),
        norm_eps=fields.get("layer_norm_eps", default=1e-5, least=0),
        activation=fields.activation("hidden_act", default="relu"),
        dropout=fields.rate("hidden_dropout_prob", default=0.2),
        attention_dropout=fields.rate("attention_probs_dropout_prob", default=0.2),
        embedding_dropout=0.0,
        pad_id=fields.get("pad_token_id", default=1, least=0),
        embedding_norm=False,
        head_dropout=fields.rate("classifier_dropout", default=0.0),
        initializer_range=fields.get("initializer_range", default=0.02, least=0),
    )
