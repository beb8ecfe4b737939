"""Which tokens of a text that is too long are read: so many of its beginning and of its end, or chunks of all of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertune.longtext import HEAD


def head_of(way: str, kept: np.ndarray) -> np.ndarray:
    """How many of the `kept` tokens of each text come from its beginning; the rest is its end. int64 [n] in and out.

    head+tail takes 128 of the beginning, or half where fewer than 256 are kept.
    """
    if way == "head":
        return kept
    if way == "tail":
        return np.zeros_like(kept)
    if way == "head+tail":
        return np.minimum(HEAD, (kept + 1) // 2)
    return np.minimum(int(way.removesuffix("+tail")), kept)


@dataclass(frozen=True)
class Chunks:
    """Chunks of n texts, one after another. counts int64 [n]; owner, begin, end: int64 [chunks], the text of each, and
    its first token and the one after its last; covered int64 [n]: tokens of the text that are read."""

    counts: np.ndarray
    owner: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    covered: np.ndarray


def chunks_of(lengths: np.ndarray, room: np.ndarray, *, overlap: int, most: int) -> Chunks:
    """As few chunks of at most `room` tokens (int64 [n], more than `overlap`) as cover each text; at most `most`.

    Chunks of a text are equally long, up to one token: filled to the brim, the last one could be a stub of a word or
    two, which would weigh as much as the others where they are joined.
    """
    step = room - overlap
    counts = 1 + np.maximum(0, -(-(lengths - room) // step))
    counts = np.minimum(counts, most)
    covered = np.minimum(lengths, room + (counts - 1) * step)
    owner = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    inner = np.where(counts > 1, covered - overlap, covered)[owner]  # what is divided; each chunk reads on by `overlap`
    shared = np.where(counts > 1, overlap, 0)[owner]
    begin = number * inner // counts[owner]
    end = (number + 1) * inner // counts[owner] + shared
    return Chunks(counts, owner, begin, end, covered)
