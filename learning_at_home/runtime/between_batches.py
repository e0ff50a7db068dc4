"""Work of other threads that must not meet a running batch, such as copying an expert's weights."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from learning_at_home.errors import DeadlineExceeded

T = TypeVar("T")


class BetweenBatches:
    """Functions that the runtime thread calls between two batches; while none runs, their own threads call them.

    Args:
        wake: ends the runtime thread's wait for a batch.
    """

    def __init__(self, wake: Callable[[], None]):
        self._wake = wake
        self._lock = threading.Lock()  # also keeps a runtime thread from starting during a call without one
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._open = False

    def call(self, function: Callable[[], T], timeout: float) -> T:
        """What the function returns or raises. Raises DeadlineExceeded if it did not end in `timeout` seconds."""
        future: Future[T] = Future()
        with self._lock:
            if not self._open:
                return function()
            self._waiting.append((future, function))
        self._wake()
        if not wait([future], timeout).done:
            future.cancel()
            raise DeadlineExceeded(f"the runtime was busy for {timeout} s")
        return future.result()

    def open(self) -> None:
        """From now on the calling thread runs the functions, whenever it calls `run`."""
        with self._lock:
            self._open = True

    def run(self) -> None:
        """Run what waits."""
        while self._waiting:
            future, function = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:  # its caller's to handle
                    future.set_exception(error)

    def close(self) -> None:
        """Run what waits; from now on callers run their functions themselves."""
        with self._lock:
            self._open = False
            self.run()
