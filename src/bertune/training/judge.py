"""The finished model on valid and test: its logits, the rule that is chosen on valid, and what both come to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bertune.config import DecideConfig
from bertune.data.tasks import Task
from bertune.evaluate.calibrate import calibration
from bertune.evaluate.choose import choose_rule, fixed_rule
from bertune.evaluate.metrics import evaluate
from bertune.evaluate.rule import Rule
from bertune.evaluate.thresholds import OBJECTIVES
from bertune.model.machine import peak_memory
from bertune.ship.predict import Predictor
from bertune.training.listen import Listener
from bertune.training.prepare import Split


def measure(predictor: Predictor, split: Split, listener: Listener) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits of a split, and how fast they came."""
    begin = time.perf_counter()
    with listener.work(f"Measuring {split.name} with the result", len(split)) as advance:
        logits = predictor.backend.logits(split.tokens, advance=advance)
    seconds = time.perf_counter() - begin
    return logits, {
        "seconds": seconds, "examples_per_second": len(split) / seconds,
        "tokens_per_second": int(split.tokens.offsets[-1]) / seconds, "peak_memory_bytes": peak_memory(),
    }  # fmt: skip


def decide_how(
    config: DecideConfig, task: Task, splits: Mapping[str, Split], logits: Mapping[str, np.ndarray], *, metric: str,
    groups: Sequence[object] | None, say: Callable[[str], None],
) -> tuple[Rule, dict[str, Any]]:
    """The rule, and `calibration` and `thresholds` of metrics.json: what was chosen, and splits before and after it."""
    if "valid" not in logits:
        rule = fixed_rule(config, task.kind, task.num_labels)
        told: dict[str, Any] = {}
    else:
        targets = splits["valid"].targets
        rule, told = choose_rule(config, task.kind, logits["valid"], targets, metric=metric, groups=groups)
        shares = rule.probabilities(task.kind, logits["valid"]).mean(axis=0)
        rule = rule.model_copy(update={"shares": tuple(float(share) for share in shares)})
        say(sentence(rule, told, task, len(splits["valid"])))
    fitted = rule.model_dump(mode="json", include={"temperatures", "curves", "biases"})
    found: dict[str, Any] = {"calibration": fitted}
    if told:
        found["thresholds"] = {**told, "labels": list(task.labels)}
    for name, values in logits.items():
        targets = splits[name].targets
        found["calibration"][name] = {
            "before": calibration(task.kind, values, targets),
            "after": calibration(task.kind, rule.calibrated(task.kind, values), targets),
        }
        if told:
            half = evaluate("multi", task.labels, rule.calibrated(task.kind, values), targets)
            found["thresholds"][name] = {"at_half": {key: half[key] for key in OBJECTIVES}}
    return rule, found


def results(rule: Rule, task: Task, logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """All metrics of the answers that the rule gives."""
    said = rule.decide(task.kind, logits)
    return evaluate(task.kind, task.labels, rule.calibrated(task.kind, logits), targets, said=said)


def sentence(rule: Rule, told: Mapping[str, Any], task: Task, rows: int) -> str:
    """What was chosen, in a line."""
    heats = sorted(rule.temperatures)
    if rule.curves:
        heat = "isotonic curves" if any(curve.x for curve in rule.curves) else "beta curves"
    elif not heats:
        heat = "probabilities as they are"
    elif len(set(heats)) == 1:
        heat = f"temperature {heats[0]:.2f}"
    else:
        heat = f"temperatures {heats[0]:.2f} to {heats[-1]:.2f}"
    if rule.biases:
        heat += f", biases {min(rule.biases):+.2f} to {max(rule.biases):+.2f}"
    parts = [f"Decision rule, from {rows:,} validation rows: {heat}"]
    if told:
        cuts = sorted(set(told["values"]))
        where = f"{cuts[0]:.2f}" if len(cuts) == 1 else f"{cuts[0]:.2f} to {cuts[-1]:.2f}"
        why = {
            "half": "", "given": ", as given", "cost": f", a miss costing {told.get('miss_cost', 1):g} false labels",
            "precision": f", for a precision of {told.get('precision') or 0:g} a label",
        }.get(told["way"], f", for {told.get('objective')}")  # fmt: skip
        tried = told.get("out_of_fold", {})
        if tried and told["way"] != "half":
            why += f" (out of fold {tried[told['way']]:.4f}, one half {tried['half']:.4f})"
        parts.append(f"{'threshold' if len(cuts) == 1 else 'thresholds'} {where}{why}")
        never = [label for label, cut in zip(task.labels, told["values"], strict=True) if cut == 1]
        if never:
            parts.append(f"never given, for want of such precision: {', '.join(never)}")
    return "; ".join(parts) + "."
