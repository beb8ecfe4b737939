"""Encoder and head as one model: a batch goes in, logits come out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bertune.data.batch import Batch
from bertune.model.adapter import AdapterEncoder
from bertune.model.encoder import Encoder, EncoderConfig, Inputs, inputs_of
from bertune.model.heads import Head, HeadConfig
from bertune.model.noise import Noise


class ClassifierModel(nn.Module):
    """An encoder with a classification head; `module` is the encoder of an architecture outside the family."""

    def __init__(self, encoder: EncoderConfig, head: HeadConfig, *, module: AdapterEncoder | None = None) -> None:
        super().__init__()
        self.encoder: Encoder | AdapterEncoder = Encoder(encoder) if module is None else module
        self.head = Head(encoder, head)

    @property
    def device(self) -> torch.device:
        return self.head.classifier.weight.device

    @property
    def pads(self) -> bool:
        """Whether attention computes padding: with torch's operators on a processor, in groups of rows."""
        layers = self.encoder.layers if isinstance(self.encoder, Encoder) else ()
        return self.device.type != "cuda" and not (layers and all(layer.compiled for layer in layers))

    def inputs(self, batch: Batch) -> Inputs:
        """The batch as tensors where the model is."""
        return inputs_of(batch, device=self.device, dtype=self.encoder.compute_dtype)

    def forward(
        self, inputs: Inputs, *, noise: Noise | None = None, words: Tensor | None = None,
        hidden: Tensor | None = None, start: int = 0,
    ) -> Tensor:
        """Logits [rows, labels] in fp32; `noise` switches dropout on; see `Encoder.forward` for the rest."""
        if self.head.config.pooling == "cls" and isinstance(self.encoder, Encoder):
            first = self.encoder(inputs, noise=noise, words=words, hidden=hidden, start=start, first_only=True)
            return self.head.classify(first.float(), noise=noise)
        states = self.encoder(inputs, noise=noise, words=words, hidden=hidden, start=start)
        return self.head(states, inputs, noise=noise)
