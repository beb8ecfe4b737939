"""Frozen lower layers run once: their output is kept, and every epoch starts above them.

Frozen layers see no dropout then, since one pass serves all epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bertune.data.batch import Batch, evaluation_batches
from bertune.data.tokens import Encoded
from bertune.model.classifier import ClassifierModel
from bertune.model.encoder import Encoder
from bertune.model.noise import Noise


class Features:
    """States below the first trained layer, for every row.

    With the whole encoder frozen, and nothing learned before the head's linear layers: what these read, float32 [rows,
    width], in memory. Otherwise: [tokens, hidden] in the precision of the run, in a temporary file that is mapped.
    """

    def __init__(
        self, model: ClassifierModel, encoded: Encoded, *, start: int, budget: int, path: Path,
        advance: Callable[[int], None] = lambda done: None,
    ) -> None:  # fmt: skip
        self.encoded, self.start, self.path = encoded, start, path
        self.pooled = keeps_pooled(model, start)
        self.dtype = model.encoder.compute_dtype
        hidden = model.encoder.config.hidden
        self.states: np.ndarray
        if self.pooled:
            width = model.head.config.width(model.encoder.config)
            self.states = np.empty((len(encoded), width), dtype=np.float32)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            # numpy has no bf16; its bits travel as int16
            kind = np.float32 if self.dtype == torch.float32 else np.int16
            self.states = np.memmap(path, dtype=kind, mode="w+", shape=(int(encoded.offsets[-1]), hidden))
        done = 0
        try:
            with torch.inference_mode():
                for batch in evaluation_batches(encoded, budget=budget):
                    self._fill(model, batch)
                    done += len(batch)
                    advance(done)
        finally:
            if done < len(encoded):  # Ctrl-C or a full disk; the file may be large
                self.close()

    def _fill(self, model: ClassifierModel, batch: Batch) -> None:
        inputs = model.inputs(batch)
        if self.pooled:
            self.states[batch.rows] = model.pooled(inputs).cpu().numpy()
            return
        states = model.encoder(inputs, stop=self.start)[: inputs.tokens].cpu()
        raw = states.view(torch.int16) if self.dtype != torch.float32 else states
        self.states[self._places(batch)] = raw.numpy()

    def _places(self, batch: Batch) -> np.ndarray:
        starts = self.encoded.offsets[batch.rows]
        return np.repeat(starts, np.diff(batch.row_starts)) + batch.within_row

    def logits(self, model: ClassifierModel, batch: Batch, noise: Noise | None) -> Tensor:
        """Logits [rows, labels] of a batch, computed from the kept states upward."""
        if self.pooled:
            states = torch.from_numpy(self.states[batch.rows]).to(model.device)
            return model.head.classify(states, noise=noise)
        states = torch.from_numpy(self.states[self._places(batch)])
        if self.dtype != torch.float32:
            states = states.view(self.dtype)
        return model(model.inputs(batch), noise=noise, hidden=states.to(model.device), start=self.start)

    def close(self) -> None:
        """Remove the temporary file."""
        del self.states
        self.path.unlink(missing_ok=True)


def keeps_pooled(model: ClassifierModel, start: int) -> bool:
    """Whether nothing below the head's linear layers is trained, where layers below `start` are not."""
    unread = list(model.encoder.layers)[model.depth :] if isinstance(model.encoder, Encoder) else []
    apart = {id(value) for layer in unread for value in layer.parameters()}
    # The last norm of modernbert lies above the layers, and is trained with them where only layers are frozen.
    above = any(value.requires_grad for value in model.encoder.parameters() if id(value) not in apart)
    return start >= model.depth and not above and not model.head.config.learns


def keeps_states(model: ClassifierModel, start: int) -> bool:
    """Whether the head reads nothing below layer `start`, so that states kept there are all it needs."""
    read = model.head.config.layers
    return keeps_pooled(model, start) or not read or read[0] >= start


def first_trained_layer(freeze: str, layers: int) -> int:
    """Number of the lowest layer that is trained; `layers` where the whole encoder is frozen."""
    if freeze == "encoder":
        return layers
    return min(layers, int(freeze)) if freeze.isdigit() else 0
