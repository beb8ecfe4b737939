"""What metrics.json says about training itself: quality on the rows as they were seen, and speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bertune.data.batch import epoch_order
from bertune.evaluate.metrics import evaluate
from bertune.model.encoder import padding_share
from bertune.model.machine import peak_memory

if TYPE_CHECKING:
    from bertune.training.state import Trained


def train_metrics(trained: Trained) -> dict[str, Any]:
    """The `train` object of metrics.json."""
    progress = trained.progress
    losses = [record["loss"] for record in progress.history if record["kind"] == "step"]
    seconds = max(progress.seconds, 1e-9)
    return {
        **_quality(trained),
        "loss": losses[-1] if losses else None,
        "rows": len(trained.prepared.train.tokens),
        "steps": progress.step,
        "epochs": trained.plan.epoch(progress.step),
        "best_step": progress.best and progress.best["step"],
        "seconds": progress.seconds,
        "examples_per_second": progress.rows / seconds,
        "tokens_per_second": progress.tokens / seconds,
        "padding_share": padding_share(
            trained.model.encoder.config, tokens=progress.tokens, pairs=progress.pairs, wasted=progress.wasted
        ),
        "peak_memory_bytes": peak_memory(),
    }


def _quality(trained: Trained) -> dict[str, Any]:
    """Metrics of the training rows as they were seen while training, and a word about how they were measured."""
    if trained.progress.trained is not None:
        return {**trained.progress.trained, "measured": "while training, with dropout, over the last whole epoch"}
    task, train, course = trained.prepared.task, trained.prepared.train, trained.course
    seen = epoch_order(len(train), seed=course.seed, epoch=0)[: trained.progress.step * course.batch_size]
    metrics = evaluate(task.kind, task.labels, course.running[seen], train.targets[seen])
    return {**metrics, "measured": f"while training, with dropout, over the {len(seen):,} rows seen"}
