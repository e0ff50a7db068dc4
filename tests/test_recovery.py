"""Calls whose connection breaks, whose server dies or is slow: over real sockets, with real experts."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import torch
from conftest import wait_until
from torch import Tensor, nn

import learning_at_home as lib
from learning_at_home.client.transport import BACKWARD, FORWARD, CallOutcome, ExpertAddress, ExpertCall, get_transport

HIDDEN = 4
HERE = "127.0.0.1"


class Pausing(nn.Module):
    """Doubles its input, after `pause` seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((), 2.0))
        self.pause = 0.0

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.pause)
        return x * self.scale


class Relay:
    """Passes TCP connections on, until they are cut."""

    def __init__(self, port: int):
        self._to = port
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server((HERE, 0))
        self.port = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self._cut = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Break every connection; new ones are made at once."""
        self._cut.set()
        self._wake.send(b"x")
        wait_until(lambda: not self._cut.is_set(), 10, "the connections are cut")

    def close(self) -> None:
        self._ended = True
        self._wake.send(b"x")
        self._thread.join()
        for one in (self._listener, self._wake, self._woken):
            one.close()

    def _run(self) -> None:
        while not self._ended:
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                selector.register(self._woken, selectors.EVENT_READ)
                for pair in self._pairs:
                    for source, sink in (pair, pair[::-1]):
                        selector.register(source, selectors.EVENT_READ, (source, sink))
                for key, _ in selector.select():
                    self._handle(key)
        self._drop()

    def _handle(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self._listener:
            near, _ = self._listener.accept()
            self._pairs.append((near, socket.create_connection((HERE, self._to))))
        elif key.fileobj is self._woken:
            self._woken.recv(16)
            if self._cut.is_set():
                self._drop()
                self._cut.clear()
        elif key.data[0].fileno() >= 0:
            source, sink = key.data
            with suppress(OSError):
                sink.sendall(source.recv(1 << 16))

    def _drop(self) -> None:
        for pair in self._pairs:
            for one in pair:
                one.close()
        self._pairs.clear()


@contextmanager
def serving(uid: str = "expert.0") -> Iterator[tuple[lib.TesseractServer, Pausing, ExpertAddress]]:
    """A server of one expert, and its address for callers."""
    module = Pausing()
    backend = lib.ExpertBackend(
        uid, module, torch.optim.SGD(module.parameters(), lr=0.0), args_schema=(lib.BatchTensorProto(HIDDEN),)
    )
    with lib.TesseractServer(None, {uid: backend}, port=0, insecure=True) as server:
        peer = get_transport().connect(HERE, server.port, insecure=True)
        yield server, module, ExpertAddress(uid, peer, f"server {HERE}:{server.port}")


def call(address: ExpertAddress, method: int = FORWARD, timeout: float | None = 30.0) -> CallOutcome:
    rows = torch.ones(2, HIDDEN)
    out = torch.zeros(2, HIDDEN)
    (outcome,) = get_transport().call_many(
        [ExpertCall(address, method, [rows, rows][: 1 if method == FORWARD else 2], [out])], timeout
    )
    if outcome.ok:
        assert torch.equal(out, rows * 2)
    return outcome


@pytest.fixture(autouse=True)
def transport() -> Iterator[None]:
    kept = get_transport()
    yield
    del kept


def test_a_dead_holder_is_replaced_within_the_call() -> None:
    with serving() as (first, _, dead), serving() as (_, _, living):
        address = ExpertAddress(dead.uid, dead.peer, dead.server, (living.peer,))
        assert call(address).peer == dead.peer
        first.shutdown()
        outcome = call(address)
        assert outcome.ok
        assert outcome.peer == living.peer
        assert get_transport().answered_by(address, outcome).peer == living.peer


def test_a_slow_holder_is_hedged_by_another() -> None:
    with serving() as (_, module, slow), serving() as (_, _, quick):
        address = ExpertAddress(slow.uid, slow.peer, slow.server, (quick.peer,))
        for _ in range(10):
            call(slow)
        module.pause = 5.0
        outcome = call(address)
        assert outcome.ok
        assert outcome.hedged
        assert outcome.peer == quick.peer
        assert outcome.elapsed < module.pause


def test_a_backward_call_stays_with_the_holder_of_its_forward() -> None:
    with serving() as (first, _, dead), serving() as (second, _, living):
        address = ExpertAddress(dead.uid, dead.peer, dead.server, (living.peer,))
        call(address)
        first.shutdown()
        outcome = call(address, BACKWARD)
        assert isinstance(outcome.error, (lib.errors.ShuttingDown, lib.errors.PeerUnreachable))
        assert second.experts["expert.0"].updates == 0


@pytest.mark.parametrize("method", [FORWARD, BACKWARD])
def test_a_call_survives_its_connection(method: int) -> None:
    with serving() as (server, module, _):
        relay = Relay(server.port)
        try:
            peer = get_transport().connect(HERE, relay.port, insecure=True)
            address = ExpertAddress("expert.0", peer, "server behind a relay")
            assert get_transport().ping(peer, 10.0) is not None
            module.pause = 1.0
            done: list[CallOutcome] = []
            caller = threading.Thread(target=lambda: done.append(call(address, method)))
            caller.start()
            wait_until(lambda: server.counters()["requests"] == 1, 20, "the request is there")
            relay.cut()
            caller.join()
            assert done[0].ok, done[0].error
            assert done[0].retried == 1
            if method == BACKWARD:
                assert server.experts["expert.0"].updates == 1
                assert server.counters()["repeated"] == 1
        finally:
            relay.close()


def test_a_ping_is_answered_while_the_expert_computes_and_fails_when_nobody_is_there() -> None:
    with serving() as (server, module, address):
        expert = lib.RemoteExpert(address.uid, HERE, server.port, insecure=True)
        module.pause = 2.0
        caller = threading.Thread(target=lambda: call(address))
        caller.start()
        wait_until(lambda: server.counters()["requests"] == 1, 20, "the expert is busy")
        assert 0.0 < expert.ping() < module.pause
        caller.join()
    with pytest.raises(lib.errors.PeerUnreachable, match=f"ping of expert .* on server {HERE}:{server.port}"):
        expert.ping(timeout=0.2)


def test_deadlines_follow_what_calls_took() -> None:
    with serving() as (_, module, address):
        for _ in range(10):
            call(address, timeout=None)
        module.pause = 8.0
        began = time.monotonic()
        outcome = call(address, timeout=None)
        assert isinstance(outcome.error, lib.errors.DeadlineExceeded)
        assert 5.0 <= time.monotonic() - began < 7.9  # not the 30 s of a first call
