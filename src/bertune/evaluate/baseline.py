"""What a model must beat: simple answers for the same rows, learned from the same training rows.

- `tfidf`: TF-IDF with a linear classifier.
- `second_only` (pairs): the same over the second side alone. What it gets right needs no comparison of the two sides:
  in natural language inference the hypothesis alone gives many labels away (Gururangan et al. 2018, arXiv 1803.02324).
- `majority`: the most frequent label, or set of labels, for every row.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from bertune.data.rows import Rows
from bertune.evaluate.metrics import Array

Texts = Sequence[str] | Sequence[tuple[str, str]]

TITLES = {"tfidf": "TF-IDF", "second_only": "second only", "majority": "majority"}
LARGEST = 100_000  # training rows that the linear models see at most; more would take minutes and change little

# A word, or one Chinese character: words of Chinese text are not set apart, and their characters carry meaning.
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
_CERTAIN = 10.0  # logit of a label that all training rows share; its negative where none has it


def plain_texts(rows: Rows) -> Texts:
    """A text a row, its columns joined by a space; of pairs a tuple a row."""
    first, *second = rows.sides()
    return list(zip(first, second[0], strict=True)) if second else first


class TfidfLinear:
    """Words and word pairs weighted by TF-IDF with sublinear counts, then a linear support vector machine a label
    against the rest, with scikit-learn's defaults and a fixed seed.

    texts: as `plain_texts` gives them; of a pair, every word carries a mark of its side. targets: int [n] ('single') or
    0/1 [n, num_labels] ('multi').
    """

    def __init__(self, texts: Texts, targets: Array, *, kind: str, num_labels: int) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.svm import LinearSVC

        self._always = majority_logits(np.asarray(targets), kind=kind, num_labels=num_labels)
        self._words = None
        if not any(map(_terms, texts)):
            return  # there is no word to learn from, in emoji alone say
        chosen = np.sort(np.random.default_rng(0).permutation(len(texts))[:LARGEST])
        self._words = TfidfVectorizer(analyzer=_terms, sublinear_tf=True, dtype=np.float32)
        features = self._words.fit_transform([texts[row] for row in chosen])
        targets = np.asarray(targets)[chosen]
        self._labels: list[float | LinearSVC] = []
        for label in range(num_labels):
            wanted = targets == label if kind == "single" else targets[:, label] > 0.5
            if wanted.all() or not wanted.any():
                self._labels.append(_CERTAIN if wanted.all() else -_CERTAIN)
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # what it has come to by then will do
                self._labels.append(LinearSVC(random_state=0).fit(features, wanted))

    def logits(self, texts: Texts) -> Array:
        """Margins [n, num_labels], float32; `metrics.decide` turns them into predictions. They are not calibrated."""
        if self._words is None:
            return np.tile(self._always, (len(texts), 1))
        rows = self._words.transform(texts)
        logits = np.empty((rows.shape[0], len(self._labels)), np.float32)
        for column, model in enumerate(self._labels):
            logits[:, column] = model if isinstance(model, float) else model.decision_function(rows)
        return logits


def majority_logits(targets: Array, *, kind: str, num_labels: int) -> Array:
    """Logits [num_labels] of the answer that is right most often on `targets`, whatever the row; ties go to the label
    that comes first, or to the set that a row has first."""
    if kind == "single":
        said = np.arange(num_labels) == np.bincount(targets, minlength=num_labels).argmax()
    else:
        sets, first, counts = np.unique(np.asarray(targets) > 0.5, axis=0, return_index=True, return_counts=True)
        said = sets[np.lexsort((first, -counts))[0]]
    return np.where(said, _CERTAIN, -_CERTAIN).astype(np.float32)


def baseline_logits(
    train: Texts, targets: Array, parts: Mapping[str, Texts], *, kind: str, num_labels: int
) -> dict[str, dict[str, Array]]:
    """Logits [n, num_labels] of each baseline for each of `parts`: {baseline: {part: logits}}."""
    linear = TfidfLinear(train, targets, kind=kind, num_labels=num_labels)
    found = {"tfidf": {name: linear.logits(texts) for name, texts in parts.items()}}
    if train and not isinstance(train[0], str):
        second = TfidfLinear(_second(train), targets, kind=kind, num_labels=num_labels)
        found["second_only"] = {name: second.logits(_second(texts)) for name, texts in parts.items()}
    always = majority_logits(targets, kind=kind, num_labels=num_labels)
    found["majority"] = {name: np.tile(always, (len(texts), 1)) for name, texts in parts.items()}
    return found


def _second(texts: Texts) -> list[str]:
    return [pair[1] for pair in texts]


def single_words(text: str) -> list[str]:
    """The words of a text in lower case, as the linear models see them."""
    return _WORD.findall(text.lower())


def _terms(text: str | tuple[str, str]) -> list[str]:
    """Words and neighbouring pairs of one text, or of both sides of a pair, each marked."""
    if isinstance(text, str):
        words = single_words(text)
        return words + [f"{a} {b}" for a, b in pairwise(words)]
    return [f"{side}:{term}" for side, part in enumerate(text) for term in _terms(part)]
