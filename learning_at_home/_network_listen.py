"""`TesseractNetwork.listen`: what a name holds, whenever that changes."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING

from learning_at_home._dispatcher import Dispatcher
from learning_at_home._network_arguments import record_name
from learning_at_home._network_calls import NetworkCalls
from learning_at_home._network_records import Values
from learning_at_home.errors import InvalidArgument, ShuttingDown

if TYPE_CHECKING:
    from learning_at_home import _core
    from learning_at_home._core import Network


class ListenCalls(NetworkCalls):
    """Listen."""

    _listeners: dict[int, Listener]

    def listen(self, name: str | bytes, callback: Callable[[Values], object]) -> Listener:
        """Tell callback(values) what a name holds, as `get` gives it: as soon as that is known, then at every change.

        Three nodes that hold the name tell of changes by themselves, so most take a round trip. A value that expires
        is a change too, one that is stored again as it was is none.

        Args:
            name: as of `store`; at most 1,024 different names and watched grids.
            callback: runs in the one thread that resolves futures, never two at a time. While one runs changes are
                gathered: the next is told the newest state. What it raises is logged.

        Returns:
            A `Listener`: ``close()`` it, or use it as ``with``, to hear no more. It ends with the network.
        """
        if not callable(callback):
            raise InvalidArgument(f"callback: expected something to call, got {callback!r}")
        return self._listen(name, callback, None)

    async def alisten(self, name: str | bytes) -> AsyncIterator[Values]:
        """`listen`, for ``async for values in network.alisten(name)``. Raises ShuttingDown as the network ends."""
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[Values | None] = asyncio.Queue()

        def tell(values: Values | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(news.put_nowait, values)

        with self._listen(name, tell, lambda: tell(None)):
            while True:
                values = await news.get()
                while not news.empty():  # the loop was busy: the newest will do
                    values = news.get_nowait()
                if values is None:
                    raise ShuttingDown("listen: the network was shut down")
                yield values

    def _listen(
        self, name: str | bytes, callback: Callable[[Values], object], ended: Callable[[], None] | None
    ) -> Listener:
        core, encoded, dispatcher = self._running, record_name(name), self._dispatching
        ticket, listener = dispatcher.listener(callback)
        try:
            core.listen(encoded, listener)
        except BaseException:
            dispatcher.forget(ticket)
            raise
        opened = self._listeners[ticket] = Listener(self, dispatcher, ticket, core, listener, ended)
        if self._core is not core:  # shut down meanwhile, perhaps by the callback
            opened.close()
        return opened

    def _end_listeners(self) -> None:
        for listener in list(self._listeners.values()):
            listener.close()


class Listener:
    """What `TesseractNetwork.listen` returns."""

    def __init__(
        self,
        network: ListenCalls,
        dispatcher: Dispatcher,
        ticket: int,
        core: Network,
        listener: _core.Listener,
        ended: Callable[[], None] | None,
    ):
        self._network, self._ticket, self._ended = weakref.ref(network), ticket, ended
        # Also when the network is collected, which holds this object and is not held by it.
        self._end = weakref.finalize(self, _end, dispatcher, ticket, core, listener)
        self._end.atexit = False

    @property
    def closed(self) -> bool:
        """Whether no callback begins any more."""
        return not self._end.alive

    def close(self) -> None:
        """Hear no more: a callback that has begun in another thread goes on to its end. Safe to call twice."""
        self._end()
        network, ended, self._ended = self._network(), self._ended, None
        if network is not None:
            network._listeners.pop(self._ticket, None)
        if ended is not None:
            ended()

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end(dispatcher: Dispatcher, ticket: int, core: Network, listener: _core.Listener) -> None:
    dispatcher.forget(ticket)
    core.stop_listening(listener)
