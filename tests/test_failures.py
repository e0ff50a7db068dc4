"""Servers die, stall, refuse and return: every step ends in time, and training goes on."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable

import pytest
import torch
from conftest import ExpertServer, InBackground, Process, wait_until
from expert_server import HIDDEN
from local_swarm import assert_close
from torch import Tensor, nn

import learning_at_home as lib
from learning_at_home import errors
from learning_at_home.client.transport import FORWARD, CallOutcome, ExpertCall, get_transport

Spawn = Callable[..., Process]
DEADLINE = 25.0  # seconds a step may take, far above what it should
DETECTED = 15.0  # a silent server is given up after 3 s; the rest is for a busy machine
RETURN_SECONDS = 5.0  # from a server's READY line to its first answer to a gate


def make_gate(network: lib.TesseractNetwork, experts: int, **kwargs: object) -> lib.GatingFunction:
    """A gate over `e.0`, `e.1`, ...; every token goes to all experts alive and waits for all of them."""
    options = {"k_min": experts, "backward_k_min": experts, "forward_timeout": DEADLINE, **kwargs}
    gate = lib.GatingFunction(
        in_features=HIDDEN,
        grid_size=[experts],
        network=network,
        k_best=experts,
        uid_prefix="e",
        backward_timeout=DEADLINE,
        **options,
    )
    assert gate.wait_for_experts(experts, timeout=60)
    return gate


def server(spawn: Spawn, network: lib.TesseractNetwork, *experts: str) -> ExpertServer:
    process = spawn("--network", str(network.port), *experts, cls=ExpertServer)
    assert isinstance(process, ExpertServer)
    return process


def step(gate: lib.GatingFunction, seconds: float = 0.0) -> Tensor:
    """A training step in which sleepers sleep so long. Experts are identities, and so is their mixture."""
    x = torch.full((2, HIDDEN), -1.0)
    x[:, 0] = seconds
    x.requires_grad_()
    gate.zero_grad()
    out = gate(x)
    out.sum().backward()
    assert x.grad is not None
    return out.detach()


def assert_goes_on(gate: lib.GatingFunction, experts: int) -> None:
    """Steps work with this many experts, and none of their calls fails."""
    for _ in range(3):
        step(gate)
        stats = gate.last_stats
        assert (stats.forward_calls, stats.backward_calls, stats.failed) == (experts, experts, 0), stats


def assert_used_again(gate: lib.GatingFunction, experts: int, since: float, limit: float) -> None:
    """A step with all experts succeeds within `limit` seconds of `since`."""
    while True:
        step(gate)
        stats = gate.last_stats
        if stats.forward_calls == experts and stats.failed == 0:
            break
        assert time.monotonic() - since < 60, f"never used again: {stats}"
    assert time.monotonic() - since <= limit


# --- servers that vanish ------------------------------------------------------------------------------------


def test_server_killed_mid_batch_and_returned(network: lib.TesseractNetwork, spawn: Spawn) -> None:
    server(spawn, network, "e.0=nop", "e.1=nop")
    experts = ("e.2=sleeper", "e.3=nop")
    identity = ("--identity", os.urandom(32).hex())
    victim = server(spawn, network, *identity, *experts)
    gate = make_gate(network, 4)
    assert_goes_on(gate, 4)

    running = InBackground(lambda: step(gate, seconds=300.0))
    victim.wait_line("BUSY")
    killed_at = time.monotonic()
    victim.signal(signal.SIGKILL)
    out = running.result()
    assert time.monotonic() - killed_at < DETECTED
    assert_close(out, torch.tensor([[300.0, -1.0, -1.0, -1.0]] * 2), 1e-6)  # the survivors' mixture
    stats = gate.last_stats
    assert stats.forward_calls == 4
    assert 1 <= stats.forward_failed <= 2  # e.3 may have answered before
    assert (stats.backward_calls, stats.backward_failed) == (4 - stats.forward_failed, 0)
    assert all(isinstance(error, errors.PeerUnreachable) for error in stats.errors), stats.errors
    assert_goes_on(gate, 2)

    port = ("--port", str(victim.port))
    for same in ((), identity, (*identity, *port)):  # a new owner; the same; the same at the same address
        victim.signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        step(gate)
        assert_goes_on(gate, 2)
        victim = server(spawn, network, *same, *experts)
        assert_used_again(gate, 4, victim.ready(), RETURN_SECONDS)


def test_stopped_server_is_left_out_and_taken_back(network: lib.TesseractNetwork, spawn: Spawn) -> None:
    server(spawn, network, "e.0=nop")
    sleepy = server(spawn, network, "e.1=nop")
    gate = make_gate(network, 2)
    assert_goes_on(gate, 2)

    sleepy.signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    step(gate)
    assert time.monotonic() - stopped_at < DETECTED
    assert gate.last_stats.failed == 1
    assert_goes_on(gate, 1)

    sleepy.signal(signal.SIGCONT)
    assert_used_again(gate, 2, time.monotonic(), DETECTED)


def test_stragglers_are_not_waited_for(network: lib.TesseractNetwork, spawn: Spawn) -> None:
    server(spawn, network, "e.0=nop")
    server(spawn, network, "e.1=sleeper")
    gate = make_gate(network, 2, k_min=1, backward_k_min=1, timeout_after_k_min=0.5)
    begin = time.monotonic()
    step(gate, seconds=300.0)
    assert time.monotonic() - begin < DETECTED
    assert (gate.last_stats.forward_failed, gate.last_stats.backward_failed) == (1, 0)


def test_all_servers_dead(network: lib.TesseractNetwork, spawn: Spawn) -> None:
    only = server(spawn, network, "e.0=nop", "e.1=nop")
    gate = make_gate(network, 2)
    raising = make_gate(network, 2, on_empty="raise")
    assert_goes_on(gate, 2)
    only.signal(signal.SIGKILL)
    only.wait()

    begin = time.monotonic()
    out = step(gate)  # this one finds out, the next one knows
    assert torch.equal(out, torch.zeros(2, HIDDEN))
    assert gate.last_stats.forward_failed == 2
    assert torch.equal(step(gate), torch.zeros(2, HIDDEN))
    assert gate.last_stats.forward_calls == 0
    for parameter in gate.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
    with pytest.raises(errors.NoExpertsAlive, match=r"'e\.\*'"):
        step(raising)
    assert time.monotonic() - begin < DETECTED


def test_nobody_was_ever_there(network: lib.TesseractNetwork) -> None:
    options = {"in_features": HIDDEN, "grid_size": [2], "network": network, "k_best": 1, "uid_prefix": "none"}
    gate = lib.GatingFunction(forward_timeout=0.2, **options)
    begin = time.monotonic()
    assert torch.equal(step(gate), torch.zeros(2, HIDDEN))
    with pytest.raises(errors.NoExpertsAlive):
        step(lib.GatingFunction(forward_timeout=0.2, on_empty="raise", **options))
    assert time.monotonic() - begin < DETECTED


def test_call_to_nobody_ends_in_time(network: lib.TesseractNetwork, spawn: Spawn) -> None:
    gone = spawn("e=nop", cls=ExpertServer)
    assert isinstance(gone, ExpertServer)
    expert = lib.RemoteExpert("e", port=gone.port, forward_timeout=DEADLINE)
    expert(torch.zeros(1, HIDDEN))
    gone.signal(signal.SIGKILL)
    gone.wait()
    begin = time.monotonic()
    with pytest.raises(errors.PeerUnreachable, match=f"forward of expert 'e' on .*:{gone.port}"):
        expert(torch.zeros(1, HIDDEN))
    assert time.monotonic() - begin < DETECTED
    hasty = lib.RemoteExpert("e", port=gone.port, key=network.public_key, forward_timeout=0.5)
    with pytest.raises(errors.DeadlineExceeded):
        hasty(torch.zeros(1, HIDDEN))
    assert time.monotonic() - begin < DETECTED


# --- requests that cannot be served -------------------------------------------------------------------------


class Touchy(nn.Module):
    """Doubles its input; raises or returns nonsense if told so by the first value."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        if x.max().item() == 13.0:
            raise ArithmeticError("thirteen is not served")
        return (x * self.scale)[:, : 1 if x.max().item() == 14.0 else None]


