"""Lookups in large networks, simulated: constant round trips (in units of them), then four regions of the world (ms).

A get ends with the first replica that has the value; "8 closest" is the search a store begins with. --quick ends at
2,000 nodes; the full run ends at 100,000, for which it needs about 8 GB.
"""

from __future__ import annotations

from benchmarks.common import Row, console, parse_options, percentile, report
from learning_at_home.sim import LookupTimes, study_lookups

CONSTANT_RTT = 0.1
JITTERED_RTT = (0.09, 0.12)  # what the regions have too
WORLDS = {"": (0.0, 0.0), ", 20 % dead": (0.2, 0.0), ", 20 % dead, 20 % loss": (0.2, 0.2)}  # dead, loss


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    sizes = [500, 2_000] if options.quick else [1_000, 10_000, 100_000]
    lookups = 200 if options.quick else 2_000
    rows: list[Row] = []
    for nodes in sizes:
        say(f"{nodes:,} nodes, constant RTT")
        study = study_lookups(nodes, rtt=CONSTANT_RTT, lookups=lookups)
        rows += rows_of(f"constant RTT, {nodes:,} nodes", "RTT", study, 1 / CONSTANT_RTT)
    say(f"{sizes[1]:,} nodes, large tables, and round trips that vary")
    study = study_lookups(sizes[1], rtt=CONSTANT_RTT, lookups=lookups, large_table=True)
    rows += rows_of(f"constant RTT, {sizes[1]:,} nodes with large tables", "RTT", study, 1 / CONSTANT_RTT)
    study = study_lookups(sizes[1], rtt=JITTERED_RTT, lookups=lookups)
    rows += rows_of(f"RTT 0.9 to 1.2, {sizes[1]:,} nodes", "RTT", study, 1 / CONSTANT_RTT)
    for nodes in sizes[-2:]:
        for world, (dead, loss) in WORLDS.items():
            say(f"{nodes:,} nodes, four regions{world}")
            study = study_lookups(nodes, dead=dead, loss=loss, lookups=lookups)
            rows += rows_of(f"four regions, {nodes:,} nodes{world}", "ms", study, 1e3)
            rows.append(simulated(f"gets that found, four regions, {nodes:,} nodes{world}", "%", found(study)))
    report("simulated lookups", rows, options)


def rows_of(name: str, unit: str, study: LookupTimes, scale: float) -> list[Row]:
    """Medians and 95th percentiles."""
    return [
        simulated(f"{kind}, {name}, p{share:.0%}".rstrip("%"), unit, scale * percentile(times, share))
        for kind, times in (("get", study.gets), ("8 closest", study.closest), ("store", study.stores))
        for share in (0.5, 0.95)
    ]


def found(study: LookupTimes) -> float:
    """In percent."""
    return 100 * study.found / len(study.gets)


def simulated(name: str, unit: str, value: float) -> Row:
    """No clock of this machine was read for it."""
    return Row(name, unit, value, kind="simulated")


def say(what: str) -> None:
    """These take minutes."""
    console().print(f"[dim]{what}", highlight=False)


if __name__ == "__main__":
    main()
