"""Lookups a second that one core does, askers and answerers both on it: a swarm in one process, bound to a core.

Every lookup is of a name that its node never asked for, and ends with the first replica's answer. The share of the
core that is Python's, which makes a future for each, is in the figure.
"""

from __future__ import annotations

import os

from benchmarks.common import Row, in_turn, median, parse_options, report


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    nodes, names, lookups = (32, 256, 1000) if options.quick else (250, 2048, 10_000)
    with options.dht_sides[0].start() as swarm:
        swarm.ask("pin", core=max(os.sched_getaffinity(0)))
        swarm.ask("start", nodes=nodes)
        swarm.ask("fill", count=names)
        done = in_turn(options.rounds, {"lookups": lambda: swarm.ask("gets_at_once", count=lookups, at_once=64)})
    runs = done["lookups"]
    rows = [
        Row(f"{nodes} nodes: lookups a second of the core", "1/s", median([lookups / run["cpu"] for run in runs])),
        Row(
            f"{nodes} nodes: lookups a second, by the clock", "1/s", median([lookups / run["seconds"] for run in runs])
        ),
        Row(f"{nodes} nodes: packets a lookup", "packets", median([run["packets"] / lookups for run in runs])),
    ]
    report("Lookups on one core", rows, options)


if __name__ == "__main__":
    main()
