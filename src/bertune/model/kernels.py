"""The compiled part of a training step on a processor: kernels.c behind functions over tensors.

The library is built when the package is installed, where there is a C compiler; without it everything runs on torch's
own operators (see encoder.py), with the same dropout masks. Calls share torch's thread pool.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

LONGEST = 8192  # the widest line that kernels.c takes
_VERSION = 4  # of its signatures
_BLOCK = 16  # values that it computes at once
_PIECES = 4  # that it cuts the work of each thread into: sums of each have a place

_PROTOTYPES = {  # p: pointer, n: int64, i: int, u: uint32, f: float
    "attend": "ppppppnnnnfpuifi",
    "first": "pppppppnnnfpuifi",
    "norm": "ppppppnnfpuifi",
    "norm_back": "pppppppnnpuifi",
    "look_up": "pppni",
    "times": "pppnni",
    "guess": "ppppppnnnfi",
    "adam": "ppppppnfffffffi",
    "square_sum": "pppni",
    "product": "pppppnnnnnnniii",
}
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "i": ctypes.c_int, "u": ctypes.c_uint32, "f": ctypes.c_float}


@dataclass(frozen=True)
class Drop:
    """Dropout of one place in the network: keys int32 [lines, 2] and site as in noise.py."""

    keys: Tensor
    site: int
    level: int
    factor: float

    @property
    def arguments(self) -> tuple[int, int, int, float]:
        return self.keys.data_ptr(), self.site & 0xFFFFFFFF, self.level, self.factor


def _none(drop: Drop | None) -> tuple[int | None, int, int, float]:
    return (None, 0, 0, 1.0) if drop is None else drop.arguments


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The library, joined to the thread pool of torch; None where it was not built or that pool is not found."""
    found = importlib.util.find_spec("bertune.model._kernels")
    if found is None or found.origin is None or not sys.platform.startswith("linux"):
        return None
    for path in _thread_pools():
        try:
            pool = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            loaded = ctypes.CDLL(found.origin)
            version = ctypes.c_int.in_dll(loaded, "bertune_version").value
            entries = pool.GOMP_parallel, pool.omp_get_thread_num
        except (OSError, AttributeError, ValueError):
            continue
        if version != _VERSION:  # built from other sources than these
            return None
        loaded.bertune_init(*(ctypes.cast(entry, ctypes.c_void_p) for entry in entries))
        for name, letters in _PROTOTYPES.items():
            function = getattr(loaded, f"bertune_{name}")
            function.argtypes, function.restype = [_TYPES[letter] for letter in letters], None
        loaded.bertune_room.argtypes, loaded.bertune_room.restype = [ctypes.c_int64, ctypes.c_int64], ctypes.c_int64
        loaded.bertune_product_room.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.c_int]
        loaded.bertune_product_room.restype = ctypes.c_int64
        return loaded
    return None


def _thread_pools() -> Iterator[Path]:
    """Files of OpenMP that came with torch; the one that it loaded is the one to share."""
    home = Path(torch.__file__).parent
    for folder in (home / "lib", home.parent / "torch.libs"):
        yield from sorted(folder.glob("libgomp*.so*"))


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None, "kernels are asked for only where library() found them"
    return found


SIDE = 32  # of the squares that products.h computes


def has_tiles() -> bool:
    """Whether the library is there and computes matrix products with the processor's tiles (AMX)."""
    found = library()
    return found is not None and bool(found.bertune_tiles())


def takes(values: Tensor) -> bool:
    """Whether tiles may compute products of such values."""
    return values.device.type == "cpu" and values.dtype == torch.bfloat16 and has_tiles()


def product(left: Tensor, right: Tensor, add: Tensor | None = None) -> Tensor:
    """`left` [lines, depth] times `right` [depth, columns], plus `add`, [columns] or [lines, columns]; all of one type.

    Either side may be the transpose of a tensor. Tiles add up in fp32, and in one order, whatever the number of lines
    or threads; products that they do not take are torch's.
    """
    (lines, depth), columns = left.shape, right.shape[1]
    across, turned = left.stride(1) != 1, right.stride(1) != 1
    plain = left.stride(int(not across)) == 1 == right.stride(int(not turned))
    whole = plain and columns % SIDE == 0 and (lines if across else depth) % SIDE == 0 and not (turned and depth % SIDE)
    if not (whole and lines and depth and takes(left)):
        return torch.mm(left, right) if add is None else torch.addmm(add, left, right)
    out, threads = torch.empty(lines, columns, dtype=left.dtype), torch.get_num_threads()
    room = torch.empty(_library().bertune_product_room(columns, depth, across, threads), dtype=torch.uint8)
    _library().bertune_product(
        left.data_ptr(), right.data_ptr(), None if add is None else add.data_ptr(), out.data_ptr(), room.data_ptr(),
        left.stride(int(across)), right.stride(int(turned)), 0 if add is None or add.dim() == 1 else add.stride(0),
        columns, lines, columns, depth, across, turned, threads,
    )
    return out


