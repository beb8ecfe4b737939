"""What the longest length cuts, by label, and what the vocabulary does not know."""

from __future__ import annotations

import numpy as np

from bertune.doctor.corpus import Corpus
from bertune.doctor.findings import Finding, share

CUT = 0.01  # share of the rows that has to be cut to be worth a word
CUT_MUCH = 0.1  # share of the tokens from which it is a warning
UNKNOWN = 0.01  # share of unknown tokens from which the vocabulary does not fit the data
UNKNOWN_IN_ROW = 0.3


def examine_lengths(corpus: Corpus, unk_id: int | None) -> list[Finding]:
    """Findings about truncation and unknown tokens, over all splits."""
    return [*_truncated(corpus), *(_unknown(corpus, unk_id) if unk_id is not None else [])]


def _truncated(corpus: Corpus) -> list[Finding]:
    encoded = [part.encoded for part in corpus.parts.values()]
    full = np.concatenate([each.full_lengths for each in encoded]).astype(np.int64)
    lost = full - np.concatenate([each.lengths for each in encoded])
    rows = np.flatnonzero(lost > 0)
    if len(rows) < CUT * len(corpus):
        return []
    tokens = lost.sum() / full.sum()
    told = _by_label(corpus, lost > 0)
    return [Finding(
        "truncation", "warning" if tokens >= CUT_MUCH else "note", len(rows),
        f"{share(len(rows), len(corpus))} are cut at {encoded[0].max_length} tokens and lose "
        f"{100 * tokens:.1f} % of all tokens{told}",
        f"The longest row has {full.max():,} tokens. A larger --max-length reads more, and takes longer.",
        corpus.places(rows),
    )]  # fmt: skip


def _by_label(corpus: Corpus, cut: np.ndarray) -> str:
    """The labels whose rows are cut most and least often."""
    counts = corpus.hot.sum(axis=0)
    known = np.flatnonzero(counts)
    if len(known) < 2:
        return ""
    shares = (corpus.hot & cut[:, None]).sum(axis=0)[known] / counts[known]
    high, low = int(shares.argmax()), int(shares.argmin())
    names = [corpus.task.labels[known[place]] for place in (high, low)]
    return f"; of '{names[0]}' {100 * shares[high]:.0f} % of the rows, of '{names[1]}' {100 * shares[low]:.0f} %"


def _unknown(corpus: Corpus, unk_id: int) -> list[Finding]:
    counts, sizes = [], []
    for part in corpus.parts.values():
        encoded = part.encoded
        before = np.concatenate([[0], np.cumsum(encoded.ids == unk_id)])
        counts.append(before[encoded.offsets[1:]] - before[encoded.offsets[:-1]])
        sizes.append(encoded.lengths - encoded.special)
    unknown, size = np.concatenate(counts), np.maximum(np.concatenate(sizes), 1)
    overall = unknown.sum() / size.sum()
    rows = np.flatnonzero(unknown > UNKNOWN_IN_ROW * size)
    if overall < UNKNOWN and not len(rows):
        return []
    which = f"; {len(rows):,} rows consist of them by more than {100 * UNKNOWN_IN_ROW:.0f} %" if len(rows) else ""
    return [Finding(
        "unknown_tokens", "warning" if overall >= UNKNOWN else "note", len(rows) or int((unknown > 0).sum()),
        f"{100 * overall:.2g} % of the tokens are unknown to the vocabulary{which}",
        "Choose a --model for this language and script, or clean those rows.",
        corpus.places(rows if len(rows) else np.flatnonzero(unknown)),
    )]  # fmt: skip


