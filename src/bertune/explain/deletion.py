"""Do the named words matter? Without them the label should lose more probability than without as many random ones.

The deletion test of erasure-based evaluations (DeYoung et al. 2020, "ERASER", comprehensiveness): the words with the
highest scores are taken out of the text, and the model answers anew. The same is done with words drawn at random, and
the two drops are compared row by row, with a paired bootstrap over the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bertune.data.rows import Rows
from bertune.errors import ConfigError
from bertune.evaluate.resample import DRAWS, percentiles, resamples
from bertune.explain.explain import explain_rows, readable
from bertune.explain.explanation import Explanation, Word
from bertune.explain.words import side_texts
from bertune.ship.predict import Predictor


@dataclass(frozen=True)
class Deletion:
    """How much calibrated probability the explained label lost, as means over rows.

    rows: measured; a row of several labels counts once for each. short: explanations of rows with no more than `words`
    words, which are left out, since the same words would go either way. difference: named - random, and low and high
    are its 95 % interval. wins: share of rows where the named words cost more than the random ones.
    """

    rows: int
    short: int
    words: int
    named: float
    random: float
    difference: float
    low: float
    high: float
    wins: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        """In a line for the user."""
        return (
            f"Without the {self.words} named words the label lost {self.named:.4f} of its probability, without as many "
            f"random ones {self.random:.4f}: {self.difference:+.4f} apart ({self.low:+.4f} to {self.high:+.4f}, 95 %; "
            f"{self.rows:,} rows)."
        )


def deletion_test(
    predictor: Predictor, rows: Any, *, words: int = 3, draws: int = 10, seed: int = 0, steps: int | None = None,
    work: Any = None,
) -> Deletion:
    """The test over `rows`, as `Predictor.predict` takes them, for the labels that the model gives them.

    words: how many are taken out; draws: how often as many are drawn at random, from all words of the row, to average
    over; seed: of these draws and of the bootstrap; steps, work: see `explain_rows`. ConfigError where no row is long
    enough.
    """
    rows = readable(predictor.rows(rows))
    told = {} if work is None else {"work": work}
    explained = explain_rows(predictor, rows, steps=steps, neighbors=0, **told)
    return deletion_of(predictor, rows, explained, words=words, draws=draws, seed=seed)


def deletion_of(
    predictor: Predictor, rows: Rows, explained: Sequence[Explanation], *, words: int = 3, draws: int = 10,
    seed: int = 0,
) -> Deletion:
    """The test over rows that are explained already, `rows` being as `readable` gives them."""
    long = [explanation for explanation in explained if len(explanation.words) > words]
    if not long:
        raise ConfigError(f"words={words}: none of the {len(rows):,} rows has more words than that; take fewer.")
    random = np.random.default_rng(seed)
    variants: list[Rows] = []
    for found in long:
        named = sorted(found.words, key=lambda word: -word.score)[:words]
        drawn = [random.choice(len(found.words), words, replace=False) for _ in range(draws)]
        chosen = [named, *([found.words[place] for place in places] for places in drawn)]
        variants += [without(rows, found.row, some) for some in chosen]
    left = predictor.probabilities(predictor.logits_of(Rows.stacked(variants)))
    lost = _lost(predictor, long, left.reshape(len(long), draws + 1, -1))
    named_drop, random_drop = lost[:, 0], lost[:, 1:].mean(axis=1)
    # The labels of one row are explained by the same words, so that a row is drawn with all of them.
    gains, groups = named_drop - random_drop, [found.row for found in long]
    means = [
        (weights @ gains) / weights.sum(axis=1)
        for weights in resamples(len(gains), draws=DRAWS, seed=seed, groups=groups)
    ]
    limits = percentiles(np.concatenate(means))
    assert limits is not None  # every draw has rows
    return Deletion(
        rows=len(long), short=len(explained) - len(long), words=words, named=float(named_drop.mean()),
        random=float(random_drop.mean()), difference=float(gains.mean()), low=limits[0], high=limits[1],
        wins=float((gains > 0).mean()),
    )  # fmt: skip


def without(rows: Rows, row: int, words: Sequence[Word]) -> Rows:
    """One row without some of its words; columns stay apart, and one space is left where two would meet."""
    sides = [rows.first] if rows.second is None else [rows.first, rows.second]
    kept = []
    for side, (columns, (text, begins)) in enumerate(zip(sides, side_texts(rows, row), strict=True)):
        stays = np.ones(len(text), dtype=bool)
        for word in words:
            if word.side == side:
                stays[word.begin : word.end] = False
        kept.append(tuple([_rest(column[row], stays[begin:])] for column, begin in zip(columns, begins, strict=True)))
    return Rows(kept[0], kept[1] if len(kept) > 1 else None)


def _rest(text: str, stays: np.ndarray) -> str:
    left = "".join(char for char, stay in zip(text, stays, strict=False) if stay)
    return left if len(left) == len(text) else " ".join(left.split())


def _lost(predictor: Predictor, explained: Sequence[Explanation], left: np.ndarray) -> np.ndarray:
    """Probability lost by the label of each explanation, [explanations, variants]. left: [.., variants, labels]."""
    numbers = [predictor.labels.index(found.label) for found in explained]
    before = np.array([found.probability for found in explained])
    return before[:, None] - left[np.arange(len(explained)), :, numbers]
