"""Our side of the DHT's comparisons: many nodes in this process. Times are in seconds."""

from __future__ import annotations

import gc
import os
import random
import time
from typing import Any

from benchmarks.worker import answer_requests, raise_descriptors

HERE = "127.0.0.1"
PATIENCE = 60.0


class Swarm:
    """Each method is a piece of work that a benchmark asks for."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.names: list[str] = []
        self.asked = 0
        self.trainer: Any = None
        self.server: Any = None
        self.choose = random.Random(0)

    def pin(self, core: int) -> None:
        """Run everything that starts from now on, and this thread, on one core."""
        os.sched_setaffinity(0, {core})

    def start(self, nodes: int) -> dict[str, float]:
        """Nodes that know one earlier node each. Returns seconds until all are in, and MiB beyond the interpreter."""
        import learning_at_home as lib

        raise_descriptors(nodes + 64)
        gc.collect()
        before = resident()
        begun = time.perf_counter()
        for i in range(nodes):
            peers = [(HERE, self.nodes[self.choose.randrange(i)].port)] if i else []
            self.nodes.append(lib.TesseractNetwork(*peers, port=0, host=HERE, start=True))
        joining = [node.wait_ready(PATIENCE, return_future=True) for node in self.nodes]
        ready = all(future.result() for future in joining)
        seconds = time.perf_counter() - begun
        assert ready, "a node did not join"
        return {"seconds": seconds, "memory": (resident() - before) / 2**20}

    def store(self, count: int) -> list[float]:
        """Stores of new names by random nodes, one after the other."""
        times = []
        for _ in range(count):
            node, name = self.choose.choice(self.nodes), f"name{len(self.names)}"
            begun = time.perf_counter()
            node.store(name, name.encode(), expiration=600.0)
            times.append(time.perf_counter() - begun)
            self.names.append(name)
        return times

    def fill(self, count: int) -> None:
        """Store names by random nodes, some at a time."""
        for _ in range(0, count, 64):
            some = [f"name{len(self.names) + i}" for i in range(64)]
            stores = [
                self.choose.choice(self.nodes).store(name, name.encode(), 600.0, PATIENCE, return_future=True)
                for name in some
            ]
            for future in stores:
                future.result()
            self.names += some

    def get(self, count: int) -> list[float]:
        """Gets by random nodes, one after the other; no node asks for a name twice."""
        times = []
        for node, name in self._questions(count):
            begun = time.perf_counter()
            ((_, value),) = node.get(name)
            times.append(time.perf_counter() - begun)
            assert value == name.encode()
        return times

    def get_awaited(self, count: int) -> list[float]:
        """The same, awaited in an event loop."""
        import asyncio

        async def ask() -> list[float]:
            times = []
            for node, name in self._questions(count):
                begun = time.perf_counter()
                ((_, value),) = await node.aget(name)
                times.append(time.perf_counter() - begun)
                assert value == name.encode()
            return times

        return asyncio.run(ask())

    def gets_at_once(self, count: int, at_once: int) -> dict[str, float]:
        """Gets by random nodes, so many open at a time. Returns seconds, and packets and failures of all nodes."""
        questions = self._questions(count)
        packets, failed = self._total("packets_out"), self._total("requests_failed")
        open_gets: list[Any] = []
        begun, cpu = time.perf_counter(), time.process_time()
        for node, name in questions:
            if len(open_gets) == at_once:
                assert open_gets.pop(0).result()
            open_gets.append(node.get(name, return_future=True))
        assert all(future.result() for future in open_gets)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        return {
            "seconds": seconds,
            "cpu": cpu,
            "packets": self._total("packets_out") - packets,
            "failed": self._total("requests_failed") - failed,
        }

    def serve_and_watch(self, grid: list[int], experts: int, expiration: float = 60.0) -> float:
        """The first node declares experts, a client node watches them. Returns seconds until it sees all."""
        import math

        import learning_at_home as lib
        from learning_at_home.nn.local_mixture import uid_of

        uids = [uid_of(i * (math.prod(grid) // experts), grid, "ffn") for i in range(experts)]
        self.server = lib.TesseractNetwork((HERE, self.nodes[0].port), port=0, host=HERE, start=True)
        self.trainer = lib.TesseractNetwork(
            (HERE, self.nodes[-1].port), port=0, host=HERE, client_mode=True, start=True
        )
        begun = time.perf_counter()
        self.trainer.watch("ffn", grid)
        self.server.declare_experts(uids, HERE, 4000, expiration=expiration, update_period=expiration / 3)
        while len(self.trainer.alive("ffn", grid)[1]) < experts:
            if time.perf_counter() - begun > PATIENCE:
                raise RuntimeError(f"of {experts} experts the trainer sees {len(self.trainer.alive('ffn', grid)[1])}")
            time.sleep(0.001)
        return time.perf_counter() - begun

    def traffic(self, seconds: float) -> dict[str, float]:
        """Bytes a second, headers included, that the client node, the server and a bystander move both ways."""
        asked = {"client": self.trainer, "server": self.server, "bystander": self.nodes[len(self.nodes) // 2]}
        before = {name: moved(node) for name, node in asked.items()}
        begun = time.perf_counter()
        time.sleep(seconds)
        passed = time.perf_counter() - begun
        return {name: (moved(node) - before[name]) / passed for name, node in asked.items()}

    def choices(self, grid: list[int], batch: int, k: int, count: int) -> dict[str, Any]:
        """Seconds to choose the best k experts of a batch, each time, and packets that a choice waited for."""
        import torch

        import learning_at_home as lib

        gate = lib.GatingFunction(in_features=64, grid_size=grid, network=self.trainer, k_best=k, uid_prefix="ffn")
        x = torch.randn(batch, 64)
        times = []
        packets = 0
        with torch.no_grad():
            gate._choose(x)
            for _ in range(count):
                operations = self.trainer.status()["operations"]
                begun = time.perf_counter()
                chosen = gate._choose(x)
                times.append(time.perf_counter() - begun)
                packets += max(0, self.trainer.status()["operations"] - operations)
                assert (chosen.route.index >= 0).all()
        return {"times": times, "operations": packets}

    def close(self) -> None:
        """End without ceremony: the process is over."""

    def _questions(self, count: int) -> list[tuple[Any, str]]:
        """Pairs of a node and a name, none of which was returned before."""
        pairs = []
        for _ in range(count):
            row, column = divmod(self.asked, len(self.names))
            assert row < len(self.nodes), "store more names first"
            pairs.append((self.nodes[(column + 7 * row) % len(self.nodes)], self.names[column]))
            self.asked += 1
        self.choose.shuffle(pairs)
        return pairs

    def _total(self, key: str) -> float:
        return sum(node.status()[key] for node in self.nodes)


def moved(node: Any) -> int:
    """Bytes both ways; 28 of each packet are IP's and UDP's."""
    status = node.status()
    return status["bytes_in"] + status["bytes_out"] + 28 * (status["packets_in"] + status["packets_out"])


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    answer_requests(Swarm())
