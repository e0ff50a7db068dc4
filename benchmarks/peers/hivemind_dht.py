"""hivemind's DHT: many nodes driven by this process, in its own environment; methods as in `benchmarks.dht._swarm`.

Each node has a daemon process (`p2pd`), as everywhere in hivemind.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.peers.asyncio_dht import AsyncioSwarm
from benchmarks.worker import answer_requests, raise_descriptors

# Loopback only: no port mapping, no questions to the outside about reachability.
_P2P = {"nat_port_map": False, "auto_nat": False, "host_maddrs": ["/ip4/127.0.0.1/tcp/0"]}
_EXPIRATION = 600.0


class Hivemind(AsyncioSwarm):
    """Nodes that know two earlier nodes each. The memory is that of all processes."""

    def __init__(self) -> None:
        os.environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")
        super().__init__()

    def prepare(self, nodes: int) -> None:
        import hivemind.dht.node
        import hivemind.utils  # noqa: F401

        raise_descriptors(64 * nodes)

    async def join(self, nodes: int) -> None:
        from hivemind.dht.node import DHTNode

        for i in range(nodes):
            known = self.choose.sample(self.nodes, min(i, 2))
            peers = [str(address) for node in known for address in await node.get_visible_maddrs()]
            self.nodes.append(await DHTNode.create(initial_peers=peers, **_P2P))

    async def put(self, node: Any, name: str) -> bool:
        from hivemind.utils import get_dht_time

        return await node.store(name, name, get_dht_time() + _EXPIRATION)

    async def find(self, node: Any, name: str) -> str:
        return (await node.get(name)).value

    def memory(self) -> float:
        """The proportional share of this process and all that it started."""
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
