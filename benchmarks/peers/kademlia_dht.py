"""bmuller/kademlia: many nodes in this process, in its own environment; methods as in `benchmarks.dht._swarm`."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.peers.asyncio_dht import AsyncioSwarm
from benchmarks.worker import answer_requests, raise_descriptors

HERE = "127.0.0.1"


class Kademlia(AsyncioSwarm):
    """Nodes that know one earlier node each."""

    def prepare(self, nodes: int) -> None:
        import kademlia.network  # noqa: F401 - the interpreter and its modules are not the nodes'

        raise_descriptors(nodes + 64)
        self.before = resident()

    async def join(self, nodes: int) -> None:
        from kademlia.network import Server

        ports: list[int] = []
        for i in range(nodes):
            node = Server()
            await node.listen(0, HERE)
            if i:
                await node.bootstrap([(HERE, ports[self.choose.randrange(i)])])
            ports.append(node.transport.get_extra_info("sockname")[1])
            self.nodes.append(node)

    async def put(self, node: Any, name: str) -> bool:
        return await node.set(name, name)

    async def find(self, node: Any, name: str) -> str:
        return await node.get(name)

    def memory(self) -> float:
        return (resident() - self.before) / 2**20


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    answer_requests(Kademlia())
