"""The BERT family in one file: bert (MiniLM too), roberta, distilbert, electra, modernbert and the book's variant.

Rows are computed without padding: hidden states are [tokens, hidden], and only attention knows where rows begin.
Weights of the large products may be kept in bf16; embeddings and norms stay in fp32 (see `Encoder.compute_in`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertune.data.batch import Batch
from bertune.errors import ModelError
from bertune.model import fused, kernels
from bertune.model.attention import Plan, attention, attention_of_first, plan_attention
from bertune.model.kernels import has_tiles
from bertune.model.machine import to_device
from bertune.model.noise import Noise, mask, mask_factor

Architecture = Literal["bert", "roberta", "distilbert", "electra", "modernbert", "d2l", "adapter"]

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


@lru_cache(maxsize=len(ACTIVATIONS))
def activation_table(name: str) -> Tensor:
    """For kernels: an activation and its derivative for every bf16 number."""
    return kernels.activation_table(ACTIVATIONS[name])


@dataclass(frozen=True)
class EncoderConfig:
    """What tells one encoder of the family from another. Sizes are in numbers of units, rates in shares of 1."""

    arch: Architecture
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    max_positions: int
    type_vocab: int = 0  # 0: the architecture has no token types
    norm_eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.1  # after embeddings, attention output and feed-forward output
    attention_dropout: float = 0.1
    embedding_dropout: float | None = None  # None: as `dropout`
    ffn_dropout: float = 0.0  # inside the feed-forward (modernbert)
    pad_id: int = 0
    position_offset: int = 0  # roberta counts positions from pad_id + 1
    embedding_size: int | None = None  # electra's small embeddings; None: as `hidden`
    embedding_norm: bool = True  # the book's variant has none
    pre_norm: bool = False
    bias: bool = True
    norm_bias: bool = True
    attention_bias: bool = True
    rope_global: float = 0.0  # 0: learned positions
    rope_local: float = 0.0
    local_window: int = -1  # tokens seen on either side in a local layer
    local_layers: tuple[int, ...] = ()
    pooling: Literal["cls", "mean"] = "cls"  # what the architecture's own classification head reads
    head_dropout: float = 0.1
    head_activation: str = "gelu"
    head_bias: bool = True
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ModelError(f"The hidden size {self.hidden} is not a multiple of the number of heads, {self.heads}.")
        if self.activation not in ACTIVATIONS:
            raise ModelError(f"Activation '{self.activation}' is not known; known are {', '.join(ACTIVATIONS)}.")

    @property
    def longest_input(self) -> int:
        """Most tokens a row may have, special ones included."""
        return self.max_positions - self.position_offset


def padding_share(config: EncoderConfig, *, tokens: int, pairs: int, wasted: int) -> float:
    """Share of the operations of an encoder's matrix products that went into padding.

    tokens: computed by the linear layers, none of them padding; pairs, wasted: see `attention.count_pairs`.
    """
    linear = 2 * tokens * (4 * config.hidden**2 + 2 * config.hidden * config.ffn)
    return 4 * config.hidden * wasted / max(linear + 4 * config.hidden * pairs, 1)


@dataclass
class Inputs:
    """A batch on its device.

    ids, types, positions: int64 [tokens]; first, lengths: int64 [sequences], where each begins and its tokens; rows,
    sequences, tokens: how many are of the data, and not there to fill up (see `data.batch.rounded`); parts: int64
    [rows], sequences of each row, None where that is one.
    """

    ids: Tensor
    types: Tensor
    positions: Tensor
    first: Tensor
    lengths: Tensor
    plan: Plan
    rows: int
    sequences: int
    tokens: int
    parts: Tensor | None = None


def inputs_of(batch: Batch, *, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Tensors of a batch, and the plan of its attention."""
    arrays = (batch.ids, batch.types, batch.positions, batch.cu[:-1], batch.lengths)
    ids, types, positions, first, lengths = (to_device(array, device) for array in arrays)
    plan = plan_attention(batch.cu, device=device, dtype=dtype)
    parts = None if batch.parts is None else to_device(batch.parts, device)
    sequences = batch.sequences
    return Inputs(
        ids, types, positions, first, lengths, plan, len(batch), sequences, int(batch.cu[sequences]), parts
    )


class Norm(nn.Module):
    """Layer normalisation whose weights stay in fp32 whatever its input is."""

    def __init__(self, width: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, values: Tensor) -> Tensor:
        if values.device.type == "cpu":  # takes mixed types as they are
            return F.layer_norm(values, self.weight.shape, self.weight, self.bias, self.eps)
        bias = None if self.bias is None else self.bias.to(values.dtype)
        return F.layer_norm(values, self.weight.shape, self.weight.to(values.dtype), bias, self.eps)


