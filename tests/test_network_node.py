"""The life of a `TesseractNetwork`: joining, arguments, ending, forks and signals."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.reduction import ForkingPickler

import pytest
from networks import HERE, PATIENCE, Join, eventually, raised_in_child, said_when_interrupted

import learning_at_home as lib
from learning_at_home import errors

pytest_plugins = ["network_fixtures"]


def test_networks_of_different_ids_do_not_mix(join: Join) -> None:
    first = join()
    second = join(network_id="other")
    assert not second.wait_ready(0.5)
    first.store("name", b"value")
    assert second.get("name", timeout=0.5) == []
    assert second.ping(HERE, first.port, timeout=0.3) is None
    assert first.status()["peers"] == 0


def test_ping_and_status(join: Join) -> None:
    first, second = join(), join()
    assert second.wait_ready(PATIENCE)
    round_trip = second.ping("localhost", first.port, timeout=5.0)
    assert round_trip is not None
    assert 0 < round_trip < 5
    status = second.status()
    assert status["ready"]
    assert not status["isolated"]
    assert status["peers"] == 1
    assert status["observed"] == HERE
    assert status["packets_in"] > 0
    assert status["bad_packets"] == 0


def test_unreachable_seed_never_blocks_construction(join: Join) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((HERE, 0))
        began = time.monotonic()
        node = join((HERE, silent.getsockname()[1]))
        assert not node.wait_ready(0.05)
        assert node.store("name", b"value", timeout=1.0) == 1
        assert node.get("name", timeout=1.0) == [(node.public_key, b"value")]
        assert node.status()["isolated"]
    assert time.monotonic() - began < PATIENCE


def test_client_mode_asks_but_is_in_no_table(join: Join) -> None:
    root = join()
    client = join(client_mode=True)
    assert client.wait_ready(PATIENCE)
    assert client.store("name", b"value") == 2
    assert root.get("name") == [(client.public_key, b"value")]
    assert root.status()["peers"] == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"port": -1}, "port"),
        ({"port": 65536}, "port"),
        ({"port": "8081"}, "port"),
        ({"port": True}, "port"),
        ({"host": "no such host."}, "host"),
        ({"host": ""}, "host"),
        ({"identity": b"short"}, "identity"),
        ({"network_id": ""}, "network_id"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, named: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=named):
        lib.TesseractNetwork(**arguments)


@pytest.mark.parametrize("peer", ["localhost:1", ("localhost",), ("localhost", 0), (1, 2), ("localhost", 70000)])
def test_bad_peers_are_named(peer: object) -> None:
    with pytest.raises(errors.InvalidArgument, match="initial_peers"):
        lib.TesseractNetwork(peer)


@pytest.mark.parametrize("uids", [["ffn.01"], ["x" * 129], [""], [5], "ffn.0"])
def test_bad_uids_are_named(join: Join, uids: list[str]) -> None:
    with pytest.raises(errors.InvalidArgument, match="uids"):
        join().declare_experts(uids, HERE, 4000)


@pytest.mark.parametrize("grid", [[], [0], [-1], [70000], [300, 300]])
def test_bad_grids_are_refused(join: Join, grid: list[int]) -> None:
    node = join()
    with pytest.raises(errors.InvalidArgument):
        node.alive("ffn", grid)
    with pytest.raises(errors.InvalidArgument):  # and again: nothing half-made is left behind
        node.alive("ffn", grid)


def test_address_in_use_names_the_port(join: Join) -> None:
    taken = join().port
    with pytest.raises(errors.InvalidArgument, match=f"port.*{taken}.*in use"):
        lib.TesseractNetwork(host=HERE, port=taken, start=True)


def test_too_many_open_files_are_named() -> None:
    code = f"""
import resource, learning_at_home as lib
first = lib.TesseractNetwork(port=0, host="{HERE}", start=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # a soft limit alone would be raised
try:
    lib.TesseractNetwork(port=0, host="{HERE}", start=True)
except lib.errors.Overloaded as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert "ulimit -n" in done.stdout


def test_life_cycle() -> None:
    network = lib.TesseractNetwork(port=0, host=HERE)
    assert not network.is_running
    with pytest.raises(RuntimeError, match="not started"):
        network.get("name")
    network.start()
    network.start()
    assert network.port != 0
    assert copy.deepcopy({"net": network})["net"] is network
    with pytest.raises(TypeError, match="cannot be pickled"):
        ForkingPickler.dumps(network)
    network.shutdown()
    network.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        network.get("name")
    with pytest.raises(RuntimeError, match="shut down"):
        network.start()


def test_shutdown_ends_calls_that_wait() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((HERE, 0))
        network = lib.TesseractNetwork((HERE, silent.getsockname()[1]), port=0, host=HERE, start=True)
        ended: list[BaseException] = []

        def wait() -> None:
            try:
                network.get("name", timeout=600.0)
            except errors.ShuttingDown as error:
                ended.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        assert eventually(lambda: network.status()["operations"] == 1)
        network.shutdown()
        waiter.join(PATIENCE)
        assert len(ended) == 1


def open_files_and_threads() -> tuple[int, int]:
    """Of this process; native threads are counted where the system tells."""
    tasks = "/proc/self/task"
    return len(os.listdir("/dev/fd")), len(os.listdir(tasks)) if os.path.isdir(tasks) else 0


def test_thousand_create_and_close_cycles_leak_nothing() -> None:
    """Must hold: 1,000 create/close cycles of a network leak no fd."""
    keeper = lib.TesseractNetwork(port=0, host=HERE, start=True)  # holds the network thread
    before = open_files_and_threads()
    for _ in range(1000):
        lib.TesseractNetwork((HERE, keeper.port), port=0, host=HERE, start=True).shutdown()
    assert open_files_and_threads() == before
    keeper.shutdown()


def test_networks_and_their_thread_come_and_go() -> None:
    lib.TesseractNetwork(port=0, host=HERE, start=True).shutdown()
    before = open_files_and_threads()
    for _ in range(50):
        lib.TesseractNetwork(port=0, host=HERE, start=True)  # never shut down: collected
    assert open_files_and_threads() == before


def test_forked_child_gets_a_clear_error_and_harms_nothing(join: Join) -> None:
    first, second = join(), join()
    assert second.wait_ready(PATIENCE)
    assert "fork" in raised_in_child(lambda: second.get("name"))
    second.store("name", b"value")
    assert len(first.get("name")) == 1


def test_interrupt_ends_a_waiting_call() -> None:
    code = f"""
import socket, learning_at_home as lib
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("{HERE}", 0))
with lib.TesseractNetwork(("{HERE}", silent.getsockname()[1]), port=0, host="{HERE}") as network:
    print("waiting", flush=True)
    network.wait_ready(600.0)
"""
    assert "KeyboardInterrupt" in said_when_interrupted(code)
