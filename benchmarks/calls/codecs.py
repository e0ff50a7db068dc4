"""A large tensor in each codec: encoded and decoded on one core, and through an expert that does nothing and back.

Rates: float32 bytes over time, for a call those of both ways. Bound: the same work with the tensors as they are (raw, a
copy). On this machine's own network only the encryption is slower than a copy; on a real link the bytes count, and
benchmarks.calls.wan has one.
"""

from __future__ import annotations

from benchmarks.common import OURS, Row, in_turn, median, parse_options, report, served

WIDTH = 1024
CODECS = ("raw", "bf16", "fp16", "int8")


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    mib = 16 if options.quick else 64
    rows = mib * (1 << 20) // (4 * WIDTH)
    with served(options.sides[:1], ["expert.0"], WIDTH, max_batch_size=rows) as clients:
        ours = clients[OURS]
        calls = {
            codec: lambda codec=codec: ours.ask("codec_calls", codec=codec, count=1, rows=rows) for codec in CODECS
        }
        alone = {
            codec: lambda codec=codec: ours.ask("codec_times", codec=codec, count=1, rows=rows) for codec in CODECS
        }
        in_turn(2, calls)  # warms up: memory of both sides is mapped
        call_times, times = in_turn(options.rounds, calls), in_turn(options.rounds, alone)
    gigabytes = mib * (1 << 20) / 1e9
    rates = {
        "encode": {codec: gigabytes / median([run[0][0] for run in runs]) for codec, runs in times.items()},
        "decode": {codec: gigabytes / median([run[0][1] for run in runs]) for codec, runs in times.items()},
        "forward": {codec: 2 * gigabytes / median([run[0] for run in runs]) for codec, runs in call_times.items()},
    }
    table = [
        Row(f"{mib} MiB {work}, {codec}", "GB/s", of[codec], bound=of["raw"])
        for work, of in rates.items()
        for codec in CODECS
    ]
    report(f"{mib} MiB in each codec", table, options)


if __name__ == "__main__":
    main()
