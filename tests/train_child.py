"""A training in a process of its own that is killed at a chosen moment, for the tests of resuming."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bertune.training.listen import Silent
from bertune.training.loop import Step

HARD = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows this ends a process at once
KILLED = -HARD if os.name == "posix" else HARD  # exit code of a process that got it


class Watcher(Silent):
    """Writes down what is said, and sends this process a signal after a given step; `slow`: seconds between steps."""

    def __init__(self, said: Path, *, at: int, number: int, slow: float) -> None:
        self.said, self.at, self.number, self.slow = said, at, number, slow

    def say(self, text: str) -> None:
        with self.said.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")

    def step(self, step: Step) -> None:
        time.sleep(self.slow)
        if step.number == self.at:
            signal.raise_signal(self.number) if self.number == signal.SIGINT else _die()


def run_child(job: dict[str, Any]) -> None:
    """Train as `job` says; ends with the exit code that the command line would give."""
    import bertune
    from bertune.errors import BertuneError
    from bertune.report import write
    from bertune.training import finish

    finish.plot_curves, write.keep_page = without_picture, without_page
    os.environ["BERTUNE_CACHE"] = job["cache"]
    place, _, count = job.get("kill", "").partition(":")
    at = int(count or 1)
    stop = signal.SIGINT if place == "interrupt" else HARD
    by_step = place in ("step", "interrupt")
    watcher = Watcher(Path(job["said"]), at=at if by_step else -1, number=stop, slow=job.get("slow", 0.0))
    if place and not by_step:
        PLACES[place](at)
    try:
        bertune.train(
            job["data"], out=job["out"], model=job["model"], settings=job["settings"], resume=job.get("resume", False),
            listener=watcher,
        )
    except BertuneError as error:
        watcher.say(f"{type(error).__name__}: {error}")
        raise SystemExit(error.exit_code) from None


def without_picture(history: Any, path: Path, *, metric: str) -> None:
    """Instead of curves.png, which takes longer than a tiny training."""


def without_page(out: Path, config: Any, **how: Any) -> None:
    """Instead of the report, which takes longer still."""


def start_child(**job: Any) -> Any:
    """A process that has begun `run_child`. All of them are forked from one that has imported everything already."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["train_child", "bertune.training.run", "torch._dynamo", "polars"])
    process = context.Process(target=run_child, args=(json.loads(json.dumps(job)),))
    process.start()
    return process


def finish_child(**job: Any) -> int:
    """`start_child`, waited for; its exit code, negative where a signal ended it."""
    process = start_child(**job)
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the training did not end within two minutes")
    return int(process.exitcode)


def _die() -> None:
    os.kill(os.getpid(), HARD)
    time.sleep(60)  # on Windows the end may take a moment


def _before(module: Any, name: str, at: int) -> None:
    """Die when `module.name` is called for the `at`-th time."""
    usual, calls = getattr(module, name), []

    def deadly(*args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            _die()
        return usual(*args, **named)

    setattr(module, name, deadly)


def _torn_write(at: int) -> None:
    """Die in the middle of the `at`-th file of weights or moments, half of which is then on the disk."""
    from bertune.training import checkpoint

    usual, calls = checkpoint.save_file, []

    def torn(tensors: dict[str, Any], path: Path) -> None:
        usual(tensors, path)
        calls.append(1)
        if len(calls) == at:
            with Path(path).open("r+b") as stream:
                stream.truncate(Path(path).stat().st_size // 2)
            _die()

    checkpoint.save_file = torn  # type: ignore[assignment]


def _evaluation(at: int) -> None:
    from bertune.training import fit

    usual, calls = fit.infer_logits, []

    def deadly(*args: Any, **named: Any) -> Any:
        found = usual(*args, **named)
        calls.append(1)
        if len(calls) == at:
            _die()
        return found

    fit.infer_logits = deadly  # type: ignore[assignment]


def _checkpoint(at: int) -> None:
    """Die between an evaluation (its best weights are on the disk) and the checkpoint that would tell of it."""
    from bertune.training import checkpoint

    _before(checkpoint, "save", at)


def _bundle(at: int) -> None:
    from bertune.training import finish

    _before(finish, "write_bundle", at)


def _bundle_file(at: int) -> None:
    from bertune.training import finish

    usual = finish.save_model

    def deadly(*args: Any, **named: Any) -> Any:
        usual(*args, **named)
        _die()

    finish.save_model = deadly  # type: ignore[assignment]


def _judging(at: int) -> None:
    from bertune.training import finish

    _before(finish, "measure", at)


def _ruling(at: int) -> None:
    from bertune.training import finish

    _before(finish, "keep_rule", at)


def _cleaning(at: int) -> None:
    from bertune.training import checkpoint

    _before(checkpoint, "remove", at)


def _stop_in(owner: Any, name: str, at: int) -> None:
    """Ctrl-C when `owner.name` is called for the `at`-th time."""
    usual, calls = getattr(owner, name), []

    def interrupted(*args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return usual(*args, **named)

    setattr(owner, name, interrupted)


def _stop_frozen(at: int) -> None:
    from bertune.training.features import Features

    _stop_in(Features, "_fill", at)


def _stop_judging(at: int) -> None:
    from bertune.training import finish

    _stop_in(finish, "measure", at)


PLACES: dict[str, Callable[[int], None]] = {
    "torn": _torn_write, "evaluation": _evaluation, "checkpoint": _checkpoint, "bundle": _bundle,
    "bundle-file": _bundle_file, "judging": _judging, "ruling": _ruling, "cleaning": _cleaning,
    "stop-frozen": _stop_frozen, "stop-judging": _stop_judging,
}  # fmt: skip