def attend(
    qkv: Tensor, offset: Tensor, *, longest: int, heads: int, drop: Drop | None
) -> tuple[Tensor, Tensor]:
    """Attention within each row: context [tokens, hidden], and what `attend_back` needs, float32 [heads, tokens, 2].

    qkv: [tokens, 3 * hidden], query, key and value; offset: int64 [rows + 1]; longest: tokens of the longest row.
    """
    context = torch.empty(len(qkv), qkv.shape[1] // 3, dtype=qkv.dtype)
    stats = torch.empty(heads, len(qkv), 2)
    _attend(qkv, context, None, stats, offset, longest, heads, drop)
    return context, stats


def attend_back(
    grad: Tensor, qkv: Tensor, stats: Tensor, offset: Tensor, *, longest: int, heads: int, drop: Drop | None
) -> Tensor:
    """Gradient of `qkv`, from that of the context."""
    grad_qkv = torch.empty_like(qkv)
    _attend(qkv, grad, grad_qkv, stats, offset, longest, heads, drop)
    return grad_qkv


def _attend(
    qkv: Tensor, context: Tensor, grad: Tensor | None, stats: Tensor, offset: Tensor, longest: int, heads: int,
    drop: Drop | None,
) -> None:
    size, threads = qkv.shape[1] // (3 * heads), torch.get_num_threads()
    each = _library().bertune_room(longest, size)
    room = torch.empty(threads * each)
    _library().bertune_attend(
        qkv.data_ptr(), context.data_ptr(), None if grad is None else grad.data_ptr(), stats.data_ptr(),
        room.data_ptr(), offset.data_ptr(), each, len(offset) - 1, heads, size, 1 / math.sqrt(size), *_none(drop),
        threads,
    )


def attend_first(
    query: Tensor, both: Tensor, offset: Tensor, *, heads: int, drop: Drop | None
) -> tuple[Tensor, Tensor]:
    """Attention of the first token of each row: context [rows, hidden], and weights float32 [heads, tokens].

    query: [rows, hidden]; both: [tokens, 2 * hidden], key and value; offset: int64 [rows + 1]; drop: keys by row.
    """
    context, weights = torch.empty_like(query), torch.empty(heads, len(both))
    _first(query, both, weights, context, None, None, offset, heads, drop)
    return context, weights


def attend_first_back(
    grad: Tensor, query: Tensor, both: Tensor, weights: Tensor, offset: Tensor, *, heads: int, drop: Drop | None
) -> tuple[Tensor, Tensor]:
    """Gradients of `query` and `both`, from that of the context."""
    grad_query, grad_both = torch.empty_like(query), torch.empty_like(both)
    _first(query, both, weights, grad, grad_query, grad_both, offset, heads, drop)
    return grad_query, grad_both


def _first(
    query: Tensor, both: Tensor, weights: Tensor, context: Tensor, grad_query: Tensor | None, grad_both: Tensor | None,
    offset: Tensor, heads: int, drop: Drop | None,
) -> None:
    rows, hidden = query.shape
    grads = [None if grad is None else grad.data_ptr() for grad in (grad_query, grad_both)]
    _library().bertune_first(
        query.data_ptr(), both.data_ptr(), weights.data_ptr(), context.data_ptr(), *grads, offset.data_ptr(), rows,
        heads, hidden // heads, 1 / math.sqrt(hidden // heads), *_none(drop), torch.get_num_threads(),
    )


def norm(
    update: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float, drop: Drop | None
) -> tuple[Tensor, Tensor]:
    """LayerNorm(residual + dropout(update)) [lines, width], and its statistics [lines, 2].

    The sum that is normed overwrites `update`.
    """
    lines, width = update.shape
    out, stats = torch.empty_like(update), torch.empty(lines, 2)
    _library().bertune_norm(
        update.data_ptr(), residual.data_ptr(), weight.data_ptr(), bias.data_ptr(), stats.data_ptr(), out.data_ptr(),
        lines, width, eps, *_none(drop), torch.get_num_threads(),
    )
    return out, stats


def norm_back(
    grad: Tensor, total: Tensor, stats: Tensor, weight: Tensor, *, drop: Drop | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of residual and update [lines, width], and sums float32 [3, width].

    The sums are the gradients of weight and bias, and the gradient of the update summed over lines.
    """
    lines, width = grad.shape
    out, threads = torch.empty_like(grad), torch.get_num_threads()
    update = out if drop is None else torch.empty_like(grad)
    sums = torch.zeros(_PIECES * threads, 3, width)
    _library().bertune_norm_back(
        total.data_ptr(), grad.data_ptr(), weight.data_ptr(), stats.data_ptr(), out.data_ptr(), update.data_ptr(),
        sums.data_ptr(), lines, width, *_none(drop), threads,
    )
    return out, update, sums.sum(dim=0)


def activate(values: Tensor, table: Tensor) -> Tensor:
    """The function of `table` (see `activation_table`) of `values`, which its derivative overwrites."""
    out = torch.empty_like(values)
    _library().bertune_look_up(
        values.data_ptr(), out.data_ptr(), table.data_ptr(), values.numel(), torch.get_num_threads()
    )
    return out


def activation_table(function: Callable[[Tensor], Tensor]) -> Tensor:
    """int32 [65536], for each bf16 number, by its bits: `function` of it in the lower half, the derivative above."""
    # Frozen layers and predictions ask for it in inference mode, where nothing has a derivative.
    with torch.inference_mode(False), torch.enable_grad():
        every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float().requires_grad_()
        result = function(every)
        (slope,) = torch.autograd.grad(result.sum(), every)
    low, high = (part.detach().bfloat16().view(torch.int16).to(torch.int32) for part in (result, slope))
    return (high << 16) | (low & 0xFFFF)


def times_and_sum(values: Tensor, other: Tensor | None) -> Tensor:
    """Multiply `values` [lines, width] by `other` in place; float32 [width], the sums over lines."""
    lines, width = values.shape
    threads = torch.get_num_threads()
    sums = torch.zeros(_PIECES * threads, width)
    _library().bertune_times(
        values.data_ptr(), None if other is None else other.data_ptr(), sums.data_ptr(), lines, width, threads
    )
    return sums.sum(dim=0)


def guess(scores: Tensor, targets: Tensor, bias: Tensor | None, *, width: int, scale: float) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of `scores` [lines, columns], of which the first `width` count, plus `bias` [width].

    The scores become its gradient times `scale`, in place. The second result are the sums of that over lines, float32
    [width], the gradient of the bias; without one nothing of use.
    """
    lines, threads = len(scores), torch.get_num_threads()
    stats, pieces = torch.empty(lines, 2), _PIECES * threads
    sums, room = torch.zeros(0 if bias is None else pieces, width), torch.empty(pieces, width + _BLOCK)
    _library().bertune_guess(
        scores.data_ptr(), None if bias is None else bias.data_ptr(), targets.data_ptr(), stats.data_ptr(),
        None if bias is None else sums.data_ptr(), room.data_ptr(), lines, width,
        scores.shape[1], scale, threads,
    )
    return (stats[:, 0] + stats[:, 1].log()).sum(), sums.sum(dim=0)


def adam(
    weight: Tensor, mean: Tensor, square: Tensor, low: Tensor | None, grad: Tensor, *, scale: float,
    betas: tuple[float, float], rate: float, root: float, eps: float, keep: float,
) -> None:
    """One step for fp32 `weight` and its moments, and its bf16 copy `low`; grad: fp32 or bf16, multiplied by `scale`.

    weight = keep weight - rate mean / (sqrt(square) root + eps).
    """
    half = grad.dtype == torch.bfloat16
    _library().bertune_adam(
        weight.data_ptr(), mean.data_ptr(), square.data_ptr(), None if low is None else low.data_ptr(),
        grad.data_ptr() if half else None, None if half else grad.data_ptr(), weight.numel(), scale, *betas, rate, root,
        eps, keep, torch.get_num_threads(),
    )


def square_sum(grads: list[Tensor]) -> float:
    """Sum of the squares of all `grads`, fp32 or bf16."""
    threads = torch.get_num_threads()
    sums = torch.zeros(len(grads), _PIECES * threads, dtype=torch.float64)
    for place, grad in enumerate(grads):
        half, out = grad.dtype == torch.bfloat16, sums[place].data_ptr()
        address = grad.data_ptr()
        _library().bertune_square_sum(
            address if half else None, None if half else address, out, grad.numel(), threads
        )
    return float(sums.sum())
