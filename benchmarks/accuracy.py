"""Accuracy beside transformers' Trainer and TF-IDF, on the same rows, with the same encoder, over several seeds.

    python benchmarks/accuracy.py --data ../shared/data --out results/accuracy      # trains what is not there yet
    python benchmarks/accuracy.py --out results/accuracy --table                    # Markdown of what is there
    python benchmarks/accuracy.py ... --sets goemotions --sides ours --variant focal=benchmarks/losses/focal.yaml

Each cell (data set, side, seed) is a JSON file under --out and is made once, in a process of its own; stop at any time
and run again. Sides: `ours` (the defaults), `recipe` (recipes/<set>-mini.yaml, where there is one), `trainer`
(transformers in bf16 with ours' epochs, batch, learning rate and choice of the best epoch), `tfidf`, and any --variant
NAME=FILE.yaml. --epochs trains `ours`, `recipe`, `trainer` and variants for that many; their cells are named so
(`ours-1ep`). --share trains every side on that share of the training rows, the same ones for each side and seed; its
cells belong into a folder of their own. Differences are paired: the same rows, and seed by seed; their intervals
resample rows and seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workers import KEEP_MEMORY, ROOT, machine

sys.path.insert(0, str(ROOT / "src"))

if TYPE_CHECKING:
    from bertune.config import Config
    from bertune.evaluate.resample import Scores
    from bertune.training.prepare import Prepared

SHOWN = {
    "snli": ("accuracy", "macro_f1", "mcc", "log_loss"),
    "papers": ("micro_f1", "macro_f1", "subset_accuracy", "roc_auc_macro", "hamming_loss"),
    "goemotions": ("micro_f1", "macro_f1", "subset_accuracy", "roc_auc_macro", "hamming_loss"),
}
COMPARED = {"snli": ("accuracy", "macro_f1"), "papers": ("micro_f1", "macro_f1", "subset_accuracy"),
            "goemotions": ("micro_f1", "macro_f1")}
# The faster of transformers' two attentions on a processor; both compute the same, with dropout on the weights.
ATTENTION = {"snli": "sdpa", "papers": "eager", "goemotions": "sdpa"}
FILES = {"snli": "train_subset.tsv", "papers": "papers.csv", "goemotions": "train.tsv"}
OFFICIAL = ("snli", "goemotions")  # with splits of their own
DRAWS = 2000


def main() -> None:
    options = _options()
    if options.table:
        print(table(options.out, options.sets))
        return
    sides = [*options.sides, *options.variants]
    for name in options.sets:
        for seed in options.seeds:
            for side in sides:
                wanted = side != "tfidf" or seed == options.seeds[0]  # it has no seed
                if wanted and (side != "recipe" or _recipe(name).is_file()):
                    _run_cell(name, side, seed, options)
    print(table(options.out, options.sets))


def _run_cell(name: str, side: str, seed: int, options: argparse.Namespace) -> None:
    path = options.out / f"{_cell_name(name, side, seed, options)}.json"
    if path.exists():
        return
    print(path.stem, file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--data", options.data, "--out", options.out, "--cell", name, side, seed]
    if side in options.variants:
        command += ["--variant", f"{side}={options.variants[side]}"]
    if options.model:
        command += ["--model", options.model]
    if options.epochs:
        command += ["--epochs", options.epochs]
    if options.share:
        command += ["--share", options.share]
    environment = {**os.environ, **KEEP_MEMORY} if side == "trainer" else None
    log = path.with_suffix(".log")
    with log.open("w", encoding="utf-8") as stream:
        arguments = [str(part) for part in command]
        done = subprocess.run(arguments, stdout=stream, stderr=stream, check=False, env=environment)
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        sys.exit(f"{path.stem}: ended with {done.returncode}; see {log}\n{last}")


def _cell_name(name: str, side: str, seed: int, options: argparse.Namespace) -> str:
    return f"{name}-{_shown(side, options)}-{seed}"


def _shown(side: str, options: argparse.Namespace) -> str:
    """The side's name in tables and files: with the number of epochs where --epochs sets it."""
    return f"{side}-{options.epochs}ep" if options.epochs and side != "tfidf" else side