def touchy_backend(uid: str, **kwargs: object) -> lib.ExpertBackend:
    module = Touchy()
    rows = lib.BatchTensorProto(HIDDEN)
    opt = torch.optim.SGD(module.parameters(), lr=0.0)
    return lib.ExpertBackend(uid, module, opt, args_schema=(rows,), outputs_schema=rows, **kwargs)


def call_raw(expert: lib.RemoteExpert, *batches: Tensor) -> list[CallOutcome]:
    """Forward calls side by side, past the client's own checks."""
    calls = [ExpertCall(expert.address, FORWARD, [x], [torch.empty(len(x), HIDDEN)]) for x in batches]
    return get_transport().call_many(calls, DEADLINE)


def test_an_expert_that_raises_tells_its_caller_and_serves_on() -> None:
    with lib.TesseractServer(None, {"t": touchy_backend("t")}, port=0) as running:
        expert = lib.RemoteExpert("t", port=running.port)
        with pytest.raises(errors.ExpertError, match=r"forward of expert 't' on .*thirteen") as caught:
            expert(torch.full((1, HIDDEN), 13.0))
        text = caught.value.traceback_text
        assert text.startswith("Traceback")
        assert text.endswith("ArithmeticError: thirteen is not served\n")
        assert 'raise ArithmeticError("thirteen is not served")' in text  # the line of the server's code
        assert isinstance(caught.value.__cause__, errors.RemoteTraceback)
        assert text in str(caught.value.__cause__)

        x = torch.ones(1, HIDDEN, requires_grad=True)
        out = expert(x)
        assert torch.equal(out, 2 * torch.ones(1, HIDDEN))
        x.data.fill_(13.0)  # the recomputed forward pass raises
        with pytest.raises(errors.ExpertError, match=r"backward of expert 't' on .*thirteen"):
            out.sum().backward()
        assert running.experts["t"].updates == 0

        with pytest.raises(errors.ExpertError, match=r"expected an output float32\[\*, 4\] of 1 rows"):
            expert(torch.full((1, HIDDEN), 14.0))
        with torch.no_grad():
            running.experts["t"].expert.scale.fill_(3.0)
        assert torch.equal(expert(torch.ones(1, HIDDEN)), 3 * torch.ones(1, HIDDEN))
        assert running.counters()["failed"] == 3


