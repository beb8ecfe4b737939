"""Cross-validation: every row is answered once by a model that has not seen it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertune.config import Config
from bertune.data.tasks import Task
from bertune.errors import ConfigError
from bertune.evaluate.metrics import METRICS, evaluate
from bertune.evaluate.resample import Scores, intervals
from bertune.files import atomic_path, write_json
from bertune.training.listen import Listener, Silent
from bertune.training.outcome import Outcome, predictions_file
from bertune.training.several import run_each

OUT_OF_FOLD = "out-of-fold"


@dataclass(frozen=True)
class CrossValidation:
    """metrics: what run/metrics.json holds; the folds are results of their own in run/folds/."""

    out: Path
    task: Task
    metrics: dict[str, Any]


def cross_validate(
    config: Config, *, out: str | Path, folds: int, source: Any = None, resume: bool = False, overwrite: bool = False,
    listener: Listener | None = None,
) -> CrossValidation:
    """Train `folds` times, each time testing on another fold, and measure all answers together.

    In `out` lies then no model of its own, but run/metrics.json: `out_of_fold` (all rows, each answered by the model
    and the decision rule that have not seen it) with `intervals`, `mean` and `sd` of each metric over the folds, and
    the mean of the baselines; run/predictions-out-of-fold.parquet; and each fold as a result in run/folds/1 and on.
    Raises what `run` raises.
    """
    out = Path(out)
    if folds < 2:
        raise ConfigError(f"--folds {folds}: cross-validation takes at least 2.")
    if config.data.fold is not None:
        raise ConfigError(f"data.fold {config.data.fold}: --folds takes all folds in turn; leave it out.")
    variants = {str(number): {"data": {"fold": f"{number}/{folds}"}} for number in range(1, folds + 1)}
    results = run_each(
        variants, config, out=out, folder="folds", title="Fold", source=source, resume=resume, overwrite=overwrite,
        listener=listener or Silent(),
    )
    outcomes = [Outcome.read(result.out, "test") for result in results]
    metrics = together(outcomes, [result.metrics for result in results])
    keep_answers(outcomes, predictions_file(out, OUT_OF_FOLD))
    write_json(out / "run" / "metrics.json", metrics)
    return CrossValidation(out, outcomes[0].task, metrics)


def together(outcomes: list[Outcome], results: list[dict[str, Any]]) -> dict[str, Any]:
    """What the folds come to, see `cross_validate`."""
    task = outcomes[0].task
    parts = [outcome.scores(task.labels) for outcome in outcomes]
    logits = np.concatenate([part.logits for part in parts])
    said = np.concatenate([part.said for part in parts])
    said = said.argmax(axis=1) if task.kind == "single" else said
    targets = np.concatenate([outcome.targets(task.labels) for outcome in outcomes])
    groups = None
    if outcomes[0].groups is not None:
        groups = [group for outcome in outcomes for group in outcome.groups or ()]
    names = [name for name, metric in METRICS.items() if task.kind in metric.kinds]
    tests = [result["test"] for result in results]
    baselines = {
        baseline: _means([result["baselines"][baseline]["test"] for result in results], names)
        for baseline in results[0]["baselines"]
    }
    return {
        "metric": results[0]["metric"], "folds": len(results),
        "out_of_fold": evaluate(task.kind, task.labels, logits, targets, said=said),
        "intervals": {"out_of_fold": intervals(Scores(task.kind, logits, targets, said=said), groups=groups)},
        "mean": _means(tests, names), "sd": _means(tests, names, np.std), "baselines": baselines,
        "test": [{name: test[name] for name in names} for test in tests],
    }  # fmt: skip


def _means(tests: list[dict[str, Any]], names: list[str], what: Callable[..., Any] = np.mean) -> dict[str, float]:
    """Of each metric that every fold has its mean, or its standard deviation (n - 1)."""
    more = {"ddof": 1} if what is np.std else {}
    return {
        name: float(what([test[name] for test in tests], **more))
        for name in names if all(test.get(name) is not None for test in tests)
    }  # fmt: skip


def keep_answers(outcomes: list[Outcome], path: Path) -> None:
    """The answers of all folds as one table, with a column `fold`."""
    import polars as pl

    frames = [
        outcome.frame.with_columns(pl.lit(number).alias("fold")) for number, outcome in enumerate(outcomes, 1)
    ]
    with atomic_path(path) as temporary:
        pl.concat(frames).write_parquet(temporary)
