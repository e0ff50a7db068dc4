"""Each error that a call can end with, made by what really causes it: it names phase, uid and server."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import InBackground, wait_until
from local_swarm import HIDDEN, Block, sgd_backend
from networks import HERE
from torch import Tensor

import learning_at_home as lib
from learning_at_home import errors

ONES = torch.ones(1, HIDDEN)


class Moody(Block):
    """Raises at 13, waits for `go_on` at 7, whatever else it is given it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.busy, self.go_on = threading.Event(), threading.Event()

    def __deepcopy__(self, memo: dict[int, object]) -> Moody:
        return Moody()  # events cannot be copied

    def forward(self, x: Tensor) -> Tensor:
        if x.max() == 13:
            raise ArithmeticError("thirteen")
        if x.max() == 7:
            self.busy.set()
            self.go_on.wait(60)
        return super().forward(x)


@contextmanager
def moody(
    uid: str = "m.3", network: lib.TesseractNetwork | None = None, **pool: object
) -> Iterator[tuple[lib.TesseractServer, Moody, Callable[..., lib.RemoteExpert]]]:
    """A server of one such expert, and how to call it."""
    module = Moody()
    with lib.TesseractServer(network, {uid: sgd_backend(uid, module, **pool)}, port=0) as server:
        try:
            yield server, module, lambda uid=uid, **kwargs: lib.RemoteExpert(uid, HERE, server.port, **kwargs)
        finally:
            module.go_on.set()


def told(error: BaseException, phase: str, uid: str, port: int) -> bool:
    return (
        re.match(rf"{phase} (of|to) expert '{re.escape(uid)}'.* (on )?server {HERE}:{port}: .", str(error)) is not None
    )


def test_unknown_uids_code_that_raises_and_wrong_tensors() -> None:
    with moody() as (server, _, expert):
        with pytest.raises(errors.ExpertNotFound) as missing:
            expert("other.1")(ONES)
        assert told(missing.value, "info", "other.1", server.port)
        with pytest.raises(errors.ExpertError, match="thirteen") as raised:
            expert()(13 * ONES)
        assert told(raised.value, "forward", "m.3", server.port)
        x = ONES.clone().requires_grad_()
        out = expert()(x)
        x.data.fill_(13.0)
        with pytest.raises(errors.ExpertError, match="thirteen") as raised:
            out.sum().backward()
        assert told(raised.value, "backward", "m.3", server.port)
        with pytest.raises(errors.SchemaMismatch) as wrong:
            expert()(torch.ones(1, HIDDEN + 1))
        assert told(wrong.value, "forward", "m.3", server.port)
        with pytest.raises(errors.SchemaMismatch, match="max_batch_size") as large:
            expert()(torch.ones(5000, HIDDEN))  # the server's own check
        assert told(large.value, "forward", "m.3", server.port)


def test_numbers_that_the_server_refuses() -> None:
    with moody() as (server, _, expert):
        out = expert()(ONES)
        with pytest.raises(errors.Rejected, match="NaN") as refused:
            (out * torch.nan).sum().backward()
        assert told(refused.value, "backward", "m.3", server.port)
        assert server.experts["m.3"].updates == 0


def test_busy_servers() -> None:
    with moody(pool_size=1) as (server, module, expert):
        expert()(ONES)
        running = InBackground(lambda: expert()(7 * ONES))
        assert module.busy.wait(60)
        with pytest.raises(errors.DeadlineExceeded) as late:
            expert(forward_timeout=0.5)(ONES)
        assert told(late.value, "forward", "m.3", server.port)
        before = server.counters()["requests"]
        waiting = InBackground(lambda: expert()(ONES))
        wait_until(lambda: server.counters()["requests"] > before, 60, "the only place in the queue is taken")
        with pytest.raises(errors.Overloaded) as full:
            expert(forward_timeout=2.0)(ONES)
        assert told(full.value, "forward", "m.3", server.port)
        assert full.value.retry_after > 0
        module.go_on.set()
        running.result()
        waiting.result()


def test_servers_that_leave_and_that_never_were() -> None:
    with moody() as (server, module, expert):
        expert()(ONES)
        running = InBackground(lambda: expert()(7 * ONES))
        assert module.busy.wait(60)
        before = server.counters()["requests"]
        waiting = InBackground(lambda: expert()(ONES))
        wait_until(lambda: server.counters()["requests"] > before, 60, "a call waits")
        closing = InBackground(server.shutdown)
        error = waiting.outcome()
        assert isinstance(error, errors.ShuttingDown), error
        assert told(error, "forward", "m.3", server.port)
        module.go_on.set()
        running.result()
        assert closing.result()
    with socket.socket() as silent:  # listens and never says a word
        silent.bind((HERE, 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(errors.PeerUnreachable) as nobody:
            lib.RemoteExpert("m.3", HERE, port, key=bytes(range(32)), forward_timeout=30)(ONES)
        assert told(nobody.value, "info", "m.3", port)
    with pytest.raises(
        errors.InvalidArgument, match=r"connecting to expert 'm.3': host: cannot resolve 'no.such.invalid'"
    ):
        lib.RemoteExpert("m.3", "no.such.invalid")(ONES)


def test_answers_that_no_server_should_give() -> None:
    with moody() as (server, _, expert):
        server.runtime.core.set_description("m.3", "{}")
        with pytest.raises(errors.ProtocolError) as strange:
            expert()(ONES)
        assert told(strange.value, "info", "m.3", server.port)


def test_a_gate_names_whom_it_gave_up(network: lib.TesseractNetwork) -> None:
    with (
        moody("m.0", network) as (_, quick, _),
        lib.TesseractNetwork((HERE, network.port), port=0, host=HERE) as node,
        moody("m.1", node) as (server, slow, _),
    ):
        gate = lib.GatingFunction(
            in_features=HIDDEN, grid_size=[2], network=network, k_best=2, uid_prefix="m", timeout_after_k_min=0.0
        )
        assert gate.wait_for_experts(2)
        quick.go_on.set()
        gate(7 * ONES)
        slow.go_on.set()
        (cancelled,) = gate.last_stats.errors
        assert isinstance(cancelled, errors.Cancelled)
        assert told(cancelled, "forward", "m.1", server.port)
        with pytest.raises(errors.SchemaMismatch, match=r"forward of experts 'm\.\*': expected arguments"):
            gate(ONES, ONES)
        gate.on_empty = "raise"
        with pytest.raises(errors.NoExpertsAlive, match=r"no expert 'm\.\*' .*: forward of expert 'm\.[01]' on"):
            gate(13 * ONES)
