"""Jobs beside each other, each in a process of its own: for machines that one training does not fill.

A process ends with this one, however that comes about, and is asked to stop by a signal, on which a training writes a
checkpoint. Errors come back as those of bertune that they were.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Protocol

from bertune.errors import BertuneError, InputError, Interrupted, TrainingError
from bertune.training.listen import Listener, Silent

PRELOADED = ["bertune.training.multitask", "bertune.training.pretrain"]  # which hold nearly all that a job imports


class Work(Protocol):
    """What a process does; it has to be picklable."""

    def __call__(self, *, listener: Listener) -> object: ...


@dataclass(frozen=True)
class Job:
    """needs: the names of jobs that come before it; prepare: what is done here, before the rest may go to another
    process; left: what it counts for where it was not begun."""

    name: str
    needs: tuple[str, ...]
    prepare: Callable[[], Work]
    left: int = 1


def run_in_order(jobs: list[Job], *, late: Callable[[], bool], listener: Listener) -> list[Job]:
    """Do one after the other in this process; those that were not begun, since it was late."""
    for place, job in enumerate(jobs):
        if late():
            return jobs[place:]
        job.prepare()(listener=listener)
    return []


def run_beside(jobs: list[Job], *, at_once: int, late: Callable[[], bool]) -> list[Job]:
    """Do up to `at_once` jobs at a time; those that were not begun, since it was late.

    Raises what a job raises, once the others have been stopped.
    """
    waiting, done = list(jobs), set[str]()
    running: list[_Running] = []
    try:
        while waiting or running:
            job = _next(waiting, done) if len(running) < at_once and not late() else None
            if job is not None:
                waiting.remove(job)
                running.append(_Running(job))
            elif running:
                wait([ready for one in running for ready in (one.process.sentinel, one.answer)])
                for one in [one for one in running if one.answer.poll() or not one.process.is_alive()]:
                    running.remove(one)
                    one.check()
                    done.add(one.job.name)
            else:
                break
        return waiting
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.join()


def _next(waiting: list[Job], done: Collection[str]) -> Job | None:
    return next((job for job in waiting if all(name in done for name in job.needs)), None)


class _Running:
    """A job and its process."""

    def __init__(self, job: Job) -> None:
        quick = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if quick else "spawn")  # never fork: threads are at work
        if quick:
            context.set_forkserver_preload(PRELOADED)
        self.job = job
        self.answer, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(job.prepare(), sender), name=job.name)  # type: ignore[attr-defined]
        self.process.start()
        sender.close()

    def check(self) -> None:
        """Raise what the ended process raised."""
        try:
            code, said = self.answer.recv()  # before it has ended: what a pipe does not hold is waited for
        except EOFError:  # it had nothing to say: it is done, or something ended it
            self.process.join()
            if self.process.exitcode == 0:
                return
            raise TrainingError(
                f"{self.job.name}: its process was ended from outside (code {self.process.exitcode}), as it is where "
                "memory runs out. What is done is kept; run the same command again, with fewer --jobs."
            ) from None
        if code is None:
            raise RuntimeError(f"{self.job.name}:\n{said}")
        kinds = {kind.exit_code: kind for kind in (TrainingError, InputError, Interrupted)}
        raise kinds[code](f"{self.job.name}: {said}")


def _work(work: Work, sender: Connection) -> None:
    """The life of a process."""
    _end_with_parent()
    try:
        work(listener=Silent())
    except BertuneError as error:
        sender.send((error.exit_code, str(error)))
    except BaseException:  # noqa: BLE001  # the parent raises it
        sender.send((None, traceback.format_exc()))


def _end_with_parent() -> None:
    """Hear of Ctrl-C from the parent alone, which passes it on once, and stop when the parent is gone."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
