"""A forward call of 1 KiB to an expert that does nothing, from Python, one after the other.

Bound: the same bytes through a bare ZeroMQ echo (encrypted), or TCP where pyzmq is missing, between two Python
processes.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.bounds import bound_side, has_zmq
from benchmarks.common import OURS, Row, compare, in_turn, median, parse_options, percentile, report, served

HIDDEN = 256  # float32: 1 KiB a row


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    calls = 100 if options.quick else 400
    with (
        served(options.sides, ["expert.0"], HIDDEN) as clients,
        bound_side().start() as echo,
        bound_side().start() as bound,
    ):
        tcp = echo.ask("serve_tcp")
        works: dict[str, Callable[[], list[float]]] = {
            name: lambda client=client: client.ask("calls", count=calls) for name, client in clients.items()
        }
        works["ping"] = lambda: clients[OURS].ask("pings", count=calls)
        works["tcp"] = lambda: bound.ask("tcp", port=tcp, count=calls, sent=4 * HIDDEN)
        if has_zmq():
            address = echo.ask("serve_zmq", curve=True)
            works["zmq"] = lambda: bound.ask("zmq", address=address, count=calls, nbytes=4 * HIDDEN)
        for work in works.values():
            work()  # warms up
        times = in_turn(options.rounds, works)
    report("1 KiB nop call", rows_of(times, list(clients)), options)


def rows_of(times: dict[str, list[list[float]]], sides: list[str]) -> list[Row]:
    """Medians over the rounds of each round's percentile."""
    rows: list[Row] = []
    for share in (0.5, 0.99):
        value = {
            name: 1e3 * median([percentile(a_round, share) for a_round in rounds]) for name, rounds in times.items()
        }
        label = f"p{100 * share:.0f}"
        bare = value.get("zmq", value["tcp"])
        rows += compare(f"1 KiB nop call, {label}", "ms", {side: value[side] for side in sides if side in value}, bare)
        rows.append(Row(f"transport ping, {label}", "ms", value["ping"], bound=bare))
    return rows


if __name__ == "__main__":
    main()
