"""A large tensor in each codec: encoded and decoded on one core, through an expert that does nothing and back, and the
same over a link of 100 Mbit/s with 20 ms of round trip (emulated, see tests/wan; not with --quick).

Rates: float32 bytes over time, for a call those of both ways. Bound: the same with the tensors as they are (raw, a
copy); over the link, what it can carry of raw ones, one way at a time.
"""

from __future__ import annotations

from benchmarks.common import OURS, Options, Row, console, in_turn, median, parse_options, report, served
from tests.wan.emulator import Link, WideAreaNetwork, why_not

WIDTH = 1024
CODECS = ("raw", "bf16", "fp16", "int8")
MIB = 1 << 20
LINK_MBIT, LINK_DELAY_MS, LINK_MIB = 100.0, 10.0, 8


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    table = over_loopback(options, 16 if options.quick else 64)
    if not options.quick:
        table += over_link(options)
    report("Tensors in each codec", table, options)


def over_loopback(options: Options, mib: int) -> list[Row]:
    """Encoding and decoding alone, and whole calls on this machine."""
    rows = mib * MIB // (4 * WIDTH)
    with served(options.sides[:1], ["expert.0"], WIDTH, max_batch_size=rows) as clients:
        ours = clients[OURS]
        calls = {name: lambda name=name: ours.ask("codec_calls", codec=name, count=1, rows=rows) for name in CODECS}
        alone = {name: lambda name=name: ours.ask("codec_times", codec=name, count=1, rows=rows) for name in CODECS}
        in_turn(2, calls)  # warms up: memory of both sides is mapped
        called, times = in_turn(options.rounds, calls), in_turn(options.rounds, alone)
    gigabytes = mib * MIB / 1e9
    rates = {
        "encode": {name: gigabytes / median([run[0][0] for run in runs]) for name, runs in times.items()},
        "decode": {name: gigabytes / median([run[0][1] for run in runs]) for name, runs in times.items()},
        "forward": {name: 2 * gigabytes / median([run[0] for run in runs]) for name, runs in called.items()},
    }
    return [
        Row(f"{mib} MiB {work}, {name}", "GB/s", of[name], bound=of["raw"])
        for work, of in rates.items()
        for name in CODECS
    ]


def over_link(options: Options) -> list[Row]:
    """Whole calls over a slow link; "auto" finds out by itself."""
    if reason := why_not():
        console().print(f"[yellow]No slow link can be emulated here, none is measured: {reason}")
        return []
    rows, ours, table = LINK_MIB * MIB // (4 * WIDTH), options.sides[0], []
    with (
        WideAreaNetwork(Link(LINK_DELAY_MS, LINK_MBIT)) as network,
        ours.start(network.command(0)) as server,
        ours.start(network.command(1)) as client,
    ):
        address = server.ask("serve", experts=["expert.0"], hidden=WIDTH, max_batch_size=rows, host=network.address(0))
        client.ask("connect", address=address, hidden=WIDTH)
        for name in (*CODECS, "auto"):
            warm_up = 4 if name == "auto" else 1  # until the link is known
            times = client.ask("codec_calls", codec=name, count=warm_up + 2, rows=rows)[warm_up:]
            rate = 2 * LINK_MIB * MIB / 1e6 / median(times)
            label = f"{LINK_MIB} MiB forward over {LINK_MBIT:.0f} Mbit/s, {name}"
            table.append(Row(label, "MB/s", rate, bound=LINK_MBIT / 8, kind="emulated"))
    return table


if __name__ == "__main__":
    main()
