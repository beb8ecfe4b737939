"""Texts of any number as token shards on the disk, and the pieces that a pre-training reads of them.

A corpus is tokenised once, some thousand units at a time on all cores, into arrays of at most SHARD tokens that are
opened memory-mapped; they lie in the cache, keyed by the texts and the tokenizer. In memory are only what says where
units, documents and pieces begin: some 20 bytes a piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertune.data.cache import read_entry, stream_entry
from bertune.data.counters import base, keyed
from bertune.data.documents import Survey, TextSource, units
from bertune.data.ragged import offsets_of, spans
from bertune.data.tokens import Tokenizer

SHARD = 1 << 24  # tokens
_FORMAT = 1  # of cached entries; raised whenever the same corpus would give other arrays
_BATCH_UNITS, _BATCH_CHARACTERS = 8192, 4_000_000  # tokenised at once


@dataclass(frozen=True)
class Corpus:
    """Tokens without special ones, in order.

    shards: arrays of `shard` tokens, the last one shorter; units: int64 [n + 1], where each unit begins; documents:
    int64 [d + 1], the unit that each document begins with. key: SHA-256 of the texts and the tokenizer.
    """

    shards: list[np.ndarray]
    units: np.ndarray
    documents: np.ndarray
    key: str
    shard: int = SHARD

    @property
    def tokens(self) -> int:
        return int(self.units[-1])

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.documents) - 1

    @property
    def bounds(self) -> np.ndarray:
        """int64 [documents + 1]: the token that each document begins with."""
        return np.asarray(self.units[self.documents])

    def take(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int32 [sum of lengths]: the tokens `starts[i] ... starts[i] + lengths[i] - 1` of all i."""
        where = spans(starts, lengths)
        owner = where // self.shard
        found = np.empty(len(where), dtype=np.int32)
        for number in np.unique(owner):
            here = owner == number
            found[here] = self.shards[number][where[here] - number * self.shard]
        return found


@dataclass(frozen=True)
class Pieces:
    """Runs of tokens, none of which leaves its document: starts, lengths and documents, int64 [n] each, in order."""

    starts: np.ndarray
    lengths: np.ndarray
    documents: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)


def open_corpus(
    sources: list[TextSource], found: Survey, tokenizer: Tokenizer, *, sentences: bool, cache: Path, fallback: Path,
    advance: Callable[[int], None] | None = None,
) -> Corpus:
    """The corpus from the cache, or tokenised now and kept there; in `fallback`, a folder, where the cache cannot
    take it. found: what `survey` told of the same sources. advance: told how many units are done."""
    shape = f"{_FORMAT} {SHARD} {tokenizer.fingerprint} {found.digest}"
    key = hashlib.sha256(shape.encode("utf-8")).hexdigest()
    for root in (cache, fallback):
        opened = _open(root, key)
        if opened is not None:
            return opened
    for root in (cache, fallback):
        lengths: list[np.ndarray] = []
        begins: list[np.ndarray] = []
        arrays = _arrays(units(sources, sentences=sentences), tokenizer, lengths, begins, advance)
        # About four characters a token; a guess that is wrong makes too much or too little room, and nothing else.
        size = found.characters // 4 * (2 if tokenizer.vocab_size <= 1 << 16 else 4) + 5 * found.units
        stream_entry(root, "corpora", key, arrays, {}, size=size, limited=root is cache)
        opened = _open(root, key)
        if opened is not None:
            return opened
    raise AssertionError("what has just been written can be read")


def _open(root: Path, key: str) -> Corpus | None:
    found = read_entry(root, "corpora", key)
    if found is None:
        return None
    arrays, _ = found
    shards = [arrays[name] for name in sorted(name for name in arrays if name.startswith("ids-"))]
    begins = np.flatnonzero(arrays["begins"])
    documents = np.append(begins, len(arrays["begins"])).astype(np.int64)
    return Corpus(shards, offsets_of(arrays["lengths"]), documents, key, SHARD)


