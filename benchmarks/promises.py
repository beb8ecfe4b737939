"""Whether promises are kept: coverage of the sets, accuracy of what is answered, answers after a change of label mix.

    python benchmarks/promises.py --cells benchmarks/results/accuracy

Reads the logits that accuracy.py left of bertune's sides and trains nothing. The validation rows chose the epoch, and
here the calibration; the test rows are cut in two SPLITS times, one half to promise and one to judge. Sets: the counts
caught follow a beta-binomial law, and the band holds all splits, coverages and labels of a model at once with 95 %
(Bonferroni); labels with fewer than 50 rows in the promising half are left out. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

from workers import ROOT

sys.path.insert(0, str(ROOT / "src"))

from bertune.evaluate.abstain import confidence, fit_threshold, is_right
from bertune.evaluate.calibrate import fit
from bertune.evaluate.metrics import Array
from bertune.evaluate.mix import estimated_shares
from bertune.evaluate.rule import Rule
from bertune.evaluate.sets import FEWEST_CASES, fit_sets

COVERAGES, ACCURACIES, SPLITS = (0.8, 0.9, 0.95), (0.85, 0.9, 0.95), 20
MIXES = ((0.6, 0.3, 0.1), (0.1, 0.3, 0.6), (0.45, 0.1, 0.45))
MIXED_ROWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, default=ROOT / "benchmarks" / "results" / "accuracy")
    folder = parser.parse_args().cells
    paths = [path for path in sorted(folder.glob("*-0.json")) if not re.search("-(tfidf|trainer)-", path.name)]
    cells = [json.loads(path.read_text(encoding="utf-8")) | {"stem": path.with_suffix("")} for path in paths]
    print("| sets | coverage asked | mean coverage | lowest, highest | mean size | cells outside the band |")
    print("|---|---|---|---|---|---|")
    for cell in cells:
        for coverage in COVERAGES:
            print(_sets(cell, coverage))
    print("\n| answers | accuracy asked | answered | accuracy among these, mean | splits below what was asked |")
    print("|---|---|---|---|---|")
    for cell in cells:
        for accuracy in ACCURACIES:
            print(_abstention(cell, accuracy))
    print("\n| drawn to a mix | mix | accuracy as it is | mix estimated | mix known | error of the estimate |")
    print("|---|---|---|---|---|---|")
    for cell in cells:
        if cell["kind"] == "single":
            for mix in MIXES:
                print(_mixed(cell, mix))


def _opened(cell: dict) -> tuple[Rule, Array, Array]:
    """The calibration of the validation rows, and logits and targets of the test rows."""
    with np.load(cell["stem"].with_suffix(".npz")) as stored:
        rule = fit(cell["kind"], stored["valid_logits"], stored["valid_targets"])
        shares = rule.probabilities(cell["kind"], stored["valid_logits"]).mean(axis=0)
        return rule.model_copy(update={"shares": tuple(shares.tolist())}), stored["test_logits"], stored["test_targets"]


def _halves(rows: int) -> list[tuple[Array, Array]]:
    orders = [np.random.default_rng(seed).permutation(rows) for seed in range(SPLITS)]
    return [(order[: rows // 2], order[rows // 2 :]) for order in orders]


def _sets(cell: dict, coverage: float) -> str:
    from scipy.stats import betabinom

    kind, labels = cell["kind"], cell["labels"]
    rule, logits, targets = _opened(cell)
    shares = rule.probabilities(kind, logits)
    hot = targets > 0.5 if kind == "multi" else np.ones((len(targets), 1), bool)
    counted = len(labels) if kind == "multi" else 1
    level = 0.05 / (SPLITS * len(COVERAGES) * counted) / 2
    found, outside, sizes, judged = [], 0, [], 0
    for held, new in _halves(len(targets)):
        sets = fit_sets(kind, shares[held], targets[held], coverage).of(kind, shares[new])
        sizes.append(sets.sum(axis=1).mean())
        caught = sets if kind == "multi" else sets[np.arange(len(new)), targets[new]][:, None]
        for label in range(counted):
            calm, rows = int(hot[held, label].sum()), hot[new, label]
            if kind == "multi" and calm < FEWEST_CASES:
                continue
            place = calm + 1 - int((calm + 1) * (1 - coverage) + 1e-9)
            law = betabinom(int(rows.sum()), place, calm + 1 - place)
            hits = int(caught[rows, label].sum())
            outside += not law.ppf(level) <= hits <= law.ppf(1 - level)
            judged += 1
            found.append(hits / rows.sum())
    span = f"{min(found):.3f}, {max(found):.3f}"
    return (f"| {cell['set']}, {cell['side']} | {coverage:g} | {np.mean(found):.4f} | {span} | {np.mean(sizes):.2f} | "
            f"{outside} of {judged} |")  # fmt: skip


def _abstention(cell: dict, accuracy: float) -> str:
    kind = cell["kind"]
    rule, logits, targets = _opened(cell)
    said = rule.decide(kind, logits)
    sure, right = confidence(kind, rule.probabilities(kind, logits), said), is_right(kind, said, targets)
    answered, accuracies = [], []
    for held, new in _halves(len(targets)):
        least = fit_threshold(sure[held], right[held], accuracy)
        given = sure[new] >= (2 if least is None else least)
        answered.append(given.mean())
        if given.any():
            accuracies.append(right[new][given].mean())
    below = sum(value < accuracy for value in accuracies)
    mean = f"{np.mean(accuracies):.4f}" if accuracies else "-"
    share = f"{100 * np.mean(answered):.1f} %"
    return f"| {cell['set']}, {cell['side']} | {accuracy:g} | {share} | {mean} | {below} of {SPLITS} |"


def _mixed(cell: dict, mix: tuple[float, ...]) -> str:
    rule, logits, targets = _opened(cell)
    plain, estimated, known, errors = [], [], [], []
    for seed in range(SPLITS):
        random = np.random.default_rng(seed)
        drawn = random.choice(len(mix), MIXED_ROWS, p=mix)
        rows = np.concatenate([
            random.choice(np.flatnonzero(targets == label), (drawn == label).sum(), replace=False)
            for label in range(len(mix))
        ])  # fmt: skip
        here, truth = logits[rows], targets[rows]
        shares = estimated_shares("single", rule.probabilities("single", here), np.array(rule.shares))
        errors.append(np.abs(shares - np.bincount(truth, minlength=len(mix)) / len(truth)).max())
        for results, one in (
            (plain, rule), (estimated, rule.with_shares("single", shares)),
            (known, rule.with_shares("single", np.array(mix))),
        ):  # fmt: skip
            results.append((one.decide("single", here) == truth).mean())
    gained = np.array(estimated) - np.array(plain)
    told = f"{np.mean(estimated):.4f} (gain {gained.mean():+.4f} ± {gained.std(ddof=1):.4f})"
    names = ", ".join(f"{label} {share:g}" for label, share in zip(cell["labels"], mix, strict=True))
    figures = f"{np.mean(plain):.4f} | {told} | {np.mean(known):.4f} | {np.mean(errors):.3f}"
    return f"| {cell['set']}, {cell['side']} | {names} | {figures} |"


if __name__ == "__main__":
    main()
