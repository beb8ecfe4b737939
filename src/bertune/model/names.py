"""Names of weights: ours on the left, those of the hub's files on the right, and nothing else about an architecture.

Read one way the tables load a model, read the other way they save it. Our `qkv` is the hub's query, key and value
stacked, so one of our names may stand for three.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from bertune.errors import ModelError, listed
from bertune.model.heads import HeadConfig

OWN_HEAD = "bertune_head."  # where a head that transformers does not have is kept
LEGACY = (".gamma", ".beta")  # endings that files from TensorFlow have for .weight and .bias of a norm
D2L_POSITIONS = "encoder.pos_embedding"  # [1, positions, hidden] in the book's files


@dataclass(frozen=True)
class Names:
    """One architecture. A name ends before `.weight` or `.bias`, unless it stands for a single bare tensor.

    prefix: what models with a head put before the encoder's names; layer: the path of layer number {}; head: whole
    names of the head that transformers has; pretrained: parts of that head which pre-training leaves in the file.
    """

    prefix: str
    embeddings: dict[str, str]
    layer: str
    parts: dict[str, tuple[str, ...]]
    head: dict[str, str]
    pretrained: tuple[str, ...] = ()
    top: dict[str, str] = field(default_factory=dict)


_EMBEDDINGS = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "segment": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "project": "embeddings_project",
}
_BERT_PARTS = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "out": ("attention.output.dense",),
    "norm1": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "norm2": ("output.LayerNorm",),
}

TABLES: dict[str, Names] = {
    "bert": Names(
        prefix="bert.", embeddings=_EMBEDDINGS, layer="encoder.layer.{}.", parts=_BERT_PARTS,
        head={"dense": "bert.pooler.dense", "classifier": "classifier"}, pretrained=("dense",),
    ),
    "roberta": Names(
        prefix="roberta.", embeddings=_EMBEDDINGS, layer="encoder.layer.{}.", parts=_BERT_PARTS,
        head={"dense": "classifier.dense", "classifier": "classifier.out_proj"},
    ),
    "electra": Names(
        prefix="electra.", embeddings=_EMBEDDINGS, layer="encoder.layer.{}.", parts=_BERT_PARTS,
        head={"dense": "classifier.dense", "classifier": "classifier.out_proj"},
    ),
    "distilbert": Names(
        prefix="distilbert.", embeddings=_EMBEDDINGS, layer="transformer.layer.{}.",
        parts={
            "qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            "out": ("attention.out_lin",),
            "norm1": ("sa_layer_norm",),
            "up": ("ffn.lin1",),
            "down": ("ffn.lin2",),
            "norm2": ("output_layer_norm",),
        },
        head={"dense": "pre_classifier", "classifier": "classifier"},
    ),
    "modernbert": Names(
        prefix="model.", layer="layers.{}.",
        embeddings={"word": "embeddings.tok_embeddings", "norm": "embeddings.norm"},
        parts={
            "qkv": ("attn.Wqkv",),
            "out": ("attn.Wo",),
            "norm1": ("attn_norm",),
            "up": ("mlp.Wi",),
            "down": ("mlp.Wo",),
            "norm2": ("mlp_norm",),
        },
        top={"final_norm": "final_norm"},
        head={"dense": "head.dense", "norm": "head.norm", "classifier": "classifier"}, pretrained=("dense", "norm"),
    ),
    "d2l": Names(
        prefix="", layer="encoder.blks.{}.",
        embeddings={
            "word": "encoder.token_embedding", "segment": "encoder.segment_embedding", "position": D2L_POSITIONS,
        },
        parts={
            "qkv": ("attention.W_q", "attention.W_k", "attention.W_v"),
            "out": ("attention.W_o",),
            "norm1": ("addnorm1.ln",),
            "up": ("ffn.dense1",),
            "down": ("ffn.dense2",),
            "norm2": ("addnorm2.ln",),
        },
        head={"dense": "hidden.0", "classifier": "output"}, pretrained=("dense",),
    ),
}  # fmt: skip

# Heads of pre-training, by the names of `model.pretraining`: one that fills masks, and bert's pooler and second head,
# which tells whether a text follows another. Whole names, but for the bare bias of the vocabulary.
MASKED: dict[str, dict[str, str]] = {
    "bert": {
        "dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
    },
    "roberta": {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"},
    "distilbert": {"dense": "vocab_transform", "norm": "vocab_layer_norm", "bias": "vocab_projector.bias"},
    "electra": {
        "dense": "generator_predictions.dense", "norm": "generator_predictions.LayerNorm",
        "bias": "generator_lm_head.bias",
    },
    "modernbert": {"dense": "head.dense", "norm": "head.norm", "bias": "decoder.bias"},
}  # fmt: skip
FOLLOWING = {"pooler": "bert.pooler.dense", "next": "cls.seq_relationship"}
# Copies that a file may hold of what is tied: of the word embeddings, and of the vocabulary's bias.
TIED = {
    "bert": ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    "roberta": ("lm_head.decoder.weight", "lm_head.decoder.bias"),
    "distilbert": ("vocab_projector.weight", ""),
    "electra": ("generator_lm_head.weight", ""),
    "modernbert": ("decoder.weight", ""),
}

# What a file may hold beside an encoder, by reason; matched against names without the architecture's prefix.
SKIPPED = {
    "other tasks' heads": re.compile(
        r"(cls|lm_head|qa_outputs|score|classifier|pre_classifier|pooler|head|decoder|vocab_transform|vocab_layer_norm"
        r"|vocab_projector|generator_predictions|generator_lm_head|discriminator_predictions|sequence_summary|mlm|nsp"
        r"|output|hidden|bertune_head)(\.|$)"
    ),
    "buffers": re.compile(r"(.*\.)?(position_ids|token_type_ids|inv_freq|num_batches_tracked)$"),
}


def hub_names(arch: str, head: HeadConfig, name: str) -> tuple[str, ...]:
    """The names in a hub file, with prefix, that `name` of a `ClassifierModel` stands for."""
    side, _, rest = name.partition(".")
    if side == "encoder":
        return encoder_names(arch, rest)
    part, _, leaf = rest.rpartition(".")
    known = TABLES[arch].head if head.kind == "own" else {}
    return (f"{known.get(part, OWN_HEAD + part)}.{leaf}",)


def pretraining_names(arch: str, name: str) -> tuple[str, ...]:
    """The same for a name of a `PretrainingModel`."""
    side, _, rest = name.partition(".")
    if side == "encoder":
        return encoder_names(arch, rest)
    if rest == "masked.bias":
        return (MASKED[arch]["bias"],)
    part, _, leaf = rest.removeprefix("masked.").rpartition(".")
    return (f"{(FOLLOWING | MASKED[arch])[part]}.{leaf}",)


def encoder_names(arch: str, name: str) -> tuple[str, ...]:
    """The names in a hub file, with prefix, that `name` of an encoder stands for."""
    if arch == "adapter":
        return (name.removeprefix("module."),)
    part, _, leaf = name.rpartition(".")
    table = TABLES[arch]
    if part.startswith("embeddings."):
        hub = table.embeddings[part.removeprefix("embeddings.")]
        return (hub if hub == D2L_POSITIONS else f"{table.prefix}{hub}.{leaf}",)
    if part.startswith("layers."):
        _, number, inner = part.split(".")
        return tuple(f"{table.prefix}{table.layer.format(number)}{hub}.{leaf}" for hub in table.parts[inner])
    return (f"{table.prefix}{table.top[part]}.{leaf}",)


def plain_name(arch: str, name: str) -> str:
    """A name of a hub file without the prefix and the legacy endings that it may or may not have."""
    name = name.removeprefix(TABLES[arch].prefix)
    for old, new in zip(LEGACY, (".weight", ".bias"), strict=True):
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name


def skip_reason(name: str) -> str | None:
    """Why the plain name `name` of a file may be left out; None where it may not."""
    return next((reason for reason, pattern in SKIPPED.items() if pattern.match(name)), None)


@dataclass
class Misfits:
    """Weights of a file that do not fit the model, by what is wrong with them."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)

    def check(self, place: Path) -> None:
        """Raise a ModelError that lists them, where there are any."""
        kinds = {
            "missing": self.missing,
            "not expected": self.unexpected,
            "of another shape than config.json says": self.shapes,
            "not of floating-point numbers, as in a quantised model": self.types,
        }
        said = [
            f"{len(names)} {'are' if len(names) > 1 else 'is'} {kind}: {listed(names)}"
            for kind, names in kinds.items()
            if names
        ]
        if said:
            raise ModelError(f"{place}: the weights do not fit config.json: {'; '.join(said)}.")
