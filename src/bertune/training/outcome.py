"""What a finished run answered, read back from its folder; and two of them on the same rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bertune.bundle import Bundle
from bertune.data.tasks import Task
from bertune.errors import ConfigError, DataError, ModelError, listed
from bertune.evaluate.compare import compare, holm, judgement
from bertune.evaluate.metrics import check_metric
from bertune.evaluate.resample import Scores, scores_of
from bertune.evaluate.rule import Rule
from bertune.folder import read_record

PLACE = ("file", "row")


def predictions_file(out: Path, split: str) -> Path:
    """Where a run in `out` keeps what it answered on `split`."""
    return out / "run" / f"predictions-{split}.parquet"


def read_metrics(out: Path) -> dict[str, Any]:
    """run/metrics.json of a finished run. Raises ModelError where it is damaged."""
    return read_record(out / "run" / "metrics.json", "metric")


@dataclass(frozen=True)
class Outcome:
    """Answers of a run on one split: `frame` has file, row, label, prediction, logits, and a group where rows have."""

    out: Path
    task: Task
    rule: Rule
    split: str
    frame: Any  # polars.DataFrame

    @classmethod
    def read(cls, out: str | Path, split: str) -> Outcome:
        """Raises ModelError where `out` is no finished run, or kept no answers on `split`."""
        import polars as pl

        out = Path(out)
        bundle = Bundle.read(out, verify=False)
        path = predictions_file(out, split)
        try:
            frame = pl.read_parquet(path, glob=False)
        except FileNotFoundError:
            there = [name for name in ("valid", "test") if predictions_file(out, name).is_file()]
            way = f"Pass --split {there[0]}." if there else "A run that held out no rows cannot be compared."
            raise ModelError(f"{out}: has no answers on the {split} split ({path.name} is absent). {way}") from None
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ModelError(f"{path}: not readable: {error}. Train again, or copy the folder again.") from None
        return cls(out, bundle.task, bundle.decision, split, frame)

    def scores(self, labels: tuple[str, ...]) -> Scores:
        """Metrics of these answers, with labels in the order given."""
        logits = self.frame.select([f"logit:{label}" for label in labels]).to_numpy()
        rule = self.rule.ordered([self.task.labels.index(label) for label in labels])
        return scores_of(rule, self.task.kind, logits, self.targets(labels))

    def targets(self, labels: tuple[str, ...]) -> np.ndarray:
        """int64 [n], or 0/1 [n, labels]."""
        number = {label: place for place, label in enumerate(labels)}
        truth = self.frame["label"].to_list()
        if self.task.kind == "single":
            return np.array([number[label] for label in truth])
        targets = np.zeros((len(truth), len(labels)), np.float32)
        for row, chosen in enumerate(truth):
            targets[row, [number[label] for label in chosen]] = 1
        return targets

    @property
    def groups(self) -> list[str] | None:
        return self.frame["group"].to_list() if "group" in self.frame.columns else None

    def on_rows_of(self, other: Outcome) -> Outcome:
        """The answers to the rows of `other`, in its order; DataError where the two do not have the same rows."""
        places = [list(frame.select(PLACE).iter_rows()) for frame in (self.frame, other.frame)]
        if places[0] == places[1]:
            return self
        where = {place: row for row, place in enumerate(places[0])}
        missing = [place for place in places[1] if place not in where]
        if missing or len(where) != len(places[1]) or len(where) != len(places[0]):
            shared = len(where.keys() & set(places[1]))
            raise DataError(
                f"{self.out} and {other.out} were not measured on the same {self.split} rows: {len(places[0]):,} and "
                f"{len(places[1]):,}, of which {shared:,} are in both. Train them on the same data with the same "
                "--test and --split-seed."
            )
        frame = self.frame[[where[place] for place in places[1]]]
        return replace(self, frame=frame)


def compare_runs(
    runs: list[str | Path], *, split: str = "test", metric: str = "auto", seed: int = 0
) -> list[dict[str, Any]]:
    """Each later run against the first, on the rows of `split`: see `bertune.compare`."""
    if len(runs) < 2:
        raise ConfigError("To compare takes two runs or more: bertune compare runs/a runs/b.")
    first, *rest = (Outcome.read(run, split) for run in runs)
    labels = first.task.labels
    for other in rest:
        _check_tasks(first, other)
    name = read_metrics(first.out)["metric"] if metric == "auto" else check_metric(metric, first.task.kind)
    scores, targets = first.scores(labels), first.targets(labels)
    places = list(first.frame.select(PLACE).iter_rows(named=True))
    found = []
    for other in rest:
        aligned = other.on_rows_of(first)
        apart = _differing(aligned.targets(labels), targets)
        if len(apart):
            place = places[apart[0]]
            raise DataError(
                f"{first.out} and {other.out}: {place['file']} row {place['row']} has another label in one than in the "
                "other, so their figures do not compare. Train both on the same data."
            )
        result = compare(scores, aligned.scores(labels), metric=name, groups=first.groups, seed=seed)
        truth, said, says = (frame[column].to_list() for frame, column in (
            (first.frame, "label"), (first.frame, "prediction"), (aligned.frame, "prediction")
        ))  # fmt: skip
        for key in ("only_first", "only_second"):
            result[key] = [
                {**places[row], "label": truth[row], "first": said[row], "second": says[row]} for row in result[key]
            ]
        found.append({"first": str(first.out), "second": str(other.out), "split": split, **result})
    known = [result for result in found if result["p"] is not None]
    for result, p in zip(known, holm([result["p"] for result in known]), strict=True):
        result["p"] = p
    return [{**result, "judgement": judgement(result)} for result in found]


def _check_tasks(first: Outcome, other: Outcome) -> None:
    """DataError where two runs answer different questions."""
    kinds = {"single": "one label a row", "multi": "any number of labels a row"}
    if first.task.kind != other.task.kind:
        raise DataError(
            f"{first.out} gives {kinds[first.task.kind]} and {other.out} {kinds[other.task.kind]}; their figures do "
            "not compare."
        )
    only = sorted(set(first.task.labels) ^ set(other.task.labels))
    if only:
        raise DataError(
            f"{first.out} and {other.out} do not have the same labels; only one has {listed(only)}. "
            "Runs over the same labels can be compared."
        )


def _differing(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.flatnonzero((one != other).reshape(len(one), -1).any(axis=1))
