"""One training of several tasks over one encoder: whose turn each step is, and the loop of base.py over that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertune.config import Config, TrainConfig
from bertune.data.batch import Batch, make_batch, split_by_budget, steps_per_epoch
from bertune.data.counters import base, keyed, uniform
from bertune.errors import TrainingError, listed
from bertune.evaluate.metrics import METRICS, evaluate, metric_value
from bertune.model.encoder import EncoderConfig
from bertune.model.infer import infer_logits
from bertune.model.losses import make_loss
from bertune.model.machine import Machine
from bertune.model.multi import MultiModel
from bertune.model.noise import Noise
from bertune.multitaskconfig import JointOptions
from bertune.training.base import RanAway, Training
from bertune.training.features import first_trained_layer
from bertune.training.fit import scalars
from bertune.training.interrupt import Interrupts
from bertune.training.listen import Listener
from bertune.training.loop import Course, Step, advice
from bertune.training.optim import Optimizer
from bertune.training.prepare import Prepared, Split
from bertune.training.settle import Plan, counted, default_batch_size, default_epochs, settle
from bertune.training.state import Trained

METRIC = "mean"  # the name of what chooses the best weights: the mean over tasks of `score`


@dataclass
class Part:
    """One task of several: its configuration (with the shared sections), data, how texts became tokens, and metric."""

    name: str
    config: Config
    prepared: Prepared
    reading: dict[str, Any]
    metric: str
    weight: float = 1.0

    @property
    def rows(self) -> int:
        return len(self.prepared.train)

    @property
    def batch_size(self) -> int:
        return self.config.train.batch_size or default_batch_size(self.rows)


def shares(rows: Sequence[int], batch_sizes: Sequence[int], options: JointOptions) -> np.ndarray:
    """How often a step is of each task, float64, summing to 1: so that rows are seen in proportion to rows ** (1 / T).

    T = 1: proportional, as the merged batches of Liu et al. 2019 (MT-DNN, arXiv 1901.11504, algorithm 1); T = 2: the
    square root, as in Stickland & Murray 2019 (arXiv 1902.02671, section 4.1); others: Raffel et al. 2020 (T5, arXiv
    1910.10683, section 3.5.2).
    """
    heat = {"proportional": 1.0, "sqrt": 2.0, "temperature": options.temperature}[options.sampling]
    sizes = np.array(rows, np.float64) ** (1 / heat) / np.array(batch_sizes)
    return sizes / sizes.sum()


def chances(parts: Sequence[Part], options: JointOptions) -> np.ndarray:
    return shares([part.rows for part in parts], [part.batch_size for part in parts], options)


def turns(chances: np.ndarray, *, steps: int, seed: int) -> np.ndarray:
    """Which task each step is of, int64 [steps]: drawn by the shares `chances`, each a function of (seed, step)."""
    drawn = uniform(keyed(base("tasks", seed), np.arange(1, steps + 1)), 0)
    return np.minimum(np.searchsorted(np.cumsum(chances), drawn, side="right"), len(chances) - 1)


def settle_joint(
    config: TrainConfig, parts: Sequence[Part], *, encoder: EncoderConfig, new_head: bool
) -> Plan:
    """The plan of a joint training. An epoch has as many steps as going through the rows of every task once takes;
    whose they are is drawn. One learning rate of heads serves all: the higher one where any head is new."""
    per_epoch = sum(steps_per_epoch(part.rows, part.batch_size) for part in parts)
    rows = sum(part.rows for part in parts)
    # `settle` counts steps by rows and batch size: here as if each step were of one row.
    each = config.model_copy(update={"batch_size": 1, "epochs": config.epochs or default_epochs(rows)})
    plan = settle(each, rows=per_epoch, encoder=encoder, new_head=new_head)
    return JointPlan(**{**vars(plan), "batch_size": max(part.batch_size for part in parts)})


@dataclass(frozen=True)
class JointPlan(Plan):
    """batch_size: the largest of those of the tasks."""

    def sentence(self) -> str:
        return (
            f"Joint training: {counted(self.epochs, 'epoch')} of {counted(self.steps_per_epoch, 'step')} "
            f"({self.steps:,} in all), learning rate {self.lr:g}"
            f"{'' if self.head_lr == self.lr else f' (heads: {self.head_lr:g})'}."
        )


class MultiCourse:
    """A step of one task after another, each through its rows in an order of its own: a `loop.Walk`.

    courses: what each task walks over, as if it were alone; its step k is the k-th that is of this task.
    """

    def __init__(
        self, courses: Mapping[str, Course], chances: np.ndarray, *, steps: int, token_budget: int, clip: float | None,
        seed: int,
    ) -> None:
        self.courses, self.names = dict(courses), tuple(courses)
        self.steps, self.token_budget, self.clip = steps, token_budget, clip
        self.turns = turns(chances, steps=steps, seed=seed)
        self.own = np.zeros(steps, dtype=np.int64)  # the number of a step among those of its task, from 1
        for place in range(len(self.names)):
            mine = self.turns == place
            self.own[mine] = np.arange(1, mine.sum() + 1)

    def task(self, number: int) -> str:
        """Whose turn step `number` is."""
        return self.names[self.turns[number - 1]]

    def done(self, name: str, step: int) -> int:
        """How many of the first `step` steps are of a task."""
        return int((self.turns[:step] == self.names.index(name)).sum())

    def tokens(self, name: str, step: int) -> int:
        """How many tokens the first `step` steps read of a task."""
        course = self.courses[name]
        return sum(
            int(course.encoded.lengths[course.rows(own)].sum()) for own in range(1, self.done(name, step) + 1)
        )

    def rows(self, number: int) -> np.ndarray:
        return self.courses[self.task(number)].rows(int(self.own[number - 1]))

    def longest(self, rows: np.ndarray, number: int) -> int:
        return self.courses[self.task(number)].longest(rows, number)

    def batches(self, rows: np.ndarray, number: int) -> list[Batch]:
        encoded = self.courses[self.task(number)].encoded
        return [make_batch(encoded, run) for run in split_by_budget(rows, encoded.lengths, self.token_budget)]

    def backward(
        self, model: MultiModel, optimizer: Optimizer, batches: list[Batch], number: int, noise: Noise
    ) -> Callable[[], float]:
        name = self.task(number)
        return self.courses[name].backward(model.models[name], optimizer, batches, number, noise)


class MultiFit(Training):
    """A training of several tasks. config: the shared sections; the best weights are those with the best `mean`."""

    def __init__(
        self, model: MultiModel, parts: Sequence[Part], options: JointOptions, config: Config, plan: Plan,
        machine: Machine, *, folder: Path, listener: Listener,
    ) -> None:
        self.parts = {part.name: part for part in parts}
        self.options = options
        super().__init__(model, config, plan, machine, metric=METRIC, folder=folder, listener=listener)
        self.course = MultiCourse(
            {part.name: self._course(place, part, machine) for place, part in enumerate(parts)},
            chances(parts, options), steps=plan.steps, token_budget=machine.token_budget,
            clip=config.train.clip, seed=config.train.seed,
        )  # fmt: skip

    def _course(self, place: int, part: Part, machine: Machine) -> Course:
        config, train, task = part.config.train, part.prepared.train, part.prepared.task
        uncertainty = self.model.head.uncertainty
        weigh: Callable[[Tensor, float], Tensor] | None = None
        if uncertainty is not None:
            weigh = partial(uncertainty.weigh, place)
        elif part.weight != 1:
            weigh = partial(_times, part.weight)
        return Course(
            encoded=train.tokens, targets=train.targets,
            loss=make_loss(task.kind, config, train.targets, task.num_labels, machine.torch_device),
            batch_size=part.batch_size, steps=self.plan.steps, token_budget=machine.token_budget, clip=config.clip,
            seed=config.seed, running=np.zeros((len(train), task.num_labels), dtype=np.float32), r_drop=config.r_drop,
            weigh=weigh,
        )  # fmt: skip

    def _guessing(self) -> float:
        tasks = [part.prepared.task for part in self.parts.values()]
        return max(math.log(task.num_labels if task.kind == "single" else 2) for task in tasks)

    def _tally(self, step: Step, *, recorded: bool) -> None:
        """As for one task, with a record for each task that had a turn; losses are those before they are weighted."""
        pending, name = self.progress.pending, self.course.task(step.number)
        for key, value in ((f"{name}/loss", step.loss * step.rows), (f"{name}/rows", step.rows)):
            pending[key] = pending.get(key, 0.0) + value
        if not recorded:
            return
        for name in self.parts:
            rows = pending.get(f"{name}/rows")
            if rows:
                self._note({
                    "kind": "step", "step": step.number, "epoch": self.plan.epoch(step.number), "task": name,
                    "loss": pending[f"{name}/loss"] / rows, "lr": step.lr, "gradient_norm": step.norm,
                })  # fmt: skip
        self.progress.pending = {}

    def _records(self, stop: Interrupts) -> list[dict[str, Any]]:
        records = []
        for name, part in self.parts.items():
            course = self.course.courses[name]
            if self.course.done(name, self.progress.step) >= course.steps_per_epoch:  # every row was seen
                records.append(self._of_task(part, "train", course.running, part.prepared.train))
            split = part.prepared.splits.get("valid")
            if split is None:
                continue
            with self.listener.work(f"Measuring {name}, valid", len(split)) as advance, self._averaged():
                logits = infer_logits(
                    self.model.models[name], split.tokens, budget=self.course.token_budget, check=stop.check,
                    advance=advance,
                )
            records.append(self._of_task(part, "valid", logits, split))
        return records

    def _of_task(self, part: Part, name: str, logits: np.ndarray, split: Split) -> dict[str, Any]:
        step, task = self.progress.step, part.prepared.task
        try:
            metrics = evaluate(task.kind, task.labels, logits, split.targets)
        except TrainingError as error:
            text = f"After step {step:,}: task {part.name}: {error} {advice(self.plan.lr, self.model)}"
            raise RanAway(text, since=step) from None
        if name == "train":
            self.progress.trained = {**(self.progress.trained or {}), part.name: metrics}
        return {
            "kind": "eval", "step": step, "epoch": self.plan.epoch(step), "task": part.name, "split": name,
            "metric": part.metric, "metrics": scalars(metrics),
        }  # fmt: skip

    def _compare(self, records: list[dict[str, Any]]) -> None:
        found = {record["task"]: record["metrics"] for record in records if record["split"] == "valid"}
        if len(found) < len(self.parts):
            return  # without validation rows of every task the last weights count
        scores = []
        for name, metrics in found.items():
            part = self.parts[name]
            scores.append(score(part.metric, {**metrics, "rows": len(part.prepared.splits["valid"])}))
        self._keep_better(float(np.mean(scores)))

    def _may_stop(self) -> bool:
        return all(self.course.done(name, self.progress.step) for name in self.parts)

    def _is_better(self, value: float, best: float | None) -> bool:
        return best is None or value > best

    def _running(self) -> dict[str, dict[str, Tensor]]:
        return {"running": {name: torch.from_numpy(course.running) for name, course in self.course.courses.items()}}

    def _take_running(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        for name, course in self.course.courses.items():
            course.running[:] = tensors["running"][name].numpy()

    def _prepare(self) -> None:
        """Frozen layers run anew every time: what all tasks would have to keep of them is too much."""
        start = first_trained_layer(self.config.model.freeze, self.model.encoder.config.layers)
        for course in self.course.courses.values():
            course.start = start

    def _together(self, part: Part) -> dict[str, str]:
        """What the card of a task tells of how it was trained with the others."""
        if len(self.parts) == 1:
            return {}
        options = self.options
        turns = f"temperature, {options.temperature:g}" if options.sampling == "temperature" else options.sampling
        weight = "learned" if options.uncertainty else f"{part.weight:g}"
        return {
            "trained together with": listed(name for name in self.parts if name != part.name),
            "turns of the tasks": turns, "weight of its loss": weight,
        }  # fmt: skip

    def trained(self, name: str, *, out: Path, shared: str) -> Trained:
        """What the result of one task, in `out`, is made of, as if the training had been of this task alone.

        shared: SHA-256 of the file that holds the encoder of all.
        """
        part, course, progress = self.parts[name], self.course.courses[name], self.progress
        done = self.course.done(name, progress.step)
        own = replace(
            progress, step=done, trained=(progress.trained or {}).get(name),
            history=[record for record in progress.history if record["task"] == name],
        )  # fmt: skip
        plan = replace(self.plan, steps=done, steps_per_epoch=course.steps_per_epoch, batch_size=part.batch_size)
        return Trained(
            self.model.models[name], part.prepared, part.config, plan, self.machine, own, course, part.metric,
            out / "run" / "checkpoints", self.listener, shared=shared, together=self._together(part),
        )


def _times(weight: float, loss: Tensor, share: float) -> Tensor:
    return weight * loss


def score(metric: str, results: Mapping[str, Any]) -> float:
    """A metric as a number that is better the higher, 1 at most: itself, 1 - the Hamming loss, or e to the minus log
    loss (the probability of the right answer, as a geometric mean), so that tasks can be averaged."""
    value = metric_value(metric, results)
    if METRICS[metric].higher_is_better:
        return value
    return math.exp(-value) if metric == "log_loss" else 1 - value
