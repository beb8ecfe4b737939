"""From hidden states to logits: pooling, then the head that transformers has for the architecture, or a plain one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bertune.model.encoder import ACTIVATIONS, EncoderConfig, Inputs, Norm
from bertune.model.noise import Noise

Pooling = Literal["cls", "mean", "max"]


@dataclass(frozen=True)
class HeadConfig:
    """A head, fully decided.

    kind: own (the architecture's head in transformers), linear or mlp; pooling: cls, mean or max; hidden: width of the
    mlp; dropout: rate before each linear layer of the head.
    """

    kind: Literal["own", "linear", "mlp"]
    pooling: Pooling
    num_labels: int
    dropout: float
    hidden: int = 50


def decide_head(
    config: EncoderConfig, *, pooling: str, head: str, num_labels: int, head_hidden: int, head_dropout: float | None
) -> HeadConfig:
    """Resolve `auto`: the architecture's own head, unless a pooling is asked for that it does not have; then linear."""
    pooled: Pooling = config.pooling if pooling == "auto" else pooling  # type: ignore[assignment]
    # transformers' modernbert reads the first token or the mean, as config.json says; the others read the first token.
    known = ("cls", "mean") if config.arch == "modernbert" else (config.pooling,)
    own = head == "auto" and pooled in known and config.arch != "adapter"
    kind: Literal["own", "linear", "mlp"] = "own" if own else ("mlp" if head == "mlp" else "linear")
    rate = config.head_dropout if head_dropout is None else head_dropout
    return HeadConfig(kind=kind, pooling=pooled, num_labels=num_labels, dropout=rate, hidden=head_hidden)


def pool(hidden: Tensor, inputs: Inputs, pooling: Pooling) -> Tensor:
    """[tokens, hidden] -> [rows, hidden] in fp32: first token, mean or maximum of each row's tokens."""
    if pooling == "cls":
        return hidden.index_select(0, inputs.first).float()
    rows = len(inputs.first)
    owner = torch.repeat_interleave(torch.arange(rows, device=hidden.device), inputs.lengths)
    if pooling == "mean":
        total = hidden.new_zeros(rows, hidden.shape[1], dtype=torch.float32).index_add(0, owner, hidden.float())
        return total / inputs.lengths[:, None]
    lowest = hidden.new_full((rows, hidden.shape[1]), -torch.inf, dtype=torch.float32)
    return lowest.scatter_reduce(0, owner[:, None].expand_as(hidden), hidden.float(), "amax")


class Head(nn.Module):
    """Pooled states to logits: `dense` (with its activation and norm, where the head has them), then `classifier`.

    Which dropout stands where follows transformers: before `dense` and `classifier` (roberta, electra, mlp), or before
    `classifier` only (bert, distilbert, modernbert, linear).
    """

    def __init__(self, encoder: EncoderConfig, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        arch = encoder.arch if config.kind == "own" else config.kind
        width = {"mlp": config.hidden}.get(arch, encoder.hidden)
        activation = {"bert": "tanh", "roberta": "tanh", "d2l": "tanh", "distilbert": "relu", "mlp": "relu",
                      "electra": "gelu", "modernbert": encoder.head_activation}  # fmt: skip
        self.drop_first = arch in ("roberta", "electra", "mlp")
        has_bias = encoder.head_bias or arch != "modernbert"
        self.dense = None if arch == "linear" else nn.Linear(encoder.hidden, width, bias=has_bias)
        self.activation = ACTIVATIONS[activation.get(arch, "tanh")]
        self.norm = Norm(width, encoder.norm_eps, encoder.norm_bias) if arch == "modernbert" else None
        self.classifier = nn.Linear(width, config.num_labels)

    def forward(self, hidden: Tensor, inputs: Inputs, *, noise: Noise | None = None) -> Tensor:
        """[tokens, hidden] -> logits [rows, labels], fp32."""
        return self.classify(pool(hidden, inputs, self.config.pooling), noise=noise)

    def classify(self, pooled: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Pooled states [rows, hidden] -> logits [rows, labels]."""
        rate = self.config.dropout
        if self.drop_first and noise is not None:
            pooled = noise.dropout(pooled, rate)
        if self.dense is not None:
            pooled = self.activation(self.dense(pooled))
        if self.norm is not None:
            pooled = self.norm(pooled)
        if noise is not None:
            pooled = noise.dropout(pooled, rate)
        return self.classifier(pooled)
