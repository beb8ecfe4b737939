"""What an explanation says, as plain values: for Python, JSON, the terminal and the page alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Word:
    """A word that the model read. begin, end: characters of the text of its side (0, or 1 for the second of a pair).

    score: what it adds to the logit of the label, beside the same row with padding in place of every word.
    """

    side: int
    begin: int
    end: int
    text: str
    score: float


@dataclass(frozen=True)
class Neighbor:
    """A training row near to the explained one. row: its number in `file`, from 1; similarity: cosine, -1 to 1."""

    file: str
    row: int
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    similarity: float


@dataclass(frozen=True)
class Explanation:
    """Why a row got a label.

    row          the number of the row among those asked about, from 0
    label        the label that is explained
    logit        its logit, as the model gives it; `baseline` is that of the row with padding in place of every word
    probability  its calibrated probability
    predicted    whether the model gives the row this label
    texts        a text for each side; the columns of a side are joined by a space
    words        in reading order, side by side; what was cut off is not among them
    steps        points between baseline and row where the gradient was taken
    error        how far the sum of the scores is from `logit - baseline`: what the integration missed
    cut          tokens of the row beyond the longest that the model reads
    neighbors    the nearest training rows, the most similar first
    remark       why there are no neighbors; empty where there are, or none were asked for
    """

    row: int
    label: str
    logit: float
    baseline: float
    probability: float
    predicted: bool
    texts: tuple[str, ...]
    words: tuple[Word, ...]
    steps: int
    error: float
    cut: int
    neighbors: tuple[Neighbor, ...] = ()
    remark: str = ""

    @property
    def relative_error(self) -> float | None:
        """`error` as a share of |logit - baseline|; None where that is 0."""
        change = abs(self.logit - self.baseline)
        return self.error / change if change else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; tuples are lists."""
        values = {**asdict(self), "relative_error": self.relative_error}
        values["words"] = [asdict(word) for word in self.words]
        values["neighbors"] = [
            {**asdict(row), "texts": list(row.texts), "labels": list(row.labels)} for row in self.neighbors
        ]
        return values | {"texts": list(self.texts)}

    def strongest(self, count: int) -> list[Word]:
        """The words with the largest scores, of either sign, the largest first."""
        return sorted(self.words, key=lambda word: -abs(word.score))[:count]

    def completeness(self) -> str:
        """In a sentence: how much of the logit the words account for."""
        total, change = sum(word.score for word in self.words), self.logit - self.baseline
        share = "" if self.relative_error is None else f" ({100 * self.relative_error:.2g} %)"
        return (
            f"The words sum to {total:+.4f}; with padding in their place the logit is {change:+.4f} away. "
            f"Completeness error: {self.error:.2g}{share}, {self.steps} steps."
        )
