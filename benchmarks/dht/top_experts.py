"""The best 4 experts for each of 64 tokens, chosen by a gate among 4,096 that are alive: how long the choice takes, and
what it waits for. The network tells the gate of changes beforehand, so a warm choice waits for no packet.
"""

from __future__ import annotations

from benchmarks.common import Row, in_turn, median, parse_options, percentile, report

NODES, BATCH, BEST = 32, 64, 4


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    grid, experts = ([16, 16], 256) if options.quick else ([64, 64], 4096)
    with options.dht_sides[0].start() as swarm:
        swarm.ask("start", nodes=NODES)
        seen = swarm.ask("serve_and_watch", grid=grid, experts=experts)
        work = {"choices": lambda: swarm.ask("choices", grid=grid, batch=BATCH, k=BEST, count=100)}
        runs = in_turn(options.rounds, work)["choices"]
    rows = [
        *(
            Row(
                f"top-{BEST} of {experts}, batch {BATCH}, warm, {label}",
                "ms",
                median([1e3 * percentile(run["times"], share) for run in runs]),
            )
            for share, label in ((0.5, "p50"), (0.99, "p99"))
        ),
        Row("network operations begun by a choice", "operations", max(run["operations"] for run in runs)),
        Row("from declaration to the gate's map", "s", seen),
    ]
    report("Choosing experts", rows, options)


if __name__ == "__main__":
    main()
