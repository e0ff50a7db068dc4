"""Our side of the comparisons, as a server or as a client of one."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.worker import answer_requests


class Ours:
    """Each method is a piece of work that the benchmark asks for; times are in seconds."""

    def __init__(self) -> None:
        self.expert: Any = None
        self.gate: Any = None
        self.server: Any = None
        self.coded: dict[str, Any] = {}  # the first expert once for each codec
        self.batches: list[tuple[int, int, bool]] = []
        self.backends: dict[str, Any] = {}
        self.experts: dict[str, Any] = {}

    def serve(
        self,
        experts: list[str],
        hidden: int,
        kind: str = "nop",
        torch_threads: int = 1,
        max_batch_size: int = 8192,
        network: bool = False,
        insecure: bool = False,
        handlers: int | None = None,
        host: str = "127.0.0.1",
    ) -> dict[str, Any]:
        """Serve experts; returns where, and how long the server took once its parts were imported.

        handlers: processes of the peers; here one thread serves every connection.
        """
        import torch

        import learning_at_home as lib
        from benchmarks.experts import EXPERTS

        if torch_threads:
            torch.set_num_threads(torch_threads)
        begun = time.perf_counter()
        rows = lib.BatchTensorProto(hidden)
        self.hidden = hidden
        backends = self.backends = {}
        for i, uid in enumerate(experts):
            module = EXPERTS[kind](hidden)
            module.register_forward_pre_hook(
                lambda _, x, i=i: self.batches.append((i, len(x[0]), torch.is_grad_enabled()))
            )
            optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
            backends[uid] = lib.ExpertBackend(
                uid,
                module,
                optimizer,
                args_schema=(rows,),
                outputs_schema=rows,
                max_batch_size=max_batch_size,
            )
        node = lib.TesseractNetwork(port=0, host="127.0.0.1", start=True) if network else None
        self.server = lib.TesseractServer(node, backends, addr=host, port=0, insecure=insecure)
        self.server.start(block=False)
        return {
            "host": host,
            "port": self.server.port,
            "network": node.port if node is not None else None,
            "uid": experts[0],
            "uids": experts,
            "insecure": insecure,
            "ready": time.perf_counter() - begun,
        }

    def close(self) -> None:
        """End the server in good order."""
        if self.server is not None:
            self.server.shutdown(timeout=2.0)

    def connect(self, address: dict[str, Any], hidden: int) -> None:
        """Reach the first expert."""
        import torch

        import learning_at_home as lib

        torch.set_num_threads(1)
        self.address, self.hidden = address, hidden
        self.expert = lib.RemoteExpert(address["uid"], address["host"], address["port"], insecure=address["insecure"])
        self.calls(5, same=False)

    def calls(self, count: int, rows: int = 1, same: bool = True) -> list[float]:
        """Forward calls, one after the other. same: the expert returns what it gets."""
        import torch

        x = torch.randn(rows, self.hidden)
        times = []
        with torch.no_grad():
            for _ in range(count):
                begun = time.perf_counter()
                y = self.expert(x)
                times.append(time.perf_counter() - begun)
        assert torch.equal(y, x) or not same
        return times

    def trainers(self, threads: int, rows: int, count: int) -> dict[str, float]:
        """Threads that train through the expert, each in calls forward and backward one after the other.

        Returns the seconds of all, and the bytes of the tensors sent and received in that time.
        """
        from concurrent.futures import ThreadPoolExecutor

        import torch

        def train() -> None:
            x = torch.randn(rows, self.hidden, requires_grad=True)
            for _ in range(count):
                self.expert(x).mean().backward()

        begun = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(train) for _ in range(threads)]:
                done.result()
        tensor = 4 * rows * self.hidden * threads * count
        # Forward sends x; backward sends x and its gradient, and each gets one tensor back.
        return {"seconds": time.perf_counter() - begun, "sent": 3 * tensor, "received": 2 * tensor}

    def random_calls(self, rows: int, count: int, backward: bool, seed: int) -> list[float]:
        """Seconds of calls to random experts of the server, forward or forward and backward."""
        import random

        import torch

        import learning_at_home as lib

        if not self.experts:
            address = self.address
            for uid in address["uids"]:
                self.experts[uid] = lib.RemoteExpert(
                    uid, address["host"], address["port"], insecure=address["insecure"]
                )
        choose = random.Random(seed)
        x = torch.randn(rows, self.hidden)
        times = []
        for _ in range(count):
            expert = self.experts[choose.choice(self.address["uids"])]
            begun = time.perf_counter()
            with torch.set_grad_enabled(backward):
                y = expert(x.requires_grad_(backward))
                if backward:
                    y.mean().backward()
            times.append(time.perf_counter() - begun)
        assert y.shape == x.shape
        return times

    def waits(self, threads: int, rows: int, count: int) -> list[list[float]]:
        """Seconds of every training call, forward and backward, of each of the threads."""
        from concurrent.futures import ThreadPoolExecutor

        import torch

        def train() -> list[float]:
            x = torch.randn(rows, self.hidden, requires_grad=True)
            times = []
            for _ in range(count):
                begun = time.perf_counter()
                self.expert(x).mean().backward()
                times.append(time.perf_counter() - begun)
            return times

        with ThreadPoolExecutor(threads) as pool:
            return [done.result() for done in [pool.submit(train) for _ in range(threads)]]

    def forget_batches(self) -> None:
        """Begin a new list of the batches that the served modules run."""
        self.batches = []

    def replay(self) -> dict[str, float]:
        """What the served modules take for the batches they ran, called by a plain loop in this process.

        Returns the seconds of that loop, how many batches and their mean rows.
        """
        import torch

        batches, backends = list(self.batches), list(self.backends.values())
        inputs = {rows: torch.randn(rows, self.hidden) for _, rows, _ in batches}
        begun = time.perf_counter()
        for i, rows, backward in batches:
            with torch.set_grad_enabled(backward):
                x = inputs[rows].requires_grad_(backward)
                y = backends[i].expert(x)
                if backward:
                    y.mean().backward()
                    backends[i].opt.step()
                    backends[i].opt.zero_grad()
                    x.grad = None
        seconds = time.perf_counter() - begun
        return {
            "seconds": seconds,
            "batches": len(batches),
            "rows": sum(rows for _, rows, _ in batches) / max(1, len(batches)),
        }

    def take_turns(self) -> list[tuple[float, int]]:
        """Turns of the network thread since the last call: (at most so many seconds, how many)."""
        from learning_at_home._net_thread import get_net_thread

        return list(get_net_thread().take_turns())

    def codec_calls(self, codec: str, count: int, rows: int) -> list[float]:
        """Forward calls whose tensors travel in a codec, one after the other."""
        import torch

        import learning_at_home as lib

        if codec not in self.coded:
            at = self.address
            self.coded[codec] = lib.RemoteExpert(
                at["uid"], at["host"], at["port"], insecure=at["insecure"], codec=codec
            )
        x = torch.randn(rows, self.hidden)
        times = []
        with torch.no_grad():
            for _ in range(count):
                begun = time.perf_counter()
                y = self.coded[codec](x)
                times.append(time.perf_counter() - begun)
        torch.testing.assert_close(y, x, rtol=0.01, atol=0.1)
        return times

    def codec_times(self, codec: str, count: int, rows: int) -> list[tuple[float, float]]:
        """Seconds to encode and to decode a tensor, on one core."""
        import torch

        from learning_at_home import _core
        from learning_at_home.client.codec import CODES, encode

        x, code = torch.randn(rows, self.hidden), CODES[codec]
        wire, times = encode(codec, x), []
        for _ in range(count):
            begun = time.perf_counter()
            _core.encode(code, x.data_ptr(), x.numel(), wire.data_ptr())
            encoded = time.perf_counter()
            _core.decode(code, wire.data_ptr(), x.numel(), x.data_ptr())
            times.append((encoded - begun, time.perf_counter() - encoded))
        return times

    def pings(self, count: int) -> list[float]:
        """Round trips of a ping that the server's network thread answers."""
        peer = self.expert.address.peer
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            assert self.expert.transport.ping(peer, 5.0) is not None
            times.append(time.perf_counter() - begun)
        return times

    def open_grid(self, grid: list[int], k: int) -> None:
        """Make a gate over all experts of the network."""
        import torch

        import learning_at_home as lib

        torch.manual_seed(0)
        self.node = lib.TesseractNetwork(("127.0.0.1", self.address["network"]), port=0, start=True)
        prefix = self.address["uid"].partition(".")[0]
        self.gate = lib.GatingFunction(
            in_features=self.hidden, grid_size=grid, network=self.node, k_best=k, uid_prefix=prefix
        )
        total = 1
        for size in grid:
            total *= size
        assert self.gate.wait_for_experts(total, timeout=60)

    def steps(self, batch: int, count: int) -> list[dict[str, float]]:
        """Training steps of a trainer: forward and backward through the gate."""
        import torch

        done = []
        for _ in range(count):
            x = torch.randn(batch, self.hidden, requires_grad=True)
            begun = time.perf_counter()
            y = self.gate(x)
            forward = time.perf_counter() - begun
            y.pow(2).mean().backward()
            seconds = time.perf_counter() - begun
            stats = self.gate.last_stats
            assert stats.forward_failed == stats.backward_failed == 0
            torch.testing.assert_close(y, x, rtol=0.01, atol=0.01)  # a mixture of x with itself, shifted by little
            done.append({"seconds": seconds, "forward": forward, "calls": stats.forward_calls + stats.backward_calls})
        return done


if __name__ == "__main__":
    answer_requests(Ours())
