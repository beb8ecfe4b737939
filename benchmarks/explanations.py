"""Explanations on real data: do the named words matter, and how exact and how fast are the scores?

    python benchmarks/explanations.py --data ../shared/data --json benchmarks/results/explanations.json [--only sst2]

For each data set the embedded encoder is trained on --train-rows rows with the settings below, or an earlier result in
--runs is taken. Of its test split --rows rows are drawn. Deletion test: the words with the highest scores are taken out
of the text, beside as many random ones, and the drop of the label's probability is compared with a paired bootstrap;
for 1, 3 and 5 words. Exactness: the completeness error against the change of the logit, and the steps it took.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from workers import ROOT, machine

sys.path.insert(0, str(ROOT / "src"))

SETS: dict[str, dict[str, Any]] = {
    "sst2": {"train": "sst2/train.tsv", "test": "sst2/test.tsv", "text": "sentence", "label": "label"},
    "snli": {
        "train": "snli/train_subset.tsv", "test": "snli/test.tsv", "text": "sentence1", "text_pair": "sentence2",
        "label": "gold_label",
    },
    "papers": {"train": "papers/papers.csv", "text": ["TITLE", "ABSTRACT"]},
}  # fmt: skip
SETTINGS = {"train.epochs": 2, "model.max_length": 128, "check.label_errors": "none"}
TRAIN_ROWS, COUNTS = 4000, (1, 3, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--json", type=Path, help="file for the result (default: standard output)")
    parser.add_argument("--only", choices=SETS, help="one of the data sets")
    parser.add_argument("--rows", type=int, default=200, help="test rows that are explained")
    parser.add_argument("--train-rows", type=int, default=TRAIN_ROWS, help="rows that are trained on")
    parser.add_argument("--runs", type=Path, help="folder that keeps the trained results (default: a temporary one)")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine()}
    if options.json and options.json.is_file():
        report = json.loads(options.json.read_text(encoding="utf-8")) | report
    with tempfile.TemporaryDirectory() as temporary:
        for name in [options.only] if options.only else SETS:
            runs = options.runs or Path(temporary)
            report[name] = measured(name, options.data, runs, options.train_rows, options.rows)
            print(f"{name}: {json.dumps(report[name])}", file=sys.stderr, flush=True)
    text = json.dumps(report, indent=1)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def measured(name: str, data: Path, runs: Path, train_rows: int, rows: int) -> dict[str, Any]:
    """Figures of one data set: the deletion test by the number of words, and the completeness error."""
    import bertune
    from bertune.data.rows import rows_from_python
    from bertune.explain.deletion import deletion_of
    from bertune.explain.explain import explain_rows, readable

    folder = trained(name, data, runs, train_rows)
    predictor = bertune.load(folder)
    drawn = readable(rows_from_python(predictor.task, held_out_rows(name, data, folder, rows)))
    begin = time.perf_counter()
    explained = explain_rows(predictor, drawn, neighbors=0)
    seconds = time.perf_counter() - begin
    errors = [found.relative_error or 0.0 for found in explained]
    test = json.loads((folder / "run" / "metrics.json").read_text(encoding="utf-8"))["test"]
    return {
        "train_rows": train_rows, "settings": SETTINGS, "test": {key: test[key] for key in ("rows", "macro_f1")},
        "explained": len(explained), "seconds_each": round(seconds / len(explained), 3),
        "steps": dict(sorted(Counter(found.steps for found in explained).items())),
        "relative_error": {"median": float(np.median(errors)), "largest": max(errors)},
        "error": {"largest": max(found.error for found in explained)},
        "deletion": [deletion_of(predictor, drawn, explained, words=count).to_dict() for count in COUNTS],
    }  # fmt: skip


def trained(name: str, data: Path, runs: Path, rows: int) -> Path:
    """The result of training on the first rows of a set, in the order of a fixed draw."""
    import bertune

    folder = runs / f"{name}-{rows}"
    if (folder / "bertune.json").is_file():
        return folder
    chosen = SETS[name]
    runs.mkdir(parents=True, exist_ok=True)
    part = runs / f"{name}-{rows}{Path(chosen['train']).suffix}"
    with part.open("w", encoding="utf-8", newline="") as stream:
        write(stream, part.suffix, drawn_rows(data / chosen["train"], rows, seed=0))
    columns = {key: chosen[key] for key in ("text", "text_pair", "label") if key in chosen}
    # Where a set has a test file of its own, it is measured on that.
    test = {"test": data / chosen["test"], "valid": 0.1} if "test" in chosen else {}
    drop = {"data.drop_label": ["-"]} if name == "snli" else {}  # pairs that people did not agree about
    bertune.train(part, out=folder, settings=SETTINGS | drop, **columns, **test)
    return folder


def held_out_rows(name: str, data: Path, folder: Path, count: int) -> list[dict[str, str]]:
    """Some rows that were not trained on: of the test file, or of the rows that the run held out."""
    chosen = SETS[name]
    if "test" in chosen:
        return drawn_rows(data / chosen["test"], count, seed=1)
    with (folder / "run" / "splits.csv").open(encoding="utf-8", newline="") as stream:
        places = [(row["file"], int(row["row"])) for row in csv.DictReader(stream) if row["split"] == "test"]
    table = list(read(folder.parent / places[0][0]))
    return [table[number - 1] for _, number in islice(places, count)]


def drawn_rows(path: Path, count: int, *, seed: int) -> list[dict[str, str]]:
    rows = [row for row in read(path) if row.get("gold_label") != "-"]
    return [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))[:count]]


def read(path: Path) -> Iterator[dict[str, str]]:
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with path.open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(stream, **dialect)


def write(stream: Any, suffix: str, rows: list[dict[str, str]]) -> None:
    if suffix == ".tsv":
        lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
        stream.write("\n".join(lines) + "\n")
        return
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    main()
