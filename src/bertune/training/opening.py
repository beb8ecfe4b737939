"""The encoder of a run: checked against its tokenizer and the lengths asked for, and given its head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from bertune.bundle import Bundle
from bertune.config import Config
from bertune.data.tasks import Task
from bertune.data.tokens import Tokenizer
from bertune.errors import ConfigError
from bertune.longtext import LongText
from bertune.model.classifier import ClassifierModel
from bertune.model.encoder import Encoder, EncoderConfig, initialize
from bertune.model.heads import Join, decide_head
from bertune.model.load import load_model, read_config
from bertune.model.names import TABLES

LONGEST = 256  # tokens of a row by default


def check_fit(tokenizer: Tokenizer, encoder: EncoderConfig, folder: Path) -> None:
    """Raise ConfigError where the tokenizer gives ids that the encoder has no embedding for."""
    if tokenizer.vocab_size > encoder.vocab_size:
        raise ConfigError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens and the encoder embeddings for only "
            f"{encoder.vocab_size:,}; they do not belong together. Put the tokenizer files of this encoder there."
        )


def settle_length(config: Config, encoder: EncoderConfig, task: Task, tokenizer: Tokenizer) -> int:
    """Longest input in tokens; ConfigError where the encoder has no positions for what was asked."""
    wanted = config.model.max_length
    if wanted is None:
        return min(LONGEST, encoder.longest_input)
    if wanted > encoder.longest_input:
        raise ConfigError(
            f"--max-length {wanted}: this encoder reads at most {encoder.longest_input} tokens at once. Pass "
            f"--max-length {encoder.longest_input} or less, for longer texts with --long-text head+tail or "
            "hierarchical, or another --model."
        )
    if wanted <= tokenizer.num_special(task.is_pair):
        raise ConfigError(f"--max-length {wanted}: the special tokens alone fill it. Pass a larger one.")
    return wanted


def check_second_side(config: Config, task: Task) -> None:
    """Raise ConfigError for a way to read the second side where there is none."""
    way = config.model.long_text_pair
    if way is not None and not task.is_pair:
        raise ConfigError(f"--long-text-pair {way}: is for pairs; pass --text-pair, or --long-text.")


def settle_long_text(config: Config, task: Task, tokenizer: Tokenizer, max_length: int) -> LongText:
    """What is read of long texts; ConfigError for an option that has no meaning here."""
    model = config.model
    ways = {"--long-text": model.long_text, "--long-text-pair": model.long_text_pair}
    check_second_side(config, task)
    if "hierarchical" not in ways.values():
        unused = {"--join": "join", "--chunk-overlap": "chunk_overlap", "model.max_chunks": "max_chunks"}
        for shown, name in unused.items():
            if model.long_text != "auto" and getattr(model, name) != type(model).model_fields[name].default:
                raise ConfigError(f"{shown} {getattr(model, name)}: needs --long-text hierarchical.")
    room = max_length - tokenizer.num_special(task.is_pair)
    for shown, way in ways.items():
        if way is not None and way[0].isdigit() and int(way.removesuffix("+tail")) >= room:
            raise ConfigError(
                f"{shown} {way}: --max-length {max_length} leaves {room} tokens of text, so nothing of the end would "
                f"be read. Pass a smaller number than {room}, or head."
            )
    second = model.long_text_pair
    if second is None:
        second = "head" if model.long_text == "hierarchical" else model.long_text
    if model.long_text == second == "hierarchical":
        raise ConfigError("--long-text-pair hierarchical: one side at most is read in chunks; cut the other one.")
    chunked = "hierarchical" in ways.values()
    if chunked and task.is_pair and model.truncation != type(model).model_fields["truncation"].default:
        raise ConfigError(
            f"--truncation {model.truncation}: has no effect where one side is read in chunks, beside which the other "
            "one keeps up to half of the room. Leave it out."
        )
    if model.chunk_overlap >= room // 2 and model.chunk_overlap:
        raise ConfigError(
            f"--chunk-overlap {model.chunk_overlap}: --max-length {max_length} leaves {room} tokens of text, and "
            f"chunks may share less than half of them. Pass less than {room // 2}."
        )
    return LongText(model.long_text, second, overlap=model.chunk_overlap, most=model.max_chunks)


def load(
    config: Config, folder: Path, task: Task, say: Any, *, stage: Path | None = None
) -> tuple[ClassifierModel, bool]:
    """The encoder with its head (that of an earlier result where it fits the task, a new one otherwise); is it new?

    stage: the folder of the encoder of `folder` after further pre-training, which is taken in its place; the head that
    an earlier result has stays, since masks teach it nothing.
    """
    encoder = read_config(folder)
    chosen = config.model
    head = decide_head(
        encoder, pooling=chosen.pooling, head=chosen.head, num_labels=task.num_labels,
        head_hidden=chosen.head_hidden, head_dropout=chosen.head_dropout, layers=chosen.layers, combine=chosen.combine,
        join=join_of(config),
    )
    earlier = Bundle.read(folder) if (folder / "bertune.json").is_file() else None
    keep = earlier is not None and (earlier.task.kind, earlier.task.labels) == (task.kind, task.labels)
    asked = (chosen.pooling, chosen.head, chosen.layers, chosen.combine) != ("auto", "auto", "last", "auto")
    if earlier is not None and keep and not asked:
        spec = earlier.head  # nothing else was asked for, so an earlier result goes on with the head it has
        rate = spec.dropout if chosen.head_dropout is None else chosen.head_dropout
        kept: Any = {"kind": spec.kind, "pooling": spec.pooling, "combine": spec.combine}  # checked when it is loaded
        head = replace(head, **kept, hidden=spec.hidden, layers=spec.layers, dropout=rate)
    how: dict[str, Any] = {"head": head, "dropout": chosen.dropout, "seed": config.train.seed}
    model, report = load_model(folder if keep or stage is None else stage, keep_head=keep, **how)
    say(report.sentence())
    if keep and stage is not None:
        model.encoder = load_model(stage, **how)[0].encoder
    if chosen.reinit_layers:
        say(f"New weights, too: {reinitialize(model, chosen.reinit_layers, seed=config.train.seed)}.")
    return model, "head.classifier" in report.new


def join_of(config: Config) -> Join | None:
    """How chunks become one row; None where texts are not read in chunks."""
    model = config.model
    if "hierarchical" not in (model.long_text, model.long_text_pair):
        return None
    return "mean" if model.join == "auto" else model.join


def reinitialize(model: ClassifierModel, count: int, *, seed: int) -> str:
    """Draw the weights of the `count` top layers anew, and those that pre-training left in the head; says which.

    Zhang et al. 2021, Revisiting Few-sample BERT Fine-tuning (arXiv 2006.05987, section 5): the pooler and some of the
    top layers, which know more of the task of pre-training than helps.
    """
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    pretrained = TABLES[encoder.config.arch].pretrained if model.head.config.kind == "own" else ()
    parts = {f"head.{name}": getattr(model.head, name) for name in pretrained}
    depth = len(encoder.layers)
    parts |= {f"layer {place}": encoder.layers[place] for place in range(depth - count, depth)}
    # Not the numbers that a new head is drawn from.
    initialize(nn.ModuleList(parts.values()), encoder.config.initializer_range, seed=seed ^ 0x5EED)
    return ", ".join(parts)
