"""What the user sees while work goes on: now and then a line on a pipe, a bar on a terminal, nothing when quiet."""

from __future__ import annotations

import io
import logging

import pytest

from bertune.progress import Display, Meter, Pace, SentenceHandler
from bertune.training.loop import Step
from bertune.training.settle import Plan


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(number: int, *, seconds: float = 0.5) -> Step:
    return Step(
        number=number, loss=0.25, lr=1e-4, norm=1.0, rows=32, tokens=900, pairs=30_000, wasted=900, seconds=seconds
    )


def plan(steps: int) -> Plan:
    return Plan(
        epochs=1, steps=steps, steps_per_epoch=steps, batch_size=32, lr=1e-4, head_lr=1e-3, evaluate_at=(steps,)
    )


def test_a_pipe_gets_a_line_every_twentieth_part() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream=stream, clock=clock)
    display.begin(plan(200), 0)
    for number in range(1, 201):
        clock.now = 3.0 * number / 10
        display.step(step(number))
    display.end()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 20
    assert lines[0] == "step 10 of 200 (5 %), loss 0.2500, 64 examples/s, 57 s left"
    assert lines[-1] == "step 200 of 200 (100 %), loss 0.2500, 64 examples/s"


def test_slow_work_gives_a_sign_of_life_every_half_minute() -> None:
    stream, clock = io.StringIO(), Clock()
    with Meter(None, "rows", stream=stream, clock=clock) as meter:
        for number in range(1, 13):
            clock.now = 10.0 * number
            meter.advance(100 * number)
    assert stream.getvalue().splitlines() == [
        "rows 300, 10 rows/s", "rows 600, 10 rows/s", "rows 900, 10 rows/s", "rows 1,200, 10 rows/s",
    ]  # fmt: skip


def test_quick_work_does_not_flood_a_log() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream=stream, clock=clock)
    display.begin(plan(1000), 0)
    for number in range(1, 1001):
        clock.now = number / 1000
        display.step(step(number))
    assert stream.getvalue() == ""


def test_time_left_counts_from_where_a_resumed_run_began() -> None:
    clock = Clock()
    pace = Pace(100, 40, clock)
    assert pace.time_left() == ""
    clock.now = 20.0
    pace.add(50, 320, 15.0)
    assert pace.time_left() == "2 min left"
    assert pace.speed() == "21 examples/s"
    pace.add(100, 320, 15.0)
    assert pace.time_left() == ""


def test_evaluations_are_said_and_the_chosen_metric_stays_beside_the_loss() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream=stream, clock=clock)
    display.begin(plan(10), 0)
    metrics = {"accuracy": 0.75, "log_loss": 0.5, "mcc": 0.1}
    display.evaluated({"epoch": 1.0, "split": "valid", "step": 5, "metrics": metrics}, "accuracy")
    clock.now = 5.0
    display.step(step(6))
    assert stream.getvalue().splitlines() == [
        "Epoch 1, valid: accuracy 0.7500, log_loss 0.5000.",
        "step 6 of 10 (60 %), loss 0.2500, accuracy 0.7500, 64 examples/s, 3 s left",
    ]


def test_an_undefined_metric_is_left_out() -> None:
    stream = io.StringIO()
    Display(stream=stream).evaluated(
        {"epoch": 0.5, "split": "valid", "metrics": {"roc_auc_macro": None, "log_loss": 0.5}}, "roc_auc_macro"
    )
    assert stream.getvalue() == "Epoch 0.5, valid: log_loss 0.5000.\n"


def test_quiet_keeps_warnings_and_nothing_else() -> None:
    stream = io.StringIO()
    display = Display(quiet=True, stream=stream)
    handler = SentenceHandler(display)
    display.say("a sentence")
    display.begin(plan(1), 0)
    display.step(step(1))
    display.end()
    for level, text in ((logging.INFO, "made a cache entry"), (logging.WARNING, "The cache cannot be written.")):
        handler.emit(logging.LogRecord("bertune", level, "", 0, text, None, None))
    assert stream.getvalue() == "The cache cannot be written.\n"


def test_a_terminal_gets_a_bar_with_sentences_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    display = Display(stream=stream)
    display.begin(plan(4), 0)
    display.step(step(1))
    display.say("[bold]a sentence as it is[/bold]")
    display.end()
    display.say("after")
    shown = stream.getvalue()
    assert "\x1b[" in shown
    assert "[bold]a sentence as it is[/bold]" in shown
    assert "1/4" in shown and "loss 0.2500" in shown and "64 examples/s" in shown
    assert shown.endswith("after\n")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream, clock = Terminal(), Clock()
    with Meter(10, "rows", stream=stream, clock=clock) as meter:
        clock.now = 4.0
        meter.advance(8)
    assert stream.getvalue() == "rows 8 of 10 (80 %), 2 rows/s\n"


def test_many_rows_beside_the_steps_have_a_line_of_their_own() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream=stream, clock=clock)
    with display.work("Measuring test", 1000) as advance:
        for done in (500, 1000):
            clock.now += 5
            advance(done)
    assert stream.getvalue().splitlines() == [
        "Measuring test: rows 500 of 1,000 (50 %), 100 rows/s",
        "Measuring test: rows 1,000 of 1,000 (100 %), 100 rows/s",
    ]


def test_between_steps_they_are_told_beside_the_training() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream=stream, clock=clock)
    display.begin(plan(200), 0)
    with display.work("Measuring valid", 9000) as advance:
        for done in range(1000, 9001, 1000):
            clock.now += 10
            advance(done)
    clock.now += 10
    display.step(step(10))
    assert [line.split(", ")[0] for line in stream.getvalue().splitlines()] == [
        *(f"Measuring valid: rows {done:,} of 9,000" for done in (3000, 6000, 9000)), "step 10 of 200 (5 %)",
    ]  # fmt: skip

    stream = Terminal()
    display = Display(stream=stream)
    display.begin(plan(200), 0)
    with display.work("Measuring valid", 9000) as advance:
        advance(4000)
    display.end()
    assert "Measuring valid: rows 4,000 of 9,000" in stream.getvalue()