def cell(name: str, side: str, seed: int, options: argparse.Namespace) -> None:
    """Train one side once and write its JSON, with logits and targets of valid and test beside it."""
    from bertune.evaluate.metrics import evaluate

    begin = time.perf_counter()
    make = {"trainer": _trainer, "tfidf": _tfidf}.get(side, _ours)
    labels, parts, settings = make(name, side, seed, options)
    kind = "single" if next(iter(parts.values()))[1].ndim == 1 else "multi"
    metrics = {part: evaluate(kind, labels, logits, targets) for part, (logits, targets) in parts.items()}
    record = {
        "set": name, "side": _shown(side, options), "seed": seed, "kind": kind, "labels": labels,
        "seconds": time.perf_counter() - begin, "settings": settings, "metrics": metrics, "machine": machine(),
        **({"share": options.share} if options.share else {}),
    }
    stem = options.out / _cell_name(name, side, seed, options)
    arrays = {f"{part}_logits": logits for part, (logits, _) in parts.items()}
    arrays |= {f"{part}_targets": targets for part, (_, targets) in parts.items()}
    np.savez_compressed(stem.with_suffix(".npz"), **arrays)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


Made = tuple[list[str], dict[str, tuple[np.ndarray, np.ndarray]], dict[str, Any]]  # labels, (logits, targets), settings


def _ours(name: str, side: str, seed: int, options: argparse.Namespace) -> Made:
    import polars as pl

    import bertune

    config = _config(name, side, options)
    out = options.out / "runs" / _cell_name(name, side, seed, options)
    result = bertune.train(config.data.files, out=out, config=config, seed=seed, resume=True)
    labels = sorted(result.task.labels)
    parts = {}
    for part in ("valid", "test"):
        frame = pl.read_parquet(out / "run" / f"predictions-{part}.parquet")
        logits = frame.select([f"logit:{label}" for label in labels]).to_numpy().astype(np.float32)
        truth = frame["label"].to_list()
        if result.task.kind == "single":
            targets = np.array([labels.index(label) for label in truth])
        else:
            targets = np.array([[float(label in row) for label in labels] for row in truth], np.float32)
        parts[part] = (logits, targets)
    train = {key: result.metrics["train"].get(key) for key in ("epochs", "seconds", "examples_per_second")}
    # Without the data section: its paths are those of one machine.
    return labels, parts, {"config": config.model_dump(mode="json", exclude={"data"}), "train": train}


