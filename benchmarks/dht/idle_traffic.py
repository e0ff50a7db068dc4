"""Bytes a second that nodes move while nothing happens: a client node that watches a grid, the server of its 256
experts, and a node that only holds records. Both directions, IP and UDP headers included; over loopback, in real time.
"""

from __future__ import annotations

from benchmarks.common import Row, parse_options, report

NODES, EXPERTS, GRID = 64, 256, [16, 16]


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    seconds = 5.0 if options.quick else 120.0  # six updates of the server
    with options.dht_sides[0].start() as swarm:
        swarm.ask("start", nodes=NODES)
        swarm.ask("serve_and_watch", grid=GRID, experts=EXPERTS)
        moved = swarm.ask("traffic", timeout=seconds + 60, seconds=seconds)
    rows = [
        Row(f"{who} of {NODES + 2} nodes, idle for {seconds:.0f} s", "KB/s", moved[key] / 1e3)
        for key, who in (
            ("client", f"client node that watches {EXPERTS} experts"),
            ("server", f"server of {EXPERTS} experts"),
            ("bystander", "other node"),
        )
    ]
    report("Idle traffic", rows, options)


if __name__ == "__main__":
    main()
