"""The decision rule of a model, chosen on rows that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bertune.config import DecideConfig
from bertune.evaluate import calibrate, thresholds
from bertune.evaluate.metrics import Array
from bertune.evaluate.rule import Rule


def choose_rule(
    config: DecideConfig, kind: str, logits: Array, targets: Array, *, metric: str,
    groups: Sequence[object] | None = None,
) -> tuple[Rule, dict[str, Any]]:
    """The rule, and what there is to tell about how its thresholds were chosen (nothing for 'single').

    logits: float [n, L] and targets of the validation rows; metric: the name that chose the epoch;
    groups: of the rows, kept together where a choice is judged on other rows.
    """
    rule = Rule() if config.calibration == "none" else calibrate.fit(kind, logits, targets, groups=groups)
    if kind == "single":
        return rule, {}
    calibrated, width = rule.calibrated(kind, logits), logits.shape[1]
    told: dict[str, Any] = {}
    if isinstance(config.threshold, float):
        found, told["way"] = np.full(width, config.threshold), "given"
    elif config.precision is not None:
        found, told["way"] = thresholds.for_precision(calibrated, targets, config.precision), "precision"
        told["precision"] = config.precision
    elif config.miss_cost != 1:
        # The answer of least expected cost (Elkan 2001, The Foundations of Cost-Sensitive Learning, equation 2).
        found, told["way"] = np.full(width, 1 / (1 + config.miss_cost)), "cost"
        told["miss_cost"] = config.miss_cost
    else:
        wanted = config.objective
        if wanted == "auto":
            wanted = metric if metric in thresholds.OBJECTIVES else "micro_f1"  # type: ignore[assignment]
        way = config.threshold
        chosen, told = thresholds.choose(calibrated, targets, objective=wanted, way=way, groups=groups)
        found = np.full(width, 0.5) if chosen is None else chosen
    told["values"] = [float(value) for value in found]
    cut = () if told["way"] == "half" else tuple(told["values"])
    limits = {"min_labels": config.min_labels, "max_labels": config.max_labels}
    return Rule.model_validate({**dict(rule), "thresholds": cut, **limits}), told


def fixed_rule(config: DecideConfig, kind: str, num_labels: int) -> Rule:
    """The rule where there are no rows to choose it on: what was given, and the model as it is for the rest."""
    if kind == "single":
        return Rule()
    cut = config.threshold if isinstance(config.threshold, float) else 1 / (1 + config.miss_cost)
    return Rule(
        thresholds=() if cut == 0.5 else (cut,) * num_labels, min_labels=config.min_labels, max_labels=config.max_labels
    )
