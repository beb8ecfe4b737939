"""What a configuration leaves open, decided from the data and the model before step 1, and said."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from bertune.config import TrainConfig
from bertune.data.batch import steps_per_epoch
from bertune.model.encoder import EncoderConfig


@dataclass(frozen=True)
class Plan:
    """The numbers a run goes by. evaluate_at: steps after which the validation split is measured."""

    epochs: int
    steps: int
    steps_per_epoch: int
    batch_size: int
    lr: float
    evaluate_at: tuple[int, ...]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def sentence(self) -> str:
        return (
            f"Training: {self.epochs} epochs of {self.steps_per_epoch:,} steps ({self.steps:,} in all), "
            f"{self.batch_size} examples a step, learning rate {self.lr:g}."
        )


def settle(config: TrainConfig, *, rows: int, encoder: EncoderConfig) -> Plan:
    """Fill in epochs, batch size and learning rate, and lay out the evaluations."""
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
    return Plan(epochs, steps, per_epoch, batch_size, config.lr or default_lr(encoder), evaluate_at)


def default_epochs(rows: int) -> int:
    """Small data is seen more often: some 45,000 examples in all, in 3 to 10 epochs.

    Mosbach et al. 2021 (arXiv 2006.04884) trained few rows for 20 epochs at 2e-5; narrow encoders take larger rates,
    and then need fewer.
    """
    return int(np.clip(round(45_000 / rows), 3, 10))


def default_batch_size(rows: int) -> int:
    """32 examples a step; 16 where that would leave an epoch with very few steps."""
    return 16 if rows < 500 else 32


def default_lr(encoder: EncoderConfig) -> float:
    """Narrow encoders want larger steps: 1e-4 to a width of 512, 3e-5 to 768, 2e-5 beyond."""
    return 1e-4 if encoder.hidden <= 512 else 3e-5 if encoder.hidden <= 768 else 2e-5


def estimate(encoder: EncoderConfig, *, tokens_per_epoch: int, plan: Plan, token_budget: int, dtype_bytes: int,
             flops: float, trained: int, labels: int, rows: int) -> tuple[float, int]:
    """Rough (seconds, bytes) of a training run.

    flops: operations a second that a matrix product of the model's shapes reached on this machine just now. The
    products of a step take about half of its time; weights are held with gradient, two moments and a working copy.
    """
    per_token = 2 * encoder.layers * (4 * encoder.hidden**2 + 2 * encoder.hidden * encoder.ffn)
    passes = plan.steps / plan.steps_per_epoch
    seconds = 3 * per_token * tokens_per_epoch * passes / flops / 0.5
    activations = token_budget * encoder.layers * (10 * encoder.hidden + 3 * encoder.ffn) * dtype_bytes
    memory = 600_000_000 + trained * (16 + dtype_bytes) + activations + 8 * rows * labels
    return seconds, int(memory)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
