"""A flood of packets of fresh keys at one node, and how long its other peers wait for their answers meanwhile.

Three processes over loopback: the node, an attacker that sends 10,000 packets a second from 16 addresses (half HELLOs,
half sealed packets, each of a key the node never met), and a client that the node knows. Every get of the client is of
a name nobody stored, so each is one question to the node and its answer. With and without the flood in turn.
"""

from __future__ import annotations

import time

from benchmarks.common import Row, median, parse_options, percentile, report
from benchmarks.worker import Worker
from learning_at_home import TesseractNetwork

RATE = 10_000
SIDE = "benchmarks.dht._flood_side"


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    gets = 500 if options.quick else 2_000
    quiet: list[list[float]] = []
    flooded: list[list[float]] = []
    rates: list[float] = []
    with Worker(SIDE) as node, Worker(SIDE) as attacker:
        port = node.ask("serve")
        with TesseractNetwork(("127.0.0.1", port), port=0, client_mode=True) as client:
            if not client.wait_ready(20):
                raise RuntimeError("the node did not let the client in")
            measure(client, "warm", gets)
            for i in range(options.rounds):
                quiet.append(measure(client, f"quiet {i}", gets))
                attacker.ask("flood", port=port, rate=RATE)
                time.sleep(0.2)
                flooded.append(measure(client, f"flooded {i}", gets))
                rates.append(attacker.ask("stop"))
                time.sleep(0.2)
        refused = node.ask("refused")
    rows = [
        Row(f"get of a known client, p{100 * share:.0f}{suffix}", "ms", median([percentile(t, share) for t in times]))
        for share in (0.5, 0.99)
        for suffix, times in (("", quiet), (" in the flood", flooded))
    ]
    rows.append(Row("p99 in the flood over p99 without, bar 2", "×", rows[3].ours / rows[2].ours, bound=1))
    rows.append(Row("packets of the flood", "/s", median(rates)))
    rows.append(Row("packets of newcomers that the node did not look at", "", refused))
    report("flood of fresh keys", rows, options)


def measure(client: TesseractNetwork, name: str, gets: int) -> list[float]:
    """Times in ms."""
    times = []
    for i in range(gets):
        began = time.perf_counter()
        client.get(f"{name} {i}", timeout=5)
        times.append(1e3 * (time.perf_counter() - began))
    return times


if __name__ == "__main__":
    main()
