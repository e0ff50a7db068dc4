"""Defects of the original Learning@home (`lib`, 2020), one by one; those tested elsewhere stand in `defects.ORIGINAL`.

The paper is Ryabinin and Gusev, "Towards Crowdsourced Training of Large Neural Networks using Decentralized
Mixture-of-Experts" (NeurIPS 2020).
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import typer
from conftest import InBackground, wait_until
from defects import ORIGINAL, check_table
from local_swarm import HIDDEN, Block, assert_close, grid_uids, sgd_backend, swarm
from networks import HERE, Join, eventually
from torch import Tensor, nn

import learning_at_home as lib
from learning_at_home.cli.main import app
from learning_at_home.client.transport import FORWARD, ExpertCall

pytest_plugins = ["network_fixtures"]


def test_every_defect_has_its_test() -> None:
    check_table(ORIGINAL, range(1, 29))


class Gated(Block):
    """Adds its calls to a list, and waits for `go_on` when given a 7."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order, self.busy, self.go_on = order, threading.Event(), threading.Event()

    def __deepcopy__(self, memo: dict[int, object]) -> Gated:
        return Gated(self.order)

    def forward(self, x: Tensor) -> Tensor:
        value = int(x.max())
        if value:  # not while the schema is found out
            self.order.append(value)
            if value == 7:
                self.busy.set()
                self.go_on.wait(60)
        return super().forward(x)


@contextmanager
def two_servers(
    first: nn.Module, second: nn.Module, **kwargs: object
) -> Iterator[tuple[lib.GatingFunction, list[lib.TesseractServer]]]:
    """`expert.0` and `expert.1` on servers of their own, and a gate that sends every token to both."""
    with (
        lib.TesseractNetwork(port=0, host=HERE) as root,
        lib.TesseractNetwork((HERE, root.port), port=0, host=HERE) as node,
        lib.TesseractServer(root, {"expert.0": sgd_backend("expert.0", first)}, port=0) as a,
        lib.TesseractServer(node, {"expert.1": sgd_backend("expert.1", second)}, port=0) as b,
    ):
        gate = lib.GatingFunction(
            in_features=HIDDEN, grid_size=[2], network=root, k_best=2, uid_prefix="expert", **kwargs
        )
        assert gate.wait_for_experts(2)
        yield gate, [a, b]


def test_6a01_the_oldest_request_is_computed_first() -> None:
    order: list[int] = []
    with swarm(grid_uids([4]), make_expert=lambda: Gated(order)) as running:
        blocker = running.backends["expert.0"].expert
        calls = []
        for i, value in enumerate((7, 1, 2, 3)):
            expert, x = running.expert(f"expert.{i}"), torch.full((1, HIDDEN), float(value))
            calls.append(InBackground(lambda expert=expert, x=x: expert(x)))
            wait_until(lambda i=i: running.server.counters()["requests"] == i + 1, 60, "the request is there")
            if i == 0:
                assert blocker.busy.wait(60)
        blocker.go_on.set()
        for call in calls:
            call.result()
    assert order == [7, 1, 2, 3]


