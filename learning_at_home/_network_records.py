"""`TesseractNetwork`'s records: small signed values under names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Literal, TypeAlias, overload

from learning_at_home._network_arguments import record_name
from learning_at_home._network_calls import TIMEOUT, NetworkCalls, awaited
from learning_at_home.errors import InvalidArgument

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
    def store_many(
        self,
        values: Mapping[str | bytes, bytes],
        expiration: float = ...,
        timeout: float = ...,
        *,
        return_future: Literal[False] = ...,
    ) -> dict[str | bytes, int]: ...
    @overload
    def store_many(
        self,
        values: Mapping[str | bytes, bytes],
        expiration: float = ...,
        timeout: float = ...,
        *,
        return_future: Literal[True],
    ) -> Future[dict[str | bytes, int]]: ...
    def store_many(
        self,
        values: Mapping[str | bytes, bytes],
        expiration: float = 60.0,
        timeout: float = TIMEOUT,
        *,
        return_future: bool = False,
    ) -> dict[str | bytes, int] | Future[dict[str | bytes, int]]:
        """`store` of each {name: value}, at most 16,384, in fewer packets. Returns {name: copies}."""
        if not isinstance(values, Mapping):
            raise InvalidArgument(f"values: expected {{name: value}}, got {type(values).__name__}")
        names = list(values)
        pairs = [(record_name(name), values[name]) for name in names]
        answer = self._running.store_many(pairs, expiration, timeout)
        return self._result(answer, lambda copies: dict(zip(names, copies, strict=True)), return_future)

    async def astore_many(
        self, values: Mapping[str | bytes, bytes], expiration: float = 60.0, timeout: float = TIMEOUT
    ) -> dict[str | bytes, int]:
        """`store_many`, to await."""
        return await awaited(self.store_many(values, expiration, timeout, return_future=True))

    @overload
    def get(
        self,
        name: str | bytes,
        timeout: float = ...,
        *,
        consistency: Consistency = ...,
        max_age: float = ...,
        return_future: Literal[False] = ...,
    ) -> Values: ...
    @overload
    def get(
        self,
        name: str | bytes,
        timeout: float = ...,
        *,
        consistency: Consistency = ...,
        max_age: float = ...,
        return_future: Literal[True],
    ) -> Future[Values]: ...
    def get(
        self,
        name: str | bytes,
        timeout: float = TIMEOUT,
        *,
        consistency: Consistency = "first",
        max_age: float = 0.0,
        return_future: bool = False,
    ) -> Values | Future[Values]:
        """The live values under a name, as (owner's public key, value), newest first.

        Args:
            name: 1 to 1,024 bytes, or characters.
            timeout: seconds; what was found until then is returned.
            consistency: when that is enough. "first": one of the nodes that hold the name has told all it has; it may
                have missed what was stored while it was away. "quorum": three have told the same. "all": every one
                that answers has told.
            max_age: seconds; what an earlier get with a `max_age` found will do if it is no older, without a packet.
                That nothing was found is remembered for 5 s at most.
        """
        answer = self._running.get(record_name(name), consistency, max_age, timeout)
        return self._result(answer, list, return_future)

    async def aget(
        self,
        name: str | bytes,
        timeout: float = TIMEOUT,
        *,
        consistency: Consistency = "first",
        max_age: float = 0.0,
    ) -> Values:
        """`get`, to await."""
        return await awaited(self.get(name, timeout, consistency=consistency, max_age=max_age, return_future=True))

    @overload
    def get_many(
        self,
        names: Iterable[str | bytes],
        timeout: float = ...,
        *,
        consistency: Consistency = ...,
        max_age: float = ...,
        return_future: Literal[False] = ...,
    ) -> dict[str | bytes, Values]: ...
    @overload
    def get_many(
        self,
        names: Iterable[str | bytes],
        timeout: float = ...,
        *,
        consistency: Consistency = ...,
        max_age: float = ...,
        return_future: Literal[True],
    ) -> Future[dict[str | bytes, Values]]: ...
    def get_many(
        self,
        names: Iterable[str | bytes],
        timeout: float = TIMEOUT,
        *,
        consistency: Consistency = "first",
        max_age: float = 0.0,
        return_future: bool = False,
    ) -> dict[str | bytes, Values] | Future[dict[str | bytes, Values]]:
        """`get` of each name, at most 16,384, in fewer packets. Returns {name: values}."""
        if isinstance(names, (str, bytes)):
            raise InvalidArgument(f"names: expected several names, got {names!r}")
        listed = list(dict.fromkeys(names))
        answer = self._running.get_many([record_name(name) for name in listed], consistency, max_age, timeout)
        return self._result(answer, lambda found: dict(zip(listed, found, strict=True)), return_future)

    async def aget_many(
        self,
        names: Iterable[str | bytes],
        timeout: float = TIMEOUT,
        *,
        consistency: Consistency = "first",
        max_age: float = 0.0,
    ) -> dict[str | bytes, Values]:
        """`get_many`, to await."""
        return await awaited(
            self.get_many(names, timeout, consistency=consistency, max_age=max_age, return_future=True)
        )
