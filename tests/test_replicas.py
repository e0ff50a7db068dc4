"""Several servers of one expert: trainers know all of them, use one, and lose nothing when it goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from conftest import wait_until
from local_swarm import HIDDEN, Block, sgd_backend
from networks import HERE
from torch import Tensor, nn

import learning_at_home as lib


@contextmanager
def replicated(
    experts: int, holders: int, make_expert: Callable[[], nn.Module] = Block
) -> Iterator[tuple[lib.GatingFunction, list[lib.TesseractServer]]]:
    """A gate over `expert.0`, ... each served by all of several servers."""
    with ExitStack() as stack:
        root = stack.enter_context(lib.TesseractNetwork(port=0, host=HERE))
        servers = []
        for _ in range(holders):
            node = stack.enter_context(lib.TesseractNetwork((HERE, root.port), port=0, host=HERE))
            torch.manual_seed(0)
            backends = {f"expert.{i}": sgd_backend(f"expert.{i}", make_expert()) for i in range(experts)}
            servers.append(stack.enter_context(lib.TesseractServer(node, backends, port=0)))
        gate = lib.GatingFunction(
            in_features=HIDDEN, grid_size=[experts], network=root, k_best=experts, uid_prefix="expert", k_min=experts
        )
        expected = [holders - 1] * experts
        wait_until(
            lambda: [len(expert.replicas) for expert in gate.alive.refresh().experts.values()] == expected,
            60,
            "every holder of every expert known",
        )
        yield gate, servers


def calls_to(server: lib.TesseractServer) -> int:
    return server.counters()["requests"]


def test_one_holder_is_called_and_the_other_takes_over() -> None:
    with replicated(experts=1, holders=2) as (gate, servers):
        (address,) = gate.alive.refresh().experts.values()
        assert address.peer not in address.replicas
        want = gate(torch.ones(2, HIDDEN))
        for _ in range(4):
            assert torch.equal(gate(torch.ones(2, HIDDEN)), want)
        assert sorted(map(calls_to, servers)) == [0, 5]
        used = servers[0] if calls_to(servers[0]) else servers[1]
        (other,) = (server for server in servers if server is not used)
        used.shutdown()
        wait_until(lambda: gate.alive.refresh().experts[0].peer == address.replicas[0], 60, "the other server used")
        assert gate.alive.refresh().experts[0].replicas == ()
        assert torch.equal(gate(torch.ones(2, HIDDEN)), want)  # made from the same seed
        assert gate.last_stats.failed == 0
        assert calls_to(other) == 1


def test_replicas_share_the_experts_of_one_trainer() -> None:
    with replicated(experts=24, holders=2) as (gate, servers):
        gate(torch.ones(1, HIDDEN))
        assert gate.last_stats.forward_calls == 24
        assert sum(map(calls_to, servers)) == 24
        assert all(map(calls_to, servers))  # one side alone: 1 in 8 million
        assert len({(e.peer, e.replicas) for e in gate.alive.refresh().experts.values()}) == 2


@pytest.mark.parametrize("index", [0, 1])
def test_a_silent_holder_alone_is_left_out(index: int) -> None:
    with replicated(experts=1, holders=2) as (gate, _):
        (address,) = gate.alive.refresh().experts.values()
        peer = (address.peer, *address.replicas)[index]
        key, boot_id = gate.alive.owners[peer]
        gate.network.suspect(key, 60.0, boot_id)
        (left,) = gate.alive.refresh().experts.values()
        assert (left.peer, left.replicas) == ((address.peer, *address.replicas)[1 - index], ())
        gate.network.forgive(key)
        (again,) = gate.alive.refresh().experts.values()
        assert again == address


class Waits(Block):
    """Waits for `go_on` when given a 7."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        if x.max() == 7:
            self.go_on.wait(60)
        return super().forward(x)


def test_a_slow_holder_is_hedged_and_the_one_that_answered_learns() -> None:
    with replicated(experts=1, holders=2, make_expert=Waits) as (gate, servers):
        for _ in range(12):  # until it is known how long such calls take
            gate(torch.ones(1, HIDDEN))
        first = gate.alive.refresh().experts[0].server
        slow, quick = sorted(servers, key=lambda server: not first.endswith(f":{server.port}"))
        quick.experts["expert.0"].expert.go_on.set()
        try:
            gate(torch.full((1, HIDDEN), 7.0)).sum().backward()
        finally:
            slow.experts["expert.0"].expert.go_on.set()
        stats = gate.last_stats
        assert stats.failed == 0
        assert stats.hedged == 1
        assert stats.forward["expert.0"].server.endswith(f":{quick.port}")
        assert stats.backward["expert.0"].server == stats.forward["expert.0"].server
        assert ", hedged" in stats.summary()
        assert [server.experts["expert.0"].updates for server in (slow, quick)] == [0, 1]