class Broken(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.any():  # not while the schema is found out
            raise ValueError("broken")
        return super().forward(x)


def test_6a02_all_experts_of_one_sample_dead_does_not_kill_the_step() -> None:
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(Broken() if len(made) < 2 else Block())
        return made[-1]

    with swarm(grid_uids([4]), make_expert=make) as running:
        gate = running.gate((4,), 2, k_min=2, backward_k_min=2)
        gate.proj.weight.data.zero_()
        gate.proj.weight.data[:, 0] = torch.tensor([2.0, 1.0, -1.0, -2.0])  # the sign of x[:, 0] chooses a pair
        gate.proj.bias.data.zero_()
        x = torch.randn(4, HIDDEN)
        x[:, 0] = torch.tensor([1.0, -1.0, -1.0, 1.0])
        x.requires_grad_()
        out = gate(x)
        dead = torch.tensor([True, False, False, True])
        assert not out[dead].any()
        assert out[~dead].isfinite().all()
        assert out[~dead].any(dim=-1).all()
        out.sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert not x.grad[dead].any()
        assert x.grad[~dead].any(dim=-1).all()
        stats = gate.last_stats
        assert (stats.empty_tokens, stats.forward_failed, stats.backward_calls) == (2, 2, 2)


def test_6a04_a_schema_is_asked_for_once() -> None:
    with swarm(["expert.0"]) as running:
        expert = running.expert("expert.0")
        schema = expert.schema
        running.server.shutdown()
        assert running.expert("expert.0").schema is schema  # another module of the same expert


class Meeting(torch.autograd.Function):
    """Backward passes that end only together."""

    barrier: threading.Barrier

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        Meeting.barrier.wait(60)
        return grad


class Meets(Block):
    def forward(self, x: Tensor) -> Tensor:
        return Meeting.apply(super().forward(x))


def test_6a05_backward_calls_run_side_by_side() -> None:
    Meeting.barrier = threading.Barrier(2)
    with two_servers(Meets(), Meets(), backward_k_min=2, k_min=2, backward_timeout=100.0) as (gate, servers):
        gate(torch.randn(3, HIDDEN)).sum().backward()
        assert gate.last_stats.backward_failed == 0
        assert [sum(backend.updates for backend in server.experts.values()) for server in servers] == [1, 1]


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")


def shared_mappings() -> set[str]:
    """Files that this process has mapped shared, memory without a name included."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {" ".join(line.split()[5:]) for line in lines if line.split()[1].endswith("s")}


@linux_only
def test_6a09_batches_of_many_sizes_leave_no_shared_memory() -> None:
    with swarm(["expert.0"]) as running:
        expert = running.expert("expert.0")
        expert(torch.ones(1, HIDDEN)).sum().backward()
        mapped, descriptors = shared_mappings(), len(os.listdir("/proc/self/fd"))
        for rows in range(1, 200):
            expert(torch.ones(rows, HIDDEN)).sum().backward()
        assert shared_mappings() == mapped
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 4


def test_6a10_lookups_are_answered_from_the_map(join: Join) -> None:
    join()
    server, trainer = join(), join()
    server.declare_experts(grid_uids((4, 4), "ffn"), HERE, 4000)
    trainer.watch("ffn", [4, 4], period=600.0)
    assert eventually(lambda: len(trainer.alive("ffn", [4, 4])[1]) == 16)
    before = trainer.status()["packets_out"]
    for _ in range(5000):
        assert len(trainer.alive("ffn", [4, 4])[1]) == 16
    assert trainer.status()["packets_out"] - before < 100  # upkeep of the node's own


@linux_only
def test_6a11_calls_take_no_threads_and_stragglers_disturb_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    order: list[int] = []
    quick, slow = Gated(order), Gated(order)
    quick.go_on.set()
    with two_servers(quick, slow, timeout_after_k_min=0.5) as (gate, _):
        x = torch.full((2, HIDDEN), 7.0)
        gate(torch.ones(2, HIDDEN)).sum().backward()
        before = set(os.listdir("/proc/self/task"))
        python_threads = threading.active_count()
        step = InBackground(lambda: gate(x))
        out = step.result()
        assert isinstance(out, Tensor)
        assert slow.busy.wait(60)  # it still computes what nobody waits for
        assert threading.active_count() == python_threads
        assert len(set(os.listdir("/proc/self/task")) - before) <= 1  # the thread of this test itself may linger
        assert_close(out, quick.eval()(x), 1e-6)
        slow.go_on.set()
        gate(torch.ones(2, HIDDEN)).sum().backward()
        wait_until(lambda: gate(torch.ones(1, HIDDEN)).any() and gate.last_stats.failed == 0, 60, "both answer again")
    assert not raised


def test_6a13_fewer_experts_than_k_min_are_enough() -> None:
    with swarm(["expert.2"]) as running:
        gate = running.gate((8,), 4, k_min=4, backward_k_min=4)
        x = torch.randn(3, HIDDEN, requires_grad=True)
        out = gate(x)
        assert_close(out, running.local["expert.2"](x), 1e-6)
        out.sum().backward()
        assert gate.last_stats.failed == 0


def test_6a15_a_pool_survives_its_timeout_and_keeps_its_batch_size() -> None:
    with swarm(["expert.0"], min_batch_size=4, max_batch_size=8, timeout=0.02) as running:
        expert = running.expert("expert.0")
        for _ in range(3):  # alone: it waits for company in vain, and is served
            assert expert(torch.ones(1, HIDDEN)).shape == (1, HIDDEN)
        inputs = [torch.randn(rows, HIDDEN) for rows in (3, 3, 3, 5, 8, 1, 7, 2)]
        calls = [ExpertCall(expert.address, FORWARD, [x], [torch.empty_like(x)]) for x in inputs]
        outcomes = expert.transport.call_many(calls, 60.0)
        for call, outcome in zip(calls, outcomes, strict=True):
            assert outcome.ok, outcome.error
            assert len(call.inputs[0]) <= outcome.batch_rows <= 8
            assert_close(call.outputs[0], running.local["expert.0"](call.inputs[0]), 1e-5)


def trickle(source: socket.socket, sink: socket.socket) -> None:
    """Pass on three bytes at a time."""
    try:
        while data := source.recv(3):
            sink.sendall(data)
    except OSError:
        pass


def test_6a19_bytes_that_trickle_in_are_still_frames() -> None:
    with swarm(["expert.0"]) as running, socket.create_server((HERE, 0)) as listener:

        def relay() -> None:
            caller, _ = listener.accept()
            server = socket.create_connection((HERE, running.server.port))
            for end in (caller, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = InBackground(lambda: trickle(server, caller))
            trickle(caller, server)
            server.shutdown(socket.SHUT_RDWR)
            back.outcome()
            server.close()
            caller.close()

        InBackground(relay)
        port = listener.getsockname()[1]
        key = running.server.network.public_key
        expert = lib.RemoteExpert("expert.0", HERE, port, key=key, forward_timeout=60, backward_timeout=60)
        x = torch.randn(40, HIDDEN, requires_grad=True)
        y = expert(x)
        assert_close(y, running.local["expert.0"](x), 1e-6)
        y.sum().backward()
        assert running.backends["expert.0"].updates == 1


def tables(name: str) -> list[str]:
    """The kernel's table of sockets, one a line."""
    path = Path("/proc/self/net", name)
    return path.read_text().splitlines()[1:] if path.exists() else []


@linux_only
def test_6a20_servers_listen_where_they_say() -> None:
    with swarm(["expert.0"]) as running:
        port = f":{running.server.port:04X}"
        fields = [line.split() for name in ("tcp", "tcp6") for line in tables(name)]
        listening = [field[1].removesuffix(port) for field in fields if field[1].endswith(port) and field[3] == "0A"]
        (only,) = listening
        assert only in ("0100007F", f"{'0' * 16}FFFF00000100007F")  # 127.0.0.1, in either form
        (expert,) = running.network.get_experts(["expert.0"])
        assert expert is not None
        assert (expert.host, expert.port) == (HERE, running.server.port)


def test_6a21_an_expert_that_writes_to_its_input_harms_nobody() -> None:
    class Overwrites(Block):
        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)
            return super().forward(x)

    with swarm(["expert.0", "expert.1"], make_expert=Overwrites) as running:
        x = torch.ones(2, HIDDEN, requires_grad=True)
        expert = running.expert("expert.0")
        out = expert(x)
        assert torch.equal(x, torch.ones(2, HIDDEN))  # the caller's tensor is its own
        assert_close(out, running.local["expert.0"](torch.ones(2, HIDDEN)), 1e-6)
        with pytest.raises(lib.errors.ExpertError, match="in-place"):
            out.sum().backward()  # torch's own refusal, told to the one who asked
        assert running.backends["expert.0"].updates == 0
        assert expert(x).shape == x.shape  # and the server serves on


def test_6a22_commands_of_the_readme_are_understood() -> None:
    readme = Path(__file__).resolve().parent.parent / "README.md"
    commands = re.findall(r"`learning-at-home ([^`]+)`", readme.read_text(encoding="utf-8").replace("\n", " "))
    assert len(commands) >= 2
    group = typer.main.get_command(app)
    for command in commands:
        name, *arguments = command.replace("HOST", "localhost").split()
        group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="No such option"):
        group.commands["server"].make_context("server", ["--block_type", "ffn"])  # type: ignore[attr-defined]


@linux_only
def test_6a28_experts_take_no_file_descriptors() -> None:
    def descriptors(count: int) -> int:
        with swarm(grid_uids([count])) as running:
            gate = running.gate([count], min(count, 32))
            gate(torch.randn(64, HIDDEN)).sum().backward()
            assert gate.last_stats.forward_calls >= min(count, 32)
            return len(os.listdir("/proc/self/fd"))

    descriptors(1)  # what stays open in this process
    few = descriptors(1)
    assert descriptors(48) <= few + 2
