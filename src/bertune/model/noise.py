"""Randomness of the forward pass, keyed by where it is used and never by when.

On a processor a dropout mask is a function of (seed, step, row, position in the row, place in the network): the same
whatever else is in the batch, however it is cut into micro-batches, and in both implementations (here and kernels.c).
Bernoulli draws would take a quarter of a training step; bytes of an integer hash cost a fraction of that. A byte knows
256 levels, so a rate is rounded to 1/256 (0.1 becomes 26/256) and the scale follows the rounded rate, which keeps the
expectation exact. On a GPU, masks follow (seed, step, first row) through the device's own generator.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bertune.data.batch import Batch
from bertune.data.counters import base, keyed, spread


class Noise:
    """A source of dropout masks; `seek` points it at a step and the batch that is about to be computed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator(device=device)
        self.tokens = self.first = self.rows = self.asked = torch.empty(0, 2, dtype=torch.int32)
        self._site = 0

    def seek(self, seed: int, step: int, batch: Batch, *, second: bool = False) -> None:
        """Make what follows depend on (seed, step) and the rows of `batch` alone; `second`: in another way."""
        rows = keyed(base(seed, step, *(["second"] if second else [])), batch.rows)
        own = int(rows[0] >> np.uint64(1))
        self.generator.manual_seed(own)
        if self.device.type != "cpu":
            # Kernels that draw their own dropout (flash attention) follow the device's default stream.
            torch.manual_seed(own)
            return
        with np.errstate(over="ignore"):
            tokens = spread(np.repeat(rows, np.diff(batch.row_starts)) + batch.within_row.astype(np.uint64))
        self.tokens = torch.from_numpy(tokens.view(np.int32).reshape(-1, 2))
        self.first = self.tokens[torch.from_numpy(batch.cu[:-1])]
        self.rows = self.tokens[torch.from_numpy(batch.row_starts[:-1])]
        self.asked = self.tokens[:0]
        self._site = 0

    def site(self) -> int:
        """The next place in the network where something is dropped."""
        self._site += 1
        return self._site

    def ask(self, only: Tensor) -> None:
        """From here on, as many lines as `only`, int64, has are these tokens of the batch."""
        if self.device.type == "cpu":
            self.asked = self.tokens[only]

    def keys(self, lines: int) -> Tensor:
        """int32 [lines, 2]: the keys of the tokens last asked for, of all tokens of the batch, or of the first token of
        each sequence or row."""
        return next(keys for keys in (self.asked, self.tokens, self.first, self.rows) if len(keys) == lines)

    def dropout(self, values: Tensor, rate: float) -> Tensor:
        """`values` [tokens, sequences or rows, width] with a share of `rate` set to 0 and the rest scaled up."""
        if rate == 0:
            return values
        if self.device.type != "cpu":
            return F.dropout(values, rate)  # follows the default stream, which `seek` has set
        kept = mask(self.keys(len(values)), values.shape[-1], rate, values.dtype, site=self.site())
        return values * kept.mul_(mask_factor(rate))

    def uniform(self, lines: int, width: int) -> Tensor:
        """float32 [lines, width] between -1 and 1 with mean 0, for the tokens of the batch; always the same ones."""
        if self.device.type != "cpu":
            return 2 * torch.rand(lines, width, generator=self.generator, device=self.device) - 1
        return (bytes_of(self.tokens, width, site=0).float() - 127.5) / 127.5  # places in the network begin with 1


def line_keys(lines: int, *where: object) -> Tensor:
    """int32 [lines, 2]: keys of the lines of a matrix that depend on `where` alone."""
    return torch.from_numpy(keyed(base(*where), np.arange(lines)).view(np.int32).reshape(-1, 2))


def level(rate: float) -> int:
    """Bytes below this are dropped."""
    return min(255, max(1, round(rate * 256)))


def mask_factor(rate: float) -> float:
    """What keeps the expectation after `mask`."""
    return 256 / (256 - level(rate))


def mask(keys: Tensor, width: int, rate: float, dtype: torch.dtype, *, site: int, heads: int | None = None) -> Tensor:
    """0/1 [..., width] for lines with the given keys, int32 [..., 2]; with `heads`, [lines, heads, queries, width]."""
    bytes_ = bytes_of(keys, width, site=site, heads=heads)
    return torch.ge(bytes_, level(rate), out=torch.empty(bytes_.shape, dtype=dtype))


def bytes_of(keys: Tensor, width: int, *, site: int, heads: int | None = None) -> Tensor:
    """uint8 [..., width], what `mask` compares.

    A line's bytes come from a 32-bit mixer (Wellons' lowbias32), keyed at its start and once inside, as in kernels.c.
    """
    first, second = keys.unbind(-1)
    place = torch.tensor(site * 0x85EBCA6B + 1)
    if heads is not None:  # keys [lines, queries, 2]
        place = place + torch.arange(heads)[:, None] * 0xC2B2AE35
        first, second = first[:, None], second[:, None]
    first = _stir(first ^ _wrap(place))
    second = _stir(second + first)
    words = torch.arange(-(-width // 4)) * 0x9E3779B9
    bits = first[..., None] + _wrap(words)
    bits ^= _right(bits, 16)
    bits *= 0x7FEB352D
    bits ^= second[..., None]
    bits ^= _right(bits, 15)
    bits *= _wrap_int(0x846CA68B)
    bits ^= _right(bits, 16)
    return bits.view(torch.uint8)[..., :width]


def _stir(x: Tensor) -> Tensor:
    x = x ^ _right(x, 16)
    x *= 0x7FEB352D
    x ^= _right(x, 15)
    x *= _wrap_int(0x846CA68B)
    return x ^ _right(x, 16)


def _right(x: Tensor, by: int) -> Tensor:
    """Shift of the bits as if they had no sign."""
    return (x >> by) & ((1 << (32 - by)) - 1)


def _wrap(x: Tensor) -> Tensor:
    """int64 to the int32 with the same lower bits."""
    return ((x + 2**31) % 2**32 - 2**31).to(torch.int32)


def _wrap_int(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31
