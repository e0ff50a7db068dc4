"""How long a command runs: until a signal, or until the process that started it is gone."""

from __future__ import annotations

import os
import select
import signal
import sys
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Lifetime:
    """Context in which SIGINT and SIGTERM ask for an orderly end; a second one ends the process at once.

    A handler only writes a byte to a pipe, so it is safe wherever the main thread happens to be, and a signal
    that comes before ``wait()`` is not lost.

    :param with_parent: also end when stdin is closed. A parent that holds the other end of a pipe thus takes
        its children with it however it dies, SIGKILL included.
    """

    def __init__(self, *, with_parent: bool = False) -> None:
        self._with_parent = with_parent
        self._wake_read, self._wake_write = os.pipe()
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def __enter__(self) -> Lifetime:
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def wait(self) -> None:
        """Block until it is time to end."""
        sources = [self._wake_read]
        if self._with_parent:
            sources.append(sys.stdin.fileno())
        while True:
            ready, _, _ = select.select(sources, [], [])
            if self._wake_read in ready or not os.read(sys.stdin.fileno(), 4096):
                return

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        os.write(self._wake_write, b"x")