def test_unknown_uid_is_named_and_the_server_serves_on() -> None:
    with lib.TesseractServer(None, {"t": touchy_backend("t")}, port=0) as running:
        with pytest.raises(errors.ExpertNotFound, match="no expert 'other' is served here"):
            lib.RemoteExpert("other", port=running.port)(torch.ones(1, HIDDEN))
        known = lib.RemoteExpert("t", port=running.port)
        other = lib.RemoteExpert("other", port=running.port)
        (outcome,) = call_raw(other, torch.ones(1, HIDDEN))
        assert isinstance(outcome.error, errors.ExpertNotFound)
        assert known(torch.ones(1, HIDDEN))[0, 0] == 2


def test_a_bad_request_never_harms_its_neighbours() -> None:
    good = torch.ones(1, HIDDEN)
    bad = [
        torch.ones(1, HIDDEN + 1),
        torch.ones(1, HIDDEN, 1),
        torch.ones(1, HIDDEN, dtype=torch.float64),
        torch.ones(65, HIDDEN),
        torch.ones(0, HIDDEN),
    ]
    # The batch leaves when both good requests are there: they share it, whatever comes between them.
    pool = {"min_batch_size": 2, "max_batch_size": 64, "timeout": DEADLINE}
    with lib.TesseractServer(None, {"t": touchy_backend("t", **pool)}, port=0) as running:
        expert = lib.RemoteExpert("t", port=running.port)
        first, *refused, last = call_raw(expert, good, *bad, good)
        for outcome in (first, last):
            assert outcome.ok, outcome.error
            assert outcome.batch_rows == 2
        for outcome in refused:
            assert isinstance(outcome.error, errors.SchemaMismatch), outcome.error
            assert "expected" in str(outcome.error)
        assert running.counters()["batches"] == 1
        for x in (*bad[:3], "text"):  # the client's own check, before anything is sent
            with pytest.raises(errors.SchemaMismatch, match=r"expected float32|expected a tensor"):
                expert(x)
        assert running.counters()["requests"] == 2