def _trainer(name: str, side: str, seed: int, options: argparse.Namespace) -> Made:
    """transformers' Trainer at its best: bf16, grouped by length; otherwise the same, the choice of the epoch too."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, EvalPrediction, Trainer, TrainingArguments

    from bertune.evaluate.metrics import check_metric, evaluate
    from bertune.model.load import read_config
    from bertune.model.source import open_source
    from bertune.training.settle import settle
    from sides import features, transformers_model

    config, prepared = _prepared(name, options)
    folder, _ = open_source(config.model.name)
    plan = settle(config.train, rows=len(prepared.train), encoder=read_config(folder), new_head=True)
    kind, labels = prepared.task.kind, list(prepared.task.labels)
    parts = {part: _part(split) for part, split in prepared.splits.items()}
    metric = check_metric(config.train.metric, kind)

    def measure(seen: EvalPrediction) -> dict[str, float]:
        targets = seen.label_ids if kind == "multi" else seen.label_ids.astype(np.int64)
        return {metric: evaluate(kind, labels, np.asarray(seen.predictions, np.float32), targets)[metric]}

    # What it needs to go on after each epoch stays in the folder until the cell is written.
    work = options.out / "runs" / _cell_name(name, side, seed, options)
    arguments = TrainingArguments(
        output_dir=str(work), num_train_epochs=plan.epochs, per_device_train_batch_size=plan.batch_size,
        learning_rate=plan.lr, warmup_steps=config.train.warmup, weight_decay=config.train.weight_decay,
        bf16=True, use_cpu=True, train_sampling_strategy="group_by_length", seed=seed, report_to="none",
        eval_strategy="epoch", save_strategy="epoch", save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model=metric, per_device_eval_batch_size=64, disable_tqdm=True,
    )
    trainer = Trainer(
        model_init=lambda: transformers_model(str(folder), parts["train"], seed=seed, attention=ATTENTION[name]),
        args=arguments,
        train_dataset=features(parts["train"]), eval_dataset=features(parts["valid"]), compute_metrics=measure,
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(folder)),
    )
    trainer.train(resume_from_checkpoint=any(work.glob("checkpoint-*")))
    trainer.args.train_sampling_strategy = "random"  # grouped by length, it would also predict in that order
    found = {part: trainer.predict(features(parts[part])) for part in ("valid", "test")}
    if any((found[part].label_ids != parts[part].targets).any() for part in found):
        sys.exit("the Trainer's predictions are not in the order of the rows")
    logits = {part: answer.predictions for part, answer in found.items()}
    shutil.rmtree(work)
    settings = {"epochs": plan.epochs, "batch_size": plan.batch_size, "lr": plan.lr, "metric": metric}
    return _sorted(labels, {part: (logits[part], parts[part].targets) for part in logits}, settings)


def _tfidf(name: str, side: str, seed: int, options: argparse.Namespace) -> Made:
    from bertune.data.tasks import rows_of
    from bertune.evaluate.baseline import TfidfLinear, plain_texts

    _, prepared = _prepared(name, options)
    task, splits = prepared.task, prepared.splits
    texts = {part: plain_texts(rows_of(task, split.table, allow_empty=True)) for part, split in splits.items()}
    model = TfidfLinear(texts["train"], prepared.train.targets, kind=task.kind, num_labels=task.num_labels)
    parts = {part: (model.logits(texts[part]), splits[part].targets) for part in ("valid", "test")}
    return _sorted(list(task.labels), parts, {})


def _config(name: str, side: str, options: argparse.Namespace) -> Config:
    """The configuration of one of our sides, with the data set's files and columns in it."""
    from bertune.config import Config

    file = _recipe(name) if side == "recipe" else options.variants.get(side)
    base = Config.load(file) if file else Config()
    folder = options.data / name
    data: dict[str, Any] = {"files": [str(folder / FILES[name])]}
    if name in OFFICIAL:
        data |= {"valid": str(folder / "dev.tsv"), "test": str(folder / "test.tsv")}
    if base.data.layout == "auto" and not base.data.text:
        data |= {
            "snli": {"text": ["sentence1"], "text_pair": ["sentence2"], "label": ["gold_label"]},
            "papers": {"text": ["TITLE", "ABSTRACT"]},
            "goemotions": {"header": "no", "columns": ["text", "label", "id"], "text": ["text"], "label": ["label"],
                           "label_names": str(folder / "labels.txt"), "label_sep": ","},
        }[name]
    if options.share:
        data["share"] = options.share
    given: dict[str, Any] = {"data": data, "report": {"baselines": False}}
    if options.model:
        given["model"] = {"name": str(options.model)}
    if options.epochs:
        given["train"] = {"epochs": options.epochs}
    return base.updated(given)


def _prepared(name: str, options: argparse.Namespace) -> tuple[Config, Prepared]:
    """The splits and tokens that `ours` trains on."""
    from bertune.data.tokens import Tokenizer
    from bertune.model.source import open_source
    from bertune.training.opening import LONGEST
    from bertune.training.prepare import read_splits, tokenize

    config = _config(name, "ours", options)
    prepared = read_splits(None, config.data, lambda line: None)
    tokenizer = Tokenizer.load(open_source(config.model.name)[0])
    tokenize(prepared, tokenizer, max_length=LONGEST, truncation=config.model.truncation, say=lambda line: None)
    return config, prepared


def _part(split: Any) -> Any:
    from corpora import Part

    return Part(split.tokens.ids, split.tokens.types, split.tokens.offsets, split.targets)


