"""``learning-at-home``: run a node of the network, serve experts, or look at a network, without writing Python.

The two commands that go on running print one line to stdout when they are up, ``READY network HOST:PORT`` or
``READY server HOST:PORT experts=N``, then two that say how others join this node, and end with status 0 on SIGINT
and SIGTERM.
"""

from __future__ import annotations

import importlib.util
import math
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
import typer
from rich.console import Console
from torch import nn

import learning_at_home as lib
from learning_at_home._network_arguments import join_address
from learning_at_home.cli import admission as admissions
from learning_at_home.cli import options
from learning_at_home.cli.lifetime import Lifetime
from learning_at_home.network import NETWORK_ID
from learning_at_home.nn.registry import ExpertClass, find_expert_class
from learning_at_home.ops.library import has_kernel

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

_OBSERVED_TIMEOUT = 2.0  # seconds to wait for peers to tell our address

app.add_typer(admissions.app, name="admission")

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@app.command()
def network(
    peer: options.Peers = [],  # noqa: B006  typer copies its defaults
    host: options.Host = "0.0.0.0",
    port: options.UdpPort = 8081,
    announce: options.Announce = None,
    identity: admissions.Identity = None,
    owner_key: admissions.OwnerKey = None,
    certificate: admissions.CertificateFile = None,
    exit_with_parent: options.ExitWithParent = False,
) -> None:
    """Run a node of the network: a place where others join. It serves no experts."""
    peers = options.parse_peers(peer)
    with (
        Lifetime(with_parent=exit_with_parent) as lifetime,
        _network(peers, host, port, identity, owner_key, certificate) as node,
    ):
        _say_ready(f"READY network {'127.0.0.1' if host == '0.0.0.0' else host}:{node.port}", node, announce)
        lifetime.wait()


@app.command()
def server(
    hidden: options.Hidden,
    peer: options.Peers = [],  # noqa: B006
    prefix: options.Prefix = "expert",
    grid: options.Grid = "8x8",
    experts: options.Experts = "",
    expert: options.Expert = "ffn",
    custom_module: options.CustomModule = None,
    optimizer: options.Optimizer = options.OptimizerKind.adam,
    lr: options.LearningRate = 1e-3,
    host: options.Host = "127.0.0.1",
    announce: options.Announce = None,
    port: options.TcpPort = 8080,
    network_port: options.UdpPort = 0,
    identity: admissions.Identity = None,
    owner_key: admissions.OwnerKey = None,
    certificate: admissions.CertificateFile = None,
    device: options.Device = None,
    max_batch_size: options.MaxBatchSize = 2048,
    torch_threads: options.TorchThreads = 0,
    seed: options.Seed = None,
    checkpoint_dir: options.CheckpointDir = None,
    checkpoint_period: options.CheckpointPeriod = 60.0,
    checkpoint_keep: options.CheckpointKeep = 2,
    allow_fetch: options.AllowFetch = False,
    exit_with_parent: options.ExitWithParent = False,
) -> None:
    """Serve experts until Ctrl-C."""
    peers = options.parse_peers(peer)
    uids = options.expert_uids(experts, prefix, options.parse_grid(grid))
    if custom_module is not None:
        _run_file(custom_module)
    try:
        kind = find_expert_class(expert)
    except lib.errors.InvalidArgument as error:
        raise typer.BadParameter(str(error), param_hint="--expert") from error
    if torch_threads:
        torch.set_num_threads(torch_threads)
    if seed is not None:
        torch.manual_seed(seed)

    def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
        return OPTIMIZERS[optimizer.value](module.parameters(), lr=lr)  # type: ignore[call-arg]

    backends = _backends(uids, kind, hidden, make_optimizer, max_batch_size)
    with (
        Lifetime(with_parent=exit_with_parent) as lifetime,
        _network(peers, "0.0.0.0", network_port, identity, owner_key, certificate) as node,
        lib.TesseractServer(
            node,
            backends,
            host,
            port,
            announce=announce,
            device=None if device is None else torch.device(device),
            checkpoint_dir=checkpoint_dir,
            checkpoint_period=checkpoint_period,
            checkpoint_keep=checkpoint_keep,
            allow_fetch=allow_fetch,
        ) as serving,
    ):
        _say_ready(
            f"READY server {serving.announce}:{serving.announce_port} experts={len(uids)}",
            node,
            announce and serving.announce,
        )
        lifetime.wait()


