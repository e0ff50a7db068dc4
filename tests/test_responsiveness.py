"""A server answers its network while Python is busy, and batches what arrives meanwhile."""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch
from conftest import ExpertServer, InBackground, Process
from expert_server import HIDDEN
from torch import Tensor

import learning_at_home as lib
from learning_at_home.client.transport import FORWARD, ExpertCall, get_transport
from learning_at_home.nn.experts import FeedForwardExpert

Spawn = Callable[..., Process]
PING_SECONDS = 0.020
ENOUGH = 10  # pings answered while the GIL was held; without the GIL proof there would be none


def hold_and_ping(expert: lib.RemoteExpert, ping: Callable[[], float | None]) -> tuple[list[float], float]:
    """Round trips of the pings sent and answered while the server's Python held the GIL, and how long it did."""
    held = torch.empty(1, 2, dtype=torch.float64)
    call = ExpertCall(expert.address, FORWARD, [torch.ones(1, HIDDEN)], [held])
    running = InBackground(lambda: get_transport().call_many([call], 60.0))
    sent: list[tuple[float, float]] = []
    while running.is_alive():
        begin = time.monotonic()
        round_trip = ping()
        if round_trip is not None:
            sent.append((begin, round_trip))
        time.sleep(0.002)
    (outcome,) = running.result()  # type: ignore[misc]
    assert outcome.ok, outcome.error
    hold_begin, hold_end = held[0].tolist()  # the clock of time.monotonic() is the machine's
    return [trip for begin, trip in sent if hold_begin <= begin and begin + trip <= hold_end], hold_end - hold_begin


@pytest.mark.skipif(sys.platform != "linux", reason="compares time.monotonic() of two processes")
@pytest.mark.parametrize("kind", ["network", "transport"])
def test_pings_are_answered_while_python_holds_the_gil(network: lib.TesseractNetwork, spawn: Spawn, kind: str) -> None:
    server = spawn("--network", str(network.port), "g=gil", cls=ExpertServer)
    assert isinstance(server, ExpertServer)
    expert = lib.RemoteExpert("g", port=server.port)
    assert expert.schema.outputs.instance_size == (2,)
    peer = expert.address.peer

    def ping() -> float | None:
        if kind == "network":
            return network.ping("127.0.0.1", server.network_port, timeout=10.0)
        return expert.transport.ping(peer, timeout=10.0)

    assert ping() is not None
    medians = []
    for _ in range(5):  # one undisturbed second is enough
        trips, held = hold_and_ping(expert, ping)
        assert held > 0.9
        assert len(trips) >= ENOUGH, f"{len(trips)} pings answered in {held} s"
        medians.append(statistics.median(trips))
        if medians[-1] <= PING_SECONDS:
            break
    assert medians[-1] <= PING_SECONDS, medians


class Patient(FeedForwardExpert):
    """Takes long enough for its callers to queue up again."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.01)
        return super().forward(x)


CALLERS, CALLS = 32, 8


def rows_per_batch(hidden: int = 64) -> float:
    """Rows of a mean batch when CALLERS threads call with one row each, CALLS times in a row."""
    module = Patient(hidden)
    rows = lib.BatchTensorProto(hidden)
    opt = torch.optim.SGD(module.parameters(), lr=0.0)
    served = lib.ExpertBackend("f", module, opt, args_schema=(rows,), outputs_schema=rows)
    x = torch.randn(CALLERS, hidden)
    with torch.no_grad():
        wanted = module(x)
    with lib.TesseractServer(None, {"f": served}, port=0) as server:
        expert = lib.RemoteExpert("f", port=server.port)
        assert expert.schema.max_batch_size >= CALLERS
        together = threading.Barrier(CALLERS)

        def call_often(row: int) -> Tensor:
            together.wait(60)
            for _ in range(CALLS):
                out = expert(x[row : row + 1])
            return out.detach()

        running = [InBackground(lambda row=row: call_often(row)) for row in range(CALLERS)]
        got = torch.cat([call.result() for call in running])  # type: ignore[misc]
        counters = server.counters()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert (counters["requests"], counters["rows"]) == (CALLERS * CALLS, CALLERS * CALLS)
    assert 0 < counters["python_entries"] <= 2 * counters["batches"]
    return counters["rows"] / counters["batches"]


def test_callers_of_single_rows_share_batches() -> None:
    means = []
    while len(means) < 4 and not any(mean >= 8 for mean in means):  # one undisturbed try is enough
        means.append(rows_per_batch())
    assert means[-1] >= 8, means


SERVER_64 = """
import json, os, sys, time
import torch
import learning_at_home as lib
from learning_at_home.nn.experts import FeedForwardExpert
torch.set_num_threads(1)
hidden = 64
torch.randn(hidden, hidden) @ torch.randn(hidden, hidden)
rows = lib.BatchTensorProto(hidden)

def backend(uid):
    module = FeedForwardExpert(hidden)
    opt = torch.optim.Adam(module.parameters())
    return lib.ExpertBackend(uid, module, opt, args_schema=(rows,))

backends = {f"e.{i}.{j}": backend(f"e.{i}.{j}") for i in range(8) for j in range(8)}
took = []
for _ in range(3):
    before = len(os.listdir("/proc/self/task"))
    with lib.TesseractNetwork(("127.0.0.1", int(sys.argv[1])), port=0, host="127.0.0.1") as node:
        begin = time.monotonic()
        server = lib.TesseractServer(node, backends, port=0)
        server.start(block=False)
        took.append(time.monotonic() - begin)
        expert = lib.RemoteExpert("e.7.7", port=server.port)
        expert(torch.ones(4, hidden, requires_grad=True)).sum().backward()
        tasks = os.listdir("/proc/self/task")
        children = "".join(open(f"/proc/self/task/{task}/children").read() for task in tasks)
        names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in tasks]
        server.shutdown()
        del expert
print(json.dumps({"took": min(took), "threads": len(tasks) - before, "children": children, "names": names}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
def test_64_experts_take_one_process_few_threads_and_little_time(network: lib.TesseractNetwork, spawn: Spawn) -> None:
    process = spawn("-c", SERVER_64, str(network.port))
    measured = json.loads(process.wait_line("{"))
    assert process.wait() == 0
    assert measured["children"] == ""
    assert 0 < measured["threads"] <= 8, measured
    assert measured["took"] <= 5.0, measured
