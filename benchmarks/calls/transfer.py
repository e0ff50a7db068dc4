"""A large tensor through an expert that does nothing and back.

Rate: bytes both ways over the time of the call. The server has the whole request before it answers. Bound: a bare TCP
loop with the same bytes; with pyzmq also bare ZeroMQ loops, encrypted and not, in chunks of 1 MiB. gRPC, unencrypted,
gets bytes rather than tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.bounds import bound_side, has_zmq
from benchmarks.common import OURS, Row, compare, in_turn, median, parse_options, report, served

WIDTH = 1024


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    mib = 16 if options.quick else 64
    rows = mib * (1 << 20) // (4 * WIDTH)
    ours = options.sides[0]
    with (
        ExitStack() as peers,
        served(options.sides, ["expert.0"], WIDTH, max_batch_size=rows) as clients,
        served([ours], ["expert.0"], WIDTH, max_batch_size=rows, insecure=True) as plain,
        bound_side().start() as echo,
        bound_side().start() as bound,
    ):
        tcp = echo.ask("serve_tcp")
        works: dict[str, Callable[[], list[float]]] = {
            name: lambda client=client: client.ask("calls", count=1, rows=rows) for name, client in clients.items()
        }
        works["insecure"] = lambda: plain[OURS].ask("calls", count=1, rows=rows)
        works["tcp"] = lambda: bound.ask("tcp", port=tcp, count=1, sent=mib << 20)
        if has_zmq():
            for name, curve in (("curve", True), ("null", False)):
                address = echo.ask("serve_zmq", curve=curve)
                works[name] = lambda address=address: bound.ask("zmq", address=address, count=1, nbytes=mib << 20)
        if options.grpc is not None:
            grpc_server, grpc = (peers.enter_context(options.grpc.start()) for _ in range(2))
            port = grpc_server.ask("serve")
            works[options.grpc.name] = lambda: grpc.ask("exchanges", port=port, count=1, nbytes=mib << 20)
        in_turn(2, works)  # warms up: memory of both sides is mapped
        times = in_turn(options.rounds + 2, works)
    rate = {name: 2 * mib * (1 << 20) / 1e9 / median([min(a) for a in runs]) for name, runs in times.items()}
    table = compare(
        f"{mib} MiB forward, encrypted",
        "GB/s",
        {name: rate[name] for name in clients if name in rate},
        rate.get("curve"),
        more_is_better=True,
    )
    plainly = {name: rate[source] for name, source in ((OURS, "insecure"), ("gRPC", "gRPC")) if source in rate}
    table += compare(f"{mib} MiB forward, insecure", "GB/s", plainly, rate.get("null"), more_is_better=True)
    table.append(Row(f"{mib} MiB forward, insecure, beside bare TCP", "GB/s", rate["insecure"], bound=rate["tcp"]))
    for name, own, bare in (
        ("encrypted, of a bare CURVE loop", OURS, "curve"),
        ("insecure, of a bare ZeroMQ loop", "insecure", "null"),
        ("insecure, of bare TCP", "insecure", "tcp"),
    ):
        if bare in rate:
            table.append(Row(f"{mib} MiB forward, {name}", "share", rate[own] / rate[bare], bound=1.0))
    report(f"{mib} MiB there and back", table, options)


if __name__ == "__main__":
    main()
