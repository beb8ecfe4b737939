"""Attention over rows that lie one after another: one function, three implementations.

On a GPU that has it, and in half precision: variable-length flash attention. On a processor: batched matrix products
over groups of rows of nearly equal length, with a backward pass of our own, for there PyTorch's fused attention spends
many times longer on short rows than the products themselves take. (Layers that kernels.c computes attend there, without
groups or padding.) Everywhere else, such as on older GPUs or in fp32: PyTorch's fused attention over the same groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bertune.model.machine import to_device
from bertune.model.noise import Noise, mask, mask_factor

_WASTE = 0.15  # a group of rows may be padded by this share of its tokens ...
_SMALL = 512  # ... or as long as it has fewer tokens than this, since a product this small costs mostly its call


@dataclass
class Group:
    """Neighbouring rows that are attended together, padded to the longest of them.

    first: the first of these rows in the batch; begin, end: their tokens in the flat sequence; rows x width: the padded
    shape; pad: int64 [rows * width], flat token of each cell (padding repeats the first token), None where nothing is
    padded; unpad: int64 [end - begin], cell of each token; bias: [rows, 1, 1, width], 0 or -inf.
    """

    first: int
    begin: int
    end: int
    rows: int
    width: int
    pad: Tensor | None = None
    unpad: Tensor | None = None
    bias: Tensor | None = None
    windows: dict[int, Tensor] = field(default_factory=dict)

    def cells(self) -> Tensor:
        """int64 [rows * width]: the flat token of each cell."""
        return torch.arange(self.begin, self.end) if self.pad is None else self.pad

    def window_bias(self, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[rows, 1, width, width] bias that lets a token see no further than `window` on either side."""
        if window not in self.windows:
            place = torch.arange(self.width, device=device)
            far = (place[:, None] - place[None, :]).abs() > window
            bias = torch.zeros(far.shape, dtype=dtype, device=device).masked_fill_(far, -torch.inf)[None, None]
            self.windows[window] = bias if self.bias is None else self._padding_safe(bias + self.bias, far)
        return self.windows[window]

    def _padding_safe(self, bias: Tensor, far: Tensor) -> Tensor:
        # A padding query may see nothing at all; its softmax would be 0/0. Nobody reads its result: let it see all.
        blind = (bias == -torch.inf).all(dim=-1, keepdim=True)
        return bias.masked_fill(blind, 0.0)


@dataclass
class Plan:
    """Where the rows of one batch begin and end, for every attention call of a pass.

    cu: int32 [rows + 1] on the device (GPU), offset: the same as int64 (compiled kernels), tokens before each row;
    longest: the longest row; dtype: of the hidden states; flash: whether flash attention computes it; groups: for where
    it does not.
    """

    cu: Tensor
    offset: Tensor
    longest: int
    dtype: torch.dtype
    flash: bool

    @cached_property
    def groups(self) -> list[Group]:
        cu = self.offset.numpy()
        return [_group(cu, first, last, self.cu.device, self.dtype) for first, last in _cuts(np.diff(cu))]


def plan_attention(cu: np.ndarray, *, device: torch.device, dtype: torch.dtype) -> Plan:
    """Plan for rows with cumulative lengths `cu` (int64 [rows + 1])."""
    offset = torch.from_numpy(np.ascontiguousarray(cu, dtype=np.int64))
    longest = int(np.diff(cu).max(initial=0))
    return Plan(to_device(cu.astype(np.int32), device), offset, longest, dtype, has_flash(device, dtype))


