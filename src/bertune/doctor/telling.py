"""Whether two piles of texts can be told apart by their words, and by which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertune.evaluate.baseline import single_words

SPREADS = 4.0  # standard errors from chance that a difference has to be to count

Folds = Iterable[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class WordsApart:
    """A linear model over words (TF-IDF, logistic regression) that tells pile 1 from pile 0."""

    words: Any
    model: Any

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Higher: rather pile 1. float64 [n]."""
        return np.asarray(self.model.decision_function(self.words.transform(texts)), np.float64)

    def auc(self, texts: Sequence[str], which: np.ndarray) -> float:
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(which, self.scores(texts)))

    def telling(self, count: int) -> tuple[list[str], list[str]]:
        """The words that speak most for pile 0, and for pile 1."""
        names, weights = self.words.get_feature_names_out(), self.model.coef_[0]
        order = np.argsort(weights, kind="stable")
        low = [str(names[place]) for place in order[:count] if weights[place] < 0]
        return low, [str(names[place]) for place in order[::-1][:count] if weights[place] > 0]


def words_apart(texts: Sequence[str], which: np.ndarray) -> WordsApart:
    """Learn to tell the piles apart. which: 0 or 1 for each text."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(analyzer=_words, sublinear_tf=True, dtype=np.float32)
    features = words.fit_transform(texts)
    model = LogisticRegression(solver="liblinear", class_weight="balanced", random_state=0)
    return WordsApart(words, model.fit(features, which))


def _words(text: str) -> list[str]:
    return single_words(text) or [""]  # so that there is a vocabulary where no text has a word


def auc_apart(texts: Sequence[str], which: np.ndarray, folds: Folds) -> float:
    """Area under the curve with which the piles are told apart where no text was learned from: 0.5 is not at all."""
    scores = np.zeros(len(texts))
    for learned, left in folds:
        if len(np.unique(which[learned])) == 2:
            scores[left] = words_apart([texts[row] for row in learned], which[learned]).scores(
                [texts[row] for row in left]
            )
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(which, scores))


def chance_error(which: np.ndarray) -> float:
    """Standard error of an area under the curve by chance alone (Mann and Whitney 1947). which: 0 or 1 for each row."""
    one, other = int(which.sum()), int((1 - which).sum())
    return float(np.sqrt((one + other + 1) / (12 * one * other)))


def label_aucs(hot: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the curve of each label against the rest, float64 [labels]; NaN where all rows have it or none has.

    hot bool, scores float [n, labels].
    """
    from sklearn.metrics import roc_auc_score

    known = [0 < hot[:, label].sum() < len(hot) for label in range(hot.shape[1])]
    return np.array([
        roc_auc_score(hot[:, label], scores[:, label]) if there else np.nan for label, there in enumerate(known)
    ])  # fmt: skip
