"""Wrong labels put in on purpose: how many of them the queue names, beside cleanlab, and what repairing brings.

    python benchmarks/label_errors.py --data ../shared/data --out results/label_errors     # makes what is not there
    python benchmarks/label_errors.py --out results/label_errors --table
    python benchmarks/label_errors.py ... --repair     # also trains on clean, spoilt and repaired labels (hours)

A share of the training labels is changed (one label a row: to another one; several: one of them flipped), the labels
are doubted by models over the frozen encoder, and the doubts compared with what was changed. The other side is
cleanlab, on the same probabilities: pip install cleanlab (AGPL, which is why bertune does not depend on it). Each cell
(data set, share, seed) is a JSON file and is made once. --repair trains with the defaults for EPOCHS epochs, and
measures test rows whose labels nobody touched: on the labels as they were (clean), with errors (spoilt), with the plan
applied as `check --fix` writes it, unseen by any person (repaired), and after a person has looked at every row that it
doubts, and knew (reviewed). The logits of a cell are kept beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from workers import ROOT, machine

sys.path.insert(0, str(ROOT / "src"))

SHARES = (0.05, 0.10)
ROWS = {"sst2": 8000, "papers": 4000}  # of the training rows, drawn with the seed
LENGTH = 128
EPOCHS = 3  # of the trainings after repair
SIDES = ("clean", "spoilt", "repaired", "reviewed")
METRIC = {"sst2": "accuracy", "papers": "micro_f1"}
QUEUE = ("precision", "recall", "top", "average_precision", "sure", "sure_right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(ROWS))
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--shares", type=lambda text: [float(part) for part in text.split(",")], default=SHARES)
    parser.add_argument("--repair", action="store_true", help="also train on clean, spoilt and repaired labels")
    parser.add_argument("--table", action="store_true", help="make nothing, only print")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in () if options.table else options.sets:
        for seed in options.seeds:
            for share in options.shares:
                _cell(options.out / f"{name}-{round(100 * share)}-{seed}.json", name, share, seed, options)
    print(table(options.out))


def _cell(path: Path, name: str, share: float, seed: int, options: argparse.Namespace) -> None:
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "queue" not in record:
        print(path.stem, file=sys.stderr, flush=True)
        record |= {"set": name, "share": share, "seed": seed, "machine": machine()}
        record["queue"] = queue(name, share, seed, options.data)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options.repair and not path.with_suffix(".npz").is_file():
        print(f"{path.stem}, repair", file=sys.stderr, flush=True)
        np.savez_compressed(path.with_suffix(".npz"), **repair(name, share, seed, options))


def queue(name: str, share: float, seed: int, data: Path) -> dict[str, Any]:
    """Figures of our queue and of cleanlab's, on the same out-of-fold probabilities.

    precision, recall: of the rows that are doubted; top: precision among as many rows from the top as are wrong;
    average_precision: of the ranking of all rows; sure: rows whose label the plan would change, sure_right: how many
    of these get the label back that they had.
    """
    import torch

    from bertune.config import Config
    from bertune.data.rows import rows_of
    from bertune.data.tokens import Tokenizer
    from bertune.doctor.corpus import Corpus, Part
    from bertune.doctor.mislabeled import doubted, label_quality
    from bertune.doctor.relabel import doubts_of
    from bertune.evaluate.resample import folds_of
    from bertune.model.source import open_source
    from bertune.training.doubt import frozen_probabilities, frozen_states
    from bertune.training.prepare import tokenize

    begin = time.perf_counter()
    config, prepared = _drawn(name, seed, data)
    task, train = prepared.task, prepared.train
    truth, given, wrong = _spoilt(train.targets, task.kind, task.num_labels, share, seed)
    train.targets = given
    folder = open_source(config.model.name)[0]
    tokenizer = Tokenizer.load(folder)
    tokenize(prepared, tokenizer, max_length=LENGTH, truncation="longest-first", say=lambda line: None)
    states = frozen_states(Config(), folder, train.tokens, lambda done: None)
    rows = rows_of(task, train.table, allow_empty=True)
    corpus = Corpus(task, {"train": Part(train.table, rows, given, train.tokens)})
    folds = list(folds_of(len(rows), groups=rows.sides()[0]))
    probabilities = frozen_probabilities(states, given, folds, kind=task.kind, labels=task.num_labels)
    suspects = doubted(given, probabilities, task.kind)
    doubts = doubts_of(corpus, suspects, states)
    sure = [doubt for doubt in doubts if doubt.sure]
    right = sum(set(doubt.suggested) == _names(truth[doubt.row], task) for doubt in sure)
    quality = label_quality(given, probabilities, task.kind)
    ours = _figures(suspects.rows, quality, wrong) | {"sure": len(sure), "sure_right": right}
    found = {"rows": len(given), "wrong": int(wrong.sum()), "ours": ours, "threads": torch.get_num_threads()}
    theirs = _cleanlab(given, probabilities, task.kind, wrong)
    return found | ({"cleanlab": theirs} if theirs else {}) | {"seconds": time.perf_counter() - begin}


def _cleanlab(given: np.ndarray, probabilities: np.ndarray, kind: str, wrong: np.ndarray) -> dict[str, float] | None:
    try:
        import cleanlab
        from cleanlab.filter import find_label_issues
        from cleanlab.multilabel_classification import filter as multi
        from cleanlab.multilabel_classification import get_label_quality_scores as multi_quality
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        print("cleanlab is not installed; it is left out", file=sys.stderr)
        return None
    if kind == "single":
        rows = find_label_issues(given, probabilities, return_indices_ranked_by="normalized_margin")
        quality = get_label_quality_scores(given, probabilities, method="normalized_margin")
    else:
        lists = [np.flatnonzero(row > 0.5).tolist() for row in given]
        rows = multi.find_label_issues(lists, probabilities, return_indices_ranked_by="self_confidence")
        quality = multi_quality(lists, probabilities)
    return _figures(np.asarray(rows), np.asarray(quality), wrong) | {"version": cleanlab.__version__}


def _figures(rows: np.ndarray, quality: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import average_precision_score

    top = np.argsort(quality, kind="stable")[: int(wrong.sum())]
    return {
        "doubted": len(rows), "precision": float(wrong[rows].mean()) if len(rows) else None,
        "recall": float(wrong[rows].sum() / wrong.sum()), "top": float(wrong[top].mean()),
        "average_precision": float(average_precision_score(wrong, -quality)),
    }  # fmt: skip


def repair(name: str, share: float, seed: int, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Logits of the test rows, [n, labels], after training on labels of each of SIDES, and `targets`, theirs."""
    import polars as pl

    import bertune

    _, prepared = _drawn(name, seed, options.data)
    task, train = prepared.task, prepared.train
    truth, given, wrong = _spoilt(train.targets, task.kind, task.num_labels, share, seed)
    found: dict[str, np.ndarray] = {}
    known = _trained_on_clean(options.out, name, seed)
    if known is not None:
        found["clean"] = known
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def write(part: str, table: Any, targets: np.ndarray) -> Path:
            said = task.names(targets if task.kind == "single" else targets > 0.5)
            cells = said if task.kind == "single" else ["|".join(labels) for labels in said]
            path = place / f"{part}.csv"
            table.frame.select(task.text).with_columns(pl.Series("labels here", cells)).write_csv(path)
            return path

        test = prepared.splits["test"]
        found["targets"] = test.targets
        settings = {
            "model.max_length": LENGTH, "data.task": task.kind, "data.labels": list(task.labels),
            "train.epochs": EPOCHS, "check.enabled": False, "train.seed": seed, "report.baselines": False,
            **({"data.label_sep": "|"} if task.kind == "multi" else {}),
        }  # fmt: skip
        common = {"text": list(task.text), "label": "labels here", "valid": 0.1}
        common["test"] = write("test", test.table, test.targets)
        spoilt = write("spoilt", train.table, given)
        plan = bertune.check(spoilt, settings=settings, **common).plan()
        plan.write(place / "repaired.yaml")
        for entry in plan.rows:
            if entry.why.startswith("label_error"):
                entry.action = "relabel" if wrong[entry.row - 1] else "keep"
                entry.label = sorted(_names(truth[entry.row - 1], task))
        plan.write(place / "reviewed.yaml")
        for side in (side for side in SIDES if side not in found):
            path = write("clean", train.table, truth) if side == "clean" else spoilt
            more = {} if side in ("clean", "spoilt") else {"data.plan": str(place / f"{side}.yaml")}
            out = place / side
            bertune.train(path, out=out, settings={**settings, **more}, **common)
            frame = pl.read_parquet(out / "run" / "predictions-test.parquet")
            found[side] = frame.select([f"logit:{label}" for label in task.labels]).to_numpy().astype(np.float32)
    return found


