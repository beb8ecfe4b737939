"""Logits of many rows: streamed, in the order the rows were given."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from bertune.data.batch import Batch, evaluation_batches, make_batch
from bertune.data.tokens import Encoded
from bertune.errors import BertuneError
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
            for part, found in _fitting(batch, encoded, forward or (lambda batch: model(model.inputs(batch)))):
                logits[part.rows] = found.cpu().numpy()
            done += len(batch)
            if advance is not None:
                advance(done)
    return logits


def _fitting(
    batch: Batch, encoded: Encoded, forward: Callable[[Batch], Tensor]
) -> Iterator[tuple[Batch, Tensor]]:
    """The batch with its logits, in halves of halves where a GPU has no room for it whole."""
    try:
        found = forward(batch)
    except torch.cuda.OutOfMemoryError:
        if len(batch) == 1:
            raise BertuneError(
                f"The GPU has no room for one row of {batch.tokens} tokens. Lower --max-length, or pass --device cpu."
            ) from None
        torch.cuda.empty_cache()
        for rows in np.array_split(batch.rows, 2):
            yield from _fitting(make_batch(encoded, rows), encoded, forward)
    else:
        yield batch, found
