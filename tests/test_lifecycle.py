"""Starting, stopping, forking and leaving: what is opened is closed, and nothing outlives its process."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import ExpertServer, InBackground, Process, wait_until
from expert_server import HIDDEN, backend
from torch.utils.data import DataLoader, Dataset

import learning_at_home as lib
from learning_at_home import errors
from learning_at_home.client.transport import get_transport

Spawn = Callable[..., Process]
EXIT_SECONDS = 1.0  # from the end of the running batch to the end of the process
FAST = 2.5  # seconds; less than it takes to notice that a server is silent
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")


def free_port() -> int:
    """A port free for TCP and UDP, below the range from which systems hand out ports themselves."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        try:
            take_port(port)
            return port
        except OSError:
            continue


def take_port(port: int) -> None:
    """Bind it for TCP and UDP, and let it go. Raises OSError if somebody has it."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as taker:
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # its connections may linger
            taker.bind(("127.0.0.1", port))


# --- Ctrl-C -------------------------------------------------------------------------------------------------


def busy_server(spawn: Spawn, network: lib.TesseractNetwork, *options: str, seconds: float) -> ExpertServer:
    """A server that has just begun a batch of so many seconds. It is one process, without children."""
    port = free_port()
    arguments = ("--network", str(network.port), "--port", str(port), *options, "e=sleeper")
    process = spawn(*arguments, cls=ExpertServer)
    assert isinstance(process, ExpertServer)
    assert process.port == port
    expert = lib.RemoteExpert("e", port=port)
    wait_until(lambda: answers(expert), 60, "the server answers")
    InBackground(lambda: answers(expert, seconds))
    process.wait_line("BUSY")
    tasks = Path(f"/proc/{process.pid}/task")
    assert not any((task / "children").read_text() for task in tasks.iterdir())
    return process


def answers(expert: lib.RemoteExpert, seconds: float = -1.0) -> bool:
    try:
        expert(torch.full((1, HIDDEN), seconds))
        return True
    except errors.LearningAtHomeError:
        return False


def plain_exit_seconds(spawn: Spawn) -> float:
    """How long a process that only imported the package takes to end."""
    process = spawn("-c", "import time, learning_at_home; print('ENDS', time.monotonic())")
    begin = float(process.wait_line("ENDS").split()[1])
    process.wait()
    return time.monotonic() - begin


INTERRUPTED = "interrupted: finishing the running batch (interrupt again to leave at once)"


@linux_only
@pytest.mark.parametrize("block", ["start", "constructor"])
def test_interrupt_finishes_the_batch_and_exits(network: lib.TesseractNetwork, spawn: Spawn, block: str) -> None:
    took: list[float] = []
    allowed = EXIT_SECONDS
    while not took or (took[-1] > allowed and len(took) < 4):
        if took:  # perhaps the machine is busy: then any process takes long to leave
            allowed = EXIT_SECONDS + 3 * plain_exit_seconds(spawn)
        process = busy_server(spawn, network, "--block", block, seconds=1.0)
        process.signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        took.append(time.monotonic() - float(process.wait_line("DONE").split()[1]))
        assert process.stdout[-1] == "RETURNED"
        assert process.stderr == [INTERRUPTED]
        for port in (process.port, process.network_port):
            take_port(port)
    assert took[-1] <= allowed, took


@linux_only
@pytest.mark.parametrize("block", ["start", "with"])
def test_second_interrupt_exits_at_once(network: lib.TesseractNetwork, spawn: Spawn, block: str) -> None:
    process = busy_server(spawn, network, "--block", block, seconds=300.0)
    process.signal(signal.SIGINT)
    process.wait_line("interrupted")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)  # the batch runs
    process.signal(signal.SIGINT)
    assert process.wait(timeout=30) in (-signal.SIGINT, 130)
    if block == "start":
        assert process.stderr == [INTERRUPTED]
    assert "RETURNED" not in process.stdout
    for port in (process.port, process.network_port):
        take_port(port)


# --- leaving in order ---------------------------------------------------------------------------------------


def test_shutdown_tells_callers_at_once() -> None:
    """The running batch is finished and answered, waiting calls are refused, later ones fail fast."""
    running = lib.TesseractServer(None, {"s": backend("s", "sleeper", max_batch_size=1)}, port=0)
    running.start(block=False)
    expert = lib.RemoteExpert("s", port=running.port, forward_timeout=100.0)
    expert(torch.full((1, HIDDEN), -1.0))
    calls = [InBackground(lambda: expert(torch.full((1, HIDDEN), 1.0))) for _ in range(4)]
    wait_until(lambda: running.counters()["requests"] == 5, 30, "all four calls are there")
    wait_until(lambda: running.counters()["batches"] == 2, 30, "the first of them runs")
    begin = time.monotonic()
    assert running.shutdown()
    ended = [call.outcome() for call in calls]
    assert time.monotonic() - begin < 1.0 + FAST
    finished = [isinstance(end, torch.Tensor) for end in ended]
    assert 1 <= finished.count(True) <= 3
    assert all(isinstance(end, (torch.Tensor, errors.ShuttingDown)) for end in ended), ended
    with pytest.raises((errors.ShuttingDown, errors.PeerUnreachable)):
        expert(torch.full((1, HIDDEN), -1.0))
    assert running.shutdown()


def test_shutdown_without_waiting_leaves_no_caller_hanging() -> None:
    running = lib.TesseractServer(None, {"s": backend("s", "sleeper")}, port=0)
    running.start(block=False)
    expert = lib.RemoteExpert("s", port=running.port, forward_timeout=100.0)
    call = InBackground(lambda: expert(torch.full((1, HIDDEN), FAST + 1.0)))
    wait_until(lambda: running.counters()["batches"] == 1, 30, "the batch runs")
    begin = time.monotonic()
    assert not running.shutdown(timeout=0.0)
    with pytest.raises(errors.ShuttingDown):
        call.result()
    assert time.monotonic() - begin < FAST
    assert running.shutdown(timeout=60.0)


def test_a_server_that_cannot_start_leaves_nothing(network: lib.TesseractNetwork) -> None:
    with lib.TesseractServer(None, {"s": backend("s", "nop")}, port=0) as first:
        threads = threading.active_count()
        second = lib.TesseractServer(network, {"s": backend("s", "nop")}, port=first.port)
        with pytest.raises(errors.InvalidArgument, match=f"{first.port}"):
            second.start(block=False)
        assert threading.active_count() == threads
        assert answers(lib.RemoteExpert("s", port=first.port))


def test_servers_and_networks_close_in_any_order() -> None:
    node = lib.TesseractNetwork(port=0, host="127.0.0.1")
    running = lib.TesseractServer(node, {"s": backend("s", "nop")}, port=0)
    running.start(block=False)
    node.shutdown()
    assert running.shutdown()
    node.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        node.get("name")
    with pytest.raises(RuntimeError, match="shut down"):
        running.start(block=False)


# --- leaks --------------------------------------------------------------------------------------------------


def descriptors_and_threads() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


@linux_only
@pytest.mark.parametrize("keep_transport", [False, True])
def test_a_hundred_servers_and_their_callers_leak_nothing(network: lib.TesseractNetwork, keep_transport: bool) -> None:
    held = get_transport() if keep_transport else None

    def cycle() -> None:
        with lib.TesseractServer(network, {"s": backend("s", "nop")}, port=0) as running:
            assert answers(lib.RemoteExpert("s", port=running.port))

    cycle()
    before = descriptors_and_threads()
    for _ in range(100):
        cycle()

    def grown() -> int:
        """Sockets are closed as soon as their server says goodbye, which no caller may miss: without, five minutes."""
        return max(now - then for now, then in zip(descriptors_and_threads(), before, strict=True))

    wait_until(lambda: grown() < 3, 60, "descriptors and threads are closed")
    del held


# --- forks --------------------------------------------------------------------------------------------------


class Forked(Dataset[str]):
    """What the objects of the parent say when a worker uses them."""

    def __init__(self, **uses: Callable[[], object]) -> None:
        self.uses = list(uses.values())

    def __len__(self) -> int:
        return len(self.uses)

    def __getitem__(self, index: int) -> str:
        try:
            return f"no error: {self.uses[index]()}"
        except RuntimeError as error:
            return str(error)


def test_data_loader_workers_beside_a_live_network(network: lib.TesseractNetwork) -> None:
    with lib.TesseractServer(network, {"s.0": backend("s.0", "nop")}, port=0) as running:
        expert = lib.RemoteExpert("s.0", port=running.port)
        gate = lib.GatingFunction(in_features=HIDDEN, grid_size=[1], network=network, k_best=1, uid_prefix="s")
        x = torch.ones(1, HIDDEN)
        assert torch.equal(expert(x), gate(x))
        dataset = Forked(
            network=lambda: network.get("name"),
            status=network.status,
            expert=lambda: expert(x),
            gate=lambda: gate(x),
            server=running.counters,
            shutdown=running.shutdown,
            close=network.shutdown,
        )
        loader = DataLoader(dataset, batch_size=1, num_workers=2, multiprocessing_context="fork", timeout=60)
        for _ in range(2):
            said = []
            for message in loader:
                said += message
                assert torch.equal(expert(x), gate(x))  # the parent goes on meanwhile
            assert len(said) == len(dataset)
            for message in said:
                assert "cannot be used after a fork" in message
        assert network.is_running
        assert network.get_experts(["s.0"])[0] is not None
        assert torch.equal(expert(x), gate(x))


# --- leaving everything open --------------------------------------------------------------------------------

OPEN = """
import os, sys, threading, time
sys.path.insert(0, "tests")
import torch, learning_at_home as lib
from expert_server import HIDDEN, backend
torch.set_num_threads(1)
root = lib.TesseractNetwork(port=0, host="127.0.0.1", start=True)
node = lib.TesseractNetwork(("127.0.0.1", root.port), port=0, host="127.0.0.1", start=True)
server = lib.TesseractServer(node, {"s.0": backend("s.0", "sleeper")}, port=0)
server.start(block=False)
expert = lib.RemoteExpert("s.0", port=server.port)
gate = lib.GatingFunction(in_features=HIDDEN, grid_size=[1], network=root, k_best=1, uid_prefix="s")
model = torch.nn.Sequential(gate, expert)
out = model(-torch.ones(2, HIDDEN, requires_grad=True))
out.sum().backward()
"""
BUSY = """
def call():
    try:
        expert(torch.full((1, HIDDEN), 0.3))
    except lib.errors.LearningAtHomeError:
        pass
