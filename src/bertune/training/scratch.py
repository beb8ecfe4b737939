"""A model folder from nothing but texts: a WordPiece vocabulary trained on them, and a BERT with random weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer as Rust
from tokenizers import models, normalizers, pre_tokenizers, trainers

from bertune.config import PretrainConfig
from bertune.data.documents import TextSource
from bertune.data.vocab import takeable
from bertune.errors import ConfigError
from bertune.files import write_atomic, write_json
from bertune.model.encoder import Encoder, Layer, initialize
from bertune.model.hubconfig import CONFIG, parse_config
from bertune.model.load import state_by_names
from bertune.model.names import encoder_names
from bertune.model.weights import SAFETENSORS, write_weights

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = 1000  # of a vocabulary at most; rarer ones are unknown
# Of `look_beside`: sinusoids turn by so many radians a token, and a head's score at its distance is some 4.
FASTEST, SLOWEST, STRENGTH = 2.0, 0.002, 1.25
# layers, width, heads, feed-forward: the book's small BERT (Zhang et al., Dive into Deep Learning, section 16.7), and
# BERT-mini (Turc et al. 2019, arXiv 1908.08962).
SHAPES = {"d2l-small": (2, 256, 4, 512), "mini": (4, 256, 4, 1024)}


def scratch_config(options: PretrainConfig, vocab_size: int) -> dict[str, Any]:
    """config.json of a new BERT; ConfigError where its sizes do not fit each other."""
    assert options.from_scratch is not None
    shape = zip((options.layers, options.hidden, options.heads, options.ffn), SHAPES[options.from_scratch], strict=True)
    layers, hidden, heads, ffn = (usual if own is None else own for own, usual in shape)
    if hidden % heads:
        raise ConfigError(f"pretrain.hidden {hidden}: not a multiple of the number of heads, {heads}.")
    if options.max_length > options.positions:
        raise ConfigError(
            f"--max-length {options.max_length}: the new BERT reads {options.positions} tokens. Pass a smaller one, or "
            "a larger pretrain.positions."
        )
    return {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": vocab_size, "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": ffn, "hidden_act": "gelu",
        "max_position_embeddings": options.positions, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "pad_token_id": 0, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
    }  # fmt: skip


def start_from_scratch(folder: Path, sources: list[TextSource], options: PretrainConfig, *, seed: int) -> int:
    """Write vocab.txt, the tokenizer's settings, config.json and random weights into `folder`; the vocabulary's size.

    The same texts, options and seed give the same files; config.json is written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = train_vocabulary(sources, size=options.vocab_size, cased=options.cased)
    write_atomic(folder / "vocab.txt", "\n".join(words) + "\n")
    settings = {"do_lower_case": not options.cased, "tokenizer_class": "BertTokenizer"}
    write_json(folder / "tokenizer_config.json", settings)
    raw = scratch_config(options, len(words))
    encoder = Encoder(parse_config(raw, place=str(folder / CONFIG)))
    initialize(encoder, raw["initializer_range"], seed=seed)
    if options.initialization == "neighbors":
        look_beside(encoder, raw["initializer_range"])
    with torch.no_grad():
        encoder.embeddings.word.weight[raw["pad_token_id"]].zero_()
    write_weights(folder / SAFETENSORS, state_by_names(encoder, lambda name: encoder_names("bert", name)))
    write_json(folder / CONFIG, raw)
    return len(words)


@torch.no_grad()
def look_beside(encoder: Encoder, std: float) -> None:
    """Let attention begin at the tokens beside each one, which by itself it finds only after many millions of tokens.

    Positions begin as sinusoids (Vaswani et al. 2017, arXiv 1706.03762, section 3.5) of the size of other embeddings.
    In all layers but the last, which is left as it was drawn, the heads score the token at distance -1, +1, -2, +2 and
    so on highest: the key of a position is its fastest sinusoids, and the query the same, turned by the distance. All
    of it is trained on from there. To begin with attention as it is found in trained models: Trockman & Kolter 2023
    (arXiv 2305.09828).
    """
    config = encoder.config
    positions = encoder.embeddings.position
    assert positions is not None
    pairs, size = config.hidden // 2, config.hidden // config.heads
    rates = FASTEST * (SLOWEST / FASTEST) ** torch.linspace(0, 1, pairs)  # radians a token
    angles = torch.arange(config.max_positions)[:, None] * rates
    positions.weight[:, : 2 * pairs] = torch.cat((angles.sin(), angles.cos()), dim=1) * std * 2**0.5
    taken = torch.arange(size // 2)
    sines, cosines = taken, taken + len(taken)  # rows of a head; the columns of cosines begin at `pairs`
    for layer in cast(list[Layer], list(encoder.layers))[: max(1, config.layers - 1)]:
        query, key = layer.qkv.weight[: config.hidden], layer.qkv.weight[config.hidden : 2 * config.hidden]
        for head in range(config.heads):
            distance = (head // 2 + 1) * (1 if head % 2 else -1)
            turn = rates[taken] * distance
            first = head * size
            key[first + sines, taken] += STRENGTH
            key[first + cosines, pairs + taken] += STRENGTH
            query[first + sines, taken] += STRENGTH * turn.cos()
            query[first + sines, pairs + taken] += STRENGTH * turn.sin()
            query[first + cosines, taken] -= STRENGTH * turn.sin()
            query[first + cosines, pairs + taken] += STRENGTH * turn.cos()


def train_vocabulary(sources: list[TextSource], *, size: int, cased: bool) -> list[str]:
    """The tokens of a WordPiece vocabulary in the order of their ids, special ones first; fewer than `size` where the
    texts do not have that many."""
    rust = Rust(models.WordPiece(unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters, endings = alphabet(sources, rust)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, initial_alphabet=letters, limit_alphabet=len(letters), show_progress=False,
        special_tokens=[*SPECIAL, *letters, *endings],
    )
    rust.train_from_iterator(_batches(sources), trainer=trainer)
    vocabulary: dict[str, int] = json.loads(rust.to_str())["model"]["vocab"]
    return sorted(vocabulary, key=vocabulary.__getitem__)


def alphabet(sources: list[TextSource], rust: Rust) -> tuple[list[str], list[str]]:
    """The letters of a vocabulary, and those among them that occur inside a word, as pieces with ##; both sorted.

    Handed to the trainer beforehand: it would number them in the order of a hash table, which differs between
    processes, and number decides between pieces that are equally frequent.
    """
    words: Counter[str] = Counter()
    for source in sources:
        for text, _ in source.texts():
            words.update(rust.normalizer.normalize_str(takeable([text])[0]).split())
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, count in words.items():
        for part, _ in rust.pre_tokenizer.pre_tokenize_str(word):
            for letter in part:
                counts[letter] += count
            inside.update(part[1:])
    letters = sorted(sorted(counts, key=lambda letter: (-counts[letter], letter))[:LETTERS])
    return letters, [f"##{letter}" for letter in letters if letter in inside]


def _batches(sources: list[TextSource]) -> Iterator[list[str]]:
    part: list[str] = []
    for source in sources:
        for text, _ in source.texts():
            part.append(text)
            if len(part) == 1000:
                yield takeable(part)
                part = []
    if part:
        yield takeable(part)
