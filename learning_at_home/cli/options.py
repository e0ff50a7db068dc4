"""Options of the command line, and the checks of their values."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from learning_at_home.nn.local_mixture import uid_of


class OptimizerKind(str, Enum):
    """What ``server --optimizer`` can train experts with."""

    adam = "adam"
    sgd = "sgd"


Peers = Annotated[
    list[str], typer.Option("--peer", metavar="HOST:PORT", help="A running node to join; may be repeated.")
]
Peer = Annotated[str, typer.Argument(metavar="HOST:PORT", help="A running node.")]
PingCount = Annotated[int, typer.Option(min=1, help="How often to ask.")]
PingTimeout = Annotated[float, typer.Option(min=0.001, max=3600, help="Seconds to wait for each answer.")]
JoinTimeout = Annotated[float, typer.Option(min=0.001, max=3600, help="Seconds to wait for the network.")]
UdpPort = Annotated[int, typer.Option(min=0, max=65535, help="UDP port of the node; 0 picks a free one.")]
TcpPort = Annotated[int, typer.Option(min=0, max=65535, help="TCP port for calls; 0 picks a free one.")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Announce = Annotated[
    str | None,
    typer.Option(metavar="HOST[:PORT]", help="What to tell others, where it is not the host's own address and port."),
]
ExitWithParent = Annotated[
    bool, typer.Option("--exit-with-parent", help="Also end when stdin is closed, however the parent died.")
]
Hidden = Annotated[int, typer.Option(min=1, help="Width of the experts' inputs and outputs.")]
Prefix = Annotated[str, typer.Option(help="First part of every uid.")]
Grid = Annotated[str, typer.Option(help="Sizes of the prefix's grid, such as 32 or 8x8.")]
StatusGrid = Annotated[str, typer.Option("--grid", help="Also count the experts of the prefix's grid, such as 8x8.")]
Experts = Annotated[
    str, typer.Option(help="Grid cells START:STOP in row-major order, or uids with commas. Default: all.")
]
Expert = Annotated[
    str, typer.Option(metavar="NAME", help="ffn, transformer, nop, det_dropout, or one that --custom-module registers.")
]
CustomModule = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="A Python file to run first; its register_expert_class names become experts. It can do whatever you can.",
    ),
]
CheckpointDir = Annotated[
    Path | None, typer.Option(file_okay=False, help="Where to save the experts, and to find them at the next start.")
]
CheckpointPeriod = Annotated[float, typer.Option(min=0.01, help="Seconds between saves of experts that were updated.")]
CheckpointKeep = Annotated[int, typer.Option(min=1, help="Saved generations of each expert to keep.")]
AllowFetch = Annotated[bool, typer.Option("--allow-fetch", help="Let anybody download the experts' weights.")]
Optimizer = Annotated[OptimizerKind, typer.Option(help="It steps after every backward batch.")]
LearningRate = Annotated[float, typer.Option(min=0.0, help="The optimizer's learning rate.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: cpu.")]
MaxBatchSize = Annotated[int, typer.Option(min=1, help="Most rows in one batch.")]
TorchThreads = Annotated[int, typer.Option(min=0, help="Threads torch computes with; 0: torch decides.")]
Seed = Annotated[int | None, typer.Option(help="Makes the experts' first weights repeatable.")]


def parse_peers(values: list[str]) -> list[tuple[str, int]]:
    """``["host:8081", "[::1]:8081"]`` to ``[("host", 8081), ("::1", 8081)]``."""
    peers = []
    for value in values:
        host, _, port = value.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise typer.BadParameter(f"expected HOST:PORT, got {value!r}", param_hint="--peer")
        peers.append((host, int(port)))
    return peers


def parse_grid(value: str) -> list[int]:
    """``"8x8"`` to ``[8, 8]``."""
    sizes = value.lower().split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise typer.BadParameter(f"expected sizes such as 8x8, got {value!r}", param_hint="--grid")
    return [int(size) for size in sizes]


def expert_uids(value: str, prefix: str, grid: list[int]) -> list[str]:
    """The uids that ``--experts`` names.

    ``"0:22"`` counts grid cells in row-major order, the last axis fastest: ``prefix.0.0``, ``prefix.0.1``,
    ...; an empty value is the whole grid; anything else is a list of uids, separated by commas.
    """
    cells = math.prod(grid)
    start, colon, stop = value.partition(":")
    if colon or not value:
        first, last = start or "0", stop or str(cells)
        if not first.isdecimal() or not last.isdecimal() or not int(first) < int(last) <= cells:
            message = f"expected a range within 0:{cells}, got {value!r}"
            raise typer.BadParameter(message, param_hint="--experts")
        return [uid_of(index, grid, prefix) for index in range(int(first), int(last))]
    uids = [uid.strip() for uid in value.split(",")]
    if len(set(uids)) != len(uids) or not all(uids):
        raise typer.BadParameter(f"expected distinct uids, got {value!r}", param_hint="--experts")
    return uids
