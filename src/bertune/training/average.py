"""Averages of the weights of many steps, which are measured and kept in place of the last ones.

ema: exponential moving average, a step counting `decay` times what the next one counts, and nothing before the first
step. swa: Izmailov et al. 2018, Averaging Weights Leads to Wider Optima (arXiv 1803.05407), the plain mean of the steps
from a given one on; it wants a rate that does not fall to 0, such as --schedule constant.

The weights are looked at every few steps, and what is seen stands for all steps since the last look: at every step, a
look would cost a pass over all masters and, which weighs more, every postponed update of the token embeddings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bertune.config import TrainConfig


@dataclass
class Average:
    """decay: of ema, None for swa; begin: steps before the first that counts; every: steps between looks; values: fp32
    averages by name, empty before the first look."""

    decay: float | None
    begin: int
    every: int
    values: dict[str, Tensor] = field(default_factory=dict)

    def due(self, step: int, *, measured: bool) -> bool:
        """Whether to look after `step`; measured: whether the weights are measured then."""
        return step > self.begin and (measured or step % self.every == 0)

    def look(self, weights: dict[str, Tensor], step: int, *, last: int) -> None:
        """Take in the fp32 `weights` after `step`; last: step of the look before, 0 where there was none."""
        last = max(last, self.begin)
        if self.decay is None:
            share = (step - last) / (step - self.begin)
        else:  # its weights sum to 1 - decay ** step, by which it is divided
            share = (1 - self.decay ** (step - last)) / (1 - self.decay**step)
        if not self.values:
            self.values = {name: value.clone() for name, value in weights.items()}
            return
        torch._foreach_lerp_([self.values[name] for name in weights], list(weights.values()), share)


def make_average(config: TrainConfig, *, steps: int) -> Average | None:
    """The configured average over a run of `steps` steps, if any."""
    if config.average == "none":
        return None
    swa = config.average == "swa"
    return Average(
        decay=None if swa else config.ema_decay, begin=math.floor(config.swa_start * steps) if swa else 0,
        every=config.average_every,
    )