# --- two trainers -------------------------------------------------------------------------------------------

TRAINER = """
import sys, torch
import learning_at_home as lib
torch.set_num_threads(1)
first, second, seed = (int(text) for text in sys.argv[1:])
experts = [lib.RemoteExpert("a", port=first), lib.RemoteExpert("b", port=second)]
generator = torch.Generator().manual_seed(seed)
for _ in range(3):
    x = torch.randn(3, 4, generator=generator)
    experts[1](experts[0](x)).sum().backward()
print("TRAINED")
"""


def test_two_trainers_share_batches_and_both_update(spawn: Spawn) -> None:
    torch.manual_seed(5)
    modules = {uid: nn.Linear(HIDDEN, HIDDEN) for uid in "ab"}
    local = nn.Sequential(*(nn.Linear(HIDDEN, HIDDEN) for _ in modules))
    local.load_state_dict(nn.Sequential(*modules.values()).state_dict())
    opt = torch.optim.SGD(local.parameters(), lr=0.01)
    backends = {
        uid: lib.ExpertBackend(
            uid,
            module,
            torch.optim.SGD(module.parameters(), lr=0.01),
            args_schema=(lib.BatchTensorProto(HIDDEN),),
            min_batch_size=6,  # the rows of both trainers: neither goes on without the other
            timeout=100.0,
        )
        for uid, module in modules.items()
    }
    servers = [lib.TesseractServer(None, {uid: backends[uid]}, port=0) for uid in "ab"]
    with servers[0], servers[1]:
        trainers = [spawn("-c", TRAINER, str(servers[0].port), str(servers[1].port), str(seed)) for seed in (1, 2)]
        for trainer in trainers:
            trainer.wait_line("TRAINED")
            assert trainer.wait() == 0
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        for _ in range(3):
            x = torch.cat([torch.randn(3, HIDDEN, generator=generator) for generator in generators])
            opt.zero_grad()
            local(x).sum().backward()
            opt.step()
        for uid, server in zip("ab", servers, strict=True):
            assert backends[uid].updates == 3
            counters = server.counters()
            assert (counters["requests"], counters["batches"], counters["rows"]) == (12, 6, 36)
    for module, expected in zip(modules.values(), local, strict=True):
        for parameter, wanted in zip(module.parameters(), expected.parameters(), strict=True):
            assert_close(parameter, wanted, 1e-5)


# --- strangers on the ports ---------------------------------------------------------------------------------


def test_strangers_on_the_ports_do_no_harm(network: lib.TesseractNetwork) -> None:
    noise = random.Random(3)
    with lib.TesseractServer(network, {"t": touchy_backend("t")}, port=0) as running:
        address = ("127.0.0.1", running.port)
        for _ in range(50):  # a port probe
            socket.create_connection(address).close()
        half_open = [socket.create_connection(address) for _ in range(20)]
        greeting = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
        huge = greeting + b"\x02" + (2**62).to_bytes(8, "big") + bytes(1000)
        for blob in (noise.randbytes(100_000), b"GET / HTTP/1.1\r\n\r\n", greeting[:11], greeting, huge):
            with socket.create_connection(address) as stranger:
                stranger.sendall(blob)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port in (running.port, network.port):
                for size in (0, 1, 31, 32, 33, 400, 1200, 1201, 2000, 65000):
                    sender.sendto(noise.randbytes(size), ("127.0.0.1", port))
        wait_until(lambda: network.status()["bad_packets"] > 0, 30, "the noise arrives")

        expert = lib.RemoteExpert("t", port=running.port)  # asks for the key over UDP, too
        assert torch.equal(expert(torch.ones(1, HIDDEN)), 2 * torch.ones(1, HIDDEN))
        assert network.get_experts(["t"])[0] is not None
        assert network.ping("127.0.0.1", network.port, timeout=30) is not None
        for stranger in half_open:
            stranger.close()
        assert torch.equal(expert(torch.ones(1, HIDDEN)), 2 * torch.ones(1, HIDDEN))
