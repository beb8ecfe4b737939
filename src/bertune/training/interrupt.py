"""Ctrl-C at a safe place: the signal is noted, and the work asks for it where its state is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Stopped(Exception):
    """The user asked to stop; raised at a safe place only."""


class Interrupts:
    """`with Interrupts() as stop:` turns the first Ctrl-C (or SIGTERM) into a request; a second one acts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        """Raise `Stopped` where a stop was asked for."""
        if self.asked:
            raise Stopped
