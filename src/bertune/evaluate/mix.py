"""Labels that are more or less frequent where a model is used than where it was measured: probabilities put right.

Only the frequencies may differ, not what rows of a label look like (label shift). Known frequencies enter by Bayes'
rule; unknown ones are estimated from unlabelled rows by the EM algorithm of Saerens, Latinne and Decaestecker 2002
(Adjusting the Outputs of a Classifier to New a Priori Probabilities), which needs calibrated probabilities and has
them here (Alexandari et al. 2020, arXiv 1901.06852).
"""

from __future__ import annotations

import numpy as np

from bertune.evaluate.metrics import Array

STEPS, CLOSE = 2000, 1e-7
LEAST = 1e-4  # share of a label that is never left out altogether


def shift(kind: str, old: Array, new: Array) -> Array:
    """What calibrated logits are moved by, float64 [L], where shares [L] change from `old` to `new`."""
    old, new = bounded(old), bounded(new)
    move = np.log(new) - np.log(old)
    return move if kind == "single" else move - (np.log1p(-new) - np.log1p(-old))


def estimated_shares(kind: str, probabilities: Array, old: Array) -> Array:
    """Shares of the labels among unlabelled rows, float64 [L].

    probabilities [n, L], calibrated for rows among which the labels have the shares `old` [L]; of one label a row the
    shares sum to 1, of several each label is a question of its own.
    """
    old = bounded(old)
    new = old.copy()
    for _ in range(STEPS):
        yes = probabilities * (new / old)
        no = yes.sum(axis=1, keepdims=True) - yes if kind == "single" else (1 - probabilities) * (1 - new) / (1 - old)
        found = bounded((yes / (yes + no)).mean(axis=0))
        if np.abs(found - new).max() < CLOSE:
            break
        new = found
    return found


def bounded(shares: Array) -> Array:
    """The shares as float64, none of them 0 or 1."""
    return np.clip(np.asarray(shares, np.float64), LEAST, 1 - LEAST)
