"""hivemind's DHT: many nodes driven by this process, in its own environment; methods as in `benchmarks.dht._swarm`.

Each node has a daemon process (`p2pd`), as everywhere in hivemind.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from benchmarks.worker import answer_requests, raise_descriptors

# Loopback only: no port mapping, no questions to the outside about reachability.
_P2P = {"nat_port_map": False, "auto_nat": False, "host_maddrs": ["/ip4/127.0.0.1/tcp/0"]}
_EXPIRATION = 600.0


class Hivemind:
    """Each method is a piece of work; times are in seconds."""

    def __init__(self) -> None:
        os.environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.nodes: list[Any] = []
        self.names: list[str] = []
        self.asked = 0
        self.choose = random.Random(0)

    def start(self, nodes: int) -> dict[str, float]:
        """Nodes that know two earlier nodes each. The memory is that of all processes."""
        from hivemind.dht.node import DHTNode

        raise_descriptors(64 * nodes)
        begun = time.perf_counter()

        async def join() -> None:
            for i in range(nodes):
                known = self.choose.sample(self.nodes, min(i, 2))
                peers = [str(address) for node in known for address in await node.get_visible_maddrs()]
                self.nodes.append(await DHTNode.create(initial_peers=peers, **_P2P))

        self._run(join())
        return {"seconds": time.perf_counter() - begun, "memory": session_memory()}

    def store(self, count: int) -> list[float]:
        """Stores of new names by random nodes, one after the other."""
        return self._run(self._store(count))

    def fill(self, count: int) -> None:
        """The same."""
        self._run(self._store(count))

    def get(self, count: int) -> list[float]:
        """Gets by random nodes, one after the other; no node asks for a name twice."""

        async def ask() -> list[float]:
            times = []
            for _ in range(count):
                row, column = divmod(self.asked, len(self.names))
                self.asked += 1
                node = self.nodes[(column + 7 * row) % len(self.nodes)]
                begun = time.perf_counter()
                found = await node.get(self.names[column])
                times.append(time.perf_counter() - begun)
                assert found.value == self.names[column]
            return times

        return self._run(ask())

    def close(self) -> None:
        """End without ceremony: the process and its daemons are over."""

    async def _store(self, count: int) -> list[float]:
        from hivemind.utils import get_dht_time

        times = []
        for _ in range(count):
            node, name = self.choose.choice(self.nodes), f"name{len(self.names)}"
            begun = time.perf_counter()
            assert await node.store(name, name, get_dht_time() + _EXPIRATION)
            times.append(time.perf_counter() - begun)
            self.names.append(name)
        return times

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)


def session_memory() -> float:
    """MiB, proportional share, of this process and all that it started."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            session = (folder / "stat").read_text().rpartition(")")[2].split()[3]
            if int(session) == os.getsid(0):
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total / 1024


if __name__ == "__main__":
    answer_requests(Hivemind())
