"""64 trainers on one server: how even their waits are; and how late its network loop is during a bulk transfer.

Four processes of 16 threads train through one ffn expert, 64 rows a call, forward and backward, until each has made its
calls. Wait: seconds of one forward and backward; bars: the longest over the mean of all, and the mean of the slowest
trainer over the mean of all.

Lag: what an event that comes at a random moment waits until the network thread of the server looks, while one client
sends and receives tensors of 64 MiB without pause: computed from all turns of its loop. Bound: the same while nothing
is called but a ping.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import perf_counter

from benchmarks.common import Row, Side, median, parse_options, report
from benchmarks.worker import Worker

PROCESSES, THREADS = 4, 16
HIDDEN, ROWS = 256, 64
WIDTH = 1024


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    ours = options.sides[0]
    rows: list[Row] = []
    with ExitStack() as stack:
        server = stack.enter_context(ours.start())
        address = server.ask("serve", experts=["expert.0"], hidden=HIDDEN, kind="ffn", torch_threads=0)
        clients = [stack.enter_context(ours.start()) for _ in range(PROCESSES)]
        for client in clients:
            client.ask("connect", address=address, hidden=HIDDEN)
        waits = [trainers(clients, 3 if options.quick else 10) for _ in range(1 if options.quick else 3)]
    means = [mean([mean(trainer) for trainer in each]) for each in waits]
    for name, figure in (("longest wait", max), ("slowest trainer's wait", mean)):
        most = median([max(map(figure, each)) / usual for each, usual in zip(waits, means, strict=True)])
        rows.append(Row(f"{PROCESSES * THREADS} trainers, {name} over the mean", "ratio", most))
    rows.append(Row(f"{PROCESSES * THREADS} trainers, mean wait of a training call", "ms", 1e3 * median(means)))
    rows += lags(ours, options.quick)
    report("Many trainers, one server", rows, options)


def trainers(clients: Sequence[Worker], count: int) -> list[list[float]]:
    """Waits of every trainer, all at once."""
    with ThreadPoolExecutor(len(clients)) as pool:
        asked = [pool.submit(client.ask, "waits", 300, threads=THREADS, rows=ROWS, count=count) for client in clients]
        return [waits for done in asked for waits in done.result()]


def lags(ours: Side, quick: bool) -> list[Row]:
    """Lag of the server's loop during a bulk transfer, and at rest."""
    mib = 16 if quick else 64
    rows = mib * (1 << 20) // (4 * WIDTH)
    with ours.start() as server, ours.start() as client:
        address = server.ask("serve", experts=["expert.0"], hidden=WIDTH, max_batch_size=rows)
        client.ask("connect", address=address, hidden=WIDTH)

        def lag(work: str, **arguments: int) -> float:
            client.ask(work, **{**arguments, "count": 2})  # warms up
            server.ask("take_turns")
            begun = perf_counter()
            client.ask(work, timeout=300, **arguments)
            return lag_quantile(server.ask("take_turns"), perf_counter() - begun, 0.99)

        rest = lag("pings", count=200)
        bulk = lag("calls", count=4 if quick else 20, rows=rows)
    return [Row(f"network loop lag while {mib} MiB tensors come and go, p99", "ms", 1e3 * bulk, bound=1e3 * rest)]


def lag_quantile(turns: Sequence[tuple[float, int]], seconds: float, share: float) -> float:
    """What events that come at random moments of `seconds` wait for the end of the turn they come in, at most, but for
    1 - share of them. turns: (seconds of a turn, how many of them)."""
    low, high = 0.0, max((turn for turn, _ in turns), default=0.0)
    for _ in range(60):
        lag = (low + high) / 2
        late = sum(count * (turn - lag) for turn, count in turns if turn > lag) / seconds
        low, high = (lag, high) if late > 1 - share else (low, lag)
    return high


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
