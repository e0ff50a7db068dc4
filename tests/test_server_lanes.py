"""Waits, devices and memory of a server's batches."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from one_batch import WIDTH, Scale, backend_of, one_batch, rows
from torch import Tensor, nn

import learning_at_home as lib
from learning_at_home import errors


def test_requests_that_would_expire_in_the_queue_are_refused_at_once():
    class Slow(Scale):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.1)
            assert may_run.wait(30.0)
            return super().forward(x)

    may_run = threading.Event()
    may_run.set()
    backend = backend_of(Slow(), max_batch_size=2)
    forward = backend.get_pools()[0]
    runtime = lib.TesseractRuntime({"expert.0": backend})
    runtime.start()
    forward.submit_task(rows(1.0)).result()  # now it is known that a batch takes 0.1 s
    may_run.clear()
    waiting = [forward.submit_task(rows(1.0), timeout=600.0) for _ in range(20)]
    assert runtime.core.wait_us() >= 1_900_000  # the first may be running
    with pytest.raises(errors.Overloaded, match=r"expert 'expert.0': the wait would be about \d+ ms") as refused:
        forward.submit_task(rows(1.0), timeout=1.0)
    assert 1.0 < refused.value.retry_after < 60.0
    may_run.set()
    for future in waiting:
        assert torch.equal(future.result()[0], rows(1.0))
    assert runtime.core.wait_us() == 0
    forward.submit_task(rows(1.0), timeout=1.0)
    assert runtime.shutdown(30.0)


@pytest.mark.parametrize("device", [["cpu", "cpu"], {"expert.0": "cpu", "expert.1": "cpu"}])
def test_devices_run_their_batches_side_by_side(device):
    class Meets(Scale):
        def forward(self, x: Tensor) -> Tensor:
            if (x == 1.0).all():
                both.wait(30.0)  # passes only if another batch runs at the same time
            return super().forward(x)

    two_lanes = isinstance(device, list)
    both = threading.Barrier(2 if two_lanes else 1)
    backends = {uid: backend_of(Meets(), uid=uid) for uid in ("expert.0", "expert.1")}
    runtime = lib.TesseractRuntime(backends, device=device)
    assert len(runtime.devices) == (2 if two_lanes else 1)
    futures = [backend.get_pools()[0].submit_task(rows(1.0)) for backend in backends.values()]
    runtime.start()
    for future in futures:
        assert torch.equal(future.result()[0], rows(1.0))
    assert runtime.shutdown(30.0)


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ([], "at least one device"),
        ({"expert.1": "cpu"}, r"look at \['expert.0', 'expert.1'\]"),
        ("sofa", "device: "),
    ],
)
def test_devices_are_checked(device, text):
    with pytest.raises(errors.InvalidArgument, match=text):
        lib.TesseractRuntime({"expert.0": backend_of(Scale())}, device=device)


BIG = 100_000  # rows: 1.6 MB, more than a chunk


def big_answer(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """A forward answer of an expert to a large request that is alone in its batch, and how much was not copied."""
    backend = backend_of(module, max_batch_size=BIG)
    with one_batch(backend) as runtime:
        future = backend.get_pools()[0].submit_task(x)
    y = future.result()[0]
    assert runtime.shutdown(30.0)
    return y, runtime.core.counters()["lent"]


class Identity(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Keeps(Scale):
    """Keeps its input and its output."""

    def forward(self, x: Tensor) -> Tensor:
        self.x, self.y = x, x * 2.0
        return self.y


class Cached(Scale):
    """Returns what it will write to with the next request."""

    def forward(self, x: Tensor) -> Tensor:
        self.cache = torch.zeros_like(x) if not hasattr(self, "cache") else self.cache
        return self.cache.copy_(x)


class Tail(Scale):
    """Returns a view of its input, with a part of it twice."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, -1, WIDTH)[1].repeat(2, 1) if len(x) < BIG else x.flip(0)[:].flip(0)


@pytest.mark.parametrize(
    ("module", "expected", "lent"),
    [(Identity, 1.0, 2), (Scale, 1.0, 2), (Keeps, 2.0, 1), (Cached, 1.0, 1), (Tail, 1.0, 2)],
)
def test_large_lone_requests_and_results_are_not_copied(module, expected, lent):
    x = torch.randn(BIG, WIDTH)
    y, count = big_answer(module(), x)
    assert torch.equal(y, x * expected)
    assert count == lent  # the request, and the result if nobody else holds it


def test_what_an_expert_keeps_of_a_request_stays():
    class Remembers(Scale):
        def forward(self, x: Tensor) -> Tensor:
            kept.append(x)
            return x * self.weight

    kept: list[Tensor] = []
    backend = backend_of(Remembers(), max_batch_size=BIG)
    runtime = lib.TesseractRuntime({"expert.0": backend})
    runtime.start()
    for value in (1.0, 2.0, 3.0):
        backend.get_pools()[0].submit_task(rows(value, BIG)).result()
    assert runtime.shutdown(30.0)
    for x, value in zip(kept, (1.0, 2.0, 3.0), strict=True):
        assert torch.equal(x, rows(value, BIG))


@pytest.mark.parametrize("module", [Identity, Cached, Scale])
def test_large_results_over_the_network_are_those_of_their_request(module):
    backend = backend_of(module(), max_batch_size=BIG)
    with lib.TesseractServer(None, {"expert.0": backend}, port=0, insecure=True) as server:
        expert = lib.RemoteExpert("expert.0", "127.0.0.1", server.port, insecure=True)
        inputs = [torch.randn(BIG, WIDTH) for _ in range(6)]
        with ThreadPoolExecutor(3) as callers, torch.no_grad():
            for x, y in zip(inputs, callers.map(expert, inputs), strict=True):
                assert torch.equal(y, x)
        x = inputs[0].requires_grad_()
        expert(x).sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))
        assert server.counters()["lent"] > 0
