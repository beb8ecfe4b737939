"""What a loss does to frequent and to rare labels: micro-, macro- and tail-F1 of cells that accuracy.py made.

    python benchmarks/accuracy.py --data ../shared/data --out benchmarks/results/losses --sets goemotions --sides ours \
        --variant focal=benchmarks/losses/focal.yaml --variant balanced=benchmarks/losses/balanced.yaml \
        --variant asymmetric=benchmarks/losses/asymmetric.yaml \
        --variant distribution-balanced=benchmarks/losses/distribution-balanced.yaml
    python benchmarks/tails.py --cells benchmarks/results/losses

The tail is the rarer half of the labels, by their rows in valid and test. Each loss stands at one half and with the
rule that valid rows choose for macro-F1; differences to the plain loss are paired by row and seed, with 95 % intervals
over both.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from workers import ROOT

sys.path.insert(0, str(ROOT / "src"))

from bertune.config import DecideConfig
from bertune.evaluate.choose import choose_rule
from bertune.evaluate.metrics import decide, f1_of
from bertune.evaluate.resample import percentiles, resamples
from bertune.evaluate.seeds import interval_over_seeds

PLAIN = "ours"
DRAWS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, required=True, help="folder of accuracy.py's cells")
    parser.add_argument("--set", default="goemotions")
    options = parser.parse_args()
    sides: dict[str, dict[int, Path]] = {}
    for path in sorted(options.cells.glob(f"{options.set}-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["side"] != "tfidf":
            sides.setdefault(record["side"], {})[record["seed"]] = path.with_suffix(".npz")
    plain = next(side for side in sides if side.startswith(PLAIN))
    for ruled in (False, True):
        print(f"\n{'with the rule chosen on valid for macro-F1' if ruled else 'at one half'}\n")
        print("| loss | seeds | micro-F1 | macro-F1 | tail-F1 | macro-F1, against plain | tail-F1, against plain |")
        print("|---" * 7 + "|")
        for side, paths in sides.items():
            shared = [seed for seed in paths if seed in sides[plain]]
            own = figures([paths[seed] for seed in shared], ruled)
            base = figures([sides[plain][seed] for seed in shared], ruled)
            cells = [f"{own['whole'][:, place].mean():.4f} ± {spread(own['whole'][:, place])}" for place in range(3)]
            gaps = []
            for place in (1, 2):
                drawn = (own["drawn"] - base["drawn"])[:, :, place].mean(axis=0)
                gap = (own["whole"] - base["whole"])[:, place]
                limits = interval_over_seeds(gap, drawn.var(), own["rows"]) if len(gap) > 1 else percentiles(drawn)
                known = side != plain and limits is not None
                gaps.append(f"{gap.mean():+.4f} ({limits[0]:+.4f} to {limits[1]:+.4f})" if known else "")
            print(f"| {side} | {len(shared)} | {' | '.join([*cells, *gaps])} |", flush=True)


def spread(values: np.ndarray) -> str:
    return f"{values.std(ddof=1):.4f}" if len(values) > 1 else "-"


def figures(paths: list[Path], ruled: bool) -> dict[str, Any]:
    """`whole`: [seeds, 3] micro-, macro- and tail-F1 on test; `drawn`: [seeds, draws, 3], of drawn rows; `rows`."""
    whole, drawn = [], []
    for path in paths:
        with np.load(path) as cell:
            logits, targets = cell["test_logits"], cell["test_targets"] > 0.5
            support = cell["valid_targets"].sum(axis=0) + targets.sum(axis=0)
            said = decide("multi", logits)
            if ruled:
                rule, _ = choose_rule(
                    DecideConfig(), "multi", cell["valid_logits"], cell["valid_targets"], metric="macro_f1"
                )
                said = rule.decide("multi", logits)
        tail = support <= np.median(support)
        parts = np.concatenate([said & targets, said, targets], axis=1).astype(np.float64)
        whole.append(_f1(np.ones((1, len(parts))) @ parts, tail)[0])
        drawn.append(np.concatenate([_f1(weights @ parts, tail) for weights in resamples(len(parts), draws=DRAWS)]))
    return {"whole": np.array(whole), "drawn": np.array(drawn), "rows": len(parts)}


def _f1(sums: np.ndarray, tail: np.ndarray) -> np.ndarray:
    hits, calls, support = np.split(sums, 3, axis=1)
    each = f1_of(hits, calls, support)
    micro = f1_of(hits.sum(axis=1), calls.sum(axis=1), support.sum(axis=1))
    return np.column_stack([micro, each.mean(axis=1), each[:, tail].mean(axis=1)])


if __name__ == "__main__":
    main()
