"""Samples a second that a server of 16 ffn experts (hidden 256) computes for its clients, forward and with training.

16 clients send 128 rows at a time, or 4 clients 2048, each call to a random expert. Clients are processes with one
torch thread; the server uses the default of torch. Bound: the same modules called in the process of the server, in a
plain loop, in the very batches that the server had formed, while nobody calls.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import perf_counter
from typing import Any

from benchmarks.common import OURS, Options, Row, Side, compare, console, in_turn, median, parse_options, report
from benchmarks.worker import Worker, WorkerError

EXPERTS, HIDDEN = 16, 256


class Swarm:
    """A server of one side and its clients."""

    def __init__(self, stack: ExitStack, side: Side, clients: int, rows: int) -> None:
        uids = [f"expert.{i}" for i in range(EXPERTS)]
        options = {"kind": "ffn", "torch_threads": 0, "max_batch_size": 4 * rows, "handlers": max(1, clients // 2)}
        self.rows = rows
        self.server = stack.enter_context(side.start())
        address = self.server.ask("serve", timeout=240, experts=uids, hidden=HIDDEN, **options)
        self.clients = [stack.enter_context(side.start()) for _ in range(clients)]
        self.threads = stack.enter_context(ThreadPoolExecutor(clients))
        self._all("connect", [{"address": address, "hidden": HIDDEN}] * clients)
        self.round(2, False)

    def round(self, count: int, backward: bool) -> float:
        """Samples a second while every client makes so many calls."""
        arguments: dict[str, Any] = {"rows": self.rows, "count": count, "backward": backward}
        begun = perf_counter()
        self._all("random_calls", [{**arguments, "seed": i} for i in range(len(self.clients))])
        return self.rows * count * len(self.clients) / (perf_counter() - begun)

    def _all(self, work: str, arguments: list[dict[str, Any]]) -> None:
        def ask(client: Worker, given: dict[str, Any]) -> None:
            client.ask(work, timeout=300, **given)

        list(self.threads.map(ask, self.clients, arguments))


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    rows: list[Row] = []
    for clients, batch in ((4, 128), (2, 512)) if options.quick else ((16, 128), (4, 2048)):
        rows += compared(options, clients, batch)
    report(f"{EXPERTS} ffn experts, hidden {HIDDEN}", rows, options)


def compared(options: Options, clients: int, batch: int) -> list[Row]:
    """Rows of one setting: forward, then forward and backward."""
    rows: list[Row] = []
    with ExitStack() as stack:
        swarms: dict[str, Swarm] = {}
        for side in options.sides:
            if side.name == "original":
                continue  # its servers take no calls of different experts at once
            try:
                swarms[side.name] = Swarm(stack, side, clients, batch)
            except WorkerError as error:
                if side.name == OURS:
                    raise
                console().print(f"[yellow]{side.name} left out: {error}")
        for backward in (False, True):
            count = max(2, (20_000 if options.quick else 100_000) // (clients * batch * (3 if backward else 1)))
            bounds: list[float] = []

            def ours(count: int = count, backward: bool = backward, bounds: list[float] = bounds) -> float:
                server = swarms[OURS].server
                server.ask("forget_batches")
                value = swarms[OURS].round(count, backward)
                alone = server.ask("replay", timeout=300)
                bounds.append(clients * count * batch / alone["seconds"])
                return value

            works = {
                name: ours if name == OURS else lambda swarm=swarm: swarm.round(count, backward)  # noqa: B023
                for name, swarm in swarms.items()
            }
            in_turn(1, works)
            bounds.clear()
            done = in_turn(options.rounds, works)
            name = f"{clients} clients of {batch} rows, forward" + (" and backward" if backward else "")
            value = {side: median(values) for side, values in done.items()}
            bound = median(bounds)
            rows += compare(name, "samples/s", value, bound, more_is_better=True)
            rows.append(Row(f"{name}, of in-process", "share", value[OURS] / bound, bound=1.0))
    return rows


if __name__ == "__main__":
    main()
