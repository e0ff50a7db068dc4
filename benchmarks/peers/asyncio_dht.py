"""What DHTs on asyncio share: many nodes in one event loop, asked one call after the other."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

STORE_ATTEMPTS = 3


class AsyncioSwarm(ABC):
    """Methods as in `benchmarks.dht._swarm`: each is a piece of work; times are in seconds."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.nodes: list[Any] = []
        self.names: list[str] = []
        self.asked = 0
        self.choose = random.Random(0)

    def start(self, nodes: int) -> dict[str, float]:
        """Start nodes that join through earlier ones. The memory is in MiB."""
        self.prepare(nodes)
        begun = time.perf_counter()
        self._run(self.join(nodes))
        return {"seconds": time.perf_counter() - begun, "memory": self.memory()}

    def store(self, count: int) -> list[float]:
        """Stores of new names by random nodes, one after the other."""
        return self._run(self._store(count))

    def fill(self, count: int) -> None:
        """The same: it keeps up with no more."""
        self._run(self._store(count))

    def get(self, count: int) -> list[float]:
        """Gets by many nodes, one after the other; no node asks for a name twice."""
        return self._run(self._get(count))

    def close(self) -> None:  # noqa: B027 - without ceremony: the process is over, and so are its daemons
        """End."""

    @abstractmethod
    def prepare(self, nodes: int) -> None:
        """Whatever is not to be timed."""

    @abstractmethod
    async def join(self, nodes: int) -> None:
        """Fill `nodes`."""

    @abstractmethod
    async def put(self, node: Any, name: str) -> bool:
        """Let a node store a name under itself."""

    @abstractmethod
    async def find(self, node: Any, name: str) -> str:
        """What a node finds there."""

    @abstractmethod
    def memory(self) -> float:
        """MiB in use."""

    async def _store(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            node, name = self.choose.choice(self.nodes), f"name{len(self.names)}"
            begun = time.perf_counter()
            for _ in range(STORE_ATTEMPTS):  # in larger swarms some fail; the time of all counts
                if await self.put(node, name):
                    break
            else:
                raise RuntimeError(f"{name} was refused {STORE_ATTEMPTS} times")
            times.append(time.perf_counter() - begun)
            self.names.append(name)
        return times

    async def _get(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            row, column = divmod(self.asked, len(self.names))
            self.asked += 1
            node = self.nodes[(column + 7 * row) % len(self.nodes)]
            begun = time.perf_counter()
            found = await self.find(node, self.names[column])
            times.append(time.perf_counter() - begun)
            assert found == self.names[column]
        return times

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)
