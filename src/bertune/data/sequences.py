"""What a pre-training reads: pieces of documents, or pairs of segments, as batches in which no token is padding.

Pieces of any length lie one after another in a batch, and `Batch.cu` says where each begins. Attention never looks
past these borders (model/attention.py), so what is packed together does not see each other, and every piece has its own
special tokens and counts its positions from 0: packing without cross-attention, and without the padding that a
rectangle of rows would need (Krell et al. 2021, arXiv 2107.02027, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bertune.data.batch import Batch, make_batch
from bertune.data.corpus import Corpus, Pieces
from bertune.data.counters import base, keyed, uniform
from bertune.data.masking import Masking
from bertune.data.ragged import Column, Template, assemble
from bertune.errors import DataError


@dataclass(frozen=True)
class Sample(Batch):
    """A batch with what is to be guessed of it.

    places, targets: int64 [chosen], see `Masking`; follows: int64 [rows], 1 where the second segment is the next one
    in the document of the first, 0 where it comes from another document, or None where there are no pairs.
    """

    places: np.ndarray = field(kw_only=True)
    targets: np.ndarray = field(kw_only=True)
    follows: np.ndarray | None = field(kw_only=True)


@dataclass(frozen=True)
class Turn:
    """The sequences of one pass over the corpus. lengths: int64 [n], tokens, special ones included.

    second: int64 [n], the segment that stands second, and follows as in `Sample`; both None without pairs.
    """

    number: int
    lengths: np.ndarray
    second: np.ndarray | None = None
    follows: np.ndarray | None = None


class Sequences:
    """Sequence number i is a piece of its own, or with `pairs` the segment `first[i]` and another one.

    As in BERT (Devlin et al. 2019, section 3.1, task 2), half of the pairs are neighbours in a document, and in the
    other half the second comes from another document; which they are is drawn anew for every pass.
    """

    def __init__(
        self, corpus: Corpus, pieces: Pieces, template: Template, *, pairs: bool, masking: Masking | None, seed: int
    ) -> None:
        self.corpus, self.pieces, self.template, self.masking, self.seed = corpus, pieces, template, masking, seed
        self.first: np.ndarray = np.arange(len(pieces))
        self.pairs = pairs
        if pairs:
            self.first = self._firsts()
        self._turn: Turn | None = None

    def __len__(self) -> int:
        return len(self.first)

    def _firsts(self) -> np.ndarray:
        """Every other segment of each document, where another one follows; DataError where there is none."""
        owner = self.pieces.documents
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        place = np.arange(len(owner)) - np.repeat(starts, np.diff(starts, append=len(owner)))
        followed = np.append(owner[1:] == owner[:-1], False) if len(owner) else np.zeros(0, bool)
        first = np.flatnonzero(followed & (place % 2 == 0))
        if not len(first) or len(starts) < 2:
            raise DataError("Next sentences take two documents, one of them with a segment that follows another.")
        return first

    def turn(self, number: int) -> Turn:
        """The sequences of pass `number`, from 0; depends on the seed and the number alone."""
        if self._turn is None or self._turn.number != number:
            lengths = self.pieces.lengths[self.first] + self.template.num_special
            if not self.pairs:
                self._turn = Turn(number, lengths)
            else:
                second, follows = self._seconds(number)
                self._turn = Turn(number, lengths + self.pieces.lengths[second], second, follows)
        return self._turn

    def _seconds(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        owner, first = self.pieces.documents, self.first
        drawn = keyed(base(self.seed, "pairs", number), first)
        follows = (uniform(drawn, 1) < 0.5).astype(np.int64)
        # Segments of a document stand together, so those of the others are the rest, counted around them.
        low = np.searchsorted(owner, owner[first], side="left")
        own = np.searchsorted(owner, owner[first], side="right") - low
        other = (uniform(drawn, 2) * (len(owner) - own)).astype(np.int64)
        other += np.where(other >= low, own, 0)
        return np.where(follows == 1, first + 1, other), follows

    def sample(self, rows: np.ndarray, number: int) -> Sample:
        """The sequences `rows` of pass `number`, one after another."""
        turn = self.turn(number)
        sides = [self._column(self.first[rows])]
        if turn.second is not None:
            sides.append(self._column(turn.second[rows]))
        encoded = assemble(
            self.template, sides[:1], sides[1:], separator=-1, max_length=None, truncation="longest-first", unk_id=-1
        )
        plain = make_batch(encoded, np.arange(len(rows)))
        batch = Batch(plain.ids, plain.types, plain.positions, plain.cu, np.asarray(rows, dtype=np.int64))
        nothing = np.empty(0, dtype=np.int64)
        masked = (batch.ids, nothing, nothing)
        if self.masking is not None:
            masked = self.masking(batch, seed=self.seed, turn=number)
        ids, places, targets = masked
        follows = None if turn.follows is None else turn.follows[rows]
        return Sample(
            ids, batch.types, batch.positions, batch.cu, batch.rows, places=places, targets=targets, follows=follows
        )

    def _column(self, numbers: np.ndarray) -> Column:
        starts, lengths = self.pieces.starts[numbers], self.pieces.lengths[numbers]
        return Column(self.corpus.take(starts, lengths), lengths)
