"""What a server of 64 experts takes: processes, threads, memory, descriptors, and the time until it is ready. Ours with
256 experts, too.

Each side starts a server in a fresh process, one side at a time, a few times over. "Without torch's" threads: the same
server with torch set to one thread, so that every thread counted beyond the main one is the server's own.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from benchmarks.common import OURS, Row, Side, compare, console, in_turn, median, parse_options, report
from benchmarks.worker import WorkerError

EXPERTS, MANY, HIDDEN = 64, 256, 64
UNITS = {
    "processes": "processes",
    "threads": "threads",
    "memory": "MiB, proportional share",
    "descriptors": "descriptors",
    "from construction to ready": "s",
    "from process start to ready": "s",
}


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    sides = options.sides
    rounds = 1 if options.quick else 3
    done = in_turn(
        rounds, {OURS: lambda: footprint(sides[0]), "one thread": lambda: footprint(sides[0], torch_threads=1)}
    )
    done |= in_turn(1, {side.name: lambda side=side: footprint(side) for side in sides[1:]})  # minutes each
    rows: list[Row] = []
    for what, unit in UNITS.items():
        value = {name: median([run[what] for run in runs]) for name, runs in done.items()}
        own = value.pop("one thread")
        rows += compare(what, unit, value)
        if what == "threads":
            rows.append(Row("threads without torch's", "threads", own))
    many = footprint(sides[0], MANY, torch_threads=1)
    for what in ("processes", "threads", "memory", "from construction to ready"):
        name = "threads without torch's" if what == "threads" else what
        rows.append(Row(f"{MANY} experts: {name}", UNITS[what], many[what]))
    report(f"A server of {EXPERTS} experts", rows, options)


def footprint(side: Side, experts: int = EXPERTS, torch_threads: int = 0) -> dict[str, float]:
    """Start a server, call an expert once, count, end it."""
    uids = [f"expert.{i // 8}.{i % 8}" for i in range(experts)]
    with side.start() as server:
        address = server.ask(
            "serve", timeout=300, experts=uids, hidden=HIDDEN, kind="nop", network=True, torch_threads=torch_threads
        )
        from_start = time.monotonic() - server.started
        with side.start() as client:
            try:
                client.ask("connect", address=address, hidden=HIDDEN)
            except WorkerError as error:
                if side.name == OURS:
                    raise
                console().print(f"[yellow]{error}")
        return {
            **count(server.pids()),
            "from construction to ready": address["ready"],
            "from process start to ready": from_start,
        }


def count(pids: list[int]) -> dict[str, Any]:
    """Processes, threads, proportional share of memory (MiB) and descriptors of these processes."""
    total = {"processes": 0, "threads": 0, "memory": 0.0, "descriptors": 0}
    for pid in pids:
        folder = Path(f"/proc/{pid}")
        try:
            pss = next(line for line in (folder / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
            total["threads"] += len(os.listdir(folder / "task"))
            total["descriptors"] += len(os.listdir(folder / "fd"))
        except OSError:
            continue
        total["memory"] += int(pss.split()[1]) / 1024
        total["processes"] += 1
    return total


if __name__ == "__main__":
    main()
