"""What the user sees while work goes on: sentences, and how far it is. All of it goes to stderr.

On a terminal that is a live bar; elsewhere a plain line now and then, fit for a log file.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from bertune.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from bertune.training.loop import Step
    from bertune.training.settle import Plan

EVERY_SHARE = 0.05  # of the whole between two plain lines ...
EVERY_SECONDS = 30.0  # ... and no longer than this
AT_LEAST = 2.0  # seconds between plain lines, so that quick work does not flood a log
RECENT = 50  # steps that the shown speed is measured over

Clock = Callable[[], float]


class Display:
    """Sentences and the progress of a training: the `training.listen.Listener` of the command line."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None, clock: Clock = time.monotonic) -> None:
        self.quiet = quiet
        self.stream = stream or sys.stderr
        self.clock = clock
        self.meter: Meter | None = None
        self._pace: Pace | None = None
        self._metric = ""

    def say(self, text: str) -> None:
        """A sentence on a line of its own; nothing where the user wants quiet."""
        if not self.quiet:
            self.line(text)

    def line(self, text: str) -> None:
        """A sentence that is never left out, such as a warning."""
        text = printable(text)
        if self.meter is not None:
            self.meter.line(text)
        else:
            print(text, file=self.stream, flush=True)

    def measure(self, total: int | None, unit: str, *, title: str = "") -> Meter:
        """How far some work is, to be closed at its end; sentences go above it. title: what the work is."""
        self.meter = Meter(
            total, unit, title=title, stream=self.stream, quiet=self.quiet, clock=self.clock, closed=self._forget
        )
        return self.meter

    @contextmanager
    def work(self, what: str, rows: int) -> Iterator[Callable[[int], None]]:
        """Many rows are computed: with a bar of their own, or beside that of the training."""
        outer = self.meter
        if outer is None:
            with self.measure(rows, "rows", title=what) as meter:
                yield meter.advance
        else:
            yield lambda done: outer.aside(f"{what}: rows {done:,} of {rows:,}")

    def _forget(self) -> None:
        self.meter = None

    def begin(self, plan: Plan, done: int) -> None:
        self._pace = Pace(plan.steps, done, self.clock)
        self.measure(plan.steps, "step").update(done, [])

    def step(self, step: Step) -> None:
        assert self.meter is not None and self._pace is not None, "begin comes first"
        self._pace.add(step.number, step.rows, step.seconds)
        parts = [f"loss {step.loss:.4f}", self._metric, self._pace.speed(), self._pace.time_left()]
        self.meter.update(step.number, [part for part in parts if part])

    def evaluated(self, record: dict[str, Any], metric: str) -> None:
        beside = ("log_loss", "masked_accuracy", "next_accuracy")
        found = {name: record["metrics"].get(name) for name in dict.fromkeys((metric, *beside))}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if value is not None)
        task = f"{record['task']} " if "task" in record else ""
        self.say(f"Epoch {record['epoch']:g}, {task}{record['split']}: {shown}.")
        if not task and record["split"] == "valid" and found[metric] is not None:
            self._metric = f"{metric} {found[metric]:.4f}"

    def end(self) -> None:
        if self.meter is not None:
            self.meter.close()


class Pace:
    """Examples a second over the last steps, and the time that the rest will take at the pace so far."""

    def __init__(self, total: int, done: int, clock: Clock) -> None:
        self.total, self.first, self.done = total, done, done
        self.clock, self.started = clock, clock()
        self.recent: deque[tuple[int, float]] = deque(maxlen=RECENT)

    def add(self, done: int, rows: int, seconds: float) -> None:
        self.done = done
        self.recent.append((rows, seconds))

    def speed(self) -> str:
        seconds = sum(seconds for _, seconds in self.recent)
        return f"{sum(rows for rows, _ in self.recent) / seconds:,.0f} examples/s" if seconds > 0 else ""

    def time_left(self) -> str:
        """Evaluations and checkpoints count, since the clock does not stop for them."""
        passed, here = self.clock() - self.started, self.done - self.first
        return f"{duration(passed / here * (self.total - self.done))} left" if here and self.total > self.done else ""


class Meter:
    """How far some work is: a live bar on a terminal, or a plain line every 5 % or 30 seconds.

    total: None where it is not known beforehand. `with` closes it.
    """

    def __init__(
        self, total: int | None, unit: str, *, title: str = "", stream: TextIO, quiet: bool = False,
        clock: Clock = time.monotonic, closed: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.total, self.unit, self.stream, self.quiet, self.clock, self.closed = (
            total, unit, stream, quiet, clock, closed
        )  # fmt: skip
        self.title = f"{title}: " if title else ""
        self.started = clock()
        self._shown = (0, self.started)  # the last plain line: how far, and when
        self._bar: tuple[Progress, TaskID] | None = None
        if not quiet and is_terminal(stream):
            self._bar = _start_bar(stream, total, self.title + unit)

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, done: int, parts: list[str]) -> None:
        """`done` of the total is done; `parts` are told beside it."""
        if self.quiet:
            return
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, completed=done, parts="  ".join(parts))
        elif self._is_due(done):
            self._shown = done, self.clock()
            share = f" of {self.total:,} ({100 * done // self.total} %)" if self.total else ""
            print(", ".join([f"{self.title}{self.unit} {done:,}{share}", *parts]), file=self.stream, flush=True)

    def advance(self, done: int) -> None:
        """`update` with the speed since the start."""
        seconds = self.clock() - self.started
        self.update(done, [f"{done / seconds:,.0f} {self.unit}/s"] if seconds > 0 else [])

    def aside(self, text: str) -> None:
        """Other work for a while: shown beside the bar, or on a line of its own every 30 seconds."""
        if self._bar is not None:
            bar, task = self._bar
            bar.update(task, parts=text)
        elif not self.quiet and self.clock() - self._shown[1] >= EVERY_SECONDS:
            self._shown = self._shown[0], self.clock()
            print(text, file=self.stream, flush=True)

    def _is_due(self, done: int) -> bool:
        far, when = self._shown
        waited = self.clock() - when
        grown = self.total is not None and done - far >= EVERY_SHARE * self.total
        return waited >= EVERY_SECONDS or (grown and waited >= AT_LEAST)

    def line(self, text: str) -> None:
        """A sentence above the bar."""
        if self._bar is None:
            print(text, file=self.stream, flush=True)
        else:
            self._bar[0].console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away; what was said stays."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None
        self.closed()


class SentenceHandler(logging.Handler):
    """Log records as sentences of a display; warnings also where the user wants quiet."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.INFO)
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        show = self.display.line if record.levelno >= logging.WARNING else self.display.say
        show(record.getMessage())


def start_display(*, quiet: bool) -> Display:
    """A display on stderr, which also shows what the package logs."""
    display = Display(quiet=quiet)
    log = logging.getLogger("bertune")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [SentenceHandler(display)]
    return display


def is_terminal(stream: TextIO) -> bool:
    """Whether a bar can move on `stream`."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    from bertune.training.settle import duration as in_words

    return in_words(seconds)


def _start_bar(stream: TextIO, total: int | None, unit: str) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(file=stream)
    bar = Progress(
        TextColumn(unit), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[parts]}"),
        console=console, redirect_stdout=False, transient=True,  # predictions may be on stdout
    )  # fmt: skip
    task = bar.add_task(unit, total=total, parts="")
    bar.start()
    return bar, task
