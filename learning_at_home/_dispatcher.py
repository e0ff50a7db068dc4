"""The one thread of this process that resolves futures and runs callbacks of networks.

The network thread never runs Python: it puts the ticket of an answer into a queue, and this thread does the rest. It
starts with the first call that needs it and ends with the last network that made one.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from learning_at_home.errors import ShuttingDown

if TYPE_CHECKING:
    from learning_at_home._core import Answer, AnswerQueue, Listener

S = TypeVar("S")
T = TypeVar("T")
logger = logging.getLogger(__name__)
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
        self._open: dict[int, _Open] = {}
        thread = threading.Thread(target=_run, args=(self._queue, self._open), name="lah-dispatch", daemon=True)
        thread.start()
        weakref.finalize(self, _stop, os.getpid(), self._queue, thread)

    def future(self, answer: Answer[S], convert: Callable[[S], T]) -> Future[T]:
        """A future of convert(what the answer is). Cancelling it gives up the answer, not what the network does."""
        future: Future[T] = Future()
        ticket = next(self._tickets)
        self._open[ticket] = _Expected(answer, convert, future)
        answer.forward(self._queue, ticket)
        return future

    def listener(self, callback: Callable[[Any], object]) -> tuple[int, Listener]:
        """A ticket and a `_core.Listener`: what it has to take goes to `callback`, until `forget`."""
        from learning_at_home import _core

        ticket = next(self._tickets)
        listener = _core.Listener(self._queue, ticket)
        self._open[ticket] = _Listening(listener, callback)
        return ticket, listener

    def forget(self, ticket: int) -> None:
        """No callback of this listener begins any more."""
        self._open.pop(ticket, None)


class _Open(Protocol):
    """What a ticket stands for."""

    @property
    def late(self) -> bool: ...
    def resolve(self) -> bool: ...  # whether the ticket has served its time
    def give_up(self) -> None: ...


class _Expected:
    """An answer, and the future that waits for it."""

    def __init__(self, answer: Answer[Any], convert: Callable[[Any], Any], future: Future[Any]):
        self.answer, self.convert, self.future = answer, convert, future

    @property
    def late(self) -> bool:
        return bool(self.answer.late)

    def resolve(self) -> bool:
        if not self.future.set_running_or_notify_cancel():
            return True
        try:
            result = self.convert(self.answer.value())
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
        return True

    def give_up(self) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(ShuttingDown("the network was shut down"))


class _Listening:
    """A listener, and who is told."""

    late = False

    def __init__(self, listener: Listener, callback: Callable[[Any], object]):
        self.listener, self.callback = listener, callback

    def resolve(self) -> bool:
        values = self.listener.take()
        if values is not None:
            try:
                self.callback(values)
            except BaseException:  # nobody else could be told
                logger.exception("a callback of TesseractNetwork.listen raised")
        return False

    def give_up(self) -> None:
        """Nobody waits for anything."""


def _run(queue: AnswerQueue, opened: dict[int, _Open]) -> None:
    while True:
        tickets = queue.wait(_LOOK)
        if tickets is None:
            break
        if not tickets:  # time to look for those that the network thread forgot
            tickets = [ticket for ticket, each in list(opened.items()) if each.late]
        for ticket in tickets:
            _resolve(opened, ticket)
    for ticket in list(opened):
        opened.pop(ticket).give_up()


def _resolve(opened: dict[int, _Open], ticket: int) -> None:
    # A function of its own: while the thread waits, it holds on to nobody's callback.
    each = opened.get(ticket)
    if each is not None and each.resolve():
        opened.pop(ticket, None)


def _stop(owner: int, queue: AnswerQueue, thread: threading.Thread) -> None:
    if os.getpid() != owner:
        return  # a forked child: the thread is the parent's
    queue.close()
    if threading.current_thread() is not thread:
        thread.join(_STOP_TIMEOUT)
