"""A network of 10,000 nodes for one virtual hour, with everything that sim's swarm check lets befall it.

Loss of 10 %, a fifth of the nodes dead at once, half of them replaced every 10 minutes, a partition, frozen, deaf and
mute nodes. --quick: 200 nodes for 6 virtual minutes.
"""

from __future__ import annotations

import sys
import time

from benchmarks.common import Row, console, parse_options, report
from learning_at_home.sim import check_swarm


def main() -> int:
    """Run it; the status says whether every promise was kept."""
    options = parse_options(__doc__)
    nodes, duration = (200, 360.0) if options.quick else (10_000, 3600.0)
    began = time.perf_counter()
    swarm = check_swarm(1, nodes, duration)
    name = f"{nodes:,} nodes for {duration / 60:.0f} virtual minutes"
    rows = [
        Row(f"records with a living owner found, {name}", "%", 100 * swarm.found / swarm.asked, kind="simulated"),
        Row(f"sent by the mean node, {name}", "B/s", swarm.bytes_per_second, kind="simulated"),
        Row(f"simulated, {name}", "million events", swarm.events / 1e6, kind="simulated"),
        Row(f"time it took, {name}", "s", time.perf_counter() - began),
    ]
    for violation in swarm.violations:
        console().print(f"[red]{violation}")
    report("a simulated hour", rows, options)
    return 1 if swarm.violations else 0


if __name__ == "__main__":
    sys.exit(main())
