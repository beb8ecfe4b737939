"""What a configuration leaves open, decided from the data and the model before step 1, and said."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from bertune.config import TrainConfig
from bertune.data.batch import steps_per_epoch
from bertune.model.encoder import EncoderConfig

NEW_HEAD = 10  # times the encoder's learning rate: random weights have further to go than pretrained ones
LORA = 10  # times the default rate: what LoRA adds begins at nothing (docs/log.md has the measurement)


@dataclass(frozen=True)
class Plan:
    """The numbers a run goes by. evaluate_at: steps after which the validation split is measured; lora: whether `lr` is
    the larger default of LoRA's matrices; head_parts: the names of what `head_lr` is for."""

    epochs: int
    steps: int
    steps_per_epoch: int
    batch_size: int
    lr: float
    head_lr: float
    evaluate_at: tuple[int, ...]
    lora: bool = False
    head_parts: tuple[str, ...] = ("head",)

    def epoch(self, step: int) -> float:
        """How many epochs `step` steps are."""
        return round(step / self.steps_per_epoch, 4)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def sentence(self) -> str:
        whole = self.steps == self.epochs * self.steps_per_epoch
        return (
            f"Training: {counted(self.epochs, 'epoch')} of {counted(self.steps_per_epoch, 'step')}"
            f"{'' if whole and self.epochs == 1 else f' ({self.steps:,} in all)'}, "
            f"{counted(self.batch_size, 'example')} a step, learning rate {self.lr:g}"
            f"{f', {LORA} times the usual one, for LoRA' if self.lora else ''}"
            f"{'' if self.head_lr == self.lr else f' (head: {self.head_lr:g})'}."
        )


def settle(config: TrainConfig, *, rows: int, encoder: EncoderConfig, new_head: bool, lora: bool = False) -> Plan:
    """Fill in epochs, batch size and learning rates, and lay out the evaluations.

    new_head: the head starts from random weights, in whole or in part. lora: matrices beside the encoder are trained in
    its place.
    """
    batch_size = config.batch_size or default_batch_size(rows)
    per_epoch = steps_per_epoch(rows, batch_size)
    epochs = config.epochs or default_epochs(rows)
    steps = epochs * per_epoch
    if config.max_steps is not None:
        steps = min(steps, config.max_steps)
        epochs = math.ceil(steps / per_epoch)
    every = [round(per_epoch * part / config.evals_per_epoch) for part in range(1, config.evals_per_epoch + 1)]
    marks = {epoch * per_epoch + max(1, part) for epoch in range(epochs) for part in every}
    evaluate_at = (*sorted(mark for mark in marks if mark < steps), steps)
    lr = config.lr or default_lr(encoder) * (LORA if lora else 1)
    head_lr = config.head_lr or (NEW_HEAD * lr if new_head else lr)
    return Plan(epochs, steps, per_epoch, batch_size, lr, head_lr, evaluate_at, lora and config.lr is None)


def default_epochs(rows: int) -> int:
    """Small data is seen more often: some 45,000 examples in all, in 3 to 10 epochs.

    Mosbach et al. 2021 (arXiv 2006.04884) trained few rows for 20 epochs at 2e-5; narrow encoders take larger rates,
    and then need fewer: measured with 100 to 4,000 rows, 3 epochs are worse than 10 or alike, and so are 20
    (docs/results.md, Few rows).
    """
    return int(np.clip(round(45_000 / rows), 3, 10))


def default_batch_size(rows: int) -> int:
    """32 examples a step; 16 where that would leave an epoch with very few steps."""
    return 16 if rows < 500 else 32


def default_lr(encoder: EncoderConfig) -> float:
    """Narrow encoders want larger steps: 1e-4 to a width of 512, 3e-5 to 768, 2e-5 beyond."""
    return 1e-4 if encoder.hidden <= 512 else 3e-5 if encoder.hidden <= 768 else 2e-5


@dataclass(frozen=True)
class Load:
    """What a training run has to carry.

    tokens: of the training rows. once: tokens that the `frozen_layers` lowest layers see, once, since their output is
    kept. trained, frozen: numbers of weights.
    """

    tokens: int
    rows: int
    labels: int
    trained: int
    frozen: int = 0
    frozen_layers: int = 0
    once: int = 0


def kept_of_token(encoder: EncoderConfig) -> int:
    """Numbers that a layer keeps of a token for the way back."""
    return 10 * encoder.hidden + 3 * encoder.ffn


def estimate(
    encoder: EncoderConfig, load: Load, *, plan: Plan, token_budget: int, dtype_bytes: int, flops: float
) -> tuple[float, int]:
    """Rough (seconds, bytes) of a training run.

    flops: operations a second that a matrix product of the model's shapes reached on this machine just now. The
    products of a step take about half of its time. A trained weight is held with gradient, two moments and a working
    copy, and what its layer computes is kept for the way back; a frozen layer needs neither, and runs forward only.
    """
    of_layer = 2 * (4 * encoder.hidden**2 + 2 * encoder.hidden * encoder.ffn)  # operations a token
    layers = encoder.layers - load.frozen_layers
    passes = plan.steps / plan.steps_per_epoch
    operations = of_layer * (3 * layers * load.tokens * passes + load.frozen_layers * load.once)
    working = dtype_bytes if dtype_bytes < 4 else 0  # in fp32 a frozen weight is its own working copy
    weights = load.trained * (16 + dtype_bytes) + load.frozen * (4 + working)
    activations = token_budget * max(1, layers) * kept_of_token(encoder) * dtype_bytes
    pooled = 4 * load.rows * encoder.hidden if not layers else 0  # of the rows, in place of their tokens
    return operations / flops / 0.5, int(600_000_000 + weights + activations + pooled + 8 * load.rows * load.labels)


def counted(number: int, noun: str, nouns: str | None = None) -> str:
    """`1 epoch`, `1,200 epochs`; nouns: the plural where an s is not all of it."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
