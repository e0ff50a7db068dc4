"""The one thread of this process that resolves futures and runs callbacks of networks.

The network thread never runs Python: it puts the ticket of an answer into a queue, and this thread does the rest. It
starts with the first call that needs it and ends with the last network that made one.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from learning_at_home.errors import ShuttingDown

T = TypeVar("T")
_LOOK = 1.0  # seconds between looks for answers that the network thread owes
_STOP_TIMEOUT = 5.0  # seconds that the end waits for a callback

_lock = threading.Lock()
_current: tuple[int, weakref.ref[Dispatcher]] | None = None  # process id and dispatcher; never keeps it alive


def get_dispatcher() -> Dispatcher:
    """Return this process's dispatcher, starting it if there is none. Hold the result to keep it running."""
    global _current  # noqa: PLW0603 - one thread per process is the point
    with _lock:
        dispatcher = _current[1]() if _current is not None and _current[0] == os.getpid() else None
        if dispatcher is None:
            dispatcher = Dispatcher()
            _current = (os.getpid(), weakref.ref(dispatcher))
        return dispatcher


class Dispatcher:
    """Use `get_dispatcher`."""

    def __init__(self) -> None:
        from learning_at_home import _core

        self._queue = _core.AnswerQueue()
        self._tickets = itertools.count(1)
        self._open: dict[int, _Expected] = {}
        thread = threading.Thread(target=_run, args=(self._queue, self._open), name="lah-dispatch", daemon=True)
        thread.start()
        weakref.finalize(self, _stop, os.getpid(), self._queue, thread)

    def future(self, answer: Any, convert: Callable[[Any], T]) -> Future[T]:
        """A future of convert(what the answer is). Cancelling it gives up the answer, not what the network does."""
        future: Future[T] = Future()
        ticket = next(self._tickets)
        self._open[ticket] = _Expected(answer, convert, future)
        answer.forward(self._queue, ticket)
        return future


class _Expected:
    """An answer, and the future that waits for it."""

    def __init__(self, answer: Any, convert: Callable[[Any], Any], future: Future[Any]):
        self.answer, self.convert, self.future = answer, convert, future

    def resolve(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.convert(self.answer.value())
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def give_up(self) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(ShuttingDown("the network was shut down"))


def _run(queue: Any, expected: dict[int, _Expected]) -> None:
    while True:
        tickets = queue.wait(_LOOK)
        if tickets is None:
            break
        if not tickets:  # time to look for those that the network thread forgot
            tickets = [ticket for ticket, each in list(expected.items()) if each.answer.late]
        for ticket in tickets:
            answered = expected.pop(ticket, None)
            if answered is not None:
                answered.resolve()
    for ticket in list(expected):
        expected.pop(ticket).give_up()


def _stop(owner: int, queue: Any, thread: threading.Thread) -> None:
    if os.getpid() != owner:
        return  # a forked child: the thread is the parent's
    queue.close()
    if threading.current_thread() is not thread:
        thread.join(_STOP_TIMEOUT)
