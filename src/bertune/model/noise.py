"""Randomness of the forward pass, keyed by where it is used and never by when.

On a processor, Bernoulli draws would take a quarter of a training step; bytes cut from 64-bit integers cost a
fraction of that. A byte knows 256 levels, so a dropout rate is rounded to 1/256 (0.1 becomes 26/256) and the scale
follows the rounded rate, which keeps the expectation exact.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor


class Noise:
    """A stream of dropout masks that starts anew at every `seek`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator(device=device)

    def seek(self, *key: int) -> None:
        """Make the stream depend on `key` alone, for example (seed, step, micro-batch)."""
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little") >> 1
        self.generator.manual_seed(seed)
        if self.device.type != "cpu":
            # Kernels that draw their own dropout (flash attention) follow the device's default stream.
            torch.manual_seed(seed)

    def mask(self, shape: torch.Size, rate: float, like: Tensor) -> tuple[Tensor, float]:
        """0/1 of `shape` in the type of `like`, and the factor that keeps the expectation."""
        if self.device.type != "cpu":
            kept = torch.empty(shape, dtype=like.dtype, device=like.device)
            return kept.bernoulli_(1 - rate, generator=self.generator), 1 / (1 - rate)
        level = max(1, round(rate * 256))
        count = shape.numel()
        words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None, generator=self.generator)
        kept = torch.empty(shape, dtype=like.dtype)
        torch.ge(words.view(torch.uint8)[:count].view(shape), level, out=kept)
        return kept, 256 / (256 - level)

    def dropout(self, values: Tensor, rate: float) -> Tensor:
        """`values` with a share of `rate` set to 0 and the rest scaled up."""
        if rate == 0:
            return values
        if self.device.type != "cpu":
            return F.dropout(values, rate)  # follows the default stream, which `seek` has set
        kept, factor = self.mask(values.shape, rate, values)
        return values * (kept * factor if values.dtype == torch.float32 else kept.mul_(factor))
