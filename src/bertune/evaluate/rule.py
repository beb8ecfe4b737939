"""From logits to an answer: the rule that a bundle keeps and every backend applies.

Logits are divided by a temperature and moved by a bias a label, which makes probabilities mean what they say; in a task
with any number of labels, those whose probability reaches their threshold are given. Fitting both is the business of
`calibrate` and `thresholds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from bertune.evaluate.abstain import confidence
from bertune.evaluate.bends import Curve, bent
from bertune.evaluate.metrics import Array, probabilities
from bertune.evaluate.mix import shift
from bertune.evaluate.sets import Sets

Temperature = Annotated[float, Field(gt=0)]
Threshold = Annotated[float, Field(ge=0, le=1)]


class Rule(BaseModel):
    """temperatures: one ('single'), or one a label ('multi'); biases: one a label, added after; thresholds: one a
    label, as probabilities after calibration ('multi'; 1: never said). Empty: 1, 0 and one half, the model as it is.
    curves: one a label, in place of temperatures.

    min_labels: how many labels a row gets at least, the nearest to their thresholds; max_labels: at most.
    sets: how the labels that a row may have are told; abstain: confidence below which a person is asked (2: always).
    shares: how frequent each label is among rows for which the probabilities are right; unknown where empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperatures: tuple[Temperature, ...] = ()
    curves: tuple[Curve, ...] = ()
    biases: tuple[float, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    min_labels: int = Field(0, ge=0)
    max_labels: int | None = Field(None, ge=1)
    sets: Sets | None = None
    abstain: float | None = Field(None, ge=0)
    shares: tuple[Threshold, ...] = ()

    def calibrated(self, kind: str, logits: Array) -> Array:
        """Logits [n, L] whose softmax or sigmoid are calibrated probabilities."""
        found = logits / np.asarray(self.temperatures, np.float32) if self.temperatures else logits
        if self.curves:
            found = bent(kind, found, self.curves)
        return found + np.asarray(self.biases, np.float32) if self.biases else found

    def probabilities(self, kind: str, logits: Array) -> Array:
        """Calibrated probabilities, float64 [n, L]."""
        return probabilities(kind, self.calibrated(kind, logits))

    def decide(self, kind: str, logits: Array) -> Array:
        """The answers as `metrics.decide` gives them: int64 [n] ('single') or bool [n, L] ('multi')."""
        if kind == "single":
            # One temperature for all leaves the largest the largest, but may round two to one.
            moves = bool(self.biases or self.curves)
            return np.argmax(self.calibrated(kind, logits) if moves else logits, axis=-1)
        margins = self.margins(logits)
        said = margins >= 0
        if self.min_labels or self.max_labels is not None:
            rank = np.argsort(np.argsort(-margins, axis=1, kind="stable"), axis=1)  # 0: the nearest to being said
            said |= rank < self.min_labels
            if self.max_labels is not None:
                said &= rank < self.max_labels
        return said

    def label_sets(self, kind: str, logits: Array) -> Array:
        """The labels that each row may have, bool [n, L]; there has to be a rule for it."""
        assert self.sets is not None, "the model has no sets"
        return self.sets.of(kind, self.probabilities(kind, logits))

    def abstains(self, kind: str, logits: Array) -> Array:
        """Whether a person has to be asked, bool [n]; there has to be a rule for it."""
        assert self.abstain is not None, "the model answers always"
        return confidence(kind, self.probabilities(kind, logits), self.decide(kind, logits)) < self.abstain

    def margins(self, logits: Array) -> Array:
        """How far the calibrated logits [n, L] lie above their thresholds ('multi')."""
        calibrated = self.calibrated("multi", logits)
        return calibrated - logit(self.thresholds) if self.thresholds else np.asarray(calibrated)

    def with_threshold(self, threshold: float, num_labels: int) -> Rule:
        """The same calibration and sets with one threshold for every label; what was promised about the accuracy of
        other answers is gone."""
        return self.model_copy(update={"thresholds": (threshold,) * num_labels, "abstain": None})

    def with_shares(self, kind: str, shares: Array) -> Rule:
        """The rule for rows among which the labels have these shares [L]. What was promised held for others, and is
        gone."""
        assert self.shares, "the shares of the rows that chose the rule are not known"
        move = shift(kind, np.array(self.shares), shares)
        biases = tuple(float(bias) for bias in move + np.array(self.biases or 0.0))
        told = tuple(float(share) for share in shares)
        return self.model_copy(update={"biases": biases, "shares": told, "sets": None, "abstain": None})

    def ordered(self, order: Sequence[int]) -> Rule:
        """The rule for labels in another order: `order` has the old place of each."""
        fields = {name: getattr(self, name) for name in ("temperatures", "curves", "biases", "thresholds", "shares")}
        new: dict[str, object]
        new = {name: tuple(values[place] for place in order) for name, values in fields.items() if len(values) > 1}
        if self.sets is not None and len(self.sets.cutoffs) > 1:
            cutoffs = tuple(self.sets.cutoffs[place] for place in order)
            new["sets"] = self.sets.model_copy(update={"cutoffs": cutoffs})
        return self.model_copy(update=new)


def logit(shares: Sequence[float] | Array) -> Array:
    """Where probabilities lie on the scale of logits; infinite for 0 and 1."""
    exact = np.asarray(shares, np.float64)
    with np.errstate(divide="ignore"):
        return np.log(exact) - np.log1p(-exact)