class _DropAddNorm(torch.autograd.Function):
    """LayerNorm(residual + dropout(update)) in three passes over memory forward and two backward."""

    @staticmethod
    def forward(ctx, update, residual, weight, bias, eps, rate, noise):  # type: ignore[no-untyped-def]
        kept = mask(noise.keys(len(update)), update.shape[1], rate, update.dtype, site=noise.site())
        factor = mask_factor(rate)
        total = torch.addcmul(residual, update, kept, value=factor)
        out, mean, rstd = torch.native_layer_norm(total, weight.shape, weight, bias, eps)
        ctx.save_for_backward(total, mean, rstd, weight, bias, kept)
        ctx.factor = factor
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        total, mean, rstd, weight, bias, kept = ctx.saved_tensors
        needed = [True, weight.requires_grad, bias.requires_grad]
        grad_total, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(), total, weight.shape, mean, rstd, weight, bias, needed
        )
        grad_update = (kept * ctx.factor).mul_(grad_total) if ctx.needs_input_grad[0] else None
        return grad_update, grad_total, grad_weight, grad_bias, None, None, None


def drop_add_norm(update: Tensor, residual: Tensor, norm: Norm, rate: float, noise: Noise | None) -> Tensor:
    """LayerNorm(residual + dropout(update)), all [tokens, hidden]; no dropout where `noise` is None."""
    if noise is None or rate == 0:
        return norm(residual + update)
    if update.device.type == "cpu" and norm.bias is not None:
        return _DropAddNorm.apply(update, residual, norm.weight, norm.bias, norm.eps, rate, noise)
    return norm(residual + noise.dropout(update, rate))


def _table(rows: int, width: int) -> nn.Embedding:
    """An embedding without values: drawing them on the meta device makes torch import its compiler, which is slow."""
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class Embeddings(nn.Module):
    """Sum of token, position and type embeddings, with norm and dropout where the architecture has them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embedding_size or config.hidden
        self.word = _table(config.vocab_size, width)
        self.position = None if config.rope_global else _table(config.max_positions, width)
        self.segment = _table(config.type_vocab, width) if config.type_vocab else None
        self.norm = Norm(width, config.norm_eps, config.norm_bias) if config.embedding_norm else None
        self.project = nn.Linear(width, config.hidden) if width != config.hidden else None

    def forward(self, inputs: Inputs, noise: Noise | None, words: Tensor | None = None) -> Tensor:
        """[tokens, hidden] in fp32; `words` [tokens, width] stands in for the looked-up token embeddings."""
        config = self.config
        total = self.word(inputs.ids) if words is None else words
        if self.position is not None:
            total = total + self.position(inputs.positions + config.position_offset)
        if self.segment is not None:
            # Two rows at most: a product with 0/1 columns is far cheaper, forward and back, than a look-up.
            total = total + F.one_hot(inputs.types, config.type_vocab).to(total.dtype) @ self.segment.weight
        if self.norm is not None:
            total = self.norm(total)
        rate = config.dropout if config.embedding_dropout is None else config.embedding_dropout
        if noise is not None:
            total = noise.dropout(total, rate)
        return total if self.project is None else self.project(total)


class Linear(nn.Linear):
    """A linear layer whose products the processor's tiles may compute."""

    tiles = False

    def forward(self, values: Tensor) -> Tensor:
        return fused.linear(values, self.weight, self.bias) if self.tiles else super().forward(values)


