"""What several models say together: the mean of their calibrated probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertune.evaluate.metrics import Array
from bertune.evaluate.rule import Rule, logit


def joint_logits(kind: str, rules: Sequence[Rule], logits: Sequence[Array]) -> Array:
    """Logits [n, L], float64, of the mean over models of the probabilities that each one's rule makes of its logits."""
    shares = [rule.probabilities(kind, own) for rule, own in zip(rules, logits, strict=True)]
    mean = np.clip(np.mean(shares, axis=0), 1e-9, 1 - 1e-9)
    return np.log(mean) if kind == "single" else logit(mean)
