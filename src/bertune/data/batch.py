"""Batches without padding, and the order in which rows are visited.

Rows of a batch lie one after another; `cu` says where each begins. Only attention on a processor without
variable-length kernels ever pads, and only inside groups of rows of nearly equal length (see model/attention.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bertune.data.tokens import Encoded


@dataclass(frozen=True)
class Batch:
    """Some rows, ready for an encoder.

    ids, types, positions: int64 [tokens], positions within the sequence; cu: int64 [sequences + 1], cumulative lengths
    from 0; rows: int64 [rows], which rows of the encoded data these are; parts: int64 [rows], sequences of each row,
    None where that is one. (A last sequence may fill up, and is of no row: `rounded`.)
    """

    ids: np.ndarray
    types: np.ndarray
    positions: np.ndarray
    cu: np.ndarray
    rows: np.ndarray
    parts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sequences(self) -> int:
        """Sequences of the rows."""
        return len(self.rows) if self.parts is None else int(self.parts.sum())

    @property
    def row_starts(self) -> np.ndarray:
        """The first token of each row, and the end of the last row; int64 [rows + 1]."""
        if self.parts is None:
            return self.cu[: len(self.rows) + 1]
        return self.cu[np.concatenate(([0], np.cumsum(self.parts)))]

    @property
    def within_row(self) -> np.ndarray:
        """The number of each token among those of its row, int64 [tokens of the rows]."""
        if self.parts is None:
            return self.positions[: self.cu[len(self.rows)]]
        starts = self.row_starts
        return np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))

    @property
    def tokens(self) -> int:
        return int(self.cu[-1])

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.cu)


def make_batch(encoded: Encoded, rows: np.ndarray) -> Batch:
    """The given rows of `encoded`, in the given order."""
    rows = np.asarray(rows, dtype=np.int64)
    starts = encoded.offsets[rows]
    row_lengths = encoded.offsets[rows + 1] - starts
    lengths = encoded.sequence_lengths(rows)
    cu = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=cu[1:])
    place = np.arange(cu[-1], dtype=np.int64)
    positions = place - np.repeat(cu[:-1], lengths)
    where = np.repeat(starts - (np.cumsum(row_lengths) - row_lengths), row_lengths) + place
    return Batch(
        ids=np.asarray(encoded.ids[where], dtype=np.int64),
        types=np.asarray(encoded.types[where], dtype=np.int64),
        positions=positions,
        cu=cu,
        rows=rows,
        parts=None if encoded.parts is None else np.asarray(encoded.parts[rows]),
    )


def rounded(batch: Batch, *, multiple: int, pad_id: int) -> Batch:
    """The batch with one more sequence, of padding, that fills its tokens up to a multiple; `rows` does not name it."""
    missing = -batch.tokens % multiple
    if not missing:
        return batch
    nothing = np.zeros(missing, dtype=np.int64)
    return Batch(
        ids=np.concatenate((batch.ids, nothing + pad_id)),
        types=np.concatenate((batch.types, nothing)),
        positions=np.concatenate((batch.positions, nothing)),
        cu=np.append(batch.cu, batch.tokens + missing),
        rows=batch.rows,
        parts=batch.parts,
    )


def split_by_budget(rows: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut `rows` into few runs whose tokens fit `budget`, sorted by length so that neighbours are alike.

    A single row longer than the budget forms a run of its own. Ties keep the given order, so the result depends on
    nothing but its arguments.
    """
    rows = np.asarray(rows, dtype=np.int64)
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    total = int(lengths[rows].sum())
    # An even share per run instead of full runs and a small rest: every run then keeps the processor equally busy.
    share = total / max(1, -(-total // budget))
    runs: list[np.ndarray] = []
    begin, filled = 0, 0
    for place, row in enumerate(rows):
        length = int(lengths[row])
        if place > begin and (filled + length > budget or filled >= share):
            runs.append(rows[begin:place])
            begin, filled = place, 0
        filled += length
    if begin < len(rows):
        runs.append(rows[begin:])
    return runs


def epoch_order(rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(rows) that depends on (seed, epoch) alone."""
    return np.random.Generator(np.random.Philox(key=[seed, 0x0E90C4 + epoch])).permutation(rows)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    return -(-rows // batch_size)


def evaluation_batches(encoded: Encoded, *, budget: int) -> Iterator[Batch]:
    """All rows once, longest first, `budget` tokens at a time; `Batch.rows` says where each result belongs."""
    for run in split_by_budget(np.arange(len(encoded)), encoded.lengths, budget):
        yield make_batch(encoded, run)
