"""Jobs one after another, or beside each other, each in a process of its own: for machines that one does not fill.

A process ends with this one, however that comes about, and is asked to stop by a signal, on which a training writes a
checkpoint. Errors come back as those of bertune that they were. A training that diverges costs the others nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from bertune.errors import BertuneError, InputError, Interrupted, TrainingError
from bertune.files import is_disk_full
from bertune.training.listen import Listener, Silent
from bertune.training.loop import Diverged

PRELOADED = ["bertune.training.multitask", "bertune.training.pretrain"]  # which hold nearly all that a job imports
_KINDS: dict[str, type[BertuneError]] = {
    kind.__name__: kind for kind in (Diverged, TrainingError, InputError, Interrupted)
}  # the more special before the more general


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


@dataclass
class Ended:
    """How jobs ended. left: those that were not begun, since it was late or what they need diverged; lost: what is said
    of those that diverged."""

    left: list[Job]
    lost: list[str]


def run_in_order(jobs: list[Job], *, late: Callable[[], bool], listener: Listener) -> Ended:
    """Do one after the other in this process."""
    ended, done = Ended([], []), set[str]()
    for place, job in enumerate(jobs):
        if late():
            ended.left += jobs[place:]
            break
        if not done.issuperset(job.needs):
            ended.left.append(job)
            continue
        try:
            job.prepare()(listener=listener)
            done.add(job.name)
        except Diverged as error:
            ended.lost.append(f"{job.name}: {error}")
    return ended


def run_beside(jobs: list[Job], *, at_once: int, late: Callable[[], bool]) -> Ended:
    """Do up to `at_once` jobs at a time. Raises what a job raises, once the others have been stopped."""
    ended, done = Ended(list(jobs), []), set[str]()
    running: list[_Running] = []
    context = _context()
    with _terminated_as_interrupted():
        try:
            while ended.left or running:
                job = _next(ended.left, done) if len(running) < at_once and not late() else None
                if job is not None:
                    ended.left.remove(job)
                    running.append(_Running(job, context))
                    running[-1].process.start()
                    running[-1].sender.close()
                elif running:
                    ready = wait([end for one in running for end in (one.process.sentinel, one.answer)])
                    for one in [one for one in running if one.process.sentinel in ready or one.answer in ready]:
                        running.remove(one)
                        try:
                            one.check()
                            done.add(one.job.name)
                        except Diverged as error:
                            ended.lost.append(str(error))
                else:
                    break
        finally:
            _stop([one.process for one in running if one.process.pid is not None])
    return ended


def _next(waiting: list[Job], done: set[str]) -> Job | None:
    return next((job for job in waiting if done.issuperset(job.needs)), None)


def _stop(processes: list[Any]) -> None:
    """Ask them to stop, and wait for it. Whoever presses Ctrl-C meanwhile has them stop at once: a second signal does
    not wait for a safe place, and a third waits for nothing."""
    for process in processes:
        process.terminate()
    for more in ("terminate", "kill"):
        try:
            for process in processes:
                process.join()
            return
        except KeyboardInterrupt:
            for process in processes:
                getattr(process, more)()
    for process in processes:
        process.join()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, by which schedulers and containers stop a program, does here what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _context() -> Any:
    """How processes begin: as copies of one that has imported what they need, where the system has that; never as
    copies of this one, where threads are at work."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for this process
        try:
            forkserver.ensure_running()
        except OSError:  # such as a name for its socket that is too long
            pass
        else:
            return context
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("spawn")


class _Running:
    """A job and its process."""

    def __init__(self, job: Job, context: Any) -> None:
        self.job = job
        self.answer, self.sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(job.prepare(), self.sender), name=job.name)

    def check(self) -> None:
        """Raise what the process raised."""
        try:
            kind, said = self.answer.recv()  # before it has ended: what a pipe does not hold is waited for
        except (EOFError, OSError):  # it had nothing to say: it is done, or something ended it
            self.process.join()
            if self.process.exitcode == 0:
                return
            raise TrainingError(
                f"{self.job.name}: its process was ended from outside (code {self.process.exitcode}), as it is where "
                "memory runs out. What is done is kept; run the same command again, with fewer --jobs."
            ) from None
        if kind is None:
            raise RuntimeError(f"{self.job.name}:\n{said}")
        raise _KINDS[kind](f"{self.job.name}: {said}")


def _work(work: Work, sender: Connection) -> None:
    """The life of a process."""
    _end_with_parent()
    answer: tuple[str | None, str] | None = None
    try:
        work(listener=Silent())
    except BertuneError as error:
        answer = next(name for name, kind in _KINDS.items() if isinstance(error, kind)), str(error)
    except KeyboardInterrupt:
        answer = Interrupted.__name__, "stopped."
    except OSError as error:
        answer = TrainingError.__name__, "the disk is full." if is_disk_full(error) else str(error)
    except BaseException:  # noqa: BLE001  # the parent raises it
        answer = None, traceback.format_exc()
    if answer is not None:
        with suppress(OSError):  # where the parent is gone
            sender.send(answer)


def _end_with_parent() -> None:
    """Hear of Ctrl-C from the parent alone, which passes it on, and stop when the parent is gone."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
