"""Connections and processes that fail in every other way: each call ends in time, and the server goes on."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from conftest import InBackground, wait_until

from chaos.process_faults import descriptors, few_descriptors, forget_peak, full_disk, rss, stopped
from chaos.servers import NUMBERS, Caller, NopServer, applied, check_applied_once, check_ended
from chaos.tcp_proxy import TcpProxy
from learning_at_home import errors
from learning_at_home.client.transport import BACKWARD, FORWARD, CallOutcome, ExpertAddress, ExpertCall, Transport

MIB = 1 << 20
DEADLINE = 20.0  # seconds that a single call is given
RESENT = 2.0  # seconds until a call in flight is answered over a new connection; on an idle machine
SLACK = 4.0  # what a busy one may add


class Line:
    """A nop server behind a proxy, and calls through it."""

    def __init__(self, folder: Path, *options: str):
        self.log = folder / "applied.log"
        self.server = NopServer("--log", str(self.log), *options)
        self.port, self.key = self.server.address()
        self.proxy = TcpProxy(("127.0.0.1", self.port))
        self.transport = Transport()
        self.peer = self.transport.connect("127.0.0.1", self.proxy.port, self.key)

    def call(self, method: int = FORWARD, rows: int = 1, number: int = 7, deadline: float = DEADLINE) -> CallOutcome:
        x = torch.full((rows, NUMBERS), number)
        out = torch.empty_like(x)
        address = ExpertAddress("nop", self.peer, f"server 127.0.0.1:{self.proxy.port}")
        begin = time.monotonic()
        (outcome,) = self.transport.call_many([ExpertCall(address, method, [x], [out])], deadline)
        assert time.monotonic() - begin < deadline + 1.0
        assert not outcome.ok or torch.equal(out, x)
        return outcome

    def caller(self, deadline: float = 2.0) -> Caller:
        return Caller(self.transport, self.peer, deadline).start()

    def close(self) -> None:
        self.proxy.close()
        self.server.end()


@pytest.fixture
def line(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Line]:
    with ExitStack() as stack:
        made = Line(tmp_path, *getattr(request, "param", ()))
        stack.callback(made.close)
        assert made.call().ok
        yield made


SLOW_BATCHES = pytest.mark.parametrize("line", [("--batch-ms", "700")], indirect=True)


@SLOW_BATCHES
@pytest.mark.parametrize("method", [FORWARD, BACKWARD])
@pytest.mark.parametrize("how", ["cut", "reset"])
def test_a_call_in_flight_survives_its_connection(line: Line, how: str, method: int) -> None:
    running = InBackground(lambda: line.call(method, number=1234))
    time.sleep(0.3)  # it is being computed
    broken = time.monotonic()
    line.proxy.once(how)
    outcome = running.result()
    assert outcome.ok, outcome.error
    assert time.monotonic() - broken < RESENT + SLACK
    if method == BACKWARD:
        assert applied(line.log)[1234] == 1


def test_a_storm_of_resets(line: Line) -> None:
    before = rss(line.server.pid), descriptors(line.server.pid)
    caller = line.caller()
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        line.proxy.once("reset")
        time.sleep(0.02)
    caller.wait_answer(15)
    caller.stop()
    check_ended(caller.ended, caller.deadline)
    check_applied_once(caller.ended, [line.log])
    assert rss(line.server.pid) - before[0] <= 16 * MIB
    wait_until(lambda: descriptors(line.server.pid) <= before[1] + 2, 30, "descriptors are given back")


def test_a_caller_that_reads_slowly_holds_nobody_up(line: Line) -> None:
    line.proxy.set("slow-read=1000")
    forget_peak(line.server.pid)
    before = rss(line.server.pid)
    slow = [InBackground(lambda: line.call(rows=4096, deadline=4.0)) for _ in range(4)]  # 256 KiB each
    direct = line.transport.connect("127.0.0.1", line.port, line.key)
    others = Caller(line.transport, direct, 2.0, methods=(FORWARD,)).start()
    for one in slow:
        assert isinstance(one.result().error, errors.DeadlineExceeded | errors.PeerUnreachable)
    others.stop()
    check_ended(others.ended, 2.0)
    assert all(end.error is None for end in others.ended), others.ended[-1]
    assert rss(line.server.pid, peak=True) - before <= 32 * MIB
    line.proxy.set("pass")
    wait_until(lambda: line.call().ok, 30, "the caller is served again")


def test_half_open_connections_are_noticed(line: Line) -> None:
    line.proxy.set("half-open")
    begin = time.monotonic()
    outcome = line.call()
    assert isinstance(outcome.error, errors.PeerUnreachable), outcome.error  # silent for longer than it may be
    assert time.monotonic() - begin < 5.0 + SLACK
    line.proxy.set("pass")
    healed = time.monotonic()
    wait_until(lambda: line.call().ok, 15, "the connection is used again")
    assert time.monotonic() - healed < RESENT + SLACK


def test_delays_are_only_delays(line: Line) -> None:
    line.proxy.set("delay=0.3")
    begin = time.monotonic()
    assert line.call().ok
    assert time.monotonic() - begin >= 0.6
    assert line.call(rows=4096).ok


def test_a_stopped_server_is_left_and_taken_back(line: Line, request: pytest.FixtureRequest) -> None:
    seconds = request.config.getoption("--seconds")
    caller = line.caller()
    with stopped(line.server.pid):
        begin = time.monotonic()
        assert not line.call(deadline=seconds).ok
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
    caller.wait_answer(15)
    caller.stop()
    check_ended(caller.ended, caller.deadline)
    check_applied_once(caller.ended, [line.log])


def test_a_server_without_descriptors_recovers(line: Line) -> None:
    pid = line.server.pid
    used = descriptors(pid)
    with few_descriptors(pid, used + 3):
        strangers = [socket.create_connection(("127.0.0.1", line.port)) for _ in range(20)]
        assert line.call().ok  # whoever is connected stays served
        for stranger in strangers:
            stranger.close()
    wait_until(lambda: descriptors(pid) <= used + 2, 30, "descriptors are given back")
    newcomer = Transport()
    line.transport, line.peer = newcomer, newcomer.connect("127.0.0.1", line.port, line.key)
    assert line.call().ok


def test_a_server_on_a_full_disk_dies_loudly_and_callers_learn_it(line: Line) -> None:
    with full_disk(line.server.pid, line.log.stat().st_size if line.log.exists() else 0):
        outcome = line.call(BACKWARD, number=99, deadline=10.0)
    assert isinstance(outcome.error, errors.PeerUnreachable), outcome.error
    assert 99 not in applied(line.log)
