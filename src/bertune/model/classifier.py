"""Encoder and head as one model: a batch goes in, logits come out. Models with other heads share how it goes in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertune.data.batch import Batch, rounded
from bertune.model.adapter import AdapterEncoder
from bertune.model.attention import has_flash
from bertune.model.encoder import Encoder, EncoderConfig, Inputs, inputs_of
from bertune.model.heads import Head, HeadConfig, depth_read
from bertune.model.noise import Noise

# On a GPU, numbers of tokens are rounded up to this: for every new shape, choosing the kernel of a matrix product takes
# many times as long as launching it, and batches cut by tokens hardly ever have the same shape twice.
GPU_MULTIPLE = 256


class EncoderModel(nn.Module):
    """What every model over an encoder shares, whatever its `head`."""

    encoder: Encoder | AdapterEncoder
    head: nn.Module

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    @property
    def depth(self) -> int:
        """How many layers are computed: those up to the highest that the head reads."""
        return self.encoder.config.layers

    @property
    def pads(self) -> bool:
        """Whether attention computes padding: where it takes rows in groups, without kernels or flash attention."""
        layers = self.encoder.layers if isinstance(self.encoder, Encoder) else ()
        compiled = layers and all(layer.compiled for layer in layers)
        return not (compiled or has_flash(self.device, self.encoder.compute_dtype))

    def inputs(self, batch: Batch) -> Inputs:
        """The batch as tensors where the model is."""
        if self.device.type == "cuda" and isinstance(self.encoder, Encoder):
            batch = rounded(batch, multiple=GPU_MULTIPLE, pad_id=self.encoder.config.pad_id)
        return inputs_of(batch, device=self.device, dtype=self.encoder.compute_dtype)


class ClassifierModel(EncoderModel):
    """An encoder with a classification head; `module` is the encoder of an architecture outside the family."""

    def __init__(self, encoder: EncoderConfig, head: HeadConfig, *, module: AdapterEncoder | None = None) -> None:
        super().__init__()
        self.encoder = Encoder(encoder) if module is None else module
        self.head: Head = Head(encoder, head)

    @property
    def depth(self) -> int:
        return depth_read(self.head.config.layers, super().depth)

    def forward(
        self, inputs: Inputs, *, noise: Noise | None = None, words: Tensor | None = None,
        hidden: Tensor | None = None, start: int = 0, quiet: int = 0,
    ) -> Tensor:
        """Logits [rows, labels] in fp32; `noise` switches dropout on; see `Encoder.forward` for the rest."""
        pooled = self.pooled(inputs, noise=noise, words=words, hidden=hidden, start=start, quiet=quiet)
        return self.head.classify(pooled, noise=noise)

    def pooled(
        self, inputs: Inputs, *, noise: Noise | None = None, words: Tensor | None = None,
        hidden: Tensor | None = None, start: int = 0, quiet: int = 0,
    ) -> Tensor:
        """What the linear layers of the head read of each row, fp32 [rows, width]."""
        if hidden is not None and len(hidden) < len(inputs.ids):
            hidden = F.pad(hidden, (0, 0, 0, len(inputs.ids) - len(hidden)))
        encoder, head = self.encoder, self.head.config
        first = head.pooling == "cls"
        if not isinstance(encoder, Encoder):
            states = encoder(inputs, noise=None if quiet else noise, words=words, hidden=hidden, start=start)
            return self.head.pool([states], inputs)
        if head.layers:
            several = encoder.after(
                head.layers, inputs, noise=noise, words=words, hidden=hidden, start=start, first_only=first,
                quiet=quiet,
            )  # fmt: skip
            return self.head.pool(several, inputs, first_only=first)
        states = encoder(
            inputs, noise=noise, words=words, hidden=hidden, start=start, first_only=first, quiet=quiet
        )
        return self.head.pool([states], inputs, first_only=first)
