"""Integrated gradients over the embedding output of an encoder: what each token adds to the logit of a label.

Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks": the gradient of the logit is integrated
along the straight line from a baseline to the row and multiplied by their difference. The scores then add up to the
difference of both logits (completeness), up to what the numerical integration misses. The baseline is the same row with
padding in place of every token but the special ones; captum integrates, by Gauss-Legendre.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bertune.data.batch import make_batch
from bertune.data.ragged import Encoded
from bertune.errors import ModelError
from bertune.model.classifier import ClassifierModel
from bertune.model.encoder import Encoder, Inputs

FEWEST_STEPS, MOST_STEPS = 32, 512
ENOUGH = 0.02  # relative error below which no more steps are taken ...
SMALL = 1e-4  # ... and the error in units of the logit, where both logits are all but the same
TOKENS = 2048  # computed at once: the gradient keeps all states of all layers, some 100 times the tokens themselves


@dataclass(frozen=True)
class Attribution:
    """tokens: float64 [tokens], the share of each in `logit - baseline`; error: what their sum misses of that."""

    tokens: np.ndarray
    logit: float
    baseline: float
    steps: int

    @property
    def error(self) -> float:
        return abs(float(self.tokens.sum()) - (self.logit - self.baseline))

    @property
    def is_enough(self) -> bool:
        return self.error <= max(ENOUGH * abs(self.logit - self.baseline), SMALL)


class Attributor:
    """A model in fp32, ready to attribute. pad_id: the token that the baseline has in place of those of the text."""

    def __init__(self, model: ClassifierModel, *, pad_id: int) -> None:
        if not isinstance(model.encoder, Encoder):
            raise ModelError(
                "encoders outside the family run through transformers and cannot be explained; train one of bert, "
                "roberta, distilbert, electra or modernbert."
            )
        self.model, self.encoder, self.pad_id = model, model.encoder, pad_id
        model.requires_grad_(False)  # the gradients of the weights are nobody's business here

    def attribute(
        self, encoded: Encoded, row: int, *, of_text: np.ndarray, label: int, steps: int | None
    ) -> Attribution:
        """The attribution of one row for the logit of a label, by number.

        of_text: bool [tokens], False for tokens that stay in the baseline. steps: None takes 32, and twice as many
        again until the error is below 2 % (or 0.0001 of the logit), at most 512.
        """
        line = _Line(self, encoded, row, of_text)
        count = FEWEST_STEPS if steps is None else steps
        while True:
            found = line.integrate(label, count)
            if steps is not None or found.is_enough or count >= MOST_STEPS:
                return found
            count *= 2


class _Line:
    """The straight line from the baseline of a row to the row, in the space of embeddings [tokens, hidden]."""

    def __init__(self, owner: Attributor, encoded: Encoded, row: int, of_text: np.ndarray) -> None:
        self.model, self.encoded, self.row = owner.model, encoded, row
        self.inputs = cache(self._inputs)
        one = self.inputs(1)
        self.length = one.tokens
        with torch.no_grad():
            self.end = owner.encoder.embeddings(one, None)[: self.length]
            ids = one.ids.clone()
            ids[: self.length][torch.from_numpy(of_text).to(ids.device)] = owner.pad_id
            self.begin = owner.encoder.embeddings(replace(one, ids=ids), None)[: self.length]
            both = self.logits(torch.stack((self.end, self.begin)))
        self.values = both.double().cpu().numpy()  # [2, labels], of the row and of its baseline

    def integrate(self, label: int, steps: int) -> Attribution:
        from captum.attr import IntegratedGradients

        scores = IntegratedGradients(self.logits).attribute(
            self.end[None], baselines=self.begin[None], target=label, n_steps=steps, method="gausslegendre",
            internal_batch_size=max(1, TOKENS // self.length),
        )  # fmt: skip
        tokens = scores[0].double().sum(dim=-1).cpu().numpy()
        return Attribution(tokens, float(self.values[0, label]), float(self.values[1, label]), steps)

    def logits(self, hidden: Tensor) -> Tensor:
        """[points, tokens, hidden] -> [points, labels]."""
        return self.model(self.inputs(len(hidden)), hidden=hidden.flatten(0, 1), start=0)

    def _inputs(self, copies: int) -> Inputs:
        """The row so many times, one after another."""
        return self.model.inputs(make_batch(self.encoded, np.full(copies, self.row)))
