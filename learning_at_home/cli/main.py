"""``learning-at-home``: run a node of the network or serve experts, without writing Python.

Both long-running commands print one line to stdout when they are up, ``READY network HOST:PORT`` or
``READY server HOST:PORT experts=N``, and end with status 0 on SIGINT and SIGTERM.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import metadata

import torch
import typer
from rich.console import Console
from torch import nn

import learning_at_home as lib
from learning_at_home.cli import options
from learning_at_home.cli.lifetime import Lifetime
from learning_at_home.nn.experts import EXPERTS
from learning_at_home.ops.library import has_kernel

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@app.command()
def network(
    peer: options.Peers = [],  # noqa: B006  typer copies its defaults
    host: options.Host = "0.0.0.0",
    port: options.UdpPort = 8081,
    exit_with_parent: options.ExitWithParent = False,
) -> None:
    """Run a node of the network: a place where others join. It serves no experts."""
    peers = options.parse_peers(peer)
    with (
        Lifetime(with_parent=exit_with_parent) as lifetime,
        lib.TesseractNetwork(*peers, host=host, port=port) as node,
    ):
        _say_ready(f"READY network {'127.0.0.1' if host == '0.0.0.0' else host}:{node.port}")
        lifetime.wait()


@app.command()
def server(
    hidden: options.Hidden,
    peer: options.Peers = [],  # noqa: B006
    prefix: options.Prefix = "expert",
    grid: options.Grid = "8x8",
    experts: options.Experts = "",
    expert: options.Expert = options.ExpertKind.ffn,
    optimizer: options.Optimizer = options.OptimizerKind.adam,
    lr: options.LearningRate = 1e-3,
    host: options.Host = "127.0.0.1",
    announce: options.Announce = None,
    port: options.TcpPort = 8080,
    network_port: options.UdpPort = 0,
    device: options.Device = None,
    max_batch_size: options.MaxBatchSize = 2048,
    torch_threads: options.TorchThreads = 0,
    seed: options.Seed = None,
    exit_with_parent: options.ExitWithParent = False,
) -> None:
    """Serve experts until Ctrl-C."""
    peers = options.parse_peers(peer)
    uids = options.expert_uids(experts, prefix, options.parse_grid(grid))
    if torch_threads:
        torch.set_num_threads(torch_threads)
    if seed is not None:
        torch.manual_seed(seed)

    def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
        return OPTIMIZERS[optimizer.value](module.parameters(), lr=lr)  # type: ignore[call-arg]

    backends = {
        uid: _backend(uid, EXPERTS[expert.value](hidden), make_optimizer, hidden, max_batch_size) for uid in uids
    }
    where = None if device is None else torch.device(device)
    with (
        Lifetime(with_parent=exit_with_parent) as lifetime,
        lib.TesseractNetwork(*peers, port=network_port) as node,
        lib.TesseractServer(node, backends, host, port, announce=announce, device=where) as serving,
    ):
        _say_ready(f"READY server {serving.announce}:{serving.port} experts={len(uids)}")
        lifetime.wait()


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


def _backend(
    uid: str,
    module: nn.Module,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    hidden: int,
    max_batch_size: int,
) -> lib.ExpertBackend:
    rows = lib.BatchTensorProto(hidden)
    return lib.ExpertBackend(
        name=uid,
        expert=module,
        opt=make_optimizer(module),
        args_schema=(rows,),
        outputs_schema=rows,
        max_batch_size=max_batch_size,
    )


def _say_ready(line: str) -> None:
    print(line, flush=True)
    Console(stderr=True).print("[dim]Ctrl-C stops it.[/dim]")


def main() -> None:
    """Entry point of the ``learning-at-home`` command."""
    app()


if __name__ == "__main__":
    main()
