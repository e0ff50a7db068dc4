"""A network, a server and a trainer's network in this process, over real sockets."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import learning_at_home as lib

HIDDEN = 16


class Block(nn.Module):
    """A small expert that is neither linear nor symmetric."""

    def __init__(self, hidden: int = HIDDEN):
        super().__init__()
        self.up = nn.Linear(hidden, 2 * hidden)
        self.down = nn.Linear(2 * hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


@dataclass
class Swarm:
    """`local` holds copies of the experts as they were before anything was called."""

    server: lib.TesseractServer
    network: lib.TesseractNetwork
    backends: dict[str, lib.ExpertBackend]
    local: dict[str, nn.Module]

    def expert(self, uid: str, **kwargs: object) -> lib.RemoteExpert:
        key = self.server.network.public_key if self.server.network else None
        return lib.RemoteExpert(uid, "127.0.0.1", self.server.port, key=key, **kwargs)

    def gate(self, grid: Sequence[int], k_best: int, **kwargs: object) -> lib.GatingFunction:
        gate = lib.GatingFunction(
            in_features=kwargs.pop("in_features", HIDDEN),
            grid_size=grid,
            network=self.network,
            k_best=k_best,
            uid_prefix="expert",
            **kwargs,
        )
        assert gate.wait_for_experts(len(self.backends), timeout=30)
        return gate


def grid_uids(grid: Sequence[int], prefix: str = "expert") -> list[str]:
    return [
        ".".join([prefix, *map(str, coordinates)]) for coordinates in itertools.product(*(range(size) for size in grid))
    ]


def sgd_backend(uid: str, module: nn.Module, **kwargs: object) -> lib.ExpertBackend:
    kwargs.setdefault("args_schema", (lib.BatchTensorProto(HIDDEN),))
    return lib.ExpertBackend(uid, module, torch.optim.SGD(module.parameters(), lr=0.1), **kwargs)


@contextmanager
def swarm(
    uids: Iterable[str],
    make_expert: Callable[[], nn.Module] = Block,
    make_backend: Callable[..., lib.ExpertBackend] = sgd_backend,
    serve: Mapping[str, Any] | None = None,
    **kwargs: object,
) -> Iterator[Swarm]:
    """Serve one expert for each uid; yields when everything is up. `serve`: arguments of the server."""
    torch.manual_seed(0)
    experts = {uid: make_expert() for uid in uids}
    local = copy.deepcopy(experts)
    backends = {uid: make_backend(uid, module, **kwargs) for uid, module in experts.items()}
    with (
        lib.TesseractNetwork(port=0, host="127.0.0.1") as root,
        lib.TesseractNetwork(("127.0.0.1", root.port), port=0, host="127.0.0.1") as serving,
        lib.TesseractServer(serving, backends, port=0, **(serve or {})) as server,
        lib.TesseractNetwork(("127.0.0.1", root.port), port=0, host="127.0.0.1") as network,
    ):
        yield Swarm(server, network, backends, local)


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Largest error relative to the largest reference value."""
    scale = want.abs().max().clamp(min=1e-30)
    error = ((got - want).abs().max() / scale).item()
    assert got.shape == want.shape
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"
