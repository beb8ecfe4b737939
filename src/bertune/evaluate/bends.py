"""Calibration curves, where one temperature and one bias are too stiff: beta curves and isotonic steps.

Both bend the log-odds of a label, one curve a label. Of one label a row each label is first set against the rest, and
probabilities are made to sum to 1 afterwards.

- beta: `a log p - b log(1 - p) + c` with a and b not below 0 (Kull, Silva Filho and Flach 2017, Beta calibration).
- isotonic: the step function that never falls and fits best (Zadrozny and Elkan 2002), joined by straight lines.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bertune.evaluate.metrics import Array, log_softmax

Way = Literal["beta", "isotonic"]


class Curve(BaseModel):
    """Log-odds in, log-odds out. beta: numbers a, b, c; otherwise the points `x` (ascending) and `y` of a line, which
    goes on level at both ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)], float] | None = None
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> Curve:
        if len(self.x) != len(self.y) or (self.beta is None) == (not self.x):
            raise ValueError("a curve has beta, or as many x as y")
        return self

    def __call__(self, odds: Array) -> Array:
        """Bent log-odds, float64 of the same shape."""
        odds = np.asarray(odds, np.float64)
        if self.beta is None:
            return np.asarray(np.interp(odds, self.x, self.y))
        a, b, c = self.beta
        return np.asarray(-a * np.logaddexp(0, -odds) + b * np.logaddexp(0, odds) + c)


def bent(kind: str, logits: Array, curves: tuple[Curve, ...]) -> Array:
    """Logits [n, L] whose softmax or sigmoid are what the curves make of them."""
    odds = log_odds(kind, logits)
    found = np.stack([curve(odds[:, label]) for label, curve in enumerate(curves)], axis=1)
    return -np.logaddexp(0, -found) if kind == "single" else found  # log of the probability of each label by itself


def log_odds(kind: str, logits: Array) -> Array:
    """Of each label against all others ('single'), or against its absence ('multi'), float64 [n, L]."""
    if kind == "multi":
        return np.asarray(logits, np.float64)
    shares = log_softmax(np.asarray(logits, np.float64))
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(shares - np.log(-np.expm1(shares)), -40, 40))


def fit_curve(way: Way, odds: Array, wanted: Array) -> Curve:
    """The curve of least log loss (beta) or least squared error (isotonic). odds [n]; wanted bool [n]."""
    return _fit_beta(odds, wanted) if way == "beta" else _fit_isotonic(odds, wanted)


def _fit_beta(odds: Array, wanted: Array) -> Curve:
    from scipy.optimize import minimize

    exact = np.asarray(odds, np.float64)
    parts = np.stack([-np.logaddexp(0, -exact), np.logaddexp(0, exact), np.ones(len(exact))], axis=1)
    truth = np.asarray(wanted, np.float64)

    def cost(point: Array) -> tuple[float, Array]:
        found = parts @ point
        slope = parts.T @ (1 / (1 + np.exp(-np.clip(found, -500, 500))) - truth) / len(truth)
        return float((np.logaddexp(0, found) - truth * found).mean()), slope

    found = minimize(cost, np.array([1.0, 1.0, 0.0]), jac=True, method="L-BFGS-B",
                     bounds=[(0, 50), (0, 50), (-20, 20)])  # fmt: skip
    a, b, c = (float(value) for value in found.x)
    return Curve(beta=(a, b, c))


def _fit_isotonic(odds: Array, wanted: Array) -> Curve:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(out_of_bounds="clip").fit(odds, np.asarray(wanted, np.float64))
    least = 1 / (len(odds) + 2)  # no step is surer than its rows can be
    shares = np.clip(model.y_thresholds_, least, 1 - least)
    return Curve(x=tuple(model.X_thresholds_.tolist()), y=tuple((np.log(shares) - np.log1p(-shares)).tolist()))
