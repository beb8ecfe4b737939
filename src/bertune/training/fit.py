"""One training: steps, evaluations, checkpoints; ends with the chosen weights in the model.

The order at a step is: train, evaluate where due, then save. A checkpoint taken between training and evaluating says
so, and resuming evaluates first. Saving changes nothing, so when it happens cannot change the result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertune.config import Config, TrainConfig
from bertune.errors import Interrupted, TrainingError
from bertune.evaluate.metrics import evaluate, is_better, metric_value
from bertune.files import to_json, write_atomic
from bertune.model.classifier import ClassifierModel
from bertune.model.encoder import Encoder
from bertune.model.infer import infer_logits
from bertune.model.losses import make_loss
from bertune.model.machine import Machine, free_disk, release_memory
from bertune.training import checkpoint
from bertune.training.adversarial import FreeLB
from bertune.training.average import make_average
from bertune.training.features import Features, first_trained_layer, keeps_pooled
from bertune.training.interrupt import Interrupts, Stopped
from bertune.training.listen import Listener
from bertune.training.loop import Course, Diverged, Step, advice, training_steps
from bertune.training.lora import PREFIX, Lora, train_beside
from bertune.training.optim import Optimizer, freeze
from bertune.training.prepare import Prepared, Split
from bertune.training.rates import thaw_steps
from bertune.training.settle import Plan, duration

RECORDS = 400  # step records in history.jsonl, spread over the run
# Training has run away where the median loss of so many steps is so many times that of the first step, or of guessing.
WATCHED, RUNAWAY = 10, 5.0


class RanAway(Diverged):
    """The numbers are finite, or were, but the weights from step `since` on are worth nothing."""

    def __init__(self, text: str, *, since: int) -> None:
        super().__init__(text)
        self.since = since


@dataclass
class Progress:
    """What a run has come to; all of it is in every checkpoint."""

    step: int = 0
    evaluated: int = 0  # step of the last evaluation
    best: dict[str, Any] | None = None
    without_gain: int = 0
    stopped_early: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    rows: int = 0
    tokens: int = 0
    pairs: int = 0
    wasted: int = 0
    pending: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "rows": 0})
    first_loss: float | None = None
    recent: list[float] = field(default_factory=list)  # losses of the last steps, see WATCHED
    trained: dict[str, Any] | None = None  # metrics of the training rows, over the last whole epoch
    keeps_frozen: bool | None = None  # whether the output of frozen layers is kept; None: not decided yet
    averaged: int = 0  # step of the last look at the weights, where they are averaged


class Fit:
    """The state of one training while it runs."""

    def __init__(
        self, model: ClassifierModel, prepared: Prepared, config: Config, plan: Plan, machine: Machine, *,
        metric: str, folder: Path, listener: Listener, rates: np.ndarray | None = None,
    ) -> None:
        """rates: of each step, in place of the configured schedule."""
        self.prepared = prepared
        self._begin(model, config, plan, machine, metric=metric, folder=folder, listener=listener, rates=rates)
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

    def _begin(
        self, model: Any, config: Config, plan: Plan, machine: Machine, *, metric: str, folder: Path,
        listener: Listener, by_row: bool = True, rates: np.ndarray | None = None,
    ) -> None:
        """What any training begins with: the model on its device and in its precision, and its optimizer."""
        self.model, self.config, self.plan, self.machine = model, config, plan, machine
        self.metric, self.run_folder, self.listener = metric, folder, listener
        self.folder = folder / "checkpoints"
        self.progress = Progress()
        freeze(model, config.model.freeze, train_positions=config.model.train_positions)
        if config.model.lora:
            train_beside(model, config.model)
        model.to(machine.torch_device)
        before = {name: value.detach() for name, value in model.named_parameters()}
        model.encoder.compute_in(machine.dtype, kernels=machine.kernels)
        # Values that the model now holds in lower precision: masters of trained weights, and frozen ones to give back.
        full = {name: before[name] for name, value in model.named_parameters() if value.dtype != before[name].dtype}
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        self._frozen = {name: value for name, value in full.items() if name not in trained}
        self.lora = Lora(model, config.model, full, seed=config.train.seed) if config.model.lora else None
        self.matrices: dict[str, Tensor] = {}  # of LoRA, as they belong to the chosen weights
        self.optimizer = Optimizer(
            model, config.train, lr=plan.lr, head_lr=plan.head_lr, steps=plan.steps, full=full,
            compiled=machine.kernels == "compiled", by_row=by_row, thaw=self._thaw(trained), lora=self.lora,
            rates=rates,
        )
        self.average = make_average(config.train, steps=plan.steps)
        if machine.compile and isinstance(model.encoder, Encoder):
            for layer in model.encoder.layers:
                layer.compile(dynamic=True)
        self._saved_at = time.monotonic()
        self._features: dict[str, Features] = {}
        self._best: dict[str, Tensor] | None = None
        self.good_step: int | None = None
        self.shared: str | None = None  # SHA-256 of the encoder's file, where it is kept beside the result

    def _thaw(self, names: set[str]) -> dict[str, int]:
        """How many steps pass before each weight is trained, for gradual unfreezing."""
        unfreeze, plan = self.config.train.unfreeze, self.plan
        if unfreeze == "none":
            return {}
        layers = self.model.encoder.config.layers
        return thaw_steps(names, layers=layers, unfreeze=unfreeze, steps=plan.steps, per_epoch=plan.steps_per_epoch)

    def run(self, *, resume: bool) -> Progress:
        """Train to the end, or from the newest checkpoint on; the model then holds the chosen weights, in fp32.

        Raises Interrupted (a checkpoint is saved), TrainingError, and Diverged: the model then holds the last good
        weights, those of `good_step`, if there are any.
        """
        if resume:
            self._resume()
        try:
            self._keep_frozen_output()
            self.listener.begin(self.plan, self.progress.step)
            with Interrupts() as stop, self.machine.repeatable():
                self._steps(stop)
            if self.progress.seconds > 60:
                self._save()  # what follows can fail too, on a full disk say; then only it has to be done again
        except Stopped:
            self._save()
            raise Interrupted(
                f"Stopped after step {self.progress.step:,} of {self.plan.steps:,}; all is saved. "
                "Go on with the same command and --resume."
            ) from None
        except Diverged as error:
            if not isinstance(error, RanAway):
                self._save()
            self.good_step = self._choose_good(error)
            raise
        finally:
            self.listener.end()
            for features in self._features.values():
                features.close()
        self._choose()
        return self.progress

    def _steps(self, stop: Interrupts) -> None:
        progress = self.progress
        self._evaluate_if_due(stop)
        if progress.stopped_early:
            return
        for step in training_steps(
            self.model, self.optimizer, self.course, start=progress.step, say=self.listener.say
        ):
            self._record(step)
            self.listener.step(step)
            self._check_loss()
            stop.check()
            self._evaluate_if_due(stop)
            if progress.stopped_early:
                break
            if self._checkpoint_due():
                self._save()

    def _record(self, step: Step) -> None:
        progress = self.progress
        progress.step = step.number
        progress.seconds += step.seconds
        progress.rows += step.rows
        progress.tokens += step.tokens
        progress.pairs += step.pairs
        progress.wasted += step.wasted
        progress.first_loss = step.loss if progress.first_loss is None else progress.first_loss
        progress.recent = [*progress.recent, step.loss][-WATCHED:]
        if self.average is not None and self.average.due(step.number, measured=step.number in self.plan.evaluate_at):
            self.optimizer.finish(step.number)
            self.average.look(self.optimizer.trained(), step.number, last=progress.averaged)
            progress.averaged = step.number
        every = max(1, self.plan.steps // RECORDS)
        self._tally(step, recorded=step.number % every == 0 or step.number == self.plan.steps)

    def _tally(self, step: Step, *, recorded: bool) -> None:
        """Add the step to the mean loss of the next record, and where it is `recorded` write that."""
        pending = self.progress.pending
        pending["loss"] += step.loss * step.rows
        pending["rows"] += step.rows
        if recorded:
            self._note(
                {"kind": "step", "step": step.number, "epoch": self.epoch(step.number),
                 "loss": pending["loss"] / pending["rows"], "lr": step.lr, "gradient_norm": step.norm}
            )
            self.progress.pending = {"loss": 0.0, "rows": 0}

    def _check_loss(self) -> None:
        """Raise RanAway where the loss is far above what it was, and stays there; single steps may be anything."""
        progress, recent = self.progress, self.progress.recent
        guessing = self._guessing()
        limit = RUNAWAY * max(progress.first_loss or 0.0, guessing)
        if len(recent) == WATCHED and float(np.median(recent)) > limit:
            first = next(place for place, loss in enumerate(recent) if loss > limit)
            raise RanAway(
                f"Step {progress.step:,}: the loss has risen to {np.median(recent):.3g}, where guessing costs "
                f"{guessing:.2g}: training diverges. Lower --lr (now at most {self.plan.lr:g}).",
                since=progress.step - WATCHED + first,  # whose weights gave the first of these losses, a step later
            )

    def _guessing(self) -> float:
        """What the loss of a row is where every answer is as likely as any other."""
        return math.log(self.prepared.task.num_labels if self.prepared.task.kind == "single" else 2)

    def epoch(self, step: int) -> float:
        """How many epochs `step` steps are."""
        return round(step / self.plan.steps_per_epoch, 4)

    def _note(self, record: dict[str, Any]) -> None:
        self.progress.history.append(record)

    def _evaluate_if_due(self, stop: Interrupts) -> None:
        progress = self.progress
        if progress.step not in self.plan.evaluate_at or progress.evaluated == progress.step:
            return
        self.optimizer.finish(progress.step)
        begin = time.perf_counter()
        records = self._records(stop)
        seconds = time.perf_counter() - begin
        for record in records:
            self._note(record)
            self.listener.evaluated(record, record.get("metric", self.metric))
        lines = "".join(to_json(entry) + "\n" for entry in progress.history)
        write_atomic(self.run_folder / "history.jsonl", lines)
        self._compare(records)
        progress.evaluated = progress.step
        release_memory()
        if seconds > 60:
            self.listener.say(f"Evaluated after step {progress.step:,} in {duration(seconds)}.")

    def _records(self, stop: Interrupts) -> list[dict[str, Any]]:
        """Measure what is due after this step: an `eval` record of history.jsonl for each split."""
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
        return {"kind": "eval", "step": step, "epoch": self.epoch(step), "split": name, "metrics": scalars(metrics)}

    def _compare(self, records: list[dict[str, Any]]) -> None:
        record = next((record for record in records if record["split"] == "valid"), None)
        if record is None:
            return
        self._keep_better(metric_value(self.metric, {**record["metrics"], "rows": len(self.prepared.splits["valid"])}))

    def _is_better(self, value: float, best: float | None) -> bool:
        return is_better(self.metric, value, best)

    def _keep_better(self, value: float) -> None:
        """Keep the weights where `value` is the best so far; stop where patience is at its end."""
        progress = self.progress
        if self._is_better(value, None if progress.best is None else progress.best["value"]):
            progress.best = {"step": progress.step, "value": value}
            if self.config.train.select_best:
                # In memory until the next checkpoint: small data improves often, and a file costs more than a step.
                self._best = {name: weight.clone() for name, weight in self._result().items()}
            progress.without_gain = 0
        else:
            progress.without_gain += 1
        patience = self.config.train.patience
        if patience is not None and progress.without_gain >= patience and progress.step < self.plan.steps:
            progress.stopped_early = True
            self.listener.say(
                f"Stopped early after step {progress.step:,}: no better {self.metric} in {patience} evaluations."
            )

    def _weights(self) -> dict[str, Tensor]:
        """All weights of the model in fp32, as they are after the last step. Not copies where they are fp32 already."""
        return dict(self.model.state_dict()) | self._frozen | self.optimizer.weights()

    def _result(self) -> dict[str, Tensor]:
        """What of `_weights` would be kept if training ended here: their averages, where there are any."""
        return self._weights() | ({} if self.average is None else self.average.values)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with averages in place of its weights, where there are any."""
        values = {} if self.average is None else self.average.values
        own = {}
        for name, param in self.model.named_parameters():
            if name in values:
                own[name], param.data = param.data, values[name].to(param.dtype)
        try:
            yield
        finally:
            for name, param in self.model.named_parameters():
                if name in own:
                    param.data = own[name]

    def _checkpoint_due(self) -> bool:
        steps = self.config.train.checkpoint_steps
        if steps is not None:
            return self.progress.step % steps == 0
        return time.monotonic() - self._saved_at > 60 * self.config.train.checkpoint_minutes

    def _save(self) -> None:
        best = self.progress.best
        if best is not None and self._best is not None and "file" not in best:
            best |= checkpoint.save_best(self.folder, best["step"], self._best)
        state = {key: value for key, value in vars(self.progress).items() if key != "step"}
        state["token_budget"] = self.course.token_budget
        tensors = {
            "weights": self._weights(),
            "optimizer": self.optimizer.state(),
            **self._running(),
        }
        if self.average is not None and self.average.values:
            tensors["average"] = self.average.values
        checkpoint.save(self.folder, checkpoint.Checkpoint(self.progress.step, state, tensors))
        release_memory()
        self._saved_at = time.monotonic()

    def _running(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds beside weights and optimizer: the logits of this epoch so far."""
        return {"running": {"logits": torch.from_numpy(self.course.running)}}

    def _take_running(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        self.course.running[:] = tensors["running"]["logits"].numpy()

    def _resume(self) -> None:
        found = checkpoint.load_newest(self.folder, self.listener.say)
        if found is None:
            self.listener.say("No checkpoint yet: starting from the beginning.")
            return
        self.course.token_budget = int(found.state.pop("token_budget"))
        self.progress = Progress(step=found.step, **found.state)
        self._restore(found)
        if self.progress.best is not None and "file" in self.progress.best:
            self._best = checkpoint.load_best(self.folder, self.progress.best)
        self._take_running(found.tensors)
        self.listener.say(f"Resumed after step {found.step:,} of {self.plan.steps:,}.")

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        """Weights and optimizer as they were at a checkpoint."""
        weights = found.tensors["weights"]
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                value.copy_(weights[name])
        self.optimizer.load_state(weights, found.tensors["optimizer"])
        if self.average is not None:
            kept = found.tensors.get("average", {})
            self.average.values = {name: value.to(self.model.device, copy=True) for name, value in kept.items()}

    def _keep_frozen_output(self) -> None:
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
        if self.model.head.config.layers and not keeps_pooled(self.model, start):
            self.listener.say("The head reads several layers, so every epoch computes the frozen ones anew.")
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

    def _choose(self) -> None:
        """Put the best weights, or else the last, into the model, in fp32."""
        self.optimizer.finish(self.progress.step)
        weights = self._best if self._best is not None else self._result()
        self.model.encoder.compute_in(torch.float32)
        self.matrices = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
        self.model.load_state_dict({name: value for name, value in weights.items() if not name.startswith(PREFIX)})

    def _choose_good(self, error: Diverged) -> int | None:
        """Put the last good weights into the model: the best so far, or else the last, or else those of a checkpoint
        from before it went wrong. Returns their step; None where there are none."""
        best = self.progress.best
        if self._best is not None and best is not None:
            self._choose()
            return int(best["step"])
        if not isinstance(error, RanAway):
            self._choose()
            return self.progress.step or None
        found = checkpoint.load_newest(self.folder, self.listener.say, before=error.since)
        if found is None:
            return None
        self._restore(found)
        self.progress.step = found.step
        self._choose()
        return found.step


def make_freelb(config: TrainConfig) -> FreeLB | None:
    """How embeddings are moved, as configured, if at all."""
    if config.adversarial == "none":
        return None
    return FreeLB(config.adversarial_steps, config.adversarial_lr, config.adversarial_norm, config.adversarial_start)


def scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics that are single numbers."""
    return {key: value for key, value in metrics.items() if isinstance(value, int | float) or value is None}
