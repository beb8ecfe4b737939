"""Logits of many rows: streamed, in the order the rows were given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bertune.data.batch import Batch, evaluation_batches
from bertune.data.tokens import Encoded
from bertune.model.classifier import ClassifierModel


def infer_logits(
    model: ClassifierModel, encoded: Encoded, *, budget: int, check: Callable[[], None] | None = None,
    forward: Callable[[Batch], Tensor] | None = None, advance: Callable[[int], None] | None = None,
) -> np.ndarray:
    """float32 [rows, labels]. `check` is called between batches and may raise to stop; `forward` replaces the model;
    `advance` is told after each batch how many rows are done."""
    done = 0
    logits = np.empty((len(encoded), model.head.config.num_labels), dtype=np.float32)
    with torch.inference_mode():
        for batch in evaluation_batches(encoded, budget=budget):
            if check is not None:
                check()
            found = model(model.inputs(batch)) if forward is None else forward(batch)
            logits[batch.rows] = found.cpu().numpy()
            done += len(batch)
            if advance is not None:
                advance(done)
    return logits
