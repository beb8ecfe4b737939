"""After training: the result folder is written, opened again, and judged as a user would use it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import bertune
from bertune.bundle import BaseModelInfo, Bundle, HeadSpec, write_bundle
from bertune.data.tokens import Tokenizer
from bertune.evaluate.card import model_card
from bertune.evaluate.curves import plot_curves
from bertune.evaluate.metrics import evaluate, probabilities
from bertune.files import atomic_path, sha256_of, write_atomic, write_json
from bertune.hub import Source
from bertune.model.load import opens_in_transformers, read_source, save_model
from bertune.model.machine import peak_memory
from bertune.ship.predict import Predictor
from bertune.train import checkpoint

if TYPE_CHECKING:
    from bertune.train.fit import Fit, Progress
    from bertune.train.prepare import Split


def finish(
    fit: Fit, progress: Progress, *, out: Path, base: Source, folder: Path, tokenizer: Tokenizer, max_length: int,
    metric: str,
) -> dict[str, Any]:
    """Write the bundle, measure valid and test with it, and write everything in run/; returns the metrics."""
    model, config, task = fit.model, fit.config, fit.prepared.task
    encoder, head = model.encoder.config, model.head.config
    bundle = Bundle(
        bertune_version=bertune.__version__, task=task, activation=task.activation, max_length=max_length,  # type: ignore[arg-type]
        truncation=config.model.truncation, encoder=encoder.arch,
        head=HeadSpec(kind=head.kind, pooling=head.pooling, dropout=head.dropout, hidden=head.hidden),
        base_model=base_model(config.model.name, config.model.revision, base, folder),
        opens_in_transformers=opens_in_transformers(encoder.arch, head),
    )

    def write_files(staging: Path) -> None:
        save_model(staging, model, read_source(folder), labels=task.labels, problem_type=task.problem_type)
        tokenizer.save(staging)

    bundle = write_bundle(out, bundle, write_files)
    metrics: dict[str, Any] = {"metric": metric, "train": fit.train_metrics(fit.prepared.train.tokens)}
    predictor = Predictor.load(out, threads=fit.machine.threads, device=fit.machine.device)
    for name in ("valid", "test"):
        if name in fit.prepared.splits:
            metrics[name] = judge(predictor, fit.prepared.splits[name], out / "run" / f"predictions-{name}.parquet")
    write_atomic(out / "README.md", model_card(bundle, metrics, card_facts(fit)))
    plot_curves(progress.history, out / "run" / "curves.png", metric=metric)
    write_json(out / "run" / "metrics.json", metrics)
    checkpoint.remove(fit.folder)
    return metrics


def judge(predictor: Predictor, split: Split, predictions: Path | None) -> dict[str, Any]:
    """Metrics of a split, and its predictions as a Parquet file."""
    begin = time.perf_counter()
    logits = predictor.backend.logits(split.tokens)
    seconds = time.perf_counter() - begin
    task = predictor.task
    metrics = evaluate(task.kind, task.labels, logits, split.targets)
    if predictions is not None:
        write_predictions(predictor, split, logits, predictions)
    return {
        **metrics, "rows": len(split), "seconds": seconds, "examples_per_second": len(split) / seconds,
        "tokens_per_second": int(split.tokens.offsets[-1]) / seconds, "peak_memory_bytes": peak_memory(),
    }


def write_predictions(predictor: Predictor, split: Split, logits: np.ndarray, path: Path) -> None:
    """A row each: file, row number, true label(s), prediction, and logit and probability of every label."""
    import polars as pl

    task, table = predictor.task, split.table
    if task.kind == "single":
        truth: list[Any] = [task.labels[number] for number in split.targets]
    else:
        truth = [[task.labels[number] for number in np.flatnonzero(row)] for row in split.targets]
    shares = probabilities(task.kind, logits)
    columns: dict[str, Any] = {
        "file": [Path(table.files[number]).name for number in table.file_index.tolist()],
        "row": table.row_numbers,
        "label": truth,
        "prediction": predictor.names(logits),
    }
    columns |= {f"prob:{label}": shares[:, place] for place, label in enumerate(task.labels)}
    columns |= {f"logit:{label}": logits[:, place] for place, label in enumerate(task.labels)}
    with atomic_path(path) as temporary:
        pl.DataFrame(columns).write_parquet(temporary)


def base_model(name: str, revision: str | None, base: Source, folder: Path) -> BaseModelInfo:
    """Where training started, without any path of this machine."""
    weights = folder / "model.safetensors"
    shown = Path(name).name if base.kind in ("folder", "archive") and Path(name).exists() else name
    return BaseModelInfo(
        name=shown, title=base.title, licence=base.licence, note=base.note, revision=revision,
        sha256=sha256_of(weights) if weights.is_file() else None,
    )


def card_facts(fit: Fit) -> dict[str, Any]:
    """What the model card says beyond bundle and metrics."""
    config, splits = fit.config, fit.prepared.splits
    files = {name: [Path(file).name for file in split.table.files] for name, split in splits.items()}
    truncation = fit.prepared.train.tokens.truncation()
    return {
        "files": files, "rows": {name: len(split) for name, split in splits.items()}, "rule": fit.prepared.rule,
        "plan": fit.plan.to_dict(), "machine": fit.machine.to_dict(), "config": config.model_dump(mode="json"),
        "truncation": truncation.sentence(),
    }


def read_metrics(out: Path) -> dict[str, Any]:
    """run/metrics.json of a finished run."""
    result: dict[str, Any] = json.loads((out / "run" / "metrics.json").read_text(encoding="utf-8"))
    return result
