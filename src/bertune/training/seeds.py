"""The same training with several seeds: how much of a result is luck, which to keep, what all together would know."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertune.bundle import Bundle, write_bundle
from bertune.config import Config
from bertune.errors import ConfigError
from bertune.evaluate.choose import choose_rule
from bertune.evaluate.joint import joint_logits
from bertune.evaluate.metrics import METRICS, is_better
from bertune.evaluate.resample import Scores, differences, scores_of
from bertune.files import write_json
from bertune.folder import BUNDLE_FILE
from bertune.paths import cache_settings
from bertune.training.listen import Listener, Silent
from bertune.training.outcome import Outcome
from bertune.training.run import Result
from bertune.training.several import run_each
from bertune.training.unite import ensemble, soup

KEEPS = ("best", "soup", "ensemble")


def train_seeds(
    config: Config, *, out: str | Path, seeds: int, keep: str = "best", source: Any = None, resume: bool = False,
    overwrite: bool = False, listener: Listener | None = None,
) -> Result:
    """Train with `seeds` seeds, from train.seed on, and keep in `out` what `keep` says.

    best: the result that is best on the validation rows; soup: one model whose weights are the mean of those seeds that
    are better together on them; ensemble: all of them, which answer with the mean of their calibrated probabilities.

    Each seed is a result of its own in run/seeds/ of `out`. run/metrics.json is that of what is kept, with `seeds`
    beside it: "all", "best" (seeds), "kept", for valid and test {metric: {"mean", "sd"}}, and for test "ensemble" and,
    where one was made, "soup": {metric: {"value", "difference", "low", "high"}} against the best alone; "members" are
    the seeds in the soup. Raises what `run` raises.
    """
    out, listener = Path(out), listener or Silent()
    if keep not in KEEPS:
        raise ConfigError(f"--keep {keep}: choose one of {', '.join(KEEPS)}.")
    if keep != "best" and config.model.lora:
        raise ConfigError(
            f"--keep {keep} and --lora {config.model.lora}: models of LoRA are kept apart from their base, and cannot "
            "be united. Pass --keep best, or leave --lora out."
        )
    if seeds < 2:
        raise ConfigError(f"--seeds {seeds}: takes at least 2; for one, pass --seed.")
    data = config.data
    if data.valid is None and not (data.hold_out and (data.test is None or data.fold is not None)):
        raise ConfigError("--seeds: the best is chosen on validation rows, and there are none. Pass --valid.")
    numbers = [config.train.seed + number for number in range(seeds)]
    results = run_each(
        {str(number): {"train": {"seed": number}} for number in numbers}, config, out=out, folder="seeds", title="Seed",
        source=source, resume=resume, overwrite=overwrite, listener=listener,
    )  # fmt: skip
    metrics = [result.metrics for result in results]
    name = metrics[0]["metric"]
    best = 0
    for place in range(1, seeds):
        if is_better(name, metrics[place]["valid"][name], metrics[best]["valid"][name]):
            best = place
    told: dict[str, Any] = {"all": numbers, "best": numbers[best], "kept": keep}
    for split in ("valid", "test"):
        if split in metrics[0]:
            told[split] = _spread([found[split] for found in metrics])
    if "test" in metrics[0]:
        told["ensemble"] = _ensemble(config, [result.out for result in results], best, name)
    _keep(results[best].out, out)
    kept = metrics[best]
    if keep != "best":
        sign = -1 if METRICS[name].higher_is_better else 1
        order = sorted(range(seeds), key=lambda place: sign * metrics[place]["valid"][name])  # the best comes first
        folders = [results[place].out for place in order]
        with cache_settings(config.cache.folder, config.cache.limit):
            how: dict[str, Any] = {"source": source, "metric": name, "listener": listener}
            united = soup if keep == "soup" else ensemble
            chosen, judged = united(out, folders, config, **how)
        kept = kept | judged
        told["members"] = sorted(numbers[order[place]] for place in chosen)
        if keep == "soup" and "test" in judged:
            one, other = (Outcome.read(place, "test") for place in (out, results[best].out))
            labels = one.task.labels
            told["soup"] = _gain(one.task.kind, one.scores(labels), other.scores(labels), one.groups)
    kept = kept | {"seeds": told}
    write_json(out / "run" / "metrics.json", kept)
    return Result(out, results[best].task, kept)


def _gain(
    kind: str, ours: Scores, theirs: Scores, groups: Sequence[object] | None
) -> dict[str, dict[str, float]]:
    """{metric: {"value", "difference", "low", "high"}} of one set of answers against another on the same rows."""
    names = [name for name, known in METRICS.items() if kind in known.kinds]
    values = ours(np.ones((1, ours.rows)), names)
    gains = differences(ours, theirs, names, groups=groups)
    return {name: {"value": float(values[name][0]), **gain} for name, gain in gains.items()}


def _spread(found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{metric: {"mean", "sd"}} of the metrics that every seed has."""
    names = [name for name in METRICS if all(each.get(name) is not None for each in found)]
    values = {name: np.array([each[name] for each in found], np.float64) for name in names}
    return {name: {"mean": float(known.mean()), "sd": float(known.std(ddof=1))} for name, known in values.items()}


def _ensemble(config: Config, folders: list[Path], best: int, metric: str) -> dict[str, dict[str, float]]:
    """The mean of the calibrated probabilities, with a rule chosen on the validation rows, against the best seed."""
    tests, valids = ([Outcome.read(folder, split) for folder in folders] for split in ("test", "valid"))
    task = tests[0].task
    together = {name: _mean_logits(outcomes) for name, outcomes in (("valid", valids), ("test", tests))}
    rule, _ = choose_rule(
        config.decide, task.kind, together["valid"], valids[0].targets(task.labels), metric=metric,
        groups=valids[0].groups,
    )  # fmt: skip
    joint = scores_of(rule, task.kind, together["test"], tests[0].targets(task.labels))
    return _gain(task.kind, joint, tests[best].scores(task.labels), tests[0].groups)


def _mean_logits(outcomes: list[Outcome]) -> np.ndarray:
    """Logits of the mean calibrated probability of all seeds, float64 [n, L]."""
    task = outcomes[0].task
    columns = [f"logit:{label}" for label in task.labels]
    found = [outcome.frame.select(columns).to_numpy() for outcome in outcomes]
    return joint_logits(task.kind, [outcome.rule for outcome in outcomes], found)


def _keep(best: Path, out: Path) -> None:
    """The bundle of the best seed becomes that of `out`, and what its run left lies in run/."""

    def copy(staging: Path) -> None:
        for path in best.iterdir():
            if path.name not in ("run", BUNDLE_FILE):
                target = staging / path.name
                shutil.copytree(path, target) if path.is_dir() else shutil.copy2(path, target)

    write_bundle(out, Bundle.read(best), copy)
    for path in (best / "run").iterdir():
        if path.is_file():
            shutil.copy2(path, out / "run" / path.name)
