"""bmuller/kademlia: many nodes in this process, in its own environment; methods as in `benchmarks.dht._swarm`."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Coroutine
from typing import Any

from benchmarks.worker import answer_requests, raise_descriptors

HERE = "127.0.0.1"


class Kademlia:
    """Each method is a piece of work; times are in seconds."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.nodes: list[Any] = []
        self.names: list[str] = []
        self.asked = 0
        self.choose = random.Random(0)

    def start(self, nodes: int) -> dict[str, float]:
        """Nodes that know one earlier node each."""
        from kademlia.network import Server

        raise_descriptors(nodes + 64)
        before = resident()
        begun = time.perf_counter()

        async def join() -> None:
            ports: list[int] = []
            for i in range(nodes):
                node = Server()
                await node.listen(0, HERE)
                if i:
                    await node.bootstrap([(HERE, ports[self.choose.randrange(i)])])
                ports.append(node.transport.get_extra_info("sockname")[1])
                self.nodes.append(node)

        self._run(join())
        return {"seconds": time.perf_counter() - begun, "memory": (resident() - before) / 2**20}

    def store(self, count: int) -> list[float]:
        """Stores of new names by random nodes, one after the other."""
        return self._run(self._store(count))

    def fill(self, count: int) -> None:
        """The same; it keeps up with no more."""
        self._run(self._store(count))

    def get(self, count: int) -> list[float]:
        """Gets by random nodes, one after the other."""

        async def ask() -> list[float]:
            times = []
            for _ in range(count):
                name = self.names[self.asked % len(self.names)]
                self.asked += 1
                node = self.choose.choice(self.nodes)
                begun = time.perf_counter()
                value = await node.get(name)
                times.append(time.perf_counter() - begun)
                assert value == name
            return times

        return self._run(ask())

    def close(self) -> None:
        """End without ceremony: the process is over."""

    async def _store(self, count: int) -> list[float]:
        times = []
        for _ in range(count):
            node, name = self.choose.choice(self.nodes), f"name{len(self.names)}"
            begun = time.perf_counter()
            assert await node.set(name, name)
            times.append(time.perf_counter() - begun)
            self.names.append(name)
        return times

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    answer_requests(Kademlia())
