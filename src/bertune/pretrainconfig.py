"""The section of the configuration that says how an encoder is pre-trained further, or from scratch; see config.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bertune.sections import Section, flag

WITHIN_TASK = "train"  # in `on`: the training texts alone

_OWN = "pretrain"  # the command that these flags belong to


class PretrainConfig(Section):
    """Pre-training on texts without labels. None means: chosen from the corpus and the model, and said."""

    on: list[str] = Field(
        [],
        description="First pre-train the encoder on the training texts and those of FILE; train: on the training texts "
        "alone.",
        json_schema_extra=flag(
            "--pretrain-on", group="Pre-training", metavar="FILE|train",
            more="pretrain.objective, pretrain.masking, pretrain.mask_share, pretrain.random_share, "
            "pretrain.whole_word, pretrain.max_length, pretrain.documents, pretrain.epochs, pretrain.max_steps, "
            "pretrain.tokens, pretrain.lr, pretrain.warmup, pretrain.weight_decay, pretrain.clip, pretrain.held_out, "
            "pretrain.evaluations",
        ),
    )
    objective: Literal["mlm", "nsp", "both"] = Field(
        "mlm",
        description="What is learned: to fill masks, to tell whether a text follows another, or both.",
        json_schema_extra=flag("--objective", group="Pre-training", command=_OWN),
    )
    masking: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="Share of the tokens that are to be guessed.",
        json_schema_extra=flag("--masking", group="Pre-training", command=_OWN),
    )
    mask_share: float = Field(0.8, ge=0, le=1, description="Share of these that the encoder sees as a mask.")
    random_share: float = Field(0.1, ge=0, le=1, description="Share that it sees as a random token; the rest it sees.")
    whole_word: bool = Field(False, description="Guess whole words, not single pieces of them.")
    max_length: int = Field(
        128,
        ge=8,
        description="Tokens of a sequence at most, special ones included.",
        json_schema_extra=flag("--max-length", group="Pre-training", command=_OWN),
    )
    documents: Literal["auto", "row", "blank", "double-blank"] = Field(
        "auto",
        description="What a document is: a row; of plain text, what a blank line or two of them end. auto: by the "
        "file.",
        json_schema_extra=flag("--documents", group="Pre-training", command=_OWN),
    )
    epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over the corpus, each with other masks; by default 1.",
        json_schema_extra=flag("--epochs", group="Pre-training", command=_OWN),
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        description="Optimizer steps at most; without --epochs, just as many.",
        json_schema_extra=flag("--max-steps", group="Pre-training", command=_OWN),
    )
    tokens: int | None = Field(
        None,
        ge=64,
        description="Tokens of an optimizer step; by default 8192, fewer for a small corpus.",
        json_schema_extra=flag("--tokens", group="Pre-training", command=_OWN),
    )
    lr: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate; a new head on an encoder that is not learns at ten times that.",
        json_schema_extra=flag("--lr", group="Pre-training", command=_OWN),
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of all steps that the warm-up takes.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay.")
    clip: float | None = Field(1.0, gt=0, description="Largest gradient norm; null: no clipping.")
    held_out: float = Field(
        0.01, ge=0, lt=0.5, description="Share of the documents to measure on, of some 200,000 tokens at most; 0: none."
    )
    evaluations: int = Field(10, ge=1, description="How often the held-out part is measured, after the beginning.")
    from_scratch: Literal["mini", "d2l-small"] | None = Field(
        None,
        description="Train a vocabulary and a new BERT: mini (4 layers of 256, ffn 1024) or d2l-small (2 layers of "
        "256, ffn 512).",
        json_schema_extra=flag("--from-scratch", group="From scratch", metavar="mini|d2l-small", command=_OWN),
    )
    vocab_size: int = Field(
        8000,
        ge=100,
        description="Tokens of the new vocabulary.",
        json_schema_extra=flag("--vocab-size", group="From scratch", command=_OWN),
    )
    cased: bool = Field(False, description="Keep capital letters and accents in the new vocabulary.")
    layers: int | None = Field(None, ge=1, description="Layers of the new BERT, instead of the shape's.")
    hidden: int | None = Field(None, ge=2, description="Its width.")
    heads: int | None = Field(None, ge=1, description="Its attention heads.")
    ffn: int | None = Field(None, ge=1, description="Width of its feed-forward layers.")
    positions: int = Field(512, ge=8, description="Tokens that it can read.")
    initialization: Literal["normal", "neighbors"] = Field(
        "normal",
        description="What its attention begins with: random numbers, or heads that look at the neighbors of a token.",
    )