class Layer(nn.Module):
    """Attention and feed-forward; norms follow each (post-norm), or precede each (modernbert)."""

    def __init__(self, config: EncoderConfig, number: int) -> None:
        super().__init__()
        self.config = config
        self.window = config.local_window if number in config.local_layers else -1
        hidden, gated = config.hidden, config.arch == "modernbert"
        self.qkv = Linear(hidden, 3 * hidden, bias=config.attention_bias)
        self.out = Linear(hidden, hidden, bias=config.attention_bias)
        # modernbert's embeddings are normed, so its first layer has no norm before attention
        has_norm1 = not (config.pre_norm and number == 0)
        self.norm1 = Norm(hidden, config.norm_eps, config.norm_bias) if has_norm1 else None
        self.up = Linear(hidden, config.ffn * (2 if gated else 1), bias=config.bias)
        self.down = Linear(config.ffn, hidden, bias=config.bias)
        self.norm2 = Norm(hidden, config.norm_eps, config.norm_bias)
        self.compiled = False  # whether kernels.c computes it

    def forward(
        self, hidden: Tensor, inputs: Inputs, rope: tuple[Tensor, Tensor] | None, noise: Noise | None
    ) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]."""
        config = self.config
        if config.pre_norm:
            return self._pre_norm(hidden, inputs, rope, noise)
        if self.compiled:
            return self._fused(hidden, inputs, noise)
        context = attention(
            self.qkv(hidden), inputs.plan, heads=config.heads, dropout=config.attention_dropout, noise=noise
        )
        return self._after_attention(context, hidden, noise)

    def _fused(
        self, hidden: Tensor, inputs: Inputs, noise: Noise | None, *, first: Tensor | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        config = self.config
        table = activation_table(config.activation)
        shape = fused.Shape(config.heads, table, config.norm_eps, config.attention_dropout, config.dropout)
        parts = (self.qkv, self.out, self.up, self.down, self.norm1, self.norm2)
        weights = [cast(Tensor, value) for part in parts if part is not None for value in (part.weight, part.bias)]
        return fused.layer(hidden, weights, inputs.plan, shape, noise, first=first, only=only)

    def of_first(self, hidden: Tensor, inputs: Inputs, noise: Noise | None) -> Tensor:
        """[tokens, hidden] -> [rows, hidden], the output for the first token of each row alone (post-norm layers).

        The others are asked for key and value only, which is a sixth of the layer's products.
        """
        if self.compiled:
            return self._fused(hidden, inputs, noise, first=inputs.first)
        config, width = self.config, self.config.hidden
        first = hidden.index_select(0, inputs.first)
        weight, bias = self.qkv.weight, self.qkv.bias
        query = F.linear(first, weight[:width], bias[:width] if bias is not None else None)
        key_value = F.linear(hidden, weight[width:], bias[width:] if bias is not None else None)
        context = attention_of_first(
            query, key_value, inputs.plan, heads=config.heads, dropout=config.attention_dropout, noise=noise
        )
        return self._after_attention(context, first, noise)

    def of_some(self, hidden: Tensor, inputs: Inputs, noise: Noise | None, only: Tensor) -> Tensor:
        """[tokens, hidden] -> [n, hidden], the output for the tokens `only`, int64 [n], alone (post-norm layers).

        What follows attention, three quarters of the layer's products, is computed for them alone.
        """
        if noise is not None:
            noise.ask(only)
        if self.compiled:
            return self._fused(hidden, inputs, noise, only=only)
        config = self.config
        context = attention(
            self.qkv(hidden), inputs.plan, heads=config.heads, dropout=config.attention_dropout, noise=noise
        )
        return self._after_attention(context.index_select(0, only), hidden.index_select(0, only), noise)

    def _after_attention(self, context: Tensor, hidden: Tensor, noise: Noise | None) -> Tensor:
        config = self.config
        assert self.norm1 is not None
        hidden = drop_add_norm(self.out(context), hidden, self.norm1, config.dropout, noise)
        update = self.down(ACTIVATIONS[config.activation](self.up(hidden)))
        return drop_add_norm(update, hidden, self.norm2, config.dropout, noise)

    def _pre_norm(
        self, hidden: Tensor, inputs: Inputs, rope: tuple[Tensor, Tensor] | None, noise: Noise | None
    ) -> Tensor:
        config = self.config
        normed = hidden if self.norm1 is None else self.norm1(hidden)
        qkv = self.qkv(normed)
        if rope is not None:
            qkv = rotate(qkv, config.heads, *rope)
        context = attention(
            qkv, inputs.plan, heads=config.heads, dropout=config.attention_dropout, noise=noise, window=self.window
        )
        update = self.out(context)
        hidden = hidden + (update if noise is None else noise.dropout(update, config.attention_dropout))
        value, gate = self.up(self.norm2(hidden)).chunk(2, dim=-1)
        inner = ACTIVATIONS[config.activation](value) * gate
        return hidden + self.down(inner if noise is None else noise.dropout(inner, config.ffn_dropout))


def rotate(qkv: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on query and key of `qkv` [tokens, 3 * hidden]; cos, sin: [tokens, 1, 1, head size]."""
    tokens, width = qkv.shape
    parts = qkv.view(tokens, 3, heads, width // (3 * heads))
    turned = parts[:, :2].float()
    left, right = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-right, left), dim=-1) * sin
    return torch.cat((turned.to(qkv.dtype), parts[:, 2:]), dim=1).view(tokens, width)


