"""A post-norm layer as one autograd function over compiled kernels, and a linear layer alone: for bf16 on a processor.

The same computation as `Layer` in encoder.py, with the same dropout masks. Between matrix products everything that
touches a value touches it once; the backward pass draws masks again instead of keeping them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bertune.model import kernels
from bertune.model.attention import Plan
from bertune.model.kernels import Drop, product
from bertune.model.noise import Noise, level, mask_factor

if TYPE_CHECKING:
    from bertune.model.encoder import EncoderConfig


@dataclass
class Shape:
    """What a layer is beside its weights.

    table: the activation, see `kernels.activation_table`; eps: of both norms; dropout rates of attention weights and
    of the rest.
    """

    heads: int
    table: Tensor
    eps: float
    attention_dropout: float
    dropout: float


def takes(config: EncoderConfig) -> bool:
    """Whether the layers of such an encoder can be computed here."""
    plain = not config.pre_norm and config.bias and config.norm_bias and config.attention_bias
    fits = max(config.hidden, config.max_positions) <= kernels.LONGEST and config.hidden // config.heads % 2 == 0
    return plain and fits and kernels.library() is not None


def layer(
    hidden: Tensor, weights: list[Tensor], plan: Plan, shape: Shape, noise: Noise | None, *,
    first: Tensor | None = None, only: Tensor | None = None,
) -> Tensor:
    """[tokens, hidden] -> [tokens, hidden], bf16; with `first` or `only`, int64 [n], just those tokens: [n, hidden].

    weights: weight and bias of the products qkv, out, up and down (bf16), of the norms after attention and feed-forward
    (fp32), in this order. first: the first token of each row; only: any tokens, see `Noise.ask`.
    """
    some = first if only is None else only
    asking, lines = (len(hidden) if chosen is None else len(chosen) for chosen in (first, some))
    rates = (shape.attention_dropout, asking), (shape.dropout, lines), (shape.dropout, lines)
    drops = [_drop(noise, rate, count) for rate, count in rates]
    result: Tensor = _Layer.apply(hidden, *weights, first, only, plan, shape, drops)
    return result


def _drop(noise: Noise | None, rate: float, lines: int) -> Drop | None:
    if noise is None or rate == 0:
        return None
    return Drop(noise.keys(lines), noise.site(), level(rate), mask_factor(rate))


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *given: Any) -> Tensor:
        *weights, first, only, plan, shape, drops = given
        w_qkv, b_qkv, w_out, b_out, w_up, b_up, w_down, b_down, w_norm1, b_norm1, w_norm2, b_norm2 = weights
        if first is None:
            asking = hidden
            qkv = product(hidden, w_qkv.t(), b_qkv)
            context, stats = kernels.attend(
                qkv, plan.offset, longest=plan.longest, heads=shape.heads, drop=drops[0]
            )
            kept = [qkv, stats]
            if only is not None:
                asking, context = (whole.index_select(0, only) for whole in (hidden, context))
        else:
            width = hidden.shape[1]
            asking = hidden.index_select(0, first)
            query = product(asking, w_qkv[:width].t(), b_qkv[:width])
            both = product(hidden, w_qkv[width:].t(), b_qkv[width:])
            context, shares = kernels.attend_first(query, both, plan.offset, heads=shape.heads, drop=drops[0])
            kept = [query, both, shares]
        total1 = product(context, w_out.t(), b_out)
        middle, stats1 = kernels.norm(total1, asking, w_norm1, b_norm1, eps=shape.eps, drop=drops[1])
        slope = product(middle, w_up.t(), b_up)
        inner = kernels.activate(slope, shape.table)
        total2 = product(inner, w_down.t(), b_down)
        out, stats2 = kernels.norm(total2, middle, w_norm2, b_norm2, eps=shape.eps, drop=drops[2])
        ctx.save_for_backward(
            hidden, asking, first, only, context, total1, stats1, middle, slope, inner, total2, stats2,
            w_qkv, w_out, w_up, w_down, w_norm1, w_norm2, *kept,
        )
        ctx.plan, ctx.shape, ctx.drops = plan, shape, drops
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (hidden, asking, first, only, context, total1, stats1, middle, slope, inner, total2, stats2,
         w_qkv, w_out, w_up, w_down, w_norm1, w_norm2, *kept) = ctx.saved_tensors  # fmt: skip
        drops, shape, wanted = ctx.drops, ctx.shape, ctx.needs_input_grad[0]
        grad = grads[0].contiguous()

        grad_middle, update, sums2 = kernels.norm_back(grad, total2, stats2, w_norm2, drop=drops[2])
        g_down = product(update.t(), inner)
        grad_inner = product(update, w_down)
        g_b_up = kernels.times_and_sum(grad_inner, slope)
        g_up = product(grad_inner.t(), middle)
        grad_middle = product(grad_inner, w_up, grad_middle)

        grad_hidden, update, sums1 = kernels.norm_back(grad_middle, total1, stats1, w_norm1, drop=drops[1])
        g_out = product(update.t(), context)
        grad_context = product(update, w_out)
        if first is None:
            qkv, stats = kept
            if only is not None:
                grad_context = torch.zeros_like(hidden).index_copy_(0, only, grad_context)
            grad_qkv = kernels.attend_back(
                grad_context, qkv, stats, ctx.plan.offset, longest=ctx.plan.longest, heads=shape.heads, drop=drops[0]
            )
            g_b_qkv = kernels.times_and_sum(grad_qkv, None)
            g_qkv = product(grad_qkv.t(), hidden)
            if wanted and only is None:
                grad_hidden = product(grad_qkv, w_qkv, grad_hidden)
            elif wanted:
                grad_hidden = product(grad_qkv, w_qkv).index_add_(0, only, grad_hidden)
        else:
            width = hidden.shape[1]
            query, both, shares = kept
            grad_query, grad_both = kernels.attend_first_back(
                grad_context, query, both, shares, ctx.plan.offset, heads=shape.heads, drop=drops[0]
            )
            g_b_qkv = torch.cat([kernels.times_and_sum(part, None) for part in (grad_query, grad_both)])
            g_qkv = torch.cat((product(grad_query.t(), asking), product(grad_both.t(), hidden)))
            if wanted:
                grad_first = product(grad_query, w_qkv[:width], grad_hidden)
                grad_hidden = product(grad_both, w_qkv[width:]).index_add_(0, first, grad_first)
        return (
            grad_hidden if wanted else None, g_qkv, g_b_qkv, g_out, sums1[2], g_up, g_b_up, g_down, sums2[2],
            sums1[0], sums1[1], sums2[0], sums2[1], None, None, None, None, None,
        )  # fmt: skip


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        return product(values, weight.t(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (values, weight), grad = ctx.saved_tensors, grads[0].contiguous()
        wanted = ctx.needs_input_grad
        return (
            product(grad, weight) if wanted[0] else None,
            product(grad.t(), values) if wanted[1] else None,
            kernels.times_and_sum(grad, None).to(grad.dtype) if wanted[2] else None,
        )


def linear(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`values` [tokens, in] times the transpose of `weight` [out, in], plus `bias` [out]; bf16."""
    result: Tensor = _Linear.apply(values.contiguous(), weight, bias)
    return result
