"""What can be wrong with pairs: sides exchanged, sides that are equal, a second side that gives the label away."""

from __future__ import annotations

import numpy as np

from bertune.doctor.corpus import Corpus
from bertune.doctor.findings import Finding, share
from bertune.doctor.telling import SPREADS, auc_apart, chance_error, label_aucs, words_apart
from bertune.evaluate.baseline import TfidfLinear
from bertune.evaluate.resample import folds_of

SAMPLE = 20_000  # training rows that the linear models see at most
GIVEN_AWAY = 0.6  # area under the curve of the second side alone that is worth a word; chance is 0.5
SIDES_DIFFER = 0.7  # area under the curve from which a side can be told by its words


def examine_pairs(corpus: Corpus) -> list[Finding]:
    """All findings about pairs; nothing for single texts."""
    if not corpus.task.is_pair:
        return []
    return [*_identical(corpus), *_swapped_rows(corpus), *_swapped_splits(corpus), *_given_away(corpus)]


def _identical(corpus: Corpus) -> list[Finding]:
    rows = [row for row, (one, other) in enumerate(corpus.keys) if one == other and one]
    if not rows:
        return []
    return [Finding(
        "identical_sides", "warning", len(rows), f"{share(len(rows), len(corpus))} have the same text on both sides",
        "Look whether a column was copied by mistake.", corpus.places(rows),
    )]  # fmt: skip


def _swapped_rows(corpus: Corpus) -> list[Finding]:
    """Rows whose sides stand the other way round in an earlier row."""
    first: dict[tuple[str, ...], int] = {}
    rows, across = [], 0
    for row, (one, other) in enumerate(corpus.keys):
        earlier = first.get((other, one)) if one != other else None
        if earlier is not None:
            rows.append(row)
            across += bool(corpus.split[earlier] != corpus.split[row])
        first.setdefault((one, other), row)
    if not rows:
        return []
    told = f", of {across:,} in another split" if across else ""
    return [Finding(
        "swapped_pair", "warning", len(rows),
        f"{share(len(rows), len(corpus))} are an earlier row{told} with its sides exchanged",
        "Where the order means nothing these are copies: keep one, or split by --group.", corpus.places(rows),
    )]  # fmt: skip


def _swapped_splits(corpus: Corpus) -> list[Finding]:
    """Splits whose first side reads like the second side of the training rows, and the other way round."""
    train = corpus.where("train")
    train = train[np.random.default_rng(0).permutation(len(train))[: SAMPLE // 4]]
    if len(train) < 20:
        return []
    texts = [side[row] for side in corpus.sides for row in train]
    which = np.repeat([0, 1], len(train))
    both = np.tile(np.arange(len(train)), 2).tolist()  # the two sides of a row are learned from together, or not
    known = auc_apart(texts, which, folds_of(len(texts), groups=both, count=3))
    if known < SIDES_DIFFER:
        return []
    model = words_apart(texts, which)
    findings = []
    for name in corpus.names:
        rows = corpus.where(name)
        if name == "train" or len(rows) < 20:
            continue
        found = model.auc([side[row] for side in corpus.sides for row in rows], np.repeat([0, 1], len(rows)))
        if found < 1 - SIDES_DIFFER:
            findings.append(Finding(
                "swapped_sides", "warning", len(rows), f"the sides of {name} look exchanged: its first side has the "
                f"words of the second side of train (area under the curve {found:.2f}, in train {known:.2f})",
                "Check --text and --text-pair for this file.",
            ))  # fmt: skip
    return findings


def _given_away(corpus: Corpus) -> list[Finding]:
    """How well the second side alone tells the label, measured on rows whose second side was not learned from."""
    task, train = corpus.task, corpus.where("train")
    train = train[np.random.default_rng(0).permutation(len(train))[:SAMPLE]]
    texts = [corpus.sides[1][row] for row in train]
    keys = [corpus.keys[row][1] for row in train]
    if len(set(keys)) < 50:
        return []
    targets = corpus.targets[train]
    logits = np.empty((len(train), task.num_labels), np.float32)
    for learned, left in folds_of(len(keys), groups=keys, count=3):
        model = TfidfLinear([texts[row] for row in learned], targets[learned], kind=task.kind,
                            num_labels=task.num_labels)  # fmt: skip
        logits[left] = model.logits([texts[row] for row in left])
    hot = corpus.hot[train]
    areas = label_aucs(hot, logits)
    known = np.flatnonzero(np.isfinite(areas))
    found = areas[known].mean() if len(known) else 0.5
    errors = [chance_error(hot[:, label].astype(int)) for label in known]
    if found < max(GIVEN_AWAY, 0.5 + SPREADS * float(np.mean(errors or 0))):
        return []
    told = ""
    if task.kind == "single":
        right, most = (logits.argmax(axis=1) == targets).mean(), np.bincount(targets).max() / len(targets)
        told = f"; it is right in {100 * right:.0f} %, the most frequent label in {100 * most:.0f} %"
    return [Finding(
        "second_side_tells", "warning", len(train), "the words of the second side alone tell the label apart (area "
        f"under the curve {found:.2f}, chance 0.50{told})",
        "A model may learn this in place of the relation of the two sides: compare with the baseline 'second only' of "
        "the result (Gururangan et al. 2018).",
    )]  # fmt: skip
