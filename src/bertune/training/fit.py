"""The training of a classifier: its loss and batches, what is measured on the way, and frozen layers that run once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertune.config import Config, TrainConfig
from bertune.errors import TrainingError
from bertune.evaluate.metrics import evaluate, metric_value
from bertune.model.classifier import ClassifierModel
from bertune.model.infer import infer_logits
from bertune.model.losses import make_loss
from bertune.model.machine import Machine, free_disk
from bertune.training.adversarial import FreeLB
from bertune.training.base import RanAway, Training
from bertune.training.features import Features, first_trained_layer, keeps_pooled, keeps_states
from bertune.training.interrupt import Interrupts
from bertune.training.listen import Listener
from bertune.training.loop import Course, advice
from bertune.training.prepare import Prepared, Split
from bertune.training.settle import Plan
from bertune.training.state import Trained


class Fit(Training):
    """A training on labels, of one task."""

    def __init__(
        self, model: ClassifierModel, prepared: Prepared, config: Config, plan: Plan, machine: Machine, *,
        metric: str, folder: Path, listener: Listener, rates: np.ndarray | None = None,
    ) -> None:
        """rates: of each step, in place of the configured schedule."""
        super().__init__(model, config, plan, machine, metric=metric, folder=folder, listener=listener, rates=rates)
        self.prepared = prepared
        self._features: dict[str, Features] = {}
        train = prepared.train
        labels = prepared.task.num_labels
        self.course = Course(
            encoded=train.tokens, targets=train.targets,
            loss=make_loss(prepared.task.kind, config.train, train.targets, labels, machine.torch_device),
            batch_size=plan.batch_size, steps=plan.steps, token_budget=machine.token_budget,
            clip=config.train.clip, seed=config.train.seed,
            running=np.zeros((len(train), labels), dtype=np.float32),
            r_drop=config.train.r_drop, freelb=make_freelb(config.train),
        )

    def trained(self) -> Trained:
        """What the result is made of, after `run`."""
        return Trained(
            self.model, self.prepared, self.config, self.plan, self.machine, self.progress, self.course, self.metric,
            self.folder, self.listener, lora=self.lora, matrices=self.matrices,
        )

    def _guessing(self) -> float:
        return math.log(self.prepared.task.num_labels if self.prepared.task.kind == "single" else 2)

    def _records(self, stop: Interrupts) -> list[dict[str, Any]]:
        """Of the training rows after each whole epoch; of the others always."""
        records = []
        if self.progress.step % self.plan.steps_per_epoch == 0:
            train = self.prepared.train
            records.append(self._measured("train", self.course.running, train))
        for name in ("valid", "test"):
            split = self.prepared.splits.get(name)
            if split is None or (name == "test" and not self.config.train.evaluate_test):
                continue
            with self.listener.work(f"Measuring {name}", len(split)) as advance, self._averaged():
                logits = infer_logits(
                    self.model, split.tokens, budget=self.course.token_budget, check=stop.check,
                    forward=self._forward(name), advance=advance,
                )
            records.append(self._measured(name, logits, split))
        return records

    def _measured(self, name: str, logits: np.ndarray, split: Split) -> dict[str, Any]:
        step = self.progress.step
        try:
            metrics = evaluate(self.prepared.task.kind, self.prepared.task.labels, logits, split.targets)
        except TrainingError as error:
            text = f"After step {step:,}: {error} {advice(self.plan.lr, self.model)}"
            raise RanAway(text, since=step) from None
        if name == "train":
            self.progress.trained = metrics
        epoch = self.plan.epoch(step)
        return {"kind": "eval", "step": step, "epoch": epoch, "split": name, "metrics": scalars(metrics)}

    def _compare(self, records: list[dict[str, Any]]) -> None:
        record = next((record for record in records if record["split"] == "valid"), None)
        if record is None:
            return
        self._keep_better(metric_value(self.metric, {**record["metrics"], "rows": len(self.prepared.splits["valid"])}))

    def _running(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds beside weights and optimizer: the logits of this epoch so far."""
        return {"running": {"logits": torch.from_numpy(self.course.running)}}

    def _take_running(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        self.course.running[:] = tensors["running"]["logits"].numpy()

    def _prepare(self) -> None:
        """Run frozen lower layers once, for every split that is visited again and again."""
        config, encoder = self.config, self.model.encoder
        start = first_trained_layer(config.model.freeze, encoder.config.layers)
        if start == 0:
            return
        splits = {name: split for name, split in self.prepared.splits.items() if self.is_visited(name)}
        size = encoder.config.hidden * (4 if encoder.compute_dtype == torch.float32 else 2)
        needed = sum(split.tokens.offsets[-1] for split in splits.values()) * size
        self.course.start = start
        if self.progress.keeps_frozen is None:  # a resumed run does as before: the two ways may differ in the last bit
            fits = keeps_pooled(self.model, start) or needed <= 0.5 * free_disk(self.run_folder)
            self.progress.keeps_frozen = bool(fits)
        if not keeps_states(self.model, start):
            self.listener.say("The head reads frozen layers, too, so every epoch computes these anew.")
            return
        if not self.progress.keeps_frozen:
            self.listener.say("The output of the frozen layers does not fit on the disk; every epoch computes it anew.")
            return
        self.listener.say(f"Frozen layers: {start}. They run once, and their output is kept.")
        for name, split in splits.items():
            path = self.run_folder / f"frozen-{name}.tmp"
            with self.listener.work(f"Frozen layers, {name}", len(split)) as advance:
                self._features[name] = Features(
                    self.model, split.tokens, start=start, budget=self.machine.token_budget, path=path, advance=advance
                )
        self.course.features = self._features["train"]

    def is_visited(self, name: str) -> bool:
        """Whether the split is gone through while training."""
        return name != "test" or self.config.train.evaluate_test

    def _forward(self, name: str) -> Callable[..., Tensor] | None:
        features = self._features.get(name)
        return None if features is None else lambda batch: features.logits(self.model, batch, None)

    def _close(self) -> None:
        for features in self._features.values():
            features.close()


def make_freelb(config: TrainConfig) -> FreeLB | None:
    """How embeddings are moved, as configured, if at all."""
    if config.adversarial == "none":
        return None
    return FreeLB(config.adversarial_steps, config.adversarial_lr, config.adversarial_norm, config.adversarial_start)


def scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics that are single numbers."""
    return {key: value for key, value in metrics.items() if isinstance(value, int | float) or value is None}
