"""From hidden states to logits: choice of layers, pooling, joining of chunks, then the head.

The head is the one that transformers has for the architecture, or a plain one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bertune.errors import ConfigError
from bertune.model.encoder import ACTIVATIONS, EncoderConfig, Inputs, Norm
from bertune.model.noise import Noise

Pooling = Literal["cls", "mean", "max", "attention"]
Combine = Literal["concat", "mean", "max", "mix"]
Join = Literal["mean", "max", "attention"]
Kind = Literal["own", "linear", "mlp"]


@dataclass(frozen=True)
class HeadConfig:
    """A head, fully decided.

    kind: own (the architecture's head in transformers), linear or mlp; pooling: cls, mean, max or attention; hidden:
    width of the mlp; dropout: rate before each linear layer of the head. layers: whose states are read, counted from 0,
    ascending; (): those of the last. combine: how several layers become one. join: how chunks become one row; None
    where a row is one sequence.
    """

    kind: Kind
    pooling: Pooling
    num_labels: int
    dropout: float
    hidden: int = 50
    layers: tuple[int, ...] = ()
    combine: Combine = "mean"
    join: Join | None = None

    @property
    def learns(self) -> bool:
        """Whether something before the linear layers is trained."""
        mixes = len(self.layers) > 1 and self.combine == "mix"
        return mixes or self.pooling == "attention" or self.join == "attention"

    def width(self, encoder: EncoderConfig) -> int:
        """Of what is pooled."""
        return encoder.hidden * (len(self.layers) if self.layers and self.combine == "concat" else 1)


def decide_head(
    config: EncoderConfig, *, pooling: str, head: str, num_labels: int, head_hidden: int, head_dropout: float | None,
    layers: str = "last", combine: str = "auto", join: Join | None = None,
) -> HeadConfig:
    """Resolve `auto`: the architecture's own head, unless a pooling or layers are asked for that it does not have; then
    linear. ConfigError for layers that the encoder does not have."""
    pooled: Pooling = config.pooling if pooling == "auto" else pooling  # type: ignore[assignment]
    chosen = chosen_layers(layers, config)
    if len(chosen) < 2 and combine != "auto":
        raise ConfigError(f"--combine {combine}: needs several layers, and --layers {layers} is one. Leave it out.")
    # transformers' modernbert reads the first token or the mean, as config.json says; the others read the first token.
    known = ("cls", "mean") if config.arch == "modernbert" else (config.pooling,)
    own = head == "auto" and pooled in known and config.arch != "adapter" and not chosen
    kind: Kind = "own" if own else ("mlp" if head == "mlp" else "linear")
    rate = config.head_dropout if head_dropout is None else head_dropout
    together: Combine = "mean" if combine == "auto" else combine  # type: ignore[assignment]
    return HeadConfig(
        kind=kind, pooling=pooled, num_labels=num_labels, dropout=rate, hidden=head_hidden, layers=chosen,
        combine=together, join=join,
    )  # fmt: skip


def depth_read(read: tuple[int, ...], layers: int) -> int:
    """How many of an encoder's layers are computed for a head that reads these; all where it reads the last state."""
    return read[-1] + 1 if read else layers


def chosen_layers(layers: str, config: EncoderConfig) -> tuple[int, ...]:
    """Numbers of the layers that `last`, `all`, `first-N`, `last-N` or a number mean, ascending; (): the last alone.

    Sun et al. 2019 (arXiv 1905.05583), section 5.3.2, compare them.
    """
    count, numbers = config.layers, re.findall("[0-9]+", layers)
    wanted = int(numbers[0]) if numbers else 0
    if layers != "last" and config.arch == "adapter":
        raise ConfigError(f"--layers {layers}: an encoder outside the family gives its last layer only. Leave it out.")
    if wanted > (count if "-" in layers else count - 1) or layers in ("first-0", "last-0"):
        raise ConfigError(
            f"--layers {layers}: this encoder has {count} layers, 0 to {count - 1}. "
            f"Pass a number up to {count - 1}, first-N or last-N with N from 1 to {count}, last, or all."
        )
    kind = layers.partition("-")[0]
    if kind == "last":
        found = range(count - max(wanted, 1), count)
    elif kind == "first":
        found = range(wanted)
    else:
        found = range(count) if kind == "all" else range(wanted, wanted + 1)
    return () if list(found) == [count - 1] else tuple(found)


def pool(hidden: Tensor, inputs: Inputs, pooling: Pooling) -> Tensor:
    """[tokens, hidden] -> [sequences, hidden] in fp32: first token, mean or maximum of each sequence's tokens."""
    if pooling == "cls":
        return hidden.index_select(0, inputs.first).float()
    return reduce(hidden.float(), inputs.lengths, pooling)


def reduce(values: Tensor, counts: Tensor, how: str) -> Tensor:
    """[lines, width] -> [groups, width]: mean or max of the first `counts[0]` lines, of the next `counts[1]`, ..."""
    owner = owners(counts)
    if how == "mean":
        total = values.new_zeros(len(counts), values.shape[1]).index_add(0, owner, values)
        return total / counts[:, None]
    lowest = values.new_full((len(counts), values.shape[1]), -torch.inf)
    return lowest.scatter_reduce(0, owner[:, None].expand_as(values), values, "amax")


def owners(counts: Tensor) -> Tensor:
    """The group of each line: 0 so many times as counts[0] says, ..."""
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


class Attend(nn.Module):
    """A learned weighted mean: softmax over `score(tanh(dense(line)))` within each group of lines.

    The self-attention of Yang et al. 2016 (Hierarchical Attention Networks), section 2.2; of a group of one line it is
    that line.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, values: Tensor, counts: Tensor) -> Tensor:
        """[lines, width], fp32 -> [groups, width]."""
        owner = owners(counts)
        scores = self.score(torch.tanh(self.dense(values)))[:, 0]
        highest = reduce(scores.detach()[:, None], counts, "max")[:, 0]
        weights = torch.exp(scores - highest[owner])
        total = weights.new_zeros(len(counts)).index_add(0, owner, weights)
        shares = weights / total[owner]
        return values.new_zeros(len(counts), values.shape[1]).index_add(0, owner, shares[:, None] * values)


class Mix(nn.Module):
    """A learned scalar mix of layers: softmax weights and a scale (Peters et al. 2018, arXiv 1802.05365, section 3.2).

    It begins as their mean.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, states: Tensor) -> Tensor:
        """[layers, lines, width] -> [lines, width]."""
        return self.scale * torch.tensordot(torch.softmax(self.weight, dim=0), states, dims=1)


