"""What every benchmark shares: its options, the sides it compares, rounds in turn, the table and the rows."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.worker import ROOT, Worker, WorkerError

T = TypeVar("T")
OURS = "learning_at_home"


@dataclass
class Row:
    """One figure. `ratio`: how many times better ours is than the peer. kind: real, emulated or simulated."""

    name: str
    unit: str
    ours: float
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    bound: float | None = None
    kind: str = "real"


@dataclass(frozen=True)
class Side:
    """One of the programs compared: how to start a process of it."""

    name: str
    module: str
    python: str
    arguments: tuple[str, ...] = ()

    def start(self, prefix: Sequence[str] = ()) -> Worker:
        """A fresh process, as a server or as a client of one; `prefix` is a command that runs it somewhere else."""
        return Worker(self.module, self.python, self.arguments, prefix)


@dataclass
class Options:
    """The command line of a benchmark."""

    quick: bool
    json: Path | None
    rounds: int
    full: bool
    grpc: Side | None = None
    sides: list[Side] = field(default_factory=list)
    dht_sides: list[Side] = field(default_factory=list)  # those that are, or have, a DHT; ours is the first


def parse_options(description: str | None, arguments: Sequence[str] | None = None) -> Options:
    """Read the options that every benchmark takes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no worker is left behind
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller work")
    parser.add_argument("--full", action="store_true", help="also the work that takes a peer minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of every side in turn")
    parser.add_argument("--hivemind", metavar="PYTHON", help="interpreter of an environment with hivemind")
    parser.add_argument(
        "--original", nargs=2, metavar=("PYTHON", "CHECKOUT"), help="interpreter and checkout of the original"
    )
    parser.add_argument("--kademlia", metavar="PYTHON", help="interpreter of an environment with bmuller's kademlia")
    parser.add_argument("--grpc", metavar="PYTHON", help="interpreter of an environment with grpcio")
    given = parser.parse_args(arguments)
    sides = [Side(OURS, "benchmarks.ours", sys.executable)]
    if given.hivemind:
        sides.append(Side("hivemind", "benchmarks.peers.hivemind_side", given.hivemind))
    if given.original:
        python, checkout = given.original
        sides.append(Side("original", "benchmarks.peers.original_side", python, (checkout,)))
    dht_sides = [Side(OURS, "benchmarks.dht._swarm", sys.executable)]
    if given.hivemind:
        dht_sides.append(Side("hivemind", "benchmarks.peers.hivemind_dht", given.hivemind))
    if given.kademlia:
        dht_sides.append(Side("kademlia", "benchmarks.peers.kademlia_dht", given.kademlia))
    grpc = Side("gRPC", "benchmarks.peers.grpc_side", given.grpc) if given.grpc else None
    rounds = given.rounds or (3 if given.quick else 7)
    return Options(given.quick, given.json, rounds, given.full, grpc, sides, dht_sides)


@contextmanager
def served(sides: Sequence[Side], experts: Sequence[str], hidden: int, **options: Any) -> Iterator[dict[str, Worker]]:
    """A server and a connected client of every side; yields the clients. Everything ends with the block.

    A peer that cannot start is named and left out; ours must start.
    """
    with ExitStack() as stack:
        clients = {}
        for side in sides:
            try:
                server = stack.enter_context(side.start())
                address = server.ask("serve", timeout=240, experts=list(experts), hidden=hidden, **options)
                client = stack.enter_context(side.start())
                client.ask("connect", timeout=120, address=address, hidden=hidden)
                clients[side.name] = client
            except WorkerError as error:
                if side.name == OURS:
                    raise
                console().print(f"[yellow]{side.name} left out: {error}")
        yield clients


def in_turn(rounds: int, works: dict[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Run every work once a round, so that all see the same machine; each starts first in turn.

    A peer's work that fails is reported and not tried again.
    """
    names = list(works)
    results: dict[str, list[T]] = {name: [] for name in names}
    failed: set[str] = set()
    for i in range(rounds):
        for name in names[i % max(1, len(names)) :] + names[: i % max(1, len(names))]:
            if name in failed:
                continue
            try:
                results[name].append(works[name]())
            except WorkerError as error:
                if name == OURS:
                    raise
                failed.add(name)
                console().print(f"[yellow]{error}")
    return {name: values for name, values in results.items() if values}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered), -int(-share * len(ordered) // 1)) - 1)]


def median(values: Sequence[float]) -> float:
    """The median: a round in which the machine was busy elsewhere does not move it."""
    return statistics.median(values)


def compare(
    name: str, unit: str, values: dict[str, float], bound: float | None = None, more_is_better: bool = False
) -> list[Row]:
    """A row for every peer that has a value, or one without a peer."""
    ours = values[OURS]
    rows = []
    for peer, value in values.items():
        if peer != OURS:
            better, worse = (ours, value) if more_is_better else (value, ours)
            rows.append(Row(name, unit, ours, peer, value, better / worse if worse else None, bound))
    return rows or [Row(name, unit, ours, bound=bound)]


def report(title: str, rows: Sequence[Row], options: Options) -> None:
    """Print the table, and write the rows if asked to."""
    header, lines = table_cells(rows)
    table = Table(title=f"{title} (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)", title_justify="left")
    for column in header:
        table.add_column(column, justify="left" if column == header[0] else "right")
    for line in lines:
        table.add_row(*line)
    console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def table_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and lines, one a figure; a peer's cell is its value and how many times better ours is."""
    peers = list(dict.fromkeys(row.peer for row in rows if row.peer is not None))
    bounded = any(row.bound is not None for row in rows)
    lines: dict[str, list[str]] = {}
    for row in rows:
        bound = [number(row.bound)] if bounded else []
        cells = lines.setdefault(row.name, [f"{row.name}, {row.unit}", number(row.ours), *["–"] * len(peers), *bound])
        if row.peer is not None:
            ratio = "" if row.ratio is None else f" ({number(row.ratio)}×)"
            cells[2 + peers.index(row.peer)] = number(row.peer_value) + ratio
    return ["", "ours", *peers, *(["bound"] if bounded else [])], list(lines.values())


def table_lines(rows: Sequence[Row]) -> list[str]:
    """The same in Markdown."""
    header, lines = table_cells(rows)
    ruler = ["---", *["--:"] * (len(header) - 1)]
    return ["|" + "|".join(line) + "|" for line in (header, ruler, *lines)]


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def machine() -> str:
    """What was measured on, in one line."""
    import torch

    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return f"{os.cpu_count()} cores {model}, {platform.system()} {platform.release()}, torch {torch.__version__}"


def commit() -> str:
    """The commit of this tree; a star says that something was changed since."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or "no commit"


def console() -> Console:
    """Where tables go."""
    return Console(width=None if os.isatty(1) else 120)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
