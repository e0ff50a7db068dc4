"""Large tensors over a long link: 100 ms round trip, 1 Gbit/s each way, emulated (tests/wan), after one call has warmed
it up.

"one at a time": forward calls of 256 MiB there and back, one after the other. Either direction rests while the other
works, so the link allows its rate, bytes both ways over the time. "trainers": four threads that train, forward and
backward, on 64 MiB each; the busier direction over the time. Plain TCP in one stream and in 16, one direction at a
time, says what Linux makes of the link as it is shipped.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.bounds import bound_side
from benchmarks.common import Row, console, median, parse_options, report
from tests.wan.emulator import Link, WideAreaNetwork, why_not

DELAY_MS, MBIT = 50.0, 1000.0
WIDTH = 1024
MIB = 1 << 20


def main() -> int:
    """Run it."""
    options = parse_options(__doc__)
    if reason := why_not():
        console().print(f"[yellow]No wide-area network can be emulated here, nothing is measured: {reason}")
        return 0
    large, small, calls = (32, 8, 1) if options.quick else (256, 64, 2)
    ours = options.sides[0]
    with (
        WideAreaNetwork(Link(DELAY_MS, MBIT)) as network,
        bound_side().start(network.command(0)) as bare_server,
        bound_side().start(network.command(1)) as bare_client,
        ours.start(network.command(0)) as server,
        ours.start(network.command(1)) as client,
    ):
        host = network.address(0)
        rows = large * MIB // (4 * WIDTH)
        address = server.ask("serve", experts=["expert.0"], hidden=WIDTH, kind="shift", max_batch_size=rows, host=host)
        client.ask("connect", address=address, hidden=WIDTH)
        port = bare_server.ask("serve_tcp", host=host)

        def one_at_a_time() -> float:
            (seconds,) = client.ask("calls", count=1, rows=rows, same=False)
            return 2 * large * MIB / seconds

        def trainers() -> float:
            done: dict[str, Any] = client.ask("trainers", threads=4, rows=small * MIB // (4 * WIDTH), count=calls)
            return max(done["sent"], done["received"]) / done["seconds"]

        def bare(streams: int) -> float:
            arguments = {"host": host, "port": port, "sent": large * MIB // streams, "streams": streams}
            return 2 * large * MIB / float(bare_client.ask("tcp_streams", **arguments))

        rounds = 1 if options.quick else min(options.rounds, 3)
        table = []
        for name, work in {
            f"{large} MiB forward, one at a time": one_at_a_time,
            f"4 trainers of {small} MiB": trainers,
            "plain TCP, one stream": lambda: bare(1),
            "plain TCP, 16 streams": lambda: bare(16),
        }.items():
            work()
            value = median([work() for _ in range(rounds)])
            table.append(Row(f"{name}, of the link", "share", value * 8 / 1e6 / MBIT, kind="emulated", bound=1.0))
    report(f"{2 * DELAY_MS:.0f} ms round trip, {MBIT:.0f} Mbit/s", table, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
