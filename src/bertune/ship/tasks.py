"""The model of a joint training: one encoder, and a `Predictor` for each of its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bertune.errors import ConfigError, listed, nearest
from bertune.folder import joint_tasks
from bertune.ship.predict import Predictor

if TYPE_CHECKING:
    from bertune.ship.torch_backend import TorchBackend


class TaskPredictors(Mapping[str, Predictor]):
    """Predictors by the name of the task, in the order of training; the encoder is in memory once."""

    def __init__(self, predictors: Mapping[str, Predictor]) -> None:
        self._predictors = dict(predictors)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str = "auto", precision: str = "fp32", threads: int | None = None
    ) -> TaskPredictors:
        """Open a result of a joint training; see `Predictor.load`. Raises ModelError."""
        found: dict[str, Predictor] = {}
        encoder: Any = None
        for name in joint_tasks(folder):
            predictor = Predictor.load(Path(folder) / "tasks" / name, device=device, precision=precision,
                                       threads=threads)  # fmt: skip
            model = cast("TorchBackend", predictor.backend).model
            encoder = model.encoder if encoder is None else encoder
            model.encoder = encoder  # the same weights, which each of them was checked to have
            found[name] = predictor
        return cls(found)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._predictors)

    def __getitem__(self, task: str) -> Predictor:
        if task not in self._predictors:
            raise ConfigError(unknown_task(task, self.tasks))
        return self._predictors[task]

    def __iter__(self) -> Any:
        return iter(self._predictors)

    def __len__(self) -> int:
        return len(self._predictors)

    def predict(self, rows: Any, *, task: str | None = None) -> Any:
        """What `Predictor.predict` says for one task, or a dict of that by task; all tasks then read the same rows."""
        if task is not None:
            return self[task].predict(rows)
        return {name: predictor.predict(rows) for name, predictor in self.items()}

    def predict_proba(self, rows: Any, *, task: str | None = None) -> np.ndarray | dict[str, np.ndarray]:
        """The same for `Predictor.predict_proba`."""
        if task is not None:
            return self[task].predict_proba(rows)
        return {name: predictor.predict_proba(rows) for name, predictor in self.items()}


def unknown_task(task: str, tasks: tuple[str, ...]) -> str:
    """The sentence for a task that is not there."""
    near = nearest(task, tasks) or "."
    return f"--task {task}: not a task of this model{near} Tasks: {listed(tasks, 20)}."