def _arrays(
    texts: Iterator[tuple[str, bool]], tokenizer: Tokenizer, lengths: list[np.ndarray], begins: list[np.ndarray],
    advance: Callable[[int], None] | None,
) -> Iterator[tuple[str, np.ndarray]]:
    """ids-00000 and so on, then lengths and begins; each is let go before the next is made."""
    kind: Any = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    held: list[np.ndarray] = []
    size = number = done = 0
    for part, starts in _batches(texts):
        column = tokenizer.column(part)
        lengths.append(column.lengths.astype(np.int32))
        begins.append(np.array(starts, dtype=bool))
        held.append(column.values.astype(kind))
        size += len(column.values)
        done += len(part)
        if advance is not None:
            advance(done)
        while size >= SHARD:
            whole = np.concatenate(held)
            yield f"ids-{number:05d}", whole[:SHARD]
            held, number = [whole[SHARD:]], number + 1
            size -= SHARD
    yield f"ids-{number:05d}", np.concatenate(held)
    yield "lengths", np.concatenate(lengths)
    yield "begins", np.concatenate(begins)


def _batches(texts: Iterator[tuple[str, bool]]) -> Iterator[tuple[list[str], list[bool]]]:
    part: list[str] = []
    starts: list[bool] = []
    characters = 0
    for text, begins in texts:
        part.append(text)
        starts.append(begins)
        characters += len(text)
        if len(part) >= _BATCH_UNITS or characters >= _BATCH_CHARACTERS:
            yield part, starts
            part, starts, characters = [], [], 0
    if part:
        yield part, starts


def cut(starts: np.ndarray, lengths: np.ndarray, width: np.ndarray | int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of tokens cut into runs of at most `width`: (starts, lengths, the run that each came from), int64 each."""
    width = np.broadcast_to(np.asarray(width, dtype=np.int64), lengths.shape)
    counts = -(-lengths // width)
    owner = np.repeat(np.arange(len(lengths)), counts)
    place = np.arange(len(owner)) - np.repeat(offsets_of(counts)[:-1], counts)
    begin = place * width[owner]
    return starts[owner] + begin, np.minimum(width[owner], lengths[owner] - begin), owner


def pieces_of(corpus: Corpus, documents: np.ndarray, *, width: int) -> Pieces:
    """The given documents, in order, cut into pieces of `width` tokens; the last one of a document may be shorter."""
    bounds = corpus.bounds
    begins = bounds[documents]
    starts, lengths, owner = cut(begins, bounds[documents + 1] - begins, width)
    return Pieces(starts, lengths, documents[owner])


def segments_of(corpus: Corpus, documents: np.ndarray, *, width: int) -> Pieces:
    """The given documents as segments of whole sentences, each of at most `width` tokens.

    A longer sentence is cut. A document that would be a single segment becomes two where it has two sentences, since
    otherwise nothing could follow anything there.
    """
    first = corpus.documents[documents]
    counts = corpus.documents[documents + 1] - first
    sentences = spans(first, counts)
    starts = corpus.units[sentences]
    starts, sizes, sentence = cut(starts, corpus.units[sentences + 1] - starts, width)
    owners = np.repeat(documents, counts)[sentence]
    totals = np.diff(corpus.bounds)
    targets = np.where(totals > width, width, -(-totals // 2))[owners]
    places: list[int] = []  # of the parts of sentences with which segments begin
    lengths: list[int] = []
    owner = -1
    parts = zip(owners.tolist(), sizes.tolist(), targets.tolist(), strict=True)
    for place, (document, size, target) in enumerate(parts):
        if document == owner and lengths[-1] + size <= target:
            lengths[-1] += size
        else:
            places.append(place)
            lengths.append(size)
            owner = document
    return Pieces(starts[places], np.array(lengths, dtype=np.int64), owners[places])


def hold_out(corpus: Corpus, *, share: float, most: int, seed: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """(documents that train, documents to measure on), int64 each, in order.

    A share of the tokens, in whole documents drawn by the seed, at least `least` of them and about `most` tokens at
    most. Nothing is held out where that would leave less than half of the tokens, or no document, to train on.
    """
    every = np.arange(len(corpus))
    sizes = np.diff(corpus.bounds)
    order = np.argsort(keyed(base(seed, "held out"), every), kind="stable")
    order = order[sizes[order] > 0]
    taken = np.cumsum(sizes[order])
    wanted = min(share * corpus.tokens, most)
    count = max(int(np.searchsorted(taken, wanted)) + 1, least) if share else 0
    if not count or count >= len(order) or taken[count - 1] > corpus.tokens / 2:
        return every[sizes > 0], every[:0]
    held = np.sort(order[:count])
    return np.setdiff1d(every[sizes > 0], held), held
