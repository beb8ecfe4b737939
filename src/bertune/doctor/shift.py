"""Whether the splits come from one distribution: can a classifier tell their texts apart?

A classifier two-sample test (Lopez-Paz and Oquab 2017): where the splits are alike, rows that it has not learned from
are told apart no better than by chance.
"""

from __future__ import annotations

import numpy as np

from bertune.doctor.corpus import Corpus
from bertune.doctor.findings import Finding
from bertune.doctor.telling import SPREADS, auc_apart, chance_error, words_apart
from bertune.errors import listed
from bertune.evaluate.resample import folds_of

SAMPLE = 10_000  # rows of a split that are looked at
FEWEST = 30
SHIFTED = 0.6  # area under the curve from which splits differ enough to matter
WORDS = 6


def examine_shift(corpus: Corpus) -> list[Finding]:
    """A finding for each split that differs from the training rows by its words or by its labels."""
    findings = []
    for name in corpus.names:
        if name == "train" or len(corpus.where(name)) < FEWEST or len(corpus.where("train")) < FEWEST:
            continue
        findings += [*_words(corpus, name), *_labels(corpus, name)]
    return findings


def _words(corpus: Corpus, name: str) -> list[Finding]:
    random = np.random.default_rng(0)
    both = [corpus.where("train"), corpus.where(name)]
    rows = np.concatenate([random.permutation(side)[:SAMPLE] for side in both])
    which = (corpus.split[rows] == corpus.names.index(name)).astype(int)
    texts = [" ".join(side[row] for side in corpus.sides) for row in rows]
    # Rows about one thing, such as the pairs that share a first side, mostly lie in one split: not to be learned.
    about = [corpus.keys[row][0] for row in rows]
    found = auc_apart(texts, which, folds_of(len(rows), groups=about, count=3))
    if found < max(SHIFTED, 0.5 + SPREADS * chance_error(which)):
        return []
    train, other = words_apart(texts, which).telling(WORDS)
    return [Finding(
        "shift", "warning", int(which.sum()),
        f"the texts of {name} differ from those of train: a classifier tells them apart (area under the curve "
        f"{found:.2f}, chance 0.50). Telling of {name}: {listed(other, WORDS)}; of train: {listed(train, WORDS)}",
        "Expect other figures on rows like those of train; draw the splits from one pile, or collect training rows "
        f"like those of {name}.",
    )]  # fmt: skip


def _labels(corpus: Corpus, name: str) -> list[Finding]:
    """The labels whose share differs between train and this split by more than chance, and by enough to matter."""
    labels = corpus.task.labels
    train, other = corpus.hot[corpus.where("train")], corpus.hot[corpus.where(name)]
    shares = train.mean(axis=0), other.mean(axis=0)
    both = np.concatenate([train, other]).mean(axis=0)
    error = np.sqrt(both * (1 - both) * (1 / len(train) + 1 / len(other)))
    moved = np.abs(shares[1] - shares[0])
    odd = np.flatnonzero((moved > SPREADS * error) & (moved > 0.05))
    if not len(odd):
        return []
    order = odd[np.argsort(-moved[odd], kind="stable")]
    told = listed((f"'{labels[at]}' {100 * shares[0][at]:.0f} % -> {100 * shares[1][at]:.0f} %" for at in order), 6)
    return [Finding(
        "label_shift", "warning", len(odd), f"labels are not as frequent in {name} as in train: {told}",
        "The decision rule is chosen on the validation rows: choose them like the rows to come.",
    )]  # fmt: skip
