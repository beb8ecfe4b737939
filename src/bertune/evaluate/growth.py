"""How an error falls with the number of training rows: a power law, and what it foretells.

error(n) = a + b n^-c with a, b >= 0 describes how classifiers learn from more rows over a wide range (Hestness et al.
2017; Viering and Loog 2022, The Shape of Learning Curves, section 4). For a given c the best a and b are linear least
squares; c is searched on a grid. Few points leave a, b and c uncertain, which the spread over many draws shows.
"""

from __future__ import annotations

import numpy as np

from bertune.evaluate.metrics import Array

POWERS = np.linspace(0.05, 1.5, 59)


def fit_growth(rows: Array, errors: Array, weights: Array) -> Array:
    """a, b and c of each draw, float64 [draws, 3].

    rows: [sizes], at least three different ones; errors: [draws, sizes]; weights: [sizes], the trust in each size.
    """
    rows, errors = np.asarray(rows, np.float64), np.asarray(errors, np.float64)
    best = np.full(len(errors), np.inf)
    found = np.zeros((len(errors), 3))
    total = weights.sum()
    flat = errors @ weights / total
    scale = rows.max()  # keeps the numbers near 1
    for power in POWERS:
        falls = (rows / scale) ** -power
        mean = falls @ weights / total
        spread = ((falls - mean) ** 2) @ weights
        slope = ((errors - flat[:, None]) * (falls - mean)) @ weights / spread
        floor = flat - slope * mean
        # The two corners of what is allowed: no error in the end, or no fall at all.
        through = (errors * falls) @ weights / ((falls**2) @ weights)
        slope, floor = np.where(floor < 0, through, slope), np.where(floor < 0, 0.0, floor)
        slope, floor = np.where(slope < 0, 0.0, slope), np.where(slope < 0, flat, floor)
        cost = ((errors - floor[:, None] - slope[:, None] * falls) ** 2) @ weights
        better = cost < best - 1e-15
        best = np.where(better, cost, best)
        found[better] = np.column_stack([floor, slope * scale**power, np.full(len(errors), power)])[better]
    return found


def at(fits: Array, rows: float) -> Array:
    """The error that each fit [draws, 3] has at so many rows, [draws]."""
    return fits[:, 0] + fits[:, 1] * rows ** -fits[:, 2]