@app.command()
def ping(
    peer: options.Peer,
    count: options.PingCount = 4,
    timeout: options.PingTimeout = 2.0,
) -> None:
    """Measure the round trip to a node of the network. Status 1 if it never answers."""
    ((host, port),) = options.parse_peers([peer])
    answered = 0
    with lib.TesseractNetwork(port=0, client_mode=True) as node:
        for _ in range(count):
            round_trip = node.ping(host, port, timeout)
            answered += round_trip is not None
            typer.echo(f"{peer}: " + ("no answer" if round_trip is None else f"{1e3 * round_trip:.2f} ms"))
    if not answered:
        raise typer.Exit(1)


@app.command()
def status(
    peer: options.Peers,
    prefix: options.Prefix = "expert",
    grid: options.StatusGrid = "",
    timeout: options.JoinTimeout = 10.0,
) -> None:
    """Join as a client, and say what can be seen from here: nodes, our address, experts alive. Status 1: not let in."""
    peers, sizes = options.parse_peers(peer), options.parse_grid(grid) if grid else []
    with lib.TesseractNetwork(*peers, port=0, client_mode=True) as node:
        if not node.wait_ready(timeout):
            typer.echo(f"nobody let us in within {timeout:g} s")
            raise typer.Exit(1)
        alive = None
        if sizes:
            node.wait_alive(prefix, sizes, timeout=timeout)
            alive = len(node.alive(prefix, sizes)[1])
        seen = node.status()
    typer.echo(f"nodes known: {seen['peers']}")
    typer.echo(f"our address as they see it: {seen['observed'] or 'not told'}")
    if alive is not None:
        typer.echo(f"experts alive: {alive} of {math.prod(sizes)}")


@app.command()
def version() -> None:
    """Print the versions that matter when something goes wrong, and what the native ops were built for."""
    devices = [key for key in ("CPU", "CUDA") if has_kernel("route_grid", key)]
    typer.echo(
        f"learning_at_home {metadata.version('learning_at_home')}\n"
        f"ops for {' and '.join(devices) or 'no device: plain torch stands in'}\n"
        f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}\n"
        f"Python {platform.python_version()}, {platform.platform()}"
    )


def _network(
    peers: list[tuple[str, int]],
    host: str,
    port: int,
    identity: Path | None,
    owner_key: str | None,
    certificate: Path | None,
) -> lib.TesseractNetwork:
    seed = None if identity is None else admissions.read_seed(identity, "--identity")
    admission = admissions.admission_of(owner_key, certificate)
    try:
        node = lib.TesseractNetwork(*peers, host=host, port=port, identity=seed, admission=admission)
        admission.check(NETWORK_ID, node.public_key)
    except lib.errors.InvalidArgument as error:
        raise typer.BadParameter(str(error)) from error
    return node


def _backends(
    uids: list[str],
    kind: ExpertClass,
    hidden: int,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    max_batch_size: int,
) -> dict[str, lib.ExpertBackend]:
    backends: dict[str, lib.ExpertBackend] = {}
    outputs = None  # found out by the first
    for uid in uids:
        module = kind.make(hidden)
        backends[uid] = lib.ExpertBackend(
            name=uid,
            expert=module,
            opt=make_optimizer(module),
            args_schema=kind.args_schema(hidden),
            outputs_schema=outputs,
            max_batch_size=max_batch_size,
        )
        outputs = backends[uid].outputs_schema
    return backends


def _run_file(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise typer.BadParameter(f"expected a Python file, got {path}", param_hint="--custom-module")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # where TorchScript and dataclasses look for the code's names
    spec.loader.exec_module(module)


def _say_ready(line: str, node: lib.TesseractNetwork, announce: str | None = None) -> None:
    print(line, flush=True)
    host, port = node.own_address(announce, wait=_OBSERVED_TIMEOUT)
    print(f"Join from the command line: --peer {join_address(host, port)}", flush=True)
    print(f'Join from Python: TesseractNetwork(("{host}", {port}))', flush=True)
    Console(stderr=True).print("[dim]Ctrl-C stops it.[/dim]")


def main() -> None:
    """Entry point of the ``learning-at-home`` command."""
    app()


if __name__ == "__main__":
    main()
