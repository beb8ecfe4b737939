"""What a training has come to: on the way, and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from bertune.config import Config
from bertune.model.classifier import ClassifierModel
from bertune.model.machine import Machine
from bertune.training.listen import Listener
from bertune.training.loop import Course
from bertune.training.lora import Lora
from bertune.training.prepare import Prepared
from bertune.training.settle import Plan


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


@dataclass(frozen=True)
class Trained:
    """What a result is made of: a training that came to its end, or one task of it.

    folder: its checkpoints; shared: SHA-256 of the encoder's file, where that is kept beside the result; matrices: of
    LoRA, as they belong to the chosen weights; together: what its card tells of the training of all tasks.
    """

    model: ClassifierModel
    prepared: Prepared
    config: Config
    plan: Plan
    machine: Machine
    progress: Progress
    course: Course
    metric: str
    folder: Path
    listener: Listener
    shared: str | None = None
    lora: Lora | None = None
    matrices: dict[str, Tensor] = field(default_factory=dict)
    together: Mapping[str, str] = field(default_factory=dict)
