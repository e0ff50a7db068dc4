"""Gets and stores in a swarm whose nodes share one process and talk over loopback, one call after the other.

hivemind takes part with up to 100 nodes: each has a daemon of about 80 MiB.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.common import OURS, Row, Side, compare, console, in_turn, median, parse_options, percentile, report
from benchmarks.worker import Worker, WorkerError

NAMES = 512


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    rows: list[Row] = []
    for nodes in [16] if options.quick else [100, 250]:
        sides = [side for side in options.dht_sides if side.name != "hivemind" or nodes <= 100]
        rows += measured(nodes, sides, options.rounds, 30 if options.quick else 100)
    report("The DHT over loopback", rows, options)


def measured(nodes: int, sides: list[Side], rounds: int, calls: int) -> list[Row]:
    """Every side's swarm is up at once; they take turns."""
    with ExitStack() as stack:
        swarms: dict[str, Worker] = {}
        started: dict[str, dict[str, float]] = {}
        for side in sides:
            swarm = stack.enter_context(side.start())
            try:
                started[side.name] = swarm.ask("start", timeout=600, nodes=nodes)
                swarm.ask("fill", timeout=600, count=min(NAMES, calls * rounds))
                swarms[side.name] = swarm
            except WorkerError as error:
                if side.name == OURS:
                    raise
                console().print(f"[yellow]{side.name} left out: {error}")
        rows: list[Row] = []
        for what in ("get", "store"):
            works = {name: lambda s=swarm, w=what: s.ask(w, count=calls) for name, swarm in swarms.items()}
            if what == "get":
                works["awaited"] = lambda: swarms[OURS].ask("get_awaited", count=calls)
            times = in_turn(rounds, works)
            awaited = times.pop("awaited", [])
            for share, label in ((0.5, "p50"), (0.99, "p99")):
                value = {
                    name: 1e3 * median([percentile(times, share) for times in each]) for name, each in times.items()
                }
                rows += compare(f"{nodes} nodes: {what}, {label}", "ms", value)
                if awaited:
                    own = 1e3 * median([percentile(times, share) for times in awaited])
                    rows.append(Row(f"{nodes} nodes: await get, {label}", "ms", own))
        for key, what, unit in (("seconds", "to start", "s"), ("memory", "memory", "MiB")):
            value = {name: started[name][key] for name in swarms}
            rows += compare(f"{nodes} nodes: {what}", unit, value)
        return rows


if __name__ == "__main__":
    main()
