"""What every training is, whatever it learns: steps, evaluations, checkpoints; the chosen weights are in the model at
its end.

The order at a step is: train, evaluate where due, then save. A checkpoint taken between training and evaluating says
so, and resuming evaluates first. Saving changes nothing, so when it happens cannot change the result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertune.config import Config
from bertune.errors import Interrupted
from bertune.evaluate.metrics import is_better
from bertune.files import to_json, write_atomic
from bertune.model.encoder import Encoder
from bertune.model.machine import Machine, release_memory
from bertune.training import checkpoint
from bertune.training.average import make_average
from bertune.training.interrupt import Interrupts, Stopped
from bertune.training.listen import Listener
from bertune.training.loop import Diverged, Step, training_steps
from bertune.training.lora import PREFIX, Lora, train_beside
from bertune.training.optim import Optimizer, freeze
from bertune.training.rates import thaw_steps
from bertune.training.settle import Plan, duration
from bertune.training.state import Progress

RECORDS = 400  # step records in history.jsonl, spread over the run
# Training has run away where the median loss of so many steps is so many times that of the first step, or of guessing.
WATCHED, RUNAWAY = 10, 5.0


class RanAway(Diverged):
    """The numbers are finite, or were, but the weights from step `since` on are worth nothing."""

    def __init__(self, text: str, *, since: int) -> None:
        super().__init__(text)
        self.since = since


class Training:
    """The state of one training while it runs. A subclass has the `course` of its steps, and measures."""

    course: Any  # a `loop.Walk`, which a subclass makes

    def __init__(
        self, model: Any, config: Config, plan: Plan, machine: Machine, *, metric: str, folder: Path,
        listener: Listener, by_row: bool = True, rates: np.ndarray | None = None,
    ) -> None:
        """Bring the model to its device and precision, and make its optimizer.

        by_row: token embeddings are updated by row; rates: of each step, in place of the configured schedule.
        """
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
            rates=rates, head_parts=plan.head_parts,
        )
        self.average = make_average(config.train, steps=plan.steps)
        if machine.compile and isinstance(model.encoder, Encoder):
            for layer in model.encoder.layers:
                layer.compile(dynamic=True)
        self._saved_at = time.monotonic()
        self._best: dict[str, Tensor] | None = None
        self.good_step: int | None = None

    def _thaw(self, names: set[str]) -> dict[str, int]:
        """How many steps pass before each weight is trained, for gradual unfreezing."""
        unfreeze, plan = self.config.train.unfreeze, self.plan
        if unfreeze == "none":
            return {}
        return thaw_steps(
            names, layers=self.model.depth, unfreeze=unfreeze, steps=plan.steps, per_epoch=plan.steps_per_epoch
        )

    def run(self, *, resume: bool) -> Progress:
        """Train to the end, or from the newest checkpoint on; the model then holds the chosen weights, in fp32.

        Raises Interrupted (a checkpoint is saved), TrainingError, and Diverged: the model then holds the last good
        weights, those of `good_step`, if there are any.
        """
        if resume:
            self._resume()
        try:
            self._prepare()
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
            self._close()
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
                {"kind": "step", "step": step.number, "epoch": self.plan.epoch(step.number),
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
        impatient = patience is not None and progress.without_gain >= patience and self._may_stop()
        if impatient and progress.step < self.plan.steps:
            progress.stopped_early = True
            self.listener.say(
                f"Stopped early after step {progress.step:,}: no better {self.metric} in {patience} evaluations."
            )

    def _may_stop(self) -> bool:
        """Whether everything that is trained has been seen."""
        return True

    def _guessing(self) -> float:
        """What the loss of a row is where every answer is as likely as any other."""
        raise NotImplementedError

    def _records(self, stop: Interrupts) -> list[dict[str, Any]]:
        """Measure what is due after this step: an `eval` record of history.jsonl for each split."""
        raise NotImplementedError

    def _compare(self, records: list[dict[str, Any]]) -> None:
        """Hand what was measured to `_keep_better`, where weights are chosen by it."""

    def _is_better(self, value: float, best: float | None) -> bool:
        return is_better(self.metric, value, best)

    def _prepare(self) -> None:
        """What has to be done before the first step, also of a resumed run."""

    def _close(self) -> None:
        """What has to be done at the end, however it came."""

    def _running(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds beside weights, optimizer and averages."""
        return {}

    def _take_running(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """The way back from `_running`."""

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