def _cuts(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Greedy cuts of the rows, in their order, into groups that pad little."""
    cuts: list[tuple[int, int]] = []
    first, longest, tokens = 0, 0, 0
    for place, length in enumerate(lengths.tolist()):
        width = max(longest, length)
        cells = width * (place - first + 1)
        if place > first and cells > (tokens + length) * (1 + _WASTE) and cells > _SMALL:
            cuts.append((first, place))
            first, longest, tokens = place, 0, 0
        longest, tokens = max(longest, length), tokens + length
    if len(lengths) > first:
        cuts.append((first, len(lengths)))
    return cuts


def count_pairs(lengths: np.ndarray, *, padded: bool) -> tuple[int, int]:
    """Pairs of query and key that attention computes for rows of these lengths, and how many are for padding alone."""
    needed = int((lengths.astype(np.int64) ** 2).sum())
    if not padded:
        return needed, 0
    pairs = sum((last - first) * int(lengths[first:last].max()) ** 2 for first, last in _cuts(lengths))
    return pairs, pairs - needed


def _group(cu: np.ndarray, first: int, last: int, device: torch.device, dtype: torch.dtype) -> Group:
    lengths = np.diff(cu[first : last + 1])
    begin, end, rows, width = int(cu[first]), int(cu[last]), last - first, int(lengths.max())
    if rows * width == end - begin:
        return Group(first, begin, end, rows, width)
    cell = np.arange(width)
    real = cell[None, :] < lengths[:, None]
    flat = np.where(real, cu[first:last, None] + cell[None, :], begin)
    padding = torch.from_numpy(~real)[:, None, None, :]
    bias = torch.zeros(padding.shape, dtype=dtype).masked_fill_(padding, -torch.inf)
    return Group(
        first, begin, end, rows, width,
        pad=torch.from_numpy(flat.reshape(-1)).to(device),
        unpad=torch.from_numpy(np.flatnonzero(real)).to(device),
        bias=bias.to(device),
    )


def attention(qkv: Tensor, plan: Plan, *, heads: int, dropout: float, noise: Noise | None, window: int = -1) -> Tensor:
    """Softmax attention within each row.

    qkv: [tokens, 3 * hidden], query, key and value side by side; returns [tokens, hidden]. `window` limits how far a
    token sees on either side (-1: no limit). Dropout acts on the attention weights, and only where `noise` is given.
    """
    rate = dropout if noise is not None else 0.0
    if plan.flash and _flash_takes(qkv.shape[1] // (3 * heads)):
        return _flash(qkv, plan, heads, rate, window)
    if qkv.device.type != "cpu":
        return _fused(qkv, plan, heads, rate, window)
    return _Grouped.apply(qkv, plan.groups, heads, rate, noise, window)


def attention_of_first(
    query: Tensor, key_value: Tensor, plan: Plan, *, heads: int, dropout: float, noise: Noise | None
) -> Tensor:
    """What `attention` gives for the first token of each row, and nothing else.

    query: [rows, hidden]; key_value: [tokens, 2 * hidden], key and value side by side; returns [rows, hidden].
    """
    rate = dropout if noise is not None else 0.0
    hidden = query.shape[1]
    size = hidden // heads
    if plan.flash and _flash_takes(size):
        key, value = key_value.view(len(key_value), 2, heads, size).unbind(1)
        one_each = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
        return _flash_rows(query.view(-1, heads, size), key, value, one_each, 1, plan, rate, -1)
    results, row = [], 0
    site = noise.site() if noise is not None and rate > 0 else 0
    for group in plan.groups:
        cells = _padded(key_value, group)
        key, value = cells.view(group.rows, group.width, 2, heads, size).permute(2, 0, 3, 1, 4)
        asked = query[row : row + group.rows].view(group.rows, heads, 1, size)
        if query.device.type != "cpu":
            found = F.scaled_dot_product_attention(asked, key, value, attn_mask=group.bias, dropout_p=rate)
            results.append(found.reshape(group.rows, hidden))
            row += group.rows
            continue
        scores = torch.matmul(asked * (1 / math.sqrt(size)), key.transpose(2, 3))
        weights = torch.softmax(scores if group.bias is None else scores + group.bias, dim=-1)
        if rate > 0:
            keys = noise.first[row : row + group.rows, None]  # type: ignore[union-attr]
            kept = mask(keys, group.width, rate, weights.dtype, site=site, heads=heads)
            weights = weights * kept.mul_(mask_factor(rate)).to(weights.device)
        results.append(torch.matmul(weights, value).reshape(group.rows, hidden))
        row += group.rows
    return torch.cat(results)


@lru_cache(maxsize=16)
def has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether variable-length flash attention computes there: half precision on NVIDIA's Ampere or newer."""
    half = dtype in (torch.float16, torch.bfloat16)
    return half and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def _flash_takes(size: int) -> bool:
    """Whether its kernels are there for heads of this size."""
    return size % 8 == 0 and size <= 256


def _flash(qkv: Tensor, plan: Plan, heads: int, dropout: float, window: int) -> Tensor:
    tokens, width = qkv.shape
    query, key, value = qkv.view(tokens, 3, heads, width // (3 * heads)).unbind(1)
    return _flash_rows(query, key, value, plan.cu, plan.longest, plan, dropout, window)


def _flash_rows(
    query: Tensor, key: Tensor, value: Tensor, asked: Tensor, most: int, plan: Plan, dropout: float, window: int
) -> Tensor:
    # The operator behind torch.nn.attention.varlen, called directly because that door has no dropout.
    out = torch.ops.aten._flash_attention_forward(
        query, key, value, asked, plan.cu, most, plan.longest, dropout, False, False,
        window_size_left=window, window_size_right=window,
    )[0]
    return out.reshape(len(query), -1)


def _fused(qkv: Tensor, plan: Plan, heads: int, dropout: float, window: int) -> Tensor:
    """PyTorch's fused attention, group by group; dropout follows the default stream of the device."""
    results, hidden = [], qkv.shape[1] // 3
    for group in plan.groups:
        cells = _padded(qkv, group).view(group.rows, group.width, 3, heads, hidden // heads)
        query, key, value = cells.permute(2, 0, 3, 1, 4)
        bias = _bias(group, window, qkv)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        flat = context.transpose(1, 2).reshape(-1, hidden)
        results.append(flat if group.unpad is None else flat.index_select(0, group.unpad))
    return torch.cat(results)


def _bias(group: Group, window: int, values: Tensor) -> Tensor | None:
    """What is added to the scores of a group, [rows or 1, 1, width or 1, width]; None: nothing."""
    limited = 0 <= window < group.width - 1
    return group.window_bias(window, values.dtype, values.device) if limited else group.bias


class _Grouped(torch.autograd.Function):
    """Explicit attention over groups; kept for the backward pass are only inputs, weights and dropout masks."""

    @staticmethod
    def forward(ctx, qkv, groups, heads, dropout, noise, window):  # type: ignore[no-untyped-def]
        hidden = qkv.shape[1] // 3
        scale = 1 / math.sqrt(hidden // heads)
        out = torch.empty(qkv.shape[0], hidden, dtype=qkv.dtype, device=qkv.device)
        saved: list[Tensor | None] = []
        factor = mask_factor(dropout) if dropout > 0 else 1.0
        site = noise.site() if dropout > 0 else 0
        for group in groups:
            query, key, value = _split(_padded(qkv, group), group, heads)
            weights = torch.softmax(_scores(query, key, group, scale, window), dim=-1)
            keep = None
            used = weights
            if dropout > 0:
                keys = noise.tokens[group.cells().cpu()].view(group.rows, group.width, 2)
                keep = mask(keys, group.width, dropout, weights.dtype, site=site, heads=heads)
                keep = keep.view_as(weights).to(weights.device)
                used = weights * keep
                value = value * factor
            context = torch.bmm(used, value)
            flat = context.view(group.rows, heads, group.width, -1).transpose(1, 2).reshape(-1, hidden)
            out[group.begin : group.end] = flat if group.unpad is None else flat.index_select(0, group.unpad)
            saved += [weights, keep]
        ctx.groups, ctx.heads, ctx.scale, ctx.window = groups, heads, scale, window
        ctx.factor = factor
        ctx.save_for_backward(qkv, *saved)
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        qkv, *saved = ctx.saved_tensors
        heads, scale, hidden = ctx.heads, ctx.scale, qkv.shape[1] // 3
        grad_qkv = torch.empty_like(qkv)
        for number, group in enumerate(ctx.groups):
            weights, keep = saved[2 * number], saved[2 * number + 1]
            query, key, value = _split(_padded(qkv, group), group, heads)
            part = grad[group.begin : group.end]
            if group.unpad is not None:
                # Cells of padding get no gradient, so what they computed can reach nothing.
                part = part.new_zeros(group.rows * group.width, hidden).index_copy_(0, group.unpad, part)
            part = part.reshape(group.rows, group.width, heads, -1).transpose(1, 2).reshape(query.shape)
            if ctx.factor != 1.0:
                part = part * ctx.factor
            grad_weights = torch.bmm(part, value.transpose(1, 2))
            if keep is not None:
                grad_value = torch.bmm((weights * keep).transpose(1, 2), part)
                grad_weights *= keep
            else:
                grad_value = torch.bmm(weights.transpose(1, 2), part)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_scores *= scale
            grads = torch.stack(
                (torch.bmm(grad_scores, key), torch.bmm(grad_scores.transpose(1, 2), query), grad_value)
            )
            flat = grads.view(3, group.rows, heads, group.width, -1).permute(1, 3, 0, 2, 4).reshape(-1, 3 * hidden)
            grad_qkv[group.begin : group.end] = flat if group.unpad is None else flat.index_select(0, group.unpad)
        return grad_qkv, None, None, None, None, None


def _padded(qkv: Tensor, group: Group) -> Tensor:
    return qkv[group.begin : group.end] if group.pad is None else qkv.index_select(0, group.pad)


def _split(cells: Tensor, group: Group, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[rows * width, 3 * hidden] -> query, key, value, each [rows * heads, width, head size]."""
    size = cells.shape[1] // (3 * heads)
    parts = cells.view(group.rows, group.width, 3, heads, size).permute(2, 0, 3, 1, 4)
    query, key, value = parts.reshape(3, group.rows * heads, group.width, size).unbind(0)
    return query, key, value


def _scores(query: Tensor, key: Tensor, group: Group, scale: float, window: int) -> Tensor:
    bias = _bias(group, window, query)
    if bias is None:
        return torch.bmm(query * scale, key.transpose(1, 2))
    heads = query.shape[0] // group.rows
    shape = (group.rows, heads, bias.shape[2], group.width)
    flat = bias.expand(shape).reshape(-1, bias.shape[2], group.width)
    return torch.baddbmm(flat, query, key.transpose(1, 2), alpha=scale)
