"""The shipped papers sample: the embedded encoder against TF-IDF + linear, out of fold, with a paired interval.

    python benchmarks/sample_baseline.py [--folds 5] [--json FILE]

Every row is predicted by a model that never saw it (5 stratified folds, seed 0). The linear side is given the best of
several TF-IDF settings, chosen on the very folds it is then measured on, which can only flatter it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from workers import ROOT, machine

sys.path.insert(0, str(ROOT / "src"))

SAMPLE = ROOT / "src" / "bertune" / "samples" / "papers.csv"
GRID = [
    {"ngram_range": grams, "stop_words": stops, "C": strength, "class_weight": weight}
    for grams in ((1, 1), (1, 2)) for stops in (None, "english")
    for strength in (1.0, 10.0) for weight in (None, "balanced")
]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folds", type=int, default=5)
    options.add_argument("--threads", type=int)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()

    from bertune.config import DataConfig
    from bertune.data.read import read_table
    from bertune.data.tasks import encode_labels, infer_task
    from bertune.evaluate.resample import Scores, differences

    data = DataConfig(text=["TITLE", "ABSTRACT"])
    table = read_table(SAMPLE, data)
    task, _ = infer_task(table, data)
    targets = encode_labels(task, table)
    folds = make_folds(targets, chosen.folds)
    ours = np.zeros_like(targets)
    for number in range(chosen.folds):
        inside, outside = np.flatnonzero(folds != number), np.flatnonzero(folds == number)
        ours[outside] = encoder_predictions(table, inside, outside, chosen.threads)
        score = micro_f1(ours[outside], targets[outside])
        print(f"fold {number + 1} of {chosen.folds}: micro-F1 {score:.3f}", flush=True)
    texts = [" ".join(pair) for pair in zip(table.column("TITLE"), table.column("ABSTRACT"), strict=True)]
    linear, setting = best_linear(texts, targets, folds)
    result = {
        "machine": machine(), "rows": len(targets), "folds": chosen.folds, "tfidf": setting,
        "micro_f1": micro_f1(ours, targets), "tfidf_micro_f1": micro_f1(linear, targets),
    }
    sides = (Scores("multi", 2 * said - 1, targets) for said in (ours, linear))  # 0 and 1 as logits -1 and 1
    result["gain"] = differences(*sides, ["micro_f1", "macro_f1", "subset_accuracy"], draws=2000)
    print(json.dumps(result, indent=2, default=str))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=2, default=str), encoding="utf-8")


def make_folds(targets: np.ndarray, count: int) -> np.ndarray:
    """int64 [rows]: fold of each row, by repeated iterative stratification."""
    from bertune.data.splits import split_rows

    folds = np.zeros(len(targets), dtype=np.int64)
    rest = np.arange(len(targets))
    for number in range(1, count):
        parts = split_rows(targets[rest], "multi", valid=1 / (count - number + 1), test=None, seed=number)
        assert parts.valid is not None
        folds[rest[parts.valid]] = number
        rest = rest[parts.train]
    return folds


def encoder_predictions(table, inside: np.ndarray, outside: np.ndarray, threads: int | None) -> np.ndarray:  # type: ignore[no-untyped-def]
    """0/1 [rows, labels] for `outside`, with the defaults and no held-out rows."""
    import bertune

    with tempfile.TemporaryDirectory() as folder:
        settings = {"data.hold_out": False, "train.threads": threads}
        result = bertune.train(
            table.take(inside), text=["TITLE", "ABSTRACT"], out=Path(folder) / "out", settings=settings
        )
        rows = table.take(outside)
        predictor = result.predictor()
        return (predictor.logits_of_table(rows, result.task) >= 0).astype(np.float32)


def best_linear(texts: list[str], targets: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, dict[str, object]]:
    """Out-of-fold 0/1 predictions of the best setting of `GRID`, and the setting."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import LinearSVC

    best: tuple[float, np.ndarray, dict[str, object]] | None = None
    for setting in GRID:
        found = np.zeros_like(targets)
        for number in np.unique(folds):
            inside = np.flatnonzero(folds != number)
            outside = np.flatnonzero(folds == number)
            grams, stops = setting["ngram_range"], setting["stop_words"]
            words = TfidfVectorizer(sublinear_tf=True, ngram_range=grams, stop_words=stops)
            features = words.fit_transform([texts[row] for row in inside])
            linear = OneVsRestClassifier(LinearSVC(C=setting["C"], class_weight=setting["class_weight"]))
            linear.fit(features, targets[inside])
            found[outside] = linear.predict(words.transform([texts[row] for row in outside]))
        score = micro_f1(found, targets)
        if best is None or score > best[0]:
            best = (score, found, setting)
    assert best is not None
    return best[1], best[2]


def micro_f1(found: np.ndarray, targets: np.ndarray) -> float:
    hits = float((found * targets).sum())
    return 2 * hits / float(found.sum() + targets.sum())


if __name__ == "__main__":
    main()