class Head(nn.Module):
    """States to logits: `pool`, then `dense` (with its activation and norm, where it has them), then `classifier`.

    Which dropout stands where follows transformers: before `dense` and `classifier` (roberta, electra, mlp), or before
    `classifier` only (bert, distilbert, modernbert, linear).
    """

    def __init__(self, encoder: EncoderConfig, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        arch = encoder.arch if config.kind == "own" else config.kind
        pooled = config.width(encoder)
        width = {"mlp": config.hidden}.get(arch, pooled)
        activation = {"bert": "tanh", "roberta": "tanh", "d2l": "tanh", "distilbert": "relu", "mlp": "relu",
                      "electra": "gelu", "modernbert": encoder.head_activation}  # fmt: skip
        self.drop_first = arch in ("roberta", "electra", "mlp")
        has_bias = encoder.head_bias or arch != "modernbert"
        self.dense = None if arch == "linear" else nn.Linear(pooled, width, bias=has_bias)
        self.activation = ACTIVATIONS[activation.get(arch, "tanh")]
        self.norm = Norm(width, encoder.norm_eps, encoder.norm_bias) if arch == "modernbert" else None
        self.classifier = nn.Linear(width, config.num_labels)
        # Last, so that a seed gives the layers above the weights that it gives them without these.
        self.mix = Mix(len(config.layers)) if len(config.layers) > 1 and config.combine == "mix" else None
        self.attend = Attend(pooled) if config.pooling == "attention" else None
        self.join = Attend(pooled) if config.join == "attention" else None

    def pool(self, states: list[Tensor], inputs: Inputs, *, first_only: bool = False) -> Tensor:
        """What is read of each row, fp32 [rows, width].

        states: of each chosen layer, [tokens, hidden]; first_only: of the first token of each sequence alone,
        [sequences, hidden].
        """
        hidden = self._combined(states)
        if first_only:
            found = hidden.float()
        elif self.attend is not None:
            found = self.attend(hidden.float(), inputs.lengths)
        else:
            found = pool(hidden, inputs, self.config.pooling)
        found = found[: inputs.sequences]
        if self.config.join is None or inputs.parts is None:
            return found
        return self.join(found, inputs.parts) if self.join else reduce(found, inputs.parts, self.config.join)

    def _combined(self, states: list[Tensor]) -> Tensor:
        """Of several layers one state a token."""
        if len(states) == 1:
            return states[0]
        combine = self.config.combine
        if combine == "concat":
            return torch.cat(states, dim=-1)
        several = torch.stack(states).float()
        if self.mix is not None:
            return self.mix(several)
        return several.mean(dim=0) if combine == "mean" else several.amax(dim=0)

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