def _sorted(labels: list[str], parts: dict[str, tuple[np.ndarray, np.ndarray]], settings: dict[str, Any]) -> Made:
    """Labels in alphabetical order, so that sides with different orders can be compared."""
    order = sorted(range(len(labels)), key=labels.__getitem__)
    place = np.argsort(order)
    turned = {
        part: (logits[:, order].astype(np.float32), place[targets] if targets.ndim == 1 else targets[:, order])
        for part, (logits, targets) in parts.items()
    }
    return [labels[number] for number in order], turned, settings


def table(out: Path, sets: list[str]) -> str:
    """Markdown of all cells there are: mean ± standard deviation over seeds, then paired differences with intervals."""
    lines: list[str] = []
    for name in sets:
        cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f"{name}-*.json"))]
        sides: dict[str, list[dict[str, Any]]] = {}
        for found in cells:
            sides.setdefault(found["side"], []).append(found)
        for part in ("valid", "test") if cells else ():
            lines += ["", f"{name}, {'dev' if (name, part) == ('snli', 'valid') else part}", ""]
            lines += ["| side | seeds | " + " | ".join(SHOWN[name]) + " |", "|---" * (len(SHOWN[name]) + 2) + "|"]
            for side, runs in sides.items():
                values = [[run["metrics"][part][metric] for run in runs] for metric in SHOWN[name]]
                shown = [_mean_sd(column) for column in values]
                lines.append(f"| {side} | {len(runs)} | " + " | ".join(shown) + " |")
            lines += ["", *_differences(out, name, part, sides)]
    return "\n".join(lines).strip() or f"{out} holds no results."


def _mean_sd(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _differences(out: Path, name: str, part: str, sides: dict[str, list[dict[str, Any]]]) -> list[str]:
    from bertune.evaluate.seeds import seed_differences

    rows = []
    for side in sides:
        epochs = re.search(r"(-\d+ep)?$", side)
        trainer = f"trainer{epochs[0] if epochs else ''}"
        for other in (trainer, "tfidf"):
            if side.startswith(("trainer", "tfidf")) or other not in sides:
                continue
            seeds = sorted({cell["seed"] for cell in sides[side]})
            if other == trainer:
                seeds = [seed for seed in seeds if seed in {cell["seed"] for cell in sides[other]}]
            if not seeds:
                continue
            kind = sides[side][0]["kind"]
            ours = [_scores(out, name, side, seed, part, kind) for seed in seeds]
            known = [seed if other == trainer else sides[other][0]["seed"] for seed in seeds]
            theirs = [_scores(out, name, other, seed, part, kind) for seed in known]
            for metric in COMPARED[name]:
                difference, low, high = seed_differences(metric, ours, theirs, draws=DRAWS)
                rows.append(f"| {side} - {other} | {metric} | {difference:+.4f} | {low:+.4f} to {high:+.4f} |")
    return ["| paired difference | metric | mean | 95 % interval |", "|---|---|---|---|", *rows] if rows else []


def _scores(out: Path, name: str, side: str, seed: int, part: str, kind: str) -> Scores:
    from bertune.evaluate.resample import Scores

    with np.load(out / f"{name}-{side}-{seed}.npz") as stored:
        return Scores(kind, stored[f"{part}_logits"], stored[f"{part}_targets"])


def _recipe(name: str) -> Path:
    return ROOT / "recipes" / f"{name}-mini.yaml"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=["papers", "snli"])
    parser.add_argument("--sides", type=lambda text: text.split(","), default=["ours", "recipe", "trainer", "tfidf"])
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=FILE", help="one more configuration")
    parser.add_argument("--epochs", type=int, help="train that many, in place of each side's own number")
    parser.add_argument("--share", type=float, help="train on that share of the training rows")
    parser.add_argument("--model", type=Path, help="another encoder than the default")
    parser.add_argument("--table", action="store_true", help="train nothing, only print")
    parser.add_argument("--cell", nargs=3, metavar=("SET", "SIDE", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.variants = dict(text.split("=", 1) for text in options.variant)
    unknown = [name for name in options.sets if name not in SHOWN]
    if unknown:
        parser.error(f"--sets: {unknown[0]} is not one of {', '.join(SHOWN)}")
    options.out.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    chosen = _options()
    if chosen.cell:
        cell(chosen.cell[0], chosen.cell[1], int(chosen.cell[2]), chosen)
    else:
        main()
