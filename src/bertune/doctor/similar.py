"""Texts that are nearly the same, found without comparing all with all.

A text is the set of its words and neighbouring word pairs, and two texts are as similar as these sets are (Jaccard).
MinHash (Broder 1997) finds pairs that are likely to be similar; each is then compared exactly. All of it is done on
whole arrays, which takes a fraction of the time of libraries that go word by word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

SIMILAR = 0.8
# A pair of similarity s shares one of BANDS bands of ROWS minima with probability 1 - (1 - s^ROWS)^BANDS: 0.998 at the
# 0.8 that is asked for, 0.6 at 0.6, 0.02 at 0.3.
BANDS, ROWS = 20, 6
NEIGHBOURS = 16  # texts of one bucket that each is compared with
CHUNK_CHARS = 4_000_000  # at once

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def similar_pairs(sides: Sequence[Sequence[str]], *, threshold: float = SIMILAR) -> np.ndarray:
    """Pairs (i, j), i < j, of rows that are similar on every side, int64 [pairs, 2].

    sides: one list of n normalised texts, or for pairs of texts two. Texts of which no two are equal are expected;
    where more than a few dozen resemble one another, each is compared with some of the others only.
    """
    sets = [shingles(side) for side in sides]
    found: np.ndarray = candidates(sets)
    for ids, offsets in sets:
        found = found[jaccard(ids, offsets, found) >= threshold]
    return found


def shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct words and word pairs of each text as sorted numbers, uint64 [total], and offsets int64 [n + 1]."""
    parts, lengths = [], [np.zeros(1, np.int64)]
    for chunk in _chunks(texts):
        words, rows = _words(chunk)
        together = rows[1:] == rows[:-1]
        pairs = (words[:-1] * _MULTIPLIER ^ _mixed(words[1:]))[together]
        values = np.concatenate([words, pairs])
        owners = np.concatenate([rows, rows[1:][together]])
        order = np.lexsort((values, owners))
        values, owners = values[order], owners[order]
        fresh = np.ones(len(values), bool)
        fresh[1:] = (values[1:] != values[:-1]) | (owners[1:] != owners[:-1])
        parts.append(values[fresh])
        lengths.append(np.bincount(owners[fresh], minlength=len(chunk)))
    return np.concatenate([np.array([], np.uint64), *parts]), np.cumsum(np.concatenate(lengths))


def candidates(sets: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Pairs of rows that share a band of minima, int64 [pairs, 2]; rows without any word are left out.

    Of pairs of texts, the sets of both sides are one set, the words of the second side having other numbers.
    """
    rows = len(sets[0][1]) - 1
    bands = np.zeros((BANDS, rows), np.uint64)
    empty = np.zeros(rows, bool)
    multipliers = np.random.default_rng(0).integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + 1
    for begin, stop in _ranges(sets):
        spans = [(ids[offsets[begin] : offsets[stop]], offsets[begin : stop + 1] - offsets[begin])
                 for ids, offsets in sets]  # fmt: skip
        empty[begin:stop] = np.all([np.diff(offsets) == 0 for _, offsets in spans], axis=0)
        marked = [(_mixed(ids + np.uint64(side)), offsets) for side, (ids, offsets) in enumerate(spans)]
        for number, multiplier in enumerate(multipliers):
            smallest = np.minimum.reduce([_minima(ids * multiplier, offsets) for ids, offsets in marked])
            band = bands[number // ROWS, begin:stop]
            band[:] = _mixed(band + smallest)
    pairs = [_within_buckets(band, ~empty) for band in bands]
    return np.unique(np.concatenate(pairs), axis=0)


def jaccard(ids: np.ndarray, offsets: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Similarity of the sets of each pair of rows, float64 [pairs]; two empty sets are the same."""
    from scipy.sparse import csr_array

    rows, pairs = np.unique(pairs, return_inverse=True)  # of many rows few are in any pair
    sizes = np.diff(offsets)[rows]
    ends = np.cumsum(sizes)
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - sizes, sizes)
    numbers, columns = np.unique(ids[np.repeat(offsets[rows], sizes) + within], return_inverse=True)
    indptr = np.concatenate([[0], ends])
    sets = csr_array((np.ones(len(columns), np.int32), columns, indptr), shape=(len(rows), max(len(numbers), 1)))
    found = np.empty(len(pairs))
    for begin in range(0, len(pairs), 65_536):
        first, second = pairs[begin : begin + 65_536].T
        common = np.asarray(sets[first].multiply(sets[second]).sum(axis=1)).ravel()
        union = sizes[first] + sizes[second] - common
        found[begin : begin + 65_536] = np.where(union > 0, common / np.maximum(union, 1), 1.0)
    return found


def _words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all words, uint64, and the text that each belongs to; a Chinese character is a word."""
    codes = np.frombuffer("\n".join([*texts, ""]).encode("utf-32-le", "replace"), np.uint32)
    kinds = _kinds()[np.minimum(codes, 0xFFFF)]
    ends = np.flatnonzero(codes == ord("\n"))  # normalised texts hold no other line ends
    begins = (kinds > 0) & ((np.concatenate([[0], kinds[:-1]]) == 0) | (kinds == 2) | np.roll(kinds == 2, 1))
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.array([], np.uint64), np.array([], np.int64)
    number = np.cumsum(begins) - 1
    place = np.arange(len(codes)) - starts[np.maximum(number, 0)]
    letters = kinds > 0
    values = _mixed(codes.astype(np.uint64) + (np.minimum(place, 63).astype(np.uint64) << np.uint64(32)))
    hashes = np.add.reduceat(np.where(letters, values, np.uint64(0)), starts)
    return _mixed(hashes), np.searchsorted(ends, starts)


@cache
def _kinds() -> np.ndarray:
    """For each code point of the basic plane, and one for all beyond it: 0 no word, 1 part of one, 2 a word itself."""
    kinds = np.fromiter((chr(code).isalnum() for code in range(0x10000)), np.uint8, 0x10000)
    kinds[0x3400:0xA000] = 2
    kinds[ord("_")] = 1
    kinds[0xFFFF] = 2  # emoji and rare characters
    return kinds


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection that scatters 64-bit numbers (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def _minima(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Smallest value of each row; the largest number there is for a row without any."""
    found = np.full(len(offsets) - 1, np.iinfo(np.uint64).max)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        found[filled] = np.minimum.reduceat(values, offsets[filled])
    return found


def _within_buckets(band: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Pairs of rows with the same value."""
    rows = np.flatnonzero(wanted)
    rows = rows[np.argsort(band[rows], kind="stable")]
    values = band[rows]
    pairs = [np.empty((0, 2), np.int64)]
    for step in range(1, NEIGHBOURS + 1):
        same = np.flatnonzero(values[step:] == values[:-step])
        if not len(same):
            break
        pairs.append(np.stack([rows[same], rows[same + step]], axis=1))
    return np.concatenate(pairs)


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of texts that are worked on at once."""
    begin, held = 0, 0
    for number, text in enumerate(texts):
        held += len(text)
        if held > CHUNK_CHARS:
            yield texts[begin : number + 1]
            begin, held = number + 1, 0
    if begin < len(texts):
        yield texts[begin:]


def _ranges(sets: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[int, int]]:
    """Runs of rows with about as many numbers as a processor's cache holds."""
    total = np.sum([offsets for _, offsets in sets], axis=0)
    begin = 0
    while begin < len(total) - 1:
        stop = int(np.searchsorted(total, total[begin] + 50_000, side="right"))
        stop = min(max(stop, begin + 1), len(total) - 1)
        yield begin, stop
        begin = stop
