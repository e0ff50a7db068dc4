"""The original Learning@home as a server or as a client of one. Runs in its own environment; the methods are those of
`benchmarks.ours`. Its checkout is the only argument of the command line."""

from __future__ import annotations

import functools
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.worker import answer_requests

HANDLERS_ALONE, HANDLERS_GRID = 4, 64  # processes; 64 is what its README advises


class Original:
    """Each method is a piece of work; times are in seconds."""

    def __init__(self, checkout: str):
        self.checkout = checkout

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
        """Serve experts in a forked child, for its servers block; it never encrypts."""
        begun = time.perf_counter()
        port, root, node = _free_port(socket.SOCK_STREAM), _free_port(socket.SOCK_DGRAM), _free_port(socket.SOCK_DGRAM)
        if os.fork() == 0:
            try:
                lib, torch = self._load(torch_threads)
                self._serve(lib, torch, experts, hidden, kind, max_batch_size, port, (root, node) if network else None)
            finally:
                os._exit(1)
        # A connection that says nothing would end one of its handlers, so the kernel is asked instead.
        while not _listening(port):
            if time.perf_counter() - begun > 200:
                raise TimeoutError("the server did not listen")
            time.sleep(0.02)
        _wait_for_processes()
        return {
            "ready": time.perf_counter() - begun,
            "port": port,
            "network": root if network else None,
            "uid": experts[0],
        }

    def connect(self, address: dict[str, Any], hidden: int) -> None:
        """Reach the first expert."""
        self.lib, self.torch = self._load(1)
        self.address, self.hidden = address, hidden
        self.expert = self.lib.RemoteExpert(address["uid"], port=address["port"])
        self.calls(5)

    def calls(self, count: int, rows: int = 1) -> list[float]:
        """Forward calls, one after the other."""
        x = self.torch.randn(rows, self.hidden)
        times = []
        with self.torch.no_grad():
            for _ in range(count):
                begun = time.perf_counter()
                y = self.expert(x)
                times.append(time.perf_counter() - begun)
        assert self.torch.equal(y, x)
        return times

    def open_grid(self, grid: list[int], k: int) -> None:
        """Make a gate over all experts, which must be visible first."""
        self.torch.manual_seed(0)
        network = self.lib.TesseractNetwork(
            ("127.0.0.1", self.address["network"]), port=_free_port(socket.SOCK_DGRAM), start=True
        )
        prefix = self.address["uid"].partition(".")[0]
        uids = [f"{prefix}.{i}.{j}" for i in range(grid[0]) for j in range(grid[1])]
        until = time.monotonic() + 90
        while any(expert is None for expert in network.get_experts(uids)):
            if time.monotonic() > until:
                raise TimeoutError("not every expert was declared")
            time.sleep(0.5)
        self.k = k
        self.gate = self.lib.GatingFunction(
            in_features=self.hidden, grid_size=grid, network=network, k_best=k, uid_prefix=prefix
        )

    def steps(self, batch: int, count: int) -> list[dict[str, float]]:
        """Training steps of a trainer: forward and backward through the gate."""
        done = []
        for _ in range(count):
            x = self.torch.randn(batch, self.hidden, requires_grad=True)
            begun = time.perf_counter()
            y = self.gate(x)
            forward = time.perf_counter() - begun
            y.pow(2).mean().backward()
            seconds = time.perf_counter() - begun
            done.append({"seconds": seconds, "forward": forward, "calls": 2 * batch * self.k})
        return done

    def close(self) -> None:
        """Nothing in good order: its background threads may block, and the whole session ends now."""

    def _load(self, threads: int) -> tuple[Any, Any]:
        import multiprocessing

        multiprocessing.set_start_method("fork", force=True)
        import torch

        torch.load = functools.partial(torch.load, weights_only=False)  # its messages are pickled objects
        if threads:
            torch.set_num_threads(threads)
        sys.path.insert(0, self.checkout)
        import lib  # type: ignore[import-not-found]

        return lib, torch

    def _serve(
        self,
        lib: Any,
        torch: Any,
        experts: list[str],
        hidden: int,
        kind: str,
        max_batch_size: int,
        port: int,
        network: tuple[int, int] | None,
    ) -> None:
        import multiprocessing.managers

        from benchmarks.experts import EXPERTS

        root = lib.TesseractNetwork(port=network[0], start=True) if network else None
        shared = {}
        if len(experts) > 1:
            memory = multiprocessing.managers.SharedMemoryManager()
            memory.start()
            shared = {"shm_manager": memory, "array_headers": multiprocessing.Manager().dict()}
        backends = {}
        for uid in experts:
            module = EXPERTS[kind](hidden)
            backends[uid] = lib.ExpertBackend(
                name=uid,
                expert=module,
                opt=torch.optim.SGD(module.parameters(), lr=1e-3),
                args_schema=(lib.BatchTensorProto(hidden),),
                outputs_schema=lib.BatchTensorProto(hidden),
                max_batch_size=max_batch_size,
                pool_size=8,
                **shared,
            )
        node = None
        if root is not None and network is not None:
            time.sleep(1)  # its node has no way to tell that it is up
            node = lib.TesseractNetwork(("127.0.0.1", network[0]), port=network[1], start=True)
        handlers = HANDLERS_GRID if len(experts) > 1 else HANDLERS_ALONE
        lib.TesseractServer(node, backends, port=port, conn_handler_processes=handlers, sender_threads=1, start=True)


def _free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listening(port: int) -> bool:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            if local.endswith(f":{port:04X}") and state == "0A":
                return True
    return False


def _wait_for_processes(quiet: float = 2.0, limit: float = 120.0) -> None:
    """Until the session starts no more processes: the server listens before all of them run."""
    begun = changed = time.monotonic()
    last = -1
    while time.monotonic() - changed < quiet and time.monotonic() - begun < limit:
        count = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                count += int(stat.read_text().rpartition(")")[2].split()[3]) == os.getsid(0)
            except OSError:
                continue
        if count != last:
            last, changed = count, time.monotonic()
        time.sleep(0.1)


if __name__ == "__main__":
    answer_requests(Original(sys.argv[1]))
