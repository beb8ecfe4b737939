"""What the decision rule changes: calibration and F1 on test rows, the rule being chosen on validation rows alone.

    python benchmarks/decisions.py --cells benchmarks/results/accuracy
    python benchmarks/decisions.py --cells benchmarks/results/accuracy --splits 5

Reads the logits that accuracy.py left, trains nothing, and prints Markdown: means over seeds, and the paired gain of
the rule's answers over the model's own with its 95 % interval (rows resampled, over all seeds together).

--splits N shows multi-label rules on N random halves of all rows that no weight was trained on (valid and test; valid
chose the epoch, for both sides alike): each rule is chosen on one half and measured on the other.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from workers import ROOT

sys.path.insert(0, str(ROOT / "src"))

from bertune.config import DecideConfig
from bertune.evaluate.calibrate import calibration
from bertune.evaluate.choose import choose_rule
from bertune.evaluate.resample import Scores, percentiles, resamples, scores_of
from bertune.evaluate.rule import Rule

FIGURES = ("ece", "brier", "log_loss")
METRICS = {"single": ("accuracy", "macro_f1"), "multi": ("micro_f1", "macro_f1")}
DRAWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, default=ROOT / "benchmarks" / "results" / "accuracy")
    parser.add_argument("--splits", type=int, default=0, help="multi-label rules on so many random halves")
    options = parser.parse_args()
    folder = options.cells
    found: dict[tuple[str, str, str], list[Path]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault((record["set"], record["side"], record["kind"]), []).append(path.with_suffix(".npz"))
    if options.splits:
        print_halves(found, options.splits)
        return
    print("| test rows, before -> after | seeds | ECE | Brier | log loss |\n|---|---|---|---|---|")
    for (name, side, kind), paths in found.items():
        rows = [calibrations(kind, path) for path in paths]
        cells = [
            " -> ".join(f"{np.mean([row[place][figure] for row in rows]):.4f}" for place in (0, 1))
            for figure in FIGURES
        ]
        print(f"| {name}, {side} | {len(paths)} | {' | '.join(cells)} |")
    print("\n| rule chosen for | metric on test | the model's own -> the rule's | gain (95 %) |\n|---|---|---|---|")
    for (name, side, kind), paths in found.items():
        for objective in METRICS[kind]:
            for metric in METRICS[kind] if kind == "multi" else (objective,):
                own, ruled, low, high = gain(paths, kind, objective, metric)
                values = f"{own:.4f} -> {ruled:.4f} | {ruled - own:+.4f} ({low:+.4f} to {high:+.4f})"
                print(f"| {name}, {side}: {objective if kind == 'multi' else 'log_loss'} | {metric} | {values} |")


def print_halves(found: dict[tuple[str, str, str], list[Path]], splits: int) -> None:
    """Gains of rules for micro-F1 and macro-F1, each in its own metric."""
    print("| halves of valid and test | seeds | metric | at one half -> the rule's | gain (95 %) |", "|---" * 5 + "|",
          sep="\n")
    for (name, side, kind), paths in found.items():
        for metric in METRICS[kind] if kind == "multi" else ():
            own, ruled, low, high = halves(paths, metric, splits)
            values = f"{own:.4f} -> {ruled:.4f} | {ruled - own:+.4f} ({low:+.4f} to {high:+.4f})"
            print(f"| {name}, {side} | {len(paths)} | {metric} | {values} |", flush=True)


def halves(paths: list[Path], metric: str, splits: int) -> tuple[float, float, float, float]:
    """Means over seeds and splits at one half and with the rule, and the interval of the difference: rows are drawn
    anew, the same for all splits, since their halves share rows."""
    sides: list[tuple[np.ndarray, Scores, Scores]] = []
    rows = 0
    for path in paths:
        with np.load(path) as cell:
            logits = np.concatenate([cell["valid_logits"], cell["test_logits"]])
            targets = np.concatenate([cell["valid_targets"], cell["test_targets"]])
        rows = len(logits)
        for split in range(splits):
            order = np.random.default_rng(split).permutation(rows)
            chosen, kept = order[: rows // 2], order[rows // 2 :]
            rule, _ = choose_rule(DecideConfig(), "multi", logits[chosen], targets[chosen], metric=metric)
            own = scores_of(Rule(), "multi", logits[kept], targets[kept])
            sides.append((kept, own, scores_of(rule, "multi", logits[kept], targets[kept])))

    def means(weights: np.ndarray) -> np.ndarray:  # [2, draws]
        found = [[side(weights[:, kept], [metric])[metric] for side in pair] for kept, *pair in sides]
        return np.asarray(np.mean(found, axis=0))

    own, ruled = means(np.ones((1, rows)))[:, 0]
    limits = percentiles(np.concatenate([np.diff(means(w), axis=0)[0] for w in resamples(rows, draws=DRAWS // 4)]))
    assert limits is not None
    return float(own), float(ruled), *limits


def calibrations(kind: str, path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Figures on the test rows before and after."""
    with np.load(path) as cell:
        rule, _ = choose_rule(DecideConfig(), kind, cell["valid_logits"], cell["valid_targets"], metric="log_loss")
        logits, targets = cell["test_logits"], cell["test_targets"]
        return calibration(kind, logits, targets), calibration(kind, rule.calibrated(kind, logits), targets)


def gain(paths: list[Path], kind: str, objective: str, metric: str) -> tuple[float, float, float, float]:
    """Mean over seeds without a rule and with one chosen for `objective`, and the interval of the difference."""
    pairs: list[tuple[Scores, Scores]] = []
    for path in paths:
        with np.load(path) as cell:
            rule, _ = choose_rule(DecideConfig(), kind, cell["valid_logits"], cell["valid_targets"], metric=objective)
            logits, targets = cell["test_logits"], cell["test_targets"]
            pairs.append((scores_of(Rule(), kind, logits, targets), scores_of(rule, kind, logits, targets)))

    def means(weights: np.ndarray) -> np.ndarray:  # [2, draws]
        return np.mean([[side(weights, [metric])[metric] for side in pair] for pair in pairs], axis=0)

    own, ruled = means(np.ones((1, pairs[0][0].rows)))[:, 0]
    drawn = np.concatenate([np.diff(means(w), axis=0)[0] for w in resamples(pairs[0][0].rows, draws=DRAWS)])
    limits = percentiles(drawn)
    assert limits is not None
    return float(own), float(ruled), *limits


if __name__ == "__main__":
    main()
