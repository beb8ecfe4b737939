"""Tiny trainings with one technique or another, whole and interrupted, for the tests of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import bertune
from bertune.training.run import Result
from tiny_runs import QUICK, Told, topic_rows

ROWS = topic_rows(60)  # 6 steps an epoch, 12 in all


class Stop(Exception):
    """Stands in for whatever ends a run from outside."""


class Stopper(Told):
    """Ends the run after a step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def step(self, step: Any) -> None:
        super().step(step)
        if step.number == self.at:
            raise Stop


def train(
    out: Path, model: Path, *, rows: Any = None, resume: bool = False, listener: Any = None, **settings: Any
) -> Result:
    """`train__r_drop=1` sets train.r_drop."""
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return bertune.train(
        ROWS if rows is None else rows, out=out, model=model, settings=QUICK | named, resume=resume,
        listener=listener or Told(),
    )


def stopped_and_resumed(out: Path, model: Path, *, at: int, **settings: Any) -> Result:
    """A run that ends after step `at`, one step after its last checkpoint, and goes on from there."""
    settings |= {"train__checkpoint_steps": at - 1}
    try:
        train(out, model, listener=Stopper(at), **settings)
    except Stop:
        told = Told()
        result = train(out, model, resume=True, listener=told, **settings)
        assert any(f"Resumed after step {at - 1} of" in text for text in told.said)
        return result
    raise AssertionError(f"the run ended before step {at}")


def saved(result: Result, name: str = "model.safetensors") -> dict[str, Tensor]:
    return load_file(result.out / name)


def same_bits(one: Result, other: Result) -> bool:
    return (one.out / "model.safetensors").read_bytes() == (other.out / "model.safetensors").read_bytes()


def changed(result: Result, model: Path) -> set[str]:
    """Names of the pretrained weights that are not in the result as they came."""
    after = saved(result)
    before = load_file(model / "model.safetensors")
    return {name for name, value in before.items() if not torch.equal(value, after[f"bert.{name}"])}
