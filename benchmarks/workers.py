"""Both sides of a comparison as child processes that take turns, so that a busy or throttled machine hurts them alike.

A child trains without end and stops after each timed window until it is told to go on (see `Pacer`); only one child
computes at a time. The parent reads each window's examples and seconds and takes medians of the ratios within a round.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]
# Freed memory stays with the process, as bertune has it; without, clearing pages takes a fifth of a Trainer's step.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}


class Stopped(Exception):
    """The parent wants no more steps."""


class Pacer:
    """The child's end: called after every optimizer step, it holds the child between windows.

    `evaluate`, set by the side, returns the mean validation loss of its model as it is.
    """

    def __init__(self, commands: TextIO, replies: TextIO) -> None:
        self.commands, self.replies = commands, replies
        self.evaluate: Callable[[], float] | None = None
        self.synchronize: Callable[[], None] = lambda: None
        self.seconds, self.steps = 0.0, 0

    def ready(self, **about: Any) -> None:
        """Everything is loaded; say what was decided and wait for the first window."""
        self._reply({"ready": about})
        self._wait()

    def __call__(self, examples: int, tokens: int = 0) -> None:
        self.done["examples"] += examples
        self.done["tokens"] += tokens
        self.done["steps"] += 1
        if self.steps and self.done["steps"] < self.steps:
            return
        if time.perf_counter() - self.start < self.seconds:
            return
        self.synchronize()
        self._reply({**self.done, "seconds": time.perf_counter() - self.start})
        self._wait()

    def _wait(self) -> None:
        while True:
            command = json.loads(self.commands.readline() or '{"stop": true}')
            if "stop" in command:
                raise Stopped
            if "evaluate" not in command:
                break
            assert self.evaluate is not None, "this side has no validation loss"
            self._reply({"loss": self.evaluate()})
        self.seconds, self.steps = command.get("seconds", 0.0), command.get("steps", 0)
        self.done = {"examples": 0, "tokens": 0, "steps": 0}
        self.start = time.perf_counter()

    def _reply(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self.replies, flush=True)


def serve(side: Callable[[dict[str, Any], Pacer], None]) -> None:
    """Main program of a child: `side(spec, pacer)` until the parent stops it; then report the peak memory."""
    spec = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not end up among the replies
    pacer = Pacer(sys.stdin, replies)
    with suppress(Stopped):
        side(spec, pacer)
    pacer._reply({"peak_memory_bytes": peak_memory()})


def peak_memory() -> int | None:
    """Most bytes this process has held so far: resident, or on the GPU it used; None where the system does not tell."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Worker:
    """The parent's end of one child; a context manager."""

    def __init__(self, name: str, spec: dict[str, Any], *, threads: int | None = None) -> None:
        self.name = name
        self.rates: list[float] = []  # examples per second of each window
        self.token_rates: list[float] = []
        self.peak_memory_bytes: int | None = None
        source = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": source, "PYTHONIOENCODING": "utf-8", "HF_HUB_OFFLINE": "1"}
        if threads:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if spec.get("keep_memory"):
            environment |= KEEP_MEMORY
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed at exit)
        self._child = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "sides.py"), json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, encoding="utf-8",
            env=environment,
        )
        self.about: dict[str, Any] = self._answer()["ready"]

    def window(self, seconds: float) -> None:
        """Train for `seconds`, and on to the end of the step then in progress."""
        answer = self._ask({"seconds": seconds})
        self.rates.append(answer["examples"] / answer["seconds"])
        self.token_rates.append(answer["tokens"] / answer["seconds"])

    def steps(self, count: int) -> None:
        """Exactly `count` optimizer steps, untimed."""
        self._ask({"steps": count})

    def loss(self) -> float:
        """Mean validation loss now."""
        return float(self._ask({"evaluate": True})["loss"])

    def forget(self) -> None:
        """Drop what was measured so far: it was warming up."""
        self.rates.clear()
        self.token_rates.clear()

    def close(self) -> None:
        """End the child and take its peak memory."""
        if self._child.poll() is None and self.peak_memory_bytes is None:
            self.peak_memory_bytes = self._ask({"stop": True}).get("peak_memory_bytes")
            self._child.wait(timeout=60)

    def result(self) -> dict[str, Any]:
        """What there is to report of this side."""
        return {
            "examples_per_second": statistics.median(self.rates),
            "tokens_per_second": statistics.median(self.token_rates),
            "windows": [round(rate, 2) for rate in self.rates],
            "peak_memory_bytes": self.peak_memory_bytes,
            **self.about,
        }

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self._child.kill()
            self._child.communicate()
            self._log.close()

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # the child is gone; the missing answer says why
            self._child.stdin.write(json.dumps(command) + "\n")
            self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            self._log.seek(0)
            sys.exit(f"side '{self.name}' ended with {self._child.returncode}:\n{self._log.read()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def alternate(workers: list[Worker], *, seconds: float, rounds: int, warm_up: float) -> None:
    """Warm each worker up, then `rounds` rounds in which each has one window; `seconds` is a worker's total."""
    for worker in workers:
        worker.window(warm_up)
        worker.forget()
    for number in range(rounds):
        for worker in workers:
            worker.window(seconds / rounds)
        rates = "  ".join(f"{worker.name} {worker.rates[-1]:.1f}/s" for worker in workers)
        print(f"  round {number + 1} of {rounds}: {rates}", file=sys.stderr, flush=True)


def ratio(fast: Worker, slow: Worker) -> float:
    """Median over rounds of the ratio of examples per second."""
    return statistics.median(a / b for a, b in zip(fast.rates, slow.rates, strict=True))


def machine() -> dict[str, Any]:
    """What the figures were measured on, and with which versions and commit."""
    from importlib import metadata

    flags, model = "", platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() == "flags":
                flags = value
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "amx_bf16": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")},
        "commit": commit(),
    }


def commit() -> str:
    """Short hash of the checkout, with '+' where it holds changes that are not committed."""
    try:
        run = ["git", "-C", str(ROOT)]
        head = subprocess.run([*run, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*run, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if changed.strip() else "")
