"""hivemind as a server or as a client of one, in its own environment; its methods are those of `benchmarks.ours`."""

from __future__ import annotations

import os
import resource
import time
from typing import Any

from benchmarks.worker import answer_requests

# Loopback only: no port mapping, no questions to the outside about reachability.
_P2P = {"nat_port_map": False, "auto_nat": False, "host_maddrs": ["/ip4/127.0.0.1/tcp/0"]}


class Hivemind:
    """Each method is a piece of work; times are in seconds."""

    def __init__(self) -> None:
        os.environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

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
    ) -> dict[str, Any]:
        """Serve experts until the process ends. Every hivemind server is in a network, and encrypted."""
        from functools import partial

        import torch
        from hivemind.moe.server import Server
        from hivemind.moe.server.layers import register_expert_class

        from benchmarks.experts import EXPERTS

        if torch_threads:
            torch.set_num_threads(torch_threads)
        for name, expert in EXPERTS.items():
            register_expert_class(f"lah_{name}", torch.empty)(expert)
        begun = time.perf_counter()
        self.server = Server.create(
            expert_uids=experts,
            expert_cls=f"lah_{kind}",
            hidden_dim=hidden,
            optim_cls=partial(torch.optim.SGD, lr=1e-3),
            num_handlers=handlers,
            max_batch_size=max_batch_size,
            device="cpu",
            start=True,
            **_P2P,
        )
        for handler in self.server.conn_handlers:  # the server calls itself ready before they have registered
            handler.wait_until_ready(120)
        return {
            "ready": time.perf_counter() - begun,
            "peer": self.server.dht.peer_id.to_base58(),
            "maddrs": [str(address) for address in self.server.dht.get_visible_maddrs()],
            "uid": experts[0],
            "uids": experts,
        }

    def connect(self, address: dict[str, Any], hidden: int) -> None:
        """Reach the first expert."""
        import torch
        from hivemind.moe.client.expert import RemoteExpert
        from hivemind.moe.client.remote_expert_worker import RemoteExpertWorker
        from hivemind.moe.expert_uid import ExpertInfo
        from hivemind.p2p import P2P, PeerID

        torch.set_num_threads(1)
        self.address, self.hidden = address, hidden
        p2p = RemoteExpertWorker.run_coroutine(P2P.create(initial_peers=address["maddrs"], **_P2P))
        peer = PeerID.from_base58(address["peer"])
        self.experts = [RemoteExpert(ExpertInfo(uid, peer), p2p) for uid in address["uids"]]
        self.expert = self.experts[0]
        self.calls(5)

    def calls(self, count: int, rows: int = 1) -> list[float]:
        """Forward calls, one after the other."""
        import torch

        x = torch.randn(rows, self.hidden)
        times = []
        with torch.no_grad():
            for _ in range(count):
                begun = time.perf_counter()
                y = self.expert(x)
                times.append(time.perf_counter() - begun)
        assert y.shape == x.shape
        return times

    def random_calls(self, rows: int, count: int, backward: bool, seed: int) -> list[float]:
        """Seconds of calls to random experts of the server, forward or forward and backward."""
        import random

        import torch

        choose = random.Random(seed)
        x = torch.randn(rows, self.hidden)
        times = []
        for _ in range(count):
            expert = choose.choice(self.experts)
            begun = time.perf_counter()
            with torch.set_grad_enabled(backward):
                y = expert(x.requires_grad_(backward))
                if backward:
                    y.mean().backward()
            times.append(time.perf_counter() - begun)
        assert y.shape == x.shape
        return times

    def open_grid(self, grid: list[int], k: int) -> None:
        """Make a mixture over all experts, which must be visible first."""
        import torch
        from hivemind import DHT
        from hivemind.moe.client.moe import RemoteMixtureOfExperts

        torch.manual_seed(0)
        _repair_collect()
        self.dht = DHT(initial_peers=self.address["maddrs"], start=True, **_P2P)
        self.dht.run_coroutine(_make_pipe_blocking)
        prefix = self.address["uid"].partition(".")[0] + "."
        self.moe = RemoteMixtureOfExperts(
            in_features=self.hidden, grid_size=tuple(grid), dht=self.dht, uid_prefix=prefix, k_best=k
        )
        self.k = k
        total = 1
        for size in grid:
            total *= size
        until = time.monotonic() + 90
        while time.monotonic() < until:
            found = self.moe.beam_search.get_active_successors([f"{prefix}{i}." for i in range(grid[0])])
            if sum(map(len, found.values())) == total:
                return
            time.sleep(0.5)
        raise TimeoutError("not every expert was declared")

    def steps(self, batch: int, count: int) -> list[dict[str, float]]:
        """Training steps of a trainer: forward and backward through the mixture."""
        import torch

        done = []
        for _ in range(count):
            x = torch.randn(batch, self.hidden, requires_grad=True)
            begun = time.perf_counter()
            y = self.moe(x)
            forward = time.perf_counter() - begun
            y.pow(2).mean().backward()
            seconds = time.perf_counter() - begun
            torch.testing.assert_close(y, x, rtol=0.01, atol=0.01)
            done.append({"seconds": seconds, "forward": forward, "calls": 2 * batch * self.k})
        return done

    def close(self) -> None:
        """Nothing in good order: its background threads may block, and the whole session ends now."""


async def _make_pipe_blocking(dht: Any, node: Any) -> None:
    # uvloop leaves the command pipe of the DHT process non-blocking: a command over 16 KiB is read half, and ends it.
    os.set_blocking(dht._inner_pipe.fileno(), True)


def _repair_collect() -> None:
    # As released, the collector formats every pending future for each reply: quadratic in batch * k. This one waits
    # for all replies, which is the same work where every server is healthy.
    from concurrent.futures import wait

    from hivemind.moe.client import moe

    def collect(task_to_indices: Any, num_samples: int, k_min: int, timeout_total: Any, *rest: Any) -> Any:
        wait(task_to_indices, timeout=timeout_total)
        indices, outputs = [], []
        for task, where in task_to_indices.items():
            output = moe._process_dispatched_task(task, rest[-1]) if task.done() else None
            if output is not None:
                indices.append(where)
                outputs.append(output)
        return indices, outputs

    moe._RemoteCallMany._collect_responses = staticmethod(collect)


if __name__ == "__main__":
    answer_requests(Hivemind())
