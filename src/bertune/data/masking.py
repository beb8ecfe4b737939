"""Which tokens are to be guessed, and what stands in their place: dynamic masking, drawn anew for every pass.

Devlin et al. 2019 (arXiv 1810.04805, section 3.1) choose 15 % of the tokens, of which 80 % become the mask token, 10 %
a random one and 10 % stay; Liu et al. 2019 (arXiv 1907.11692, section 4.1) choose others in every pass. Every draw is a
function of (seed, pass, sequence, place in the sequence), so a resumed run masks as an undisturbed one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bertune.data.batch import Batch
from bertune.data.counters import base, keyed, spread, uniform


@dataclass(frozen=True)
class Masking:
    """How tokens are chosen and replaced.

    rate: chance of a token (of a word: all its pieces together) to be chosen; mask_share, random_share: of the chosen
    ones; mask_id: the mask token; special: bool [vocabulary], tokens that are neither chosen nor put in place of
    others; continues: bool [vocabulary], pieces that go on with a word, or None where every token counts by itself.
    """

    rate: float
    mask_share: float
    random_share: float
    mask_id: int
    special: np.ndarray
    continues: np.ndarray | None = None
    plain: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "plain", np.flatnonzero(~self.special))

    def __call__(self, batch: Batch, *, seed: int, turn: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, places, targets) of a batch in pass number `turn`.

        ids: int64 [tokens], what the encoder sees; places: int64 [chosen], tokens that are to be guessed; targets:
        int64 [chosen], what they are.
        """
        rows = keyed(base(seed, "masking", turn), batch.rows)
        drawn = spread(np.repeat(rows, batch.lengths) + batch.positions.astype(np.uint64))
        chance = uniform(drawn, 1)
        special = self.special[batch.ids]
        if self.continues is not None:
            chance = chance[self._first_pieces(batch, special)]
        places = np.flatnonzero((chance < self.rate) & ~special)
        targets = batch.ids[places]
        how = uniform(drawn[places], 2)
        other = self.plain[(uniform(drawn[places], 3) * len(self.plain)).astype(np.int64)]
        seen = np.where(how < self.mask_share, self.mask_id, targets)
        seen = np.where((how >= self.mask_share) & (how < self.mask_share + self.random_share), other, seen)
        ids = batch.ids.copy()
        ids[places] = seen
        return ids, places, targets

    def _first_pieces(self, batch: Batch, special: np.ndarray) -> np.ndarray:
        """int64 [tokens]: where the word of each token begins."""
        assert self.continues is not None
        starts = ~self.continues[batch.ids] | special
        starts[1:] |= special[:-1]
        starts[batch.cu[:-1]] = True
        return np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))
