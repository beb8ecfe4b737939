"""The training loop: a generator of optimizer steps. Printing, evaluating and saving belong to its caller.

Everything random depends on (seed, epoch) or (seed, step, row), and nothing on time or on what ran before, so
a loop started at step k does what an uninterrupted one would have done from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from bertune.data.batch import Batch, epoch_order, make_batch, split_by_budget, steps_per_epoch
from bertune.data.tokens import Encoded
from bertune.errors import TrainingError
from bertune.model.attention import count_pairs
from bertune.model.classifier import ClassifierModel, EncoderModel
from bertune.model.encoder import Encoder
from bertune.model.losses import Loss, disagreement
from bertune.model.machine import to_device
from bertune.model.noise import Noise
from bertune.training.adversarial import FreeLB
from bertune.training.features import Features
from bertune.training.optim import Optimizer

Model = TypeVar("Model", bound=EncoderModel, contravariant=True)
Part = TypeVar("Part", bound=Batch)


class Diverged(TrainingError):
    """The loss or a gradient is not a finite number; the weights are those of the step before."""


@dataclass(frozen=True)
class Step:
    """One finished optimizer step. number: from 1; loss: mean over its rows; norm: of the gradient before clipping."""

    number: int
    loss: float
    lr: float
    norm: float
    rows: int
    tokens: int
    pairs: int  # of query and key that attention computed
    wasted: int  # those of them that padding made
    seconds: float


@dataclass
class Course:
    """What a loop walks over and how.

    running: float32 [rows, labels], logits seen in the current epoch. start: the lowest layer that is trained; layers
    below it see no dropout, whether their output is kept in `features` or computed anew. r_drop: weight of the
    disagreement between two passes, 0: one pass. freelb: how embeddings are moved, None: not at all. weigh: from the
    loss of a micro-batch and its share of the step's rows to what is minimised, None: the loss.
    """

    encoded: Encoded
    targets: np.ndarray
    loss: Loss
    batch_size: int
    steps: int
    token_budget: int
    clip: float | None
    seed: int
    running: np.ndarray
    features: Features | None = None
    start: int = 0
    r_drop: float = 0.0
    freelb: FreeLB | None = None
    weigh: Callable[[Tensor, float], Tensor] | None = None
    order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))  # the epoch, and how it visits the rows

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.encoded), self.batch_size)

    def rows(self, number: int) -> np.ndarray:
        epoch, place = divmod(number - 1, self.steps_per_epoch)
        if self.order[0] != epoch:
            self.order = epoch, epoch_order(len(self.encoded), seed=self.seed, epoch=epoch)
        return self.order[1][place * self.batch_size : (place + 1) * self.batch_size]

    def longest(self, rows: np.ndarray, number: int) -> int:
        return int(self.encoded.lengths[rows].max())

    def batches(self, rows: np.ndarray, number: int) -> list[Batch]:
        return [make_batch(self.encoded, run) for run in split_by_budget(rows, self.encoded.lengths, self.token_budget)]

    def backward(
        self, model: ClassifierModel, optimizer: Optimizer, batches: list[Batch], number: int, noise: Noise
    ) -> Callable[[], float]:
        passes = _backward(model, optimizer, self, batches, number, noise)
        return lambda: _read(passes, self)


class Walk(Protocol[Model, Part]):
    """What `training_steps` needs of a course, whatever is learned; steps are counted from 1."""

    steps: int
    token_budget: int
    clip: float | None

    def rows(self, number: int) -> np.ndarray:
        """What step `number` is about."""

    def longest(self, rows: np.ndarray, number: int) -> int:
        """Tokens of the longest of them."""

    def batches(self, rows: np.ndarray, number: int) -> list[Part]:
        """They, as micro-batches of `token_budget` tokens."""

    def backward(
        self, model: Model, optimizer: Optimizer, batches: list[Part], number: int, noise: Noise
    ) -> Callable[[], float]:
        """Collect the gradients of the step in the optimizer; what comes back waits for its loss and gives it."""


def training_steps(
    model: Model, optimizer: Optimizer, course: Walk[Model, Part], *, start: int, say: Callable[[str], None]
) -> Iterator[Step]:
    """Steps start + 1 ... course.steps. The model's weights are those after the yielded step.

    Raises Diverged, and TrainingError when a row does not fit into a GPU's memory.
    """
    noise = Noise(model.device)
    for number in range(start + 1, course.steps + 1):
        begin = time.perf_counter()
        rows = course.rows(number)
        optimizer.begin(number)
        while True:
            batches = course.batches(rows, number)
            try:
                read_loss = course.backward(model, optimizer, batches, number, noise)
                break
            except torch.cuda.OutOfMemoryError:
                optimizer.forget()
                torch.cuda.empty_cache()
                longest = course.longest(rows, number)
                if course.token_budget <= longest:
                    raise TrainingError(
                        f"Step {number}: the GPU has no room for even one row of {longest} tokens. "
                        "Lower --max-length, or freeze layers with --freeze."
                    ) from None
                course.token_budget //= 2
                say(f"Step {number}: out of GPU memory; going on with {course.token_budget:,} tokens at once.")
        optimizer.gather()
        norm = optimizer.gradient_norm()  # all of the step is queued by now: a GPU is waited for once, here
        loss = read_loss()
        if not math.isfinite(loss) or not math.isfinite(norm):
            optimizer.forget()
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise Diverged(
                f"Step {number}: the {what} is no longer a finite number. {advice(optimizer.rates.max(), model)}"
            )
        optimizer.clip(course.clip, norm)
        optimizer.apply(number)
        tokens = sum(batch.tokens for batch in batches)
        counts = [count_pairs(batch.lengths, padded=model.pads) for batch in batches]
        pairs, wasted = sum(count[0] for count in counts), sum(count[1] for count in counts)
        rate = float(optimizer.rates[number - 1])
        yield Step(number, loss, rate, norm, len(rows), tokens, pairs, wasted, time.perf_counter() - begin)


def advice(lr: float, model: EncoderModel) -> str:
    """What to do about numbers that grow without end; lr: the highest learning rate."""
    rest = "." if model.encoder.compute_dtype == torch.float32 else ", or pass --precision fp32."
    return f"Lower --lr (now at most {lr:g}){rest}"


@dataclass(frozen=True)
class _Pass:
    """One micro-batch after its backward pass; the tensors are where the model is."""

    rows: np.ndarray
    logits: Tensor
    loss: Tensor


def _backward(
    model: ClassifierModel, optimizer: Optimizer, course: Course, batches: list[Batch], number: int, noise: Noise
) -> list[_Pass]:
    """Gradients of one step: the sum over micro-batches of their summed loss, over the rows of the whole step."""
    rows = sum(len(batch) for batch in batches)
    look_up = optimizer.words(np.concatenate([batch.ids for batch in batches]), number)
    passes = []
    for batch in batches:
        noise.seek(course.seed, number, batch)
        targets = to_device(course.targets[batch.rows], model.device)
        if course.freelb is not None:
            logits, loss = _misled(model, course, batch, targets, look_up, noise, number, rows)
        else:
            logits = _logits(model, course, batch, look_up, noise)
            loss = course.loss(logits, targets) / rows
            if course.r_drop:
                noise.seek(course.seed, number, batch, second=True)
                again = _logits(model, course, batch, look_up, noise)
                loss = (loss + course.loss(again, targets) / rows) / 2
                loss = loss + course.r_drop * disagreement(course.loss.kind, logits, again) / rows
            weighed = loss if course.weigh is None else course.weigh(loss, len(batch) / rows)
            weighed.backward()
        optimizer.collect()
        passes.append(_Pass(batch.rows, logits.detach(), loss.detach()))
    return passes


def _misled(
    model: ClassifierModel, course: Course, batch: Batch, targets: Tensor,
    look_up: Callable[[np.ndarray], Tensor] | None, noise: Noise, number: int, rows: int,
) -> tuple[Tensor, Tensor]:
    """The backward passes of FreeLB over one micro-batch: logits of the first of them, and the mean loss of all."""
    assert course.freelb is not None and isinstance(model.encoder, Encoder)
    inputs = model.inputs(batch)
    found: list[tuple[Tensor, Tensor]] = []
    moved: Tensor | None = None
    for _ in range(course.freelb.steps):
        noise.seek(course.seed, number, batch)
        words = model.encoder.embeddings.word(inputs.ids) if look_up is None else look_up(batch.ids)
        if moved is None:
            moved = course.freelb.begin(words.detach(), inputs, noise)
        else:
            moved = course.freelb.ascend(moved, inputs)
        logits = model(inputs, noise=noise, words=words + moved)
        loss = course.loss(logits, targets) / (rows * course.freelb.steps)
        loss.backward()
        found.append((logits.detach(), loss.detach()))
    return found[0][0], torch.stack([loss for _, loss in found]).sum()


def _read(passes: list[_Pass], course: Course) -> float:
    """The loss of the step; its logits go into `course.running`."""
    for one in passes:
        course.running[one.rows] = one.logits.cpu().numpy()
    return sum(one.loss.item() for one in passes)


def _logits(
    model: ClassifierModel, course: Course, batch: Batch, look_up: Callable[[np.ndarray], Tensor] | None, noise: Noise
) -> Tensor:
    if course.features is not None:
        return course.features.logits(model, batch, noise)
    if course.start:
        return model(model.inputs(batch), noise=noise, quiet=course.start)
    words = look_up(batch.ids) if look_up is not None else None
    return model(model.inputs(batch), noise=noise, words=words)
