"""A training step, forward and backward, through a gate over 8×8 experts that do next to nothing: k=4, width 256.

Bound: the bytes of the step (rows there and back, then rows and gradients there and gradients back) through a bare TCP
loop between two Python processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.bounds import bound_side
from benchmarks.common import OURS, Row, compare, in_turn, median, parse_options, report, served

GRID, K, WIDTH = [8, 8], 4, 256
SMALL, LARGE = 256, 2048
HANDLERS = 16  # processes of hivemind's server; its default of 8 an expert only costs memory here

Steps = list[dict[str, float]]


def main() -> None:
    """Run it."""
    options = parse_options(__doc__)
    experts = [f"moe.{i}.{j}" for i in range(GRID[0]) for j in range(GRID[1])]
    rows: list[Row] = []
    with (
        served(options.sides, experts, WIDTH, kind="shift", network=True, handlers=HANDLERS) as clients,
        bound_side().start() as echo,
        bound_side().start() as bound,
    ):
        for client in clients.values():
            client.ask("open_grid", grid=GRID, k=K, timeout=240)
        port = echo.ask("serve_tcp")
        for batch in (SMALL, LARGE):
            peers = [name for name in clients if name != OURS and (batch == SMALL or options.full)]
            rounds = min(options.rounds, 3) if peers else options.rounds
            rows += _measure(batch, {name: clients[name] for name in (OURS, *peers)}, bound, port, rounds)
    report("DMoE step, forward and backward", rows, options)


def _measure(batch: int, clients: dict[str, Any], bound: Any, port: int, rounds: int) -> list[Row]:
    nbytes = batch * K * WIDTH * 4
    counts = {name: 10 if name == OURS else 1 for name in clients}  # a peer takes as long for one
    works: dict[str, Callable[[], Steps]] = {
        name: lambda client=client, count=counts[name]: client.ask("steps", batch=batch, count=count, timeout=400)
        for name, client in clients.items()
    }

    def bare() -> Steps:
        forward = bound.ask("tcp", port=port, count=5, sent=nbytes)
        backward = bound.ask("tcp", port=port, count=5, sent=2 * nbytes, received=nbytes)
        return [{"seconds": f + b} for f, b in zip(forward, backward, strict=True)]

    works["bare"] = bare
    works[OURS]()  # warms up
    bare()
    done = in_turn(rounds, works)
    ms = {name: 1e3 * median([median([s["seconds"] for s in steps]) for steps in runs]) for name, runs in done.items()}
    calls = {name: max(s["calls"] for steps in runs for s in steps) for name, runs in done.items() if name != "bare"}
    values = {name: value for name, value in ms.items() if name != "bare"}
    return [
        *compare(f"step, B={batch}", "ms", values, ms["bare"]),
        *compare(f"expert calls a step, B={batch}", "calls", calls, 2.0 * GRID[0] * GRID[1]),
    ]


if __name__ == "__main__":
    main()