def rope_tables(positions: Tensor, theta: float, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [tokens, 1, 1, size], of rotary positions with base `theta` (Su et al. 2021)."""
    steps = torch.arange(0, size, 2, dtype=torch.int64, device=positions.device).float()
    angles = positions.float()[:, None] * (1.0 / theta ** (steps / size))[None, :]
    angles = torch.cat((angles, angles), dim=-1)[:, None, None, :]
    return angles.cos(), angles.sin()


class Encoder(nn.Module):
    """Token ids to hidden states. Parameter names are those that model/load.py maps to and from the hub's."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.layers))
        self.final_norm = Norm(config.hidden, config.norm_eps, config.norm_bias) if config.pre_norm else None
        self.compute_dtype = torch.float32
        self.compiled = False  # whether kernels.c computes what it can

    def compute_in(self, dtype: torch.dtype, *, kernels: str = "torch") -> Encoder:
        """Keep the weights of the layers' matrix products in `dtype`, and compute in it; all else stays fp32.

        kernels: torch, or compiled: then kernels.c computes what it can, layers or their products, if `dtype` is bf16.
        """
        self.compute_dtype = dtype
        self.compiled = compiled = kernels == "compiled" and dtype == torch.bfloat16
        layers_too = compiled and fused.takes(self.config)
        for layer in cast(list[Layer], list(self.layers)):
            layer.compiled = layers_too
            for linear in (layer.qkv, layer.out, layer.up, layer.down):
                linear.to(dtype).tiles = compiled and has_tiles()
        return self

    def forward(
        self, inputs: Inputs, *, noise: Noise | None = None, words: Tensor | None = None, hidden: Tensor | None = None,
        start: int = 0, stop: int | None = None, first_only: bool = False, only: Tensor | None = None, quiet: int = 0,
    ) -> Tensor:
        """Hidden states [tokens, hidden] after layer `stop` (exclusive; None: the last, with the final norm).

        first_only: just those of the first token of each sequence, [sequences, hidden]; post-norm encoders then save
        five sixths of the last layer. only: just those of these tokens, int64 [n], [n, hidden]; see `Layer.of_some`.

        noise: source of dropout; None means none. quiet: dropout begins at this layer (below it, layers are frozen).
        hidden: states to start from at layer `start`, instead of ids (what frozen lower layers once computed).
        """
        if hidden is None:
            hidden = self.embeddings(inputs, None if quiet else noise, words)
        hidden = hidden.to(self.compute_dtype)
        ropes = self._ropes(inputs)
        layers = cast(list[Layer], list(self.layers))[start:stop]
        short = (first_only or only is not None) and not self.config.pre_norm and bool(layers)
        for number, layer in enumerate(layers[: len(layers) - short], start):
            hidden = layer(hidden, inputs, ropes.get(layer.window), None if number < quiet else noise)
        if short:
            noise = None if start + len(layers) - 1 < quiet else noise
            last = layers[-1]
            return last.of_first(hidden, inputs, noise) if only is None else last.of_some(hidden, inputs, noise, only)
        if self.final_norm is not None and stop is None:
            hidden = self.final_norm(hidden)
        wanted = inputs.first if first_only else only
        return hidden if wanted is None else hidden.index_select(0, wanted)

    def after(
        self, layers: tuple[int, ...], inputs: Inputs, *, noise: Noise | None = None, words: Tensor | None = None,
        hidden: Tensor | None = None, start: int = 0, first_only: bool = False, quiet: int = 0,
    ) -> list[Tensor]:
        """States after each of `layers`, counted from 0 and ascending; those of pre-norm encoders with the final norm.

        Layers above the last of them are not computed. hidden: states to start from at layer `start`, which is not
        above the first of `layers`, instead of ids.
        """
        found = []
        for number in layers:
            last = number == layers[-1]
            states = self(
                inputs, noise=noise, words=words, hidden=hidden, start=start, stop=number + 1, quiet=quiet,
                first_only=first_only and last and not self.config.pre_norm,
            )  # fmt: skip
            hidden, start = states, number + 1
            if self.final_norm is not None:
                states = self.final_norm(states)
            if first_only and len(states) == len(inputs.ids):
                states = states.index_select(0, inputs.first)
            found.append(states)
        return found

    def _ropes(self, inputs: Inputs) -> dict[int, tuple[Tensor, Tensor]]:
        config = self.config
        if not config.rope_global:
            return {}
        size = config.hidden // config.heads
        ropes = {-1: rope_tables(inputs.positions, config.rope_global, size)}
        if config.local_layers:
            ropes[config.local_window] = rope_tables(inputs.positions, config.rope_local, size)
        return ropes


def initialize(module: nn.Module, std: float, *, seed: int) -> None:
    """Fresh weights as BERT has them: normal(0, std) matrices, zero biases, unit norms; depends on `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * std)
            if isinstance(part, nn.Linear) and part.bias is not None:
                part.bias.zero_()
            if isinstance(part, Norm):
                part.weight.fill_(1.0)
                if part.bias is not None:
                    part.bias.zero_()
