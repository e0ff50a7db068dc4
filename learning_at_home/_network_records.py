"""`TesseractNetwork`'s records: small signed values under names."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Literal, TypeAlias, overload

from learning_at_home._network_arguments import record_name
from learning_at_home._network_calls import TIMEOUT, NetworkCalls, awaited

Consistency: TypeAlias = Literal["first", "quorum", "all"]
Values: TypeAlias = list[tuple[bytes, bytes]]  # owner's public key and value, newest first


class RecordCalls(NetworkCalls):
    """Store and get."""

    @overload
    def store(
        self,
        name: str | bytes,
        value: bytes,
        expiration: float = ...,
        timeout: float = ...,
        *,
        return_future: Literal[False] = ...,
    ) -> int: ...
    @overload
    def store(
        self,
        name: str | bytes,
        value: bytes,
        expiration: float = ...,
        timeout: float = ...,
        *,
        return_future: Literal[True],
    ) -> Future[int]: ...
    def store(
        self,
        name: str | bytes,
        value: bytes,
        expiration: float = 60.0,
        timeout: float = TIMEOUT,
        *,
        return_future: bool = False,
    ) -> int | Future[int]:
        """Store 1 to 750 bytes under a name, signed by this node, for `expiration` seconds (at most 600).

        A later value replaces this node's earlier one; other nodes keep theirs. Returns the number of copies.
        """
        return self._result(self._running.store(record_name(name), value, expiration, timeout), int, return_future)

    async def astore(self, name: str | bytes, value: bytes, expiration: float = 60.0, timeout: float = TIMEOUT) -> int:
        """`store`, to await."""
        return await awaited(self.store(name, value, expiration, timeout, return_future=True))

    @overload
    def get(
        self,
        name: str | bytes,
        timeout: float = ...,
        *,
        consistency: Consistency = ...,
        return_future: Literal[False] = ...,
    ) -> Values: ...
    @overload
    def get(
        self,
        name: str | bytes,
        timeout: float = ...,
        *,
        consistency: Consistency = ...,
        return_future: Literal[True],
    ) -> Future[Values]: ...
    def get(
        self,
        name: str | bytes,
        timeout: float = TIMEOUT,
        *,
        consistency: Consistency = "first",
        return_future: bool = False,
    ) -> Values | Future[Values]:
        """The live values under a name, as (owner's public key, value), newest first.

        Args:
            name: 1 to 1,024 bytes, or characters.
            timeout: seconds; what was found until then is returned.
            consistency: when that is enough. "first": one of the nodes that hold the name has told all it has; it may
                have missed what was stored while it was away. "quorum": three have told the same. "all": every one
                that answers has told.
        """
        return self._result(self._running.get(record_name(name), consistency, timeout), list, return_future)

    async def aget(self, name: str | bytes, timeout: float = TIMEOUT, *, consistency: Consistency = "first") -> Values:
        """`get`, to await."""
        return await awaited(self.get(name, timeout, consistency=consistency, return_future=True))
