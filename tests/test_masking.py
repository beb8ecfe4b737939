"""Which tokens are masked, how often, and that only the place of a token and the pass decide it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bertune.data.batch import Batch
from bertune.data.masking import Masking

VOCABULARY, CLS, SEP, MASK = 1000, 2, 3, 4
SPECIAL = np.arange(VOCABULARY) < 5


def batch(rows: int = 400, length: int = 50, *, seed: int = 0) -> Batch:
    """Sequences of `length` tokens between [CLS] and [SEP]."""
    ids = np.random.default_rng(seed).integers(5, VOCABULARY, (rows, length + 2))
    ids[:, 0], ids[:, -1] = CLS, SEP
    width = length + 2
    return Batch(
        ids=ids.ravel(), types=np.zeros(rows * width, np.int64), positions=np.tile(np.arange(width), rows),
        cu=np.arange(rows + 1) * width, rows=np.arange(rows),
    )  # fmt: skip


def part(whole: Batch, rows: np.ndarray) -> Batch:
    """Some rows of a batch, in another order, under their own numbers."""
    places = np.concatenate([np.arange(whole.cu[row], whole.cu[row + 1]) for row in rows])
    cu = np.concatenate([[0], np.cumsum(whole.lengths[rows])])
    return Batch(whole.ids[places], whole.types[places], whole.positions[places], cu, whole.rows[rows])


def masking(**changes: Any) -> Masking:
    usual = {"rate": 0.15, "mask_share": 0.8, "random_share": 0.1, "mask_id": MASK, "special": SPECIAL}
    return Masking(**{**usual, **changes})


def within(count: int, of: int, share: float) -> bool:
    """Whether a count lies in the band that holds a binomial one but for once in 16,000 times."""
    return abs(count - of * share) <= 4 * math.sqrt(of * share * (1 - share)) + 1


@pytest.mark.parametrize(("rate", "mask_share", "random_share"), [(0.15, 0.8, 0.1), (0.3, 0.5, 0.5), (0.05, 0.0, 0.0)])
def test_shares_are_those_asked_for(rate: float, mask_share: float, random_share: float) -> None:
    plain = batch()
    ids, places, targets = masking(rate=rate, mask_share=mask_share, random_share=random_share)(plain, seed=1, turn=0)
    tokens = int((~SPECIAL[plain.ids]).sum())
    assert within(len(places), tokens, rate)
    masked, same = int((ids[places] == MASK).sum()), int((ids[places] == targets).sum())
    assert within(masked, len(places), mask_share)
    assert within(same, len(places), 1 - mask_share - random_share * 994 / 995)  # a random token may be the same one


def test_special_tokens_are_neither_masked_nor_put_in_place_of_others() -> None:
    plain = batch()
    ids, places, _ = masking(rate=0.9, mask_share=0.0, random_share=1.0)(plain, seed=0, turn=0)
    assert not SPECIAL[plain.ids[places]].any()
    assert not SPECIAL[ids[places]].any()
    assert (ids[SPECIAL[plain.ids]] == plain.ids[SPECIAL[plain.ids]]).all()


def test_targets_are_what_stood_there_and_all_other_tokens_stay() -> None:
    plain = batch()
    ids, places, targets = masking()(plain, seed=0, turn=0)
    assert (targets == plain.ids[places]).all()
    others = np.ones(len(ids), dtype=bool)
    others[places] = False
    assert (ids[others] == plain.ids[others]).all()


def test_every_pass_has_masks_of_its_own_and_every_seed_too() -> None:
    plain, first = batch(), masking()(batch(), seed=0, turn=0)[1]
    for seed, turn in ((0, 1), (1, 0)):
        both = len(np.intersect1d(first, masking()(plain, seed=seed, turn=turn)[1]))
        assert within(both, len(first), 0.15)  # as many in common as by chance
    assert (first == masking()(plain, seed=0, turn=0)[1]).all()


def test_masks_do_not_depend_on_what_else_is_in_the_batch() -> None:
    whole, rows = batch(40), np.array([31, 4, 17])
    ids, _, _ = masking()(whole, seed=3, turn=2)
    few, _, _ = masking()(part(whole, rows), seed=3, turn=2)
    assert (few == np.concatenate([ids[whole.cu[row] : whole.cu[row + 1]] for row in rows])).all()


class TestWholeWords:
    CONTINUES = (np.arange(VOCABULARY) % 3 == 0) & ~SPECIAL

    def test_all_pieces_of_a_word_are_masked_or_none(self) -> None:
        plain = batch()
        _, places, _ = masking(continues=self.CONTINUES)(plain, seed=0, turn=0)
        chosen = np.zeros(len(plain.ids), dtype=bool)
        chosen[places] = True
        goes_on = self.CONTINUES[plain.ids] & (plain.positions > 1)  # what follows [CLS] begins a word
        inside = np.flatnonzero(goes_on)
        assert len(inside) > 1000
        assert (chosen[inside] == chosen[inside - 1]).all()

    def test_the_share_of_tokens_is_the_same(self) -> None:
        plain = batch(2000)
        tokens = int((~SPECIAL[plain.ids]).sum())
        places = masking(continues=self.CONTINUES)(plain, seed=0, turn=0)[1]
        assert abs(len(places) / tokens - 0.15) < 0.006

    def test_a_word_does_not_reach_over_the_border_of_a_sequence(self) -> None:
        """Two sequences without special tokens, the second of which begins in the middle of a word."""
        word = np.flatnonzero(self.CONTINUES)[:40]
        two = Batch(
            ids=np.concatenate([[7], word, word]), types=np.zeros(81, np.int64),
            positions=np.concatenate([np.arange(41), np.arange(40)]), cu=np.array([0, 41, 81]), rows=np.array([0, 1]),
        )  # fmt: skip
        halves = set()
        for turn in range(60):
            places = masking(rate=0.5, continues=self.CONTINUES)(two, seed=0, turn=turn)[1]
            halves.add((len(places) and bool((places < 41).any()), bool((places >= 41).any())))
        assert {(True, False), (False, True)} <= halves
