"""Finished result folders without a training: answers drawn by chance, measured by the same code as real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bertune.bundle import BaseModelInfo, Bundle, HeadSpec
from bertune.config import Config
from bertune.data.tasks import Task
from bertune.evaluate.abstain import confidence, is_right, judge_abstention
from bertune.evaluate.calibrate import calibration
from bertune.evaluate.metrics import evaluate
from bertune.evaluate.resample import scores_of
from bertune.evaluate.rule import Rule
from bertune.evaluate.slices import slices
from bertune.files import write_json

ATTACK = "<script>alert(1)</script>"
FINDING = {
    "kind": "leak", "severity": "warning", "count": 2, "message": "2 of 9 rows <b>of test</b> are in train, too",
    "advice": "Take them out.", "rows": [{"split": "test", "file": "a&b.csv", "row": 3}],
}  # fmt: skip


def make_result(
    out: Path, labels: tuple[str, ...], *, kind: str = "multi", rows: int = 60, seed: int = 0, rule: Rule | None = None,
    texts: list[str] | None = None, by: dict[str, list[str]] | None = None, baselines: bool = True,
) -> Path:
    """A result in `out` whose test rows are those of a file texts.csv beside it, where `texts` are given."""
    random = np.random.default_rng(seed)
    rule = rule or Rule()
    logits = random.normal(0, 2, (rows, len(labels))).astype(np.float32)
    if kind == "multi":
        targets: Any = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
        truth: list[Any] = [[labels[place] for place in np.flatnonzero(row)] for row in targets]
    else:
        targets = (logits + random.gumbel(0, 1, logits.shape)).argmax(axis=1)
        truth = [labels[place] for place in targets]
    task = Task(kind=kind, text=("text",), label=("label",), labels=labels, label_sep="|" if kind == "multi" else None,
                label_format="delimited" if kind == "multi" else "column")  # fmt: skip
    bundle = Bundle(
        bertune_version="0.1.0", task=task, activation=task.activation, max_length=64, truncation="longest-first",
        encoder="bert", head=HeadSpec(kind="linear", pooling="cls", dropout=0.1, hidden=0), opens_in_transformers=True,
        base_model=BaseModelInfo(name="tiny", title="a tiny encoder"), decision=rule,
    )
    run = out / "run"
    run.mkdir(parents=True)
    write_json(out / "bertune.json", bundle.to_dict())
    said = rule.decide(kind, logits)
    shares = rule.probabilities(kind, logits)
    measured = evaluate(kind, labels, rule.calibrated(kind, logits), targets, said=said)
    metric = "micro_f1" if kind == "multi" else "accuracy"
    value = measured[metric]
    sure, right = confidence(kind, shares, said), is_right(kind, said, targets)
    gain = {"difference": 0.1, "low": 0.05, "high": 0.15}
    by = by or {"length": ["up to 16" if number % 3 else "17 to 32" for number in range(rows)]}
    metrics = {
        "metric": metric, "test": measured, "train": {"steps": 9, "epochs": 3.0, "seconds": 1.5, "best_step": 6},
        "intervals": {"test": {"level": 0.95, metric: [value - 0.05, value + 0.05]}},
        "baselines": {"tfidf": {"test": {metric: value - 0.1, "gain": gain}}} if baselines else {},
        "slices": {"test": slices(scores_of(rule, kind, logits, targets), metric, by)},
        "calibration": {"test": {"before": calibration(kind, logits, targets),
                                 "after": calibration(kind, rule.calibrated(kind, logits), targets)}},
        "abstention": {"confidence": rule.abstain, "test": judge_abstention(sure, right, rule.abstain)},
        "truncation": {"test": {"rows": rows, "rows_cut": 4, "tokens_cut_share": 0.0123, "unknown_share": 0.0}},
    }  # fmt: skip
    write_json(run / "metrics.json", metrics)
    history = [{"kind": "step", "step": step, "epoch": step / 3, "loss": 1 / step, "lr": 1e-4} for step in range(1, 10)]
    history += [{"kind": "eval", "step": 3 * epoch, "epoch": float(epoch), "split": "valid",
                 "metrics": {metric: 0.5 + epoch / 10, "log_loss": 0.5}} for epoch in (1, 2, 3)]  # fmt: skip
    (run / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")
    file = out.parent / "texts.csv"
    config = Config().updated({"data": {"files": [str(file)], "text": ["text"], "label": ["label"]}})
    (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    if texts is not None:
        cells = ["|".join(names) for names in truth] if kind == "multi" else truth
        pl.DataFrame({"text": texts, "label": cells}).write_csv(file)
    write_json(run / "check.json", {"findings": [FINDING]})
    pl.DataFrame({
        "file": ["texts.csv"] * rows, "row": np.arange(1, rows + 1), "label": truth, "prediction": task.names(said),
        **{f"prob:{label}": shares[:, place] for place, label in enumerate(labels)},
        **{f"logit:{label}": logits[:, place] for place, label in enumerate(labels)},
    }).write_parquet(run / "predictions-test.parquet")  # fmt: skip
    return out


def make_pretraining(out: Path, *, objective: str = "both", held_out: bool = True) -> Path:
    """A pre-training in `out` without its model, from made-up figures."""
    masked = {"perplexity": 60.0, "masked_accuracy": 0.1, "masked_loss": 4.1, "masked_tokens": 1234}
    pairs = {"next_accuracy": 0.5, "next_loss": 0.7, "pairs": 99}
    before = {"mlm": masked, "nsp": pairs, "both": masked | pairs}[objective]
    after = {name: value * {"perplexity": 0.5, "masked_accuracy": 3, "next_accuracy": 1.5}.get(name, 1)
             for name, value in before.items()}  # fmt: skip
    metrics = {
        "objective": objective, "corpus": {"documents": 1, "tokens": 5678, "characters": 9999}, "steps": 4,
        "tokens": 5000, "seconds": 1.0, "new_weights": [f"head.{ATTACK}"], "versions": {"bertune": "0"},
    }  # fmt: skip
    history = [{"kind": "step", "step": step, "epoch": step / 4, "loss": 4 - step / 2, "lr": 1e-4} for step in (1, 4)]
    if held_out:
        metrics |= {"before": before, "held_out": after}
        history += [{"kind": "eval", "step": step, "epoch": step / 4, "split": "valid", "metrics": measured}
                    for step, measured in ((0, before), (4, after))]  # fmt: skip
    run = out / "run"
    run.mkdir(parents=True)
    for name, value in (("metrics", metrics), ("machine", {"threads": 1}),
                        ("pretrained", {"files": [], "base_model": {"name": ATTACK, "title": ""}})):  # fmt: skip
        (run / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    (run / "machine.json").rename(run / "machine.yaml")
    (run / "config.yaml").write_text(f"data: {{files: ['{out.parent}/texts <i>.txt']}}", encoding="utf-8")
    (run / "history.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in history), encoding="utf-8")
    return out