def _trained_on_clean(out: Path, name: str, seed: int) -> np.ndarray | None:
    """What another share of this set and seed has made: before errors are put in, they are the same."""
    for path in sorted(out.glob(f"{name}-*-{seed}.npz")):
        with np.load(path) as cell:
            return np.asarray(cell["clean"])
    return None


def _drawn(name: str, seed: int, data: Path) -> Any:
    """The configuration, and the data with ROWS training rows."""
    from bertune.config import Config
    from bertune.training.prepare import Prepared, Split, read_splits

    folder = data / name
    given: dict[str, Any] = {"files": [str(folder / "papers.csv")], "text": ["TITLE", "ABSTRACT"]}
    if name == "sst2":
        given = {"files": [str(folder / "train.tsv")], "test": str(folder / "test.tsv"), "text": ["sentence"],
                 "label": ["label"]}  # fmt: skip
    config = Config().updated({"data": given})
    prepared = read_splits(None, config.data, lambda line: None)
    train = prepared.train
    rows = np.sort(np.random.default_rng(seed).permutation(len(train))[: ROWS[name]])
    splits = {"train": Split("train", train.table.take(rows), train.targets[rows]), "test": prepared.splits["test"]}
    return config, Prepared(prepared.task, splits, prepared.rule)


def _spoilt(
    targets: np.ndarray, kind: str, labels: int, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The targets as they were, with errors, and which rows have one."""
    random = np.random.default_rng(1000 + seed)
    chosen = random.permutation(len(targets))[: round(share * len(targets))]
    given, wrong = targets.copy(), np.zeros(len(targets), bool)
    wrong[chosen] = True
    if kind == "single":
        given[chosen] = (targets[chosen] + random.integers(1, labels, len(chosen))) % labels
    else:
        label = random.integers(0, labels, len(chosen))
        given[chosen, label] = 1 - given[chosen, label]
    return targets, given, wrong


def _names(target: Any, task: Any) -> set[str]:
    numbers = [int(target)] if task.kind == "single" else np.flatnonzero(target > 0.5)
    return {task.labels[number] for number in numbers}


def table(out: Path) -> str:
    """Markdown of all cells: means over seeds."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))]
    header = "| labels changed | side | seeds | doubted | precision | recall | precision at top | average precision |"
    lines = [header, "|---" * 8 + "|"]
    for name, share in sorted({(cell["set"], cell["share"]) for cell in cells}, key=str):
        here = [cell for cell in cells if (cell["set"], cell["share"]) == (name, share)]
        title = f"{name}, {100 * share:.0f} %"
        for side in ("ours", "cleanlab"):
            found = [cell["queue"][side] for cell in here if side in cell["queue"]]
            if found:
                figures = [np.mean([each[key] for each in found]) for key in ("doubted", *QUEUE[:4])]
                shown = " | ".join([f"{figures[0]:,.0f}", *(f"{figure:.3f}" for figure in figures[1:])])
                lines.append(f"| {title} | {side} | {len(found)} | {shown} |")
    sure = [(cell["queue"]["ours"]["sure"], cell["queue"]["ours"]["sure_right"]) for cell in cells]
    told = sum(right for _, right in sure) / max(1, sum(count for count, _ in sure))
    lines += ["", f"Of the labels that the plan would change by itself, {100 * told:.0f} % become what they were."]
    return "\n".join([*lines, *_repaired(out)])


def _repaired(out: Path) -> list[str]:
    """The metric on test after each of SIDES, and its paired differences to `spoilt`, over seeds."""
    from bertune.evaluate.resample import Scores
    from bertune.evaluate.seeds import seed_differences

    cells: dict[tuple[str, int], list[Path]] = {}
    for path in sorted(out.glob("*.npz")):
        name, share, _ = path.stem.split("-")
        cells.setdefault((name, int(share)), []).append(path)
    header = f"| labels changed | seeds | metric | {' | '.join(SIDES)} | repaired - spoilt | reviewed - spoilt |"
    lines = ["", header, "|---" * (len(SIDES) + 5) + "|"] if cells else []
    for (name, share), paths in sorted(cells.items()):
        metric, scores = METRIC[name], {side: [] for side in SIDES}
        for path in paths:
            with np.load(path) as cell:
                kind = "single" if cell["targets"].ndim == 1 else "multi"
                for side in SIDES:
                    scores[side].append(Scores(kind, cell[side], cell["targets"]))
        shown = [np.mean([each(np.ones((1, each.rows)))[metric] for each in scores[side]]) for side in SIDES]
        gaps = [seed_differences(metric, scores[side], scores["spoilt"]) for side in ("repaired", "reviewed")]
        told = [f"{value:.4f}" for value in shown]
        told += [f"{gap:+.4f} ({low:+.4f} to {high:+.4f})" for gap, low, high in gaps]
        lines.append(f"| {name}, {share} % | {len(paths)} | {metric} | {' | '.join(told)} |")
    return lines


if __name__ == "__main__":
    main()
