"""What the groups of calls of `TesseractNetwork` share: the running node, and the three forms of a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from learning_at_home._dispatcher import Dispatcher, get_dispatcher

if TYPE_CHECKING:
    from learning_at_home._core import Answer, Network

S = TypeVar("S")
T = TypeVar("T")

TIMEOUT = 10.0  # seconds a lookup or store may take; it ends as soon as it has its answers


class NetworkCalls:
    """Base of the groups of calls. Each waiting call ``x`` has three forms: see `TesseractNetwork`."""

    _core: Network | None
    _closed: bool
    _dispatcher: Dispatcher | None

    @property
    def _running(self) -> Network:
        if self._core is None:
            if self._closed:
                raise RuntimeError("this TesseractNetwork was shut down")
            raise RuntimeError("this TesseractNetwork is not started: call start() or use `with network:`")
        return self._core

    def _result(self, answer: Answer[S], convert: Callable[[S], T], return_future: bool) -> T | Future[T]:
        """convert(what the answer is), awaited here or by the dispatcher."""
        return self._dispatching.future(answer, convert) if return_future else convert(answer.wait())

    @property
    def _dispatching(self) -> Dispatcher:
        if self._dispatcher is None:
            self._dispatcher = get_dispatcher()
        return self._dispatcher


async def awaited(future: Future[T]) -> T:
    """The result of a future in the running event loop; a cancelled task cancels the future."""
    return await asyncio.wrap_future(future)
