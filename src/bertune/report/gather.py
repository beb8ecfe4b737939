"""What a result folder holds, read into plain values that figures and page are made from. Nothing is measured anew that
metrics.json has already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from bertune.bundle import Bundle
from bertune.config import Config
from bertune.data.tasks import Task
from bertune.errors import ModelError
from bertune.evaluate.card import file_name
from bertune.evaluate.metrics import Array
from bertune.evaluate.rule import Rule
from bertune.evaluate.tables import judged_split
from bertune.folder import read_record
from bertune.report.mistakes import Mistake, costliest, with_texts
from bertune.settings import read_yaml
from bertune.training.outcome import Outcome, predictions_file


@dataclass(frozen=True)
class Answers:
    """What a model answered on one split. logits: [n, L]; targets: int64 [n] or 0/1 [n, L]."""

    task: Task
    rule: Rule
    split: str
    logits: Array
    targets: Array

    @classmethod
    def of(cls, outcome: Outcome) -> Answers:
        task = outcome.task
        logits = outcome.frame.select([f"logit:{label}" for label in task.labels]).to_numpy()
        return cls(task, outcome.rule, outcome.split, logits, outcome.targets(task.labels))

    @cached_property
    def shares(self) -> Array:
        """Calibrated probabilities, float64 [n, L]."""
        return self.rule.probabilities(self.task.kind, self.logits)

    @cached_property
    def said(self) -> Array:
        """int64 [n] or bool [n, L]."""
        return self.rule.decide(self.task.kind, self.logits)

    @cached_property
    def truth(self) -> Array:
        """Which labels each row has, bool [n, L]."""
        return self._hot(self.targets)

    @cached_property
    def given(self) -> Array:
        """Which labels each row was given, bool [n, L]."""
        return self._hot(self.said)

    def _hot(self, values: Array) -> Array:
        if self.task.kind == "multi":
            return np.asarray(values > 0.5)
        return np.asarray(values[:, None] == np.arange(self.task.num_labels))


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """A finished run. split: the one whose figures count, None where no rows were held out; answers: those on it;
    findings: None where the data was not checked; config: as YAML, without folders of this machine."""

    out: Path
    bundle: Bundle
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    machine: dict[str, Any]
    rows: dict[str, int]
    split: str | None = None
    answers: Answers | None = None
    mistakes: tuple[Mistake, ...] = ()
    no_texts: str | None = None  # why the texts of the mistakes are not here
    findings: list[dict[str, Any]] | None = None
    config: str | None = None

    @property
    def name(self) -> str:
        return self.out.resolve().name

    @property
    def task(self) -> Task:
        return self.bundle.task

    @property
    def reading(self) -> str:
        """What is read of long texts, in a sentence."""
        bundle = self.bundle
        return bundle.long_text.sentence(bundle.max_length, bundle.truncation, pair=self.task.is_pair)


def gather(out: str | Path, *, source: Any = None, moved: Mapping[str, Any] | None = None) -> Gathered:
    """Read the result in `out`. For the texts of its mistakes: `source`, the data of the run where it was in memory, or
    `moved`, the options of the section `data` that say where its files are by now.

    Raises ModelError where `out` is no finished result of a single training.
    """
    out = Path(out)
    run = out / "run"
    metrics = _metrics(out)
    if "folds" in metrics:
        raise ModelError(
            f"{out}: holds a cross-validation; each of its folds is a result with a report of its own, for example: "
            f"bertune report {run / 'folds' / '1'}."
        )
    bundle = Bundle.read(out, verify=False)
    if not metrics:
        raise ModelError(f"{out}: has no run/metrics.json, so there is nothing to report. Copy its run folder, too.")
    config = Config.load(run / "config.yaml") if (run / "config.yaml").is_file() else None
    found: dict[str, Any] = {}
    split = judged_split(metrics)
    if split is not None and predictions_file(out, split).is_file():
        outcome = Outcome.read(out, split)
        answers = found["answers"] = Answers.of(outcome)
        worst = costliest(answers, outcome.frame)
        there = config.updated({"data": dict(moved)}) if config is not None and moved else config
        found["mistakes"], found["no_texts"] = with_texts(worst, answers, there, source)
    return Gathered(
        out=out, bundle=bundle, metrics=metrics, split=split, history=lines_of(run / "history.jsonl"),
        machine=read_yaml(run / "machine.yaml") if (run / "machine.yaml").is_file() else {},
        rows=(json_of(run / "data.json") or {}).get("rows", {}),
        findings=(json_of(run / "check.json") or {}).get("findings"),
        config=None if config is None else shown_config(config.record()), **found,
    )  # fmt: skip


def shown_config(values: Mapping[str, Any]) -> str:
    """What run/config.yaml holds, with local paths cut down to file names: a page is passed on, and the file has them
    whole."""
    import yaml

    return yaml.safe_dump(_without_folders(values), sort_keys=False, allow_unicode=True)


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    local = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith("~")
    return file_name(value) if local else value


def _metrics(out: Path) -> dict[str, Any]:
    path = out / "run" / "metrics.json"
    return read_record(path) if path.is_file() else {}


def json_of(path: Path) -> Any:
    """What a JSON file holds; None where it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable: {error}. Copy the folder again.") from None


def lines_of(path: Path) -> list[dict[str, Any]]:
    """What the lines of a JSON lines file hold; none where it is not there."""
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise ModelError(f"{path}: not readable: {error}. Copy the folder again.") from None
