"""The section of the configuration about the encoder, its head, and how text is cut for it; see config.py."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from bertune.errors import ConfigError
from bertune.longtext import MOST_CHUNKS, WAYS, check_way
from bertune.sections import Section, flag


class ModelConfig(Section):
    """The encoder, its head, and how text is cut for it."""

    name: str = Field(
        "mini",
        description="Folder, archive, preset (see `bertune models`) or hub name.",
        json_schema_extra=flag("--model", group="Model", metavar="MODEL"),
    )
    revision: str | None = Field(
        None, description="Hub revision.", json_schema_extra=flag("--revision", group="Model")
    )
    pooling: Literal["auto", "cls", "mean", "max", "attention"] = Field(
        "auto",
        description="What the head reads of the tokens: the first, their mean or maximum, or a learned weighted mean; "
        "auto: what transformers does for the architecture.",
        json_schema_extra=flag("--pooling", group="Layers"),
    )
    layers: str = Field(
        "last",
        description="Layers whose states the head reads: last, all, first-N, last-N, or one by its number from 0.",
        json_schema_extra=flag("--layers", group="Layers", metavar="last|all|first-N|last-N|K"),
    )
    combine: Literal["auto", "concat", "mean", "max", "mix"] = Field(
        "auto",
        description="How several layers become one; mix: a learned weighted mean; auto: mean.",
        json_schema_extra=flag("--combine", group="Layers"),
    )
    head: Literal["auto", "linear", "mlp"] = Field(
        "auto",
        description="Layers after pooling; auto: what transformers has for the architecture.",
        json_schema_extra=flag("--head", group="Model", more="model.head_hidden, model.head_dropout"),
    )
    head_hidden: int = Field(50, ge=1, description="Width of the mlp head.")
    head_dropout: float | None = Field(None, ge=0, lt=1, description="Dropout of the head; by default the model's own.")
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout inside the encoder; by default the model's own.",
        json_schema_extra=flag("--dropout", group="Model"),
    )
    max_length: int | None = Field(
        None,
        ge=4,
        description="Longest input in tokens, special ones included; by default 256, or the most the model reads.",
        json_schema_extra=flag("--max-length", group="Model"),
    )
    truncation: Literal["longest-first", "only-second", "head"] = Field(
        "longest-first",
        description="What a too long row loses: the end of its longer side, of its second side, or of the whole.",
        json_schema_extra=flag("--truncation", group="Model"),
    )
    long_text: str = Field(
        "head",
        description="What is read of a text that does not fit: head (its beginning), tail (its end), head+tail (128 "
        "tokens of the beginning, then the end), N+tail, hierarchical (all of it, in chunks), or auto, which tries "
        "these on the validation rows (with --pretrain-on, before that).",
        json_schema_extra=flag(
            "--long-text", group="Long texts", metavar="head|tail|head+tail|N+tail|hierarchical|auto"
        ),
    )
    long_text_pair: str | None = Field(
        None,
        description="The same for the second side of a pair; by default as --long-text, beside chunks head.",
        json_schema_extra=flag("--long-text-pair", group="Long texts", metavar="head|tail|head+tail|..."),
    )
    join: Literal["auto", "mean", "max", "attention"] = Field(
        "auto",
        description="How the chunks of a hierarchical text become one; attention: a learned weighted mean; auto: mean.",
        json_schema_extra=flag("--join", group="Long texts"),
    )
    chunk_overlap: int = Field(
        0,
        ge=0,
        description="Tokens that neighbouring chunks share.",
        json_schema_extra=flag("--chunk-overlap", group="Long texts", more="model.max_chunks"),
    )
    max_chunks: int = Field(MOST_CHUNKS, ge=1, description="Chunks of a text; what lies behind them is cut.")
    freeze: str = Field(
        "none",
        description="What is not trained: none, encoder, embeddings, or a number of lowest layers (with embeddings).",
        json_schema_extra=flag(
            "--freeze", group="Model", metavar="none|encoder|embeddings|K",
            more="model.train_positions",
        ),
    )
    train_positions: bool = Field(True, description="Train the position embeddings (the book's program does not).")
    reinit_layers: int = Field(
        0,
        ge=0,
        description="Start with new weights in so many top layers, and in BERT's pooler.",
        json_schema_extra=flag("--reinit-layers", group="Regularisation", metavar="K"),
    )
    lora: int = Field(
        0,
        ge=0,
        description="Train the head and, in place of the encoder, matrices of this rank beside its own (LoRA), by "
        "default at ten times the usual rate; 0: off.",
        json_schema_extra=flag(
            "--lora", group="Regularisation", metavar="RANK",
            more="model.lora_alpha, model.lora_targets",
        ),
    )
    lora_alpha: float = Field(16.0, gt=0, description="LoRA's matrices count alpha / rank times.")
    lora_targets: list[Literal["query", "key", "value", "out", "up", "down"]] = Field(
        ["query", "value"],
        min_length=1,
        description="Products of each layer that LoRA's matrices stand beside: query, key, value, out, up, down.",
        json_schema_extra={"metavar": "A,B,C"},
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _which_layers(cls, value: object) -> object:
        value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(value, str) or not re.fullmatch("last|all|(first-|last-)?[0-9]+", value):
            raise ValueError("expected last, all, first-N, last-N, or the number of a layer from 0")
        return value

    @field_validator("long_text", "long_text_pair")
    @classmethod
    def _a_way(cls, value: str | None) -> str | None:
        if value is not None and value != "auto":
            try:
                check_way(value)
            except ConfigError:
                raise ValueError(f"expected one of {', '.join(WAYS)}, auto") from None
        return value

    @field_validator("freeze", mode="before")
    @classmethod
    def _part_or_layers(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not re.fullmatch("none|encoder|embeddings|[0-9]+", value):
            raise ValueError("expected none, encoder, embeddings, or a number of layers")
        return value