threading.Thread(target=call, daemon=True).start()
while server.counters()["batches"] < 5:
    time.sleep(0.001)
"""
WAITING = """
def again(use):
    while True:
        use()
for use in (
    lambda: root.wait_alive("s", [1], 99, 2.0),
    lambda: root.get("name"),
    lambda: root.ping("127.0.0.1", node.port),
    lambda: expert.transport.ping(expert.address.peer, 1.0),
    server.counters,
):
    threading.Thread(target=again, args=(use,), daemon=True).start()
time.sleep(0.1)
"""
FORK = """
pid = os.fork()
if pid == 0:
    sys.exit(7)  # through the interpreter's own exit
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert torch.equal(expert(-torch.ones(1, HIDDEN)), -torch.ones(1, HIDDEN))
"""


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        pytest.param("", 0, [], id="end"),
        pytest.param(BUSY, 0, [], id="busy"),
        pytest.param(WAITING, 0, [], id="waiting"),
        pytest.param(FORK, 0, [], id="fork"),
        pytest.param("del server, node", 0, [], id="dropped"),
        pytest.param("sys.exit(3)", 3, [], id="exit"),
        pytest.param("raise ValueError('mine')", 1, ["ValueError: mine"], id="exception"),
        pytest.param("threading.Thread(target=lambda: expert(-out)).start()", 0, [], id="thread"),
    ],
)
def test_interpreter_leaves_cleanly_with_everything_open(
    spawn: Spawn, ending: str, status: int, said: list[str]
) -> None:
    process = spawn("-c", OPEN + ending)
    assert process.wait() == status, process.stderr
    assert process.stderr[-1:] == said, process.stderr
    assert len([line for line in process.stderr if "Error" in line]) == len(said), process.stderr


# --- copies -------------------------------------------------------------------------------------------------


def test_copies_share_the_network_and_carry_only_their_own_state(network: lib.TesseractNetwork) -> None:
    with lib.TesseractServer(network, {"s.0": backend("s.0", "nop")}, port=0) as running:
        gate = lib.GatingFunction(in_features=HIDDEN, grid_size=[1], network=network, k_best=1, uid_prefix="s")
        expert = lib.RemoteExpert("s.0", port=running.port)
        x = torch.ones(2, HIDDEN)
        for used in (False, True):  # a used one holds connections and an alive map
            copy = deepcopy(gate)
            assert copy.network is network
            assert copy.proj.weight is not gate.proj.weight
            assert torch.equal(copy(x), x)
            assert torch.equal(deepcopy(expert)(x), x)
            assert torch.equal(pickle.loads(pickle.dumps(expert))(x), x)
            with pytest.raises(TypeError, match="cannot be pickled"):
                pickle.dumps(gate)
            assert sorted(gate.state_dict()) == ["proj.bias", "proj.weight"]
            assert not expert.state_dict()
            other = lib.GatingFunction(in_features=HIDDEN, grid_size=[1], network=network, k_best=1)
            other.load_state_dict(gate.state_dict())
            assert torch.equal(other.proj.weight, gate.proj.weight)
            if not used:
                assert torch.equal(gate(x), expert(x))
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(network)
        assert deepcopy(network) is network


CROWD = """
import threading
from learning_at_home.client.transport import Transport
for _ in range(20):
    start = threading.Barrier(8)
    threads = [threading.Thread(target=lambda: (start.wait(), Transport())) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print("FINE")
"""


def test_threads_may_all_make_the_first_connection(spawn: Spawn) -> None:
    crowd = spawn("-c", CROWD)
    crowd.wait_line("FINE")
    assert crowd.wait() == 0
