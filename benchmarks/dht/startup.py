"""Time until 1,024 nodes of one process have joined over loopback, and their memory beyond the interpreter's.

Each node knows one earlier node. A fresh process each round.
"""

from __future__ import annotations

from benchmarks.common import Row, Side, in_turn, median, parse_options, report


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    nodes = 64 if options.quick else 1024
    rounds = min(options.rounds, 3)
    runs = in_turn(rounds, {"ours": lambda: started(options.dht_sides[0], nodes)})["ours"]
    rows = [
        Row(f"{nodes} nodes: until all are in", "s", median([run["seconds"] for run in runs])),
        Row(f"{nodes} nodes: beyond the interpreter", "MiB", median([run["memory"] for run in runs])),
    ]
    report("Many nodes in one process", rows, options)


def started(side: Side, nodes: int) -> dict[str, float]:
    """Start a swarm in a process of its own."""
    with side.start() as swarm:
        return swarm.ask("start", nodes=nodes)


if __name__ == "__main__":
    main()
