"""What a run tells while it works. The command line shows it; Python callers are told nothing unless they ask."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias

from bertune.training.loop import Step
from bertune.training.settle import Plan

Work: TypeAlias = AbstractContextManager[Callable[[int], None]]


class Listener(Protocol):
    """Receives what happens, in order, in the thread of the run."""

    def say(self, text: str) -> None:
        """One sentence for the user."""

    def begin(self, plan: Plan, done: int) -> None:
        """Training starts after `done` steps of an earlier part."""

    def step(self, step: Step) -> None:
        """One optimizer step is done."""

    def evaluated(self, record: dict[str, Any], metric: str) -> None:
        """A split was measured: an `eval` record of history.jsonl, and the metric that chooses the best."""

    def work(self, what: str, rows: int) -> Work:
        """`with` this, many rows are computed beside the steps; it gives the function to tell how many are done."""

    def end(self) -> None:
        """Training is over, however it ended."""


class Silent:
    """Listens and does nothing."""

    def say(self, text: str) -> None:
        pass

    def begin(self, plan: Plan, done: int) -> None:
        pass

    def step(self, step: Step) -> None:
        pass

    def evaluated(self, record: dict[str, Any], metric: str) -> None:
        pass

    def work(self, what: str, rows: int) -> Work:
        return nullcontext(lambda done: None)

    def end(self) -> None:
        pass
