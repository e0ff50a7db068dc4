"""Emulated links have the delay, rate and loss they were given, and experts are called over them.

Collected by ./run check, or by hand with this file's name: figures here come from a clock, and the machine should have
nothing else to do. Where networks cannot be emulated, every test fails and says why.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.worker import Worker
from tests.wan.emulator import ROOT, Carried, Link, WideAreaNetwork, main, why_not

PROBE = [sys.executable, str(ROOT / "tests" / "wan" / "probe.py")]


@pytest.fixture(autouse=True)
def possible() -> None:
    if reason := why_not():
        pytest.fail(f"no wide-area network can be emulated here: {reason}")


def listen(network: WideAreaNetwork, node: int = 0) -> None:
    process = network.start(node, [*PROBE, "listen", network.address(node)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"READY\n"


def ask(network: WideAreaNetwork, node: int, what: str, *arguments: object) -> Any:
    command = [*PROBE, what, network.address(0), *map(str, arguments)]
    return json.loads(subprocess.check_output(network.command(node, command), timeout=60))


def test_round_trip_is_twice_the_delay() -> None:
    with WideAreaNetwork(Link(delay_ms=50)) as network:
        listen(network)
        trips = ask(network, 1, "round_trips", 50, 0.01)
    assert None not in trips
    assert min(trips) >= 100
    assert statistics.median(trips) <= 105


@pytest.mark.parametrize(("mbit", "mtu"), [(20, 1500), (200, 9000)])
def test_stream_fills_the_rate_and_no_more(mbit: float, mtu: int) -> None:
    with WideAreaNetwork(Link(delay_ms=2, rate_mbit=mbit), mtu=mtu) as network:
        listen(network)
        assert 0.9 * mbit <= ask(network, 1, "bulk", 3) <= mbit


def test_packets_are_lost_at_the_given_rate() -> None:
    with WideAreaNetwork(Link(delay_ms=1, loss=0.1)) as network:
        listen(network)
        trips = ask(network, 1, "round_trips", 2000, 0.0005)
        counts = network.carried()
    for way in counts.values():
        assert 0.07 <= way.lost / (way.lost + way.packets) <= 0.13  # four standard deviations
    assert trips.count(None) == sum(way.lost for way in counts.values())


def test_links_are_of_a_pair_and_change_while_in_use() -> None:
    with WideAreaNetwork(Link(delay_ms=1), nodes=3) as network:
        listen(network)
        network.set_link(2, 0, Link(delay_ms=41))
        assert (
            statistics.median(ask(network, 1, "round_trips", 20, 0.002))
            < 41
            < min(ask(network, 2, "round_trips", 20, 0.002))
        )
        network.set_link(1, 0, Link(loss=1.0))
        assert ask(network, 1, "round_trips", 20, 0.002) == [None] * 20
        assert None not in ask(network, 2, "round_trips", 20, 0.002)
        assert network.carried()[1, 2] == Carried(0, 0, 0, 0)


def test_experts_are_called_at_100_ms() -> None:
    with (
        WideAreaNetwork(Link(delay_ms=50, rate_mbit=1000)) as network,
        Worker("benchmarks.ours", prefix=network.command(0)) as server,
        Worker("benchmarks.ours", prefix=network.command(1)) as client,
    ):
        options = {"hidden": 64, "kind": "shift", "max_batch_size": 16384, "host": network.address(0)}
        address = server.ask("serve", experts=["expert.0"], **options)
        client.ask("connect", address=address, hidden=64)
        times = client.ask("calls", count=5, same=False)
        assert min(times) >= 0.1
        assert statistics.median(times) <= 0.2, "a call takes one round trip"
        done = client.ask("trainers", threads=2, rows=16384, count=1)  # 4 MiB forward, 8 MiB backward, each
        assert done["seconds"] >= 0.2


def test_commands_of_the_command_line_run_on_a_node_each() -> None:
    names = "import socket; print(socket.if_nameindex())"
    command = [sys.executable, "-c", names]
    done = subprocess.run(
        [sys.executable, "-m", "tests.wan.emulator", "--delay-ms", "1", "--", "sleep", "60", "--", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "wan0" in done.stdout
    assert main(["--", "true", "--", "sh", "-c", "exit 7"]) == 7


def test_nothing_is_left_behind() -> None:
    before = set(os.listdir("/proc"))
    with WideAreaNetwork(Link()) as network:
        process = network.start(0, ["sleep", "60"])
        assert process.poll() is None
    assert process.poll() is not None
    ours = {pid for pid in set(os.listdir("/proc")) - before if pid.isdigit()}
    assert "lah_tun_link\n" not in [comm.read_text() for pid in ours if (comm := Path("/proc", pid, "comm")).exists()]
