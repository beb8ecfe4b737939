"""One pre-training: the plan of its steps, what each of them reads, and the loop of base.py over that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bertune.config import PRETRAINING_KEYS, Config, TrainConfig
from bertune.data.batch import epoch_order, split_by_budget
from bertune.data.sequences import Sample, Sequences
from bertune.model.encoder import EncoderConfig
from bertune.model.machine import CPU_TOKENS, Machine
from bertune.model.noise import Noise
from bertune.model.pretraining import Measured, PretrainingModel
from bertune.training.base import Training
from bertune.training.interrupt import Interrupts
from bertune.training.listen import Listener
from bertune.training.optim import Optimizer
from bertune.training.settle import NEW_HEAD, Plan, counted, kept_of_token

METRIC = {"mlm": "perplexity", "nsp": "next_accuracy", "both": "perplexity"}
TOKENS, FEWEST = 8192, 2048  # of a step: each goes through the whole table of word embeddings, however few they are
ENOUGH = 200  # steps of a pass from which on a step has TOKENS
AT_ONCE, KEPT = 12_288, 2 << 30  # tokens of a micro-batch, where what they leave for the way back takes fewer bytes
FIXED = 2**32 - 1  # the pass whose masks and pairs the held-out part has: always the same


@dataclass(frozen=True)
class PretrainPlan(Plan):
    """tokens: of a step, about; batch_size: sequences of a step on average."""

    tokens: int = TOKENS

    def sentence(self) -> str:
        head = "" if self.head_lr == self.lr else f" (new head: {self.head_lr:g})"
        return (
            f"Pre-training: {counted(self.epochs, 'pass', 'passes')} of {counted(self.steps_per_epoch, 'step')} "
            f"({self.steps:,} in all), about {self.tokens:,} tokens a step, learning rate {self.lr:g}{head}."
        )


def settle_pretraining(
    config: Config, *, tokens: int, rows: int, encoder: EncoderConfig, new: Sequence[str]
) -> PretrainPlan:
    """Fill in the tokens of a step, passes and learning rates.

    tokens, rows: of the sequences of a pass; new: the parts of the head that the encoder came without. Sun et al. 2019
    (arXiv 1905.05583, section 5.4.1) pre-train further at 5e-5; narrow encoders take larger rates, and new ones ten
    times as large ones.
    """
    options = config.pretrain
    wanted = options.tokens or max(min(TOKENS, max(FEWEST, tokens // ENOUGH)), 2 * options.max_length)
    per_epoch = max(1, round(tokens / wanted))
    if options.max_steps is not None and options.epochs is None:
        steps = options.max_steps
    else:
        steps = min((options.epochs or 1) * per_epoch, options.max_steps or math.inf)  # type: ignore[assignment]
    marks = {round(steps * part / options.evaluations) for part in range(options.evaluations + 1)}
    lr = options.lr or (1e-3 if options.from_scratch else 1e-4 if encoder.hidden <= 512 else 5e-5)
    # From scratch all weights are new, and a head is no further off than the others.
    new = () if options.from_scratch else new
    return PretrainPlan(
        epochs=math.ceil(steps / per_epoch), steps=steps, steps_per_epoch=per_epoch,
        batch_size=max(1, round(rows / per_epoch)), lr=lr, head_lr=NEW_HEAD * lr if new else lr,
        head_parts=tuple(new), evaluate_at=tuple(sorted(marks)), tokens=round(tokens / per_epoch),
    )


def tokens_at_once(encoder: EncoderConfig) -> int:
    """Tokens of a micro-batch on a processor: more than of a classifier's, since each micro-batch goes through the
    table of word embeddings several times; fewer for a large encoder, which keeps much of every token for the way
    back."""
    kept = 2 * encoder.layers * kept_of_token(encoder)  # bytes, in bf16
    return max(CPU_TOKENS, min(AT_ONCE, KEPT // kept))


def stage_options(config: Config) -> TrainConfig:
    """The options of the loop and the optimizer in a pre-training: AdamW, with a rate that falls linearly. Of the
    section train only those hold that a pre-training has; the others belong to the training that may follow."""
    own = config.pretrain
    held = {key.removeprefix("train.") for key in PRETRAINING_KEYS if key.startswith("train.")}
    return TrainConfig().model_copy(update={
        **config.train.model_dump(include=held), "warmup": own.warmup, "weight_decay": own.weight_decay,
        "clip": own.clip, "schedule": "linear", "optimizer": "adamw",
    })  # fmt: skip


class PretrainCourse:
    """The sequences that each step reads, in an order of its own for every pass: a `loop.Walk`.

    A pass is cut into steps of nearly equal numbers of tokens, as many steps in every pass.
    """

    def __init__(self, sequences: Sequences, plan: PretrainPlan, *, token_budget: int, clip: float | None, seed: int):
        self.sequences, self.per_epoch = sequences, plan.steps_per_epoch
        self.steps, self.token_budget, self.clip, self.seed = plan.steps, token_budget, clip, seed
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None

    def rows(self, number: int) -> np.ndarray:
        epoch, place = divmod(number - 1, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = epoch_order(len(self.sequences), seed=self.seed, epoch=epoch)
            ends = np.cumsum(self.sequences.turn(epoch).lengths[order])
            marks = ends[-1] * np.arange(self.per_epoch + 1) // self.per_epoch
            self._order = epoch, order, np.searchsorted(ends, marks, side="right")
        _, order, edges = self._order
        begin, end = edges[place : place + 2]
        return order[begin : max(end, begin + 1)]  # one sequence, where it alone is longer than a step

    def longest(self, rows: np.ndarray, number: int) -> int:
        return int(self.sequences.turn((number - 1) // self.per_epoch).lengths[rows].max())

    def batches(self, rows: np.ndarray, number: int) -> list[Sample]:
        turn = (number - 1) // self.per_epoch
        return samples(self.sequences, rows, turn, self.token_budget)

    def backward(
        self, model: PretrainingModel, optimizer: Optimizer, batches: list[Sample], number: int, noise: Noise
    ) -> Callable[[], float]:
        """Gradients of the mean over all masked tokens of the step, and over all its pairs."""
        masked, pairs = sum(len(batch.places) for batch in batches), sum(len(batch) for batch in batches)
        losses: list[Tensor] = []
        for batch in batches:
            noise.seek(self.seed, number, batch)
            loss = model.loss(batch, noise, masked=masked, pairs=pairs)
            if loss.requires_grad:  # else chance has masked nothing
                loss.backward()
                optimizer.collect()
            losses.append(loss.detach())
        return lambda: sum(loss.item() for loss in losses)


def samples(sequences: Sequences, rows: np.ndarray, turn: int, budget: int) -> list[Sample]:
    """The sequences as micro-batches of at most `budget` tokens, of nearly equal size."""
    return [sequences.sample(run, turn) for run in split_by_budget(rows, sequences.turn(turn).lengths, budget)]


class PretrainFit(Training):
    """A training without labels; the last weights are kept.

    config: `train` holds the options of the stage, see `stage_options`. held: sequences to measure on, or None.
    """

    def __init__(
        self, model: PretrainingModel, train: Sequences, held: Sequences | None, config: Config, plan: PretrainPlan,
        machine: Machine, *, folder: Path, listener: Listener,
    ) -> None:
        self.held = held
        metric = METRIC[config.pretrain.objective]
        # The scores of the vocabulary give every row of the table a gradient, so there are none to postpone; and
        # `PretrainCourse.backward` asks for no rows, also where next sentences alone are learned.
        super().__init__(
            model, config, plan, machine, metric=metric, folder=folder, listener=listener, by_row=False
        )
        self.course = PretrainCourse(
            train, plan, token_budget=machine.token_budget, clip=config.train.clip, seed=config.train.seed
        )
        self.progress.evaluated = -1  # the beginning is measured, too

    def _guessing(self) -> float:
        words = math.log(self.model.encoder.config.vocab_size)
        return {"mlm": words, "nsp": math.log(2), "both": words + math.log(2)}[self.config.pretrain.objective]

    def _records(self, stop: Interrupts) -> list[dict[str, Any]]:
        if self.held is None:
            return []
        metrics = self.measure(self.held, check=stop.check)
        step = self.progress.step
        return [{"kind": "eval", "step": step, "epoch": self.plan.epoch(step), "split": "valid", "metrics": metrics}]

    def measure(self, held: Sequences, *, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Perplexity (e to the mean cross-entropy of masked tokens) and accuracies over `held`, with fixed masks."""
        sums = np.zeros(len(astuple(Measured())))
        with self.listener.work("Measuring the held-out part", len(held)) as advance:
            done = 0
            for sample in samples(held, np.arange(len(held)), FIXED, self.course.token_budget):
                check()
                sums += astuple(self.model.measure(sample))
                done += len(sample)
                advance(done)
        return summary(Measured(*sums.tolist()))


def summary(sums: Measured) -> dict[str, Any]:
    """The metrics of what was measured, of masked tokens and of pairs, where there are any."""
    found: dict[str, Any] = {}
    if sums.masked:
        loss = sums.masked_loss / sums.masked
        found |= {
            "perplexity": math.exp(min(loss, 700.0)), "masked_accuracy": sums.masked_right / sums.masked,
            "masked_loss": loss, "masked_tokens": int(sums.masked),
        }  # fmt: skip
    if sums.pairs:
        found |= {
            "next_accuracy": sums.next_right / sums.pairs, "next_loss": sums.next_loss / sums.pairs,
            "pairs": int(sums.pairs),
        }  # fmt: skip
    return found
