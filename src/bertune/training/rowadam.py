"""Adam for the table of token embeddings, by row: the result of dense Adam without touching the whole table.

A step touches a few hundred rows of a table of tens of thousands, yet dense Adam reads and writes all of it, twice
over for its moments: on a fast processor that costs as much as the encoder. `RowAdam` postpones what dense Adam would
do to untouched rows and does it at once, in closed form, when a row is next needed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


class RowAdam:
    """Adam for one table [rows, width] of which each step uses few rows; equals dense Adam step for step.

    With zero gradient, k steps of Adam shrink the moments by powers of beta, so their updates of a row are a sum of
    m / (sqrt(v) + eps_i) with weights that depend on the step span alone. Terms beyond `_SPAN` are below float
    precision. eps_i differs from step to step (see `_fractions`); what that leaves of an error lies below float
    precision too, unless the gradient of an entry is itself about as small as eps. The sum has an end only where beta1
    is well below sqrt(beta2): see `fits`.
    """

    _SPAN = 192  # (0.9 / sqrt(0.999)) ** 192 < 2e-9

    def __init__(
        self, table: nn.Parameter, rates: np.ndarray, *, betas: tuple[float, float], eps: float, decay: float,
        begin: int = 0, corrected: bool = True,
    ) -> None:
        """rates: of every step. begin: steps that leave the table as it is before it is trained; moments and their
        correction count from there. corrected: whether there is a correction, see `Optimizer`."""
        self.table, self.begin = table, begin
        rates = np.where(np.arange(len(rates)) < begin, 0.0, rates)
        self.betas, self.eps = betas, eps
        self.mean = torch.zeros_like(table)
        self.square = torch.zeros_like(table)
        self.done = np.zeros(len(table), dtype=np.int64)  # step up to which a row is as dense Adam would have it
        steps = np.arange(1, len(rates) + 1, dtype=np.float64) - begin
        # Entry t of these belongs to step t, counted from 1; entry 0 is before the first step.
        self.rates = np.concatenate(([0.0], rates))
        decayed = np.minimum(rates * decay, 0.999)  # more would turn weights around; such a run diverges anyhow
        self.shrink = np.concatenate(([0.0], np.cumsum(np.log1p(-decayed))))
        steps = np.where(steps > 0, steps, np.inf) if corrected else np.full(len(rates), np.inf)
        self.correct1 = np.concatenate(([1.0], 1 - betas[0] ** steps))
        self.correct2 = np.concatenate(([1.0], np.sqrt(1 - betas[1] ** steps)))
        self.ratio = betas[0] / math.sqrt(betas[1])
        self.span = self._SPAN if self.ratio <= 0.9005 else math.ceil(math.log(2e-9) / math.log(self.ratio))

    @staticmethod
    def fits(betas: tuple[float, float]) -> bool:
        """Whether postponed updates die away, and soon enough to be worth their sum."""
        return betas[0] < 0.99 * math.sqrt(betas[1])

    def catch_up(self, rows: np.ndarray | None, step: int) -> None:
        """Bring `rows` (None: all) to where dense Adam has them after `step` steps."""
        rows = np.arange(len(self.table)) if rows is None else rows
        rows = rows[self.done[rows] < step]
        for begin in range(0, len(rows), 8192):
            self._catch_up(rows[begin : begin + 8192], step)

    def _catch_up(self, rows: np.ndarray, step: int) -> None:
        starts, which = np.unique(self.done[rows], return_inverse=True)
        gaps = step - starts

        def column(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values[which].astype(np.float32))[:, None].to(self.table.device)

        index = torch.from_numpy(rows).to(self.table.device)
        with torch.no_grad():
            mean, square = self.mean[index], self.square[index]
            kept = self.table[index].mul_(column(np.exp(self.shrink[step] - self.shrink[starts])))
            root = square.sqrt()
            for weight, shift in self._fractions(starts, step):
                kept.addcmul_(mean, (root + column(shift)).reciprocal_().mul_(column(weight)), value=-1)
            self.table.index_copy_(0, index, kept)
            self.mean.index_copy_(0, index, mean.mul_(column(self.betas[0] ** gaps.astype(np.float64))))
            self.square.index_copy_(0, index, square.mul_(column(self.betas[1] ** gaps.astype(np.float64))))
        self.done[rows] = step

    def _fractions(self, starts: np.ndarray, step: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each start s, weights W and shifts E: steps s+1 .. step move a row by the sum of W m / (sqrt(v) + E).

        Step i alone moves it by w m / (sqrt(v) + e), with w = rate_i sqrt(c2_i) / c1_i ratio^(i-s), later decay
        included, and e = eps sqrt(c2_i) / sqrt(beta2)^(i-s). Two fractions stand for all of them: their weights and
        shifts have the same first four moments (Gauss quadrature), so the error is of order (e / sqrt(v))^4.
        """
        power = np.arange(1, min(self.span, int((step - starts).max())) + 1, dtype=np.float64)
        at = starts[:, None] + power[None, :].astype(np.int64)
        inside = at <= step
        at = np.minimum(at, step)
        weight = self.rates[at] * self.correct2[at] / self.correct1[at] * self.ratio ** power[None, :]
        weight *= np.exp(self.shrink[step] - self.shrink[at]) * inside
        shift = self.correct2[at] * self.betas[1] ** (-0.5 * power[None, :])  # in units of eps
        weight[:, 0] += 1e-300  # without momentum (beta1 = 0) all weights are 0, and their mean would not be defined
        total = weight.sum(axis=1)
        middle = (weight * shift).sum(axis=1) / total
        apart = shift - middle[:, None]
        spread = (weight * apart**2).sum(axis=1) / total
        alike = spread <= 1e-12 * middle**2  # a single step, or as good as one
        spread = np.where(alike, 1.0, spread)
        lean = (weight * apart**3).sum(axis=1) / total / spread
        root = np.sqrt(lean**2 + 4 * spread)
        low, high = (lean - root) / 2, (lean + root) / 2
        share = np.where(alike, 1.0, high / root)
        low, high = np.where(alike, 0.0, low), np.where(alike, 0.0, high)
        return [(total * share, self.eps * (middle + low)), (total * (1 - share), self.eps * (middle + high))]

    def update(self, rows: Tensor, values: Tensor, grad: Tensor, step: int) -> None:
        """Step number `step` (from 1) for `rows`, which hold `values` [rows, width] and were caught up to step - 1."""
        beta1, beta2 = self.betas
        mean = self.mean[rows].lerp_(grad, 1 - beta1)
        square = self.square[rows].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = square.sqrt().div_(float(self.correct2[step])).add_(self.eps)
        rate = float(self.rates[step])
        kept = values * math.exp(self.shrink[step] - self.shrink[step - 1])
        self.table[rows] = kept.addcdiv_(mean, root, value=-rate / float(self.correct1[step]))
        self.mean[rows], self.square[rows] = mean, square
        self.done[rows.cpu().numpy()] = step
