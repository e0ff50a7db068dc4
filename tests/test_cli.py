"""The command line: what options mean, and that its processes come up, serve, and end when they should."""

from __future__ import annotations

import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typer

import learning_at_home as lib
from learning_at_home.cli.options import expert_uids, parse_grid, parse_peers

START_SECONDS = 60.0
COMMAND = [sys.executable, "-m", "learning_at_home.cli.main"]

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a command with pipes for stdin and stdout; kills at the end of the test what still runs."""
    processes = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def ready_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], START_SECONDS)[0], "nothing printed in time"
    return process.stdout.readline()


def test_grid_cells_count_with_the_last_axis_fastest() -> None:
    assert expert_uids("6:9", "e", [8, 8]) == ["e.0.6", "e.0.7", "e.1.0"]
    assert expert_uids("62:", "e", [8, 8]) == ["e.7.6", "e.7.7"]
    assert expert_uids(":1", "e", [2, 3, 4]) == ["e.0.0.0"]
    assert expert_uids("", "e", [3]) == ["e.0", "e.1", "e.2"]
    assert expert_uids("a.1, b", "e", [3]) == ["a.1", "b"]
    shares = [uid for share in ("0:22", "22:43", "43:64") for uid in expert_uids(share, "e", [8, 8])]
    assert shares == expert_uids("", "e", [8, 8])


@pytest.mark.parametrize("value", ["5:65", "7:7", "9:3", "-1:4", "a:b", "e.1,e.1", "e.1,,e.2"])
def test_wrong_experts_are_named(value: str) -> None:
    with pytest.raises(typer.BadParameter, match=re.escape(repr(value))):
        expert_uids(value, "e", [8, 8])


def test_grids_and_peers() -> None:
    assert parse_grid("8x8") == [8, 8]
    assert parse_grid("32") == [32]
    assert parse_peers(["a.example:1", "[::1]:8081"]) == [("a.example", 1), ("::1", 8081)]
    for wrong in ("8x", "0x8", "x", "8,8", ""):
        with pytest.raises(typer.BadParameter, match="8x8"):
            parse_grid(wrong)
    for wrong in ("host", "host:", ":1", "host:0", "host:65536", "host:x"):
        with pytest.raises(typer.BadParameter, match="HOST:PORT"):
            parse_peers([wrong])


def test_network_and_server_serve_and_end_on_signals(start: Start) -> None:
    network = start("network", "--port", "0")
    _, _, address = ready_line(network).split()
    peer = ["--peer", address]
    grid = ["--prefix", "cli", "--grid", "2x2", "--experts", "1:4", "--hidden", "8"]
    server = start("server", "--port", "0", *peer, *grid, "--expert", "nop", "--torch-threads", "1")
    ready, what, where, experts = ready_line(server).split()
    assert (ready, what, experts) == ("READY", "server", "experts=3")
    host, _, port = where.rpartition(":")

    x = torch.randn(3, 8)
    root_host, _, root_port = address.rpartition(":")
    with lib.TesseractNetwork((root_host, int(root_port)), port=0) as node:
        gate = lib.GatingFunction(in_features=8, grid_size=[2, 2], k_best=3, network=node, uid_prefix="cli")
        gate.wait_for_experts(3, timeout=START_SECONDS)
        torch.testing.assert_close(gate(x), x)  # nop experts: a mixture of x with itself
    assert lib.RemoteExpert("cli.1.1", host, int(port))(x).equal(x)

    for process, number in ((server, signal.SIGTERM), (network, signal.SIGINT)):
        process.send_signal(number)
        assert process.wait(timeout=30) == 0


CUSTOM = """
from __future__ import annotations

from dataclasses import dataclass

import torch
import learning_at_home as lib

@dataclass  # looks its own module up
class Factor:
    value: float = 2.0

@lib.register_expert_class("twice", lambda batch, hidden: torch.empty(batch, hidden))
class Twice(torch.nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.full((hidden,), Factor().value))

    def forward(self, x):
        return self.factor * x
"""


def test_a_users_own_expert_is_served_saved_fetched_and_found_again(start: Start, tmp_path: Path) -> None:
    code, saved = tmp_path / "own.py", tmp_path / "saved"
    code.write_text(CUSTOM)
    arguments = ["server", "--port", "0", "--hidden", "4", "--grid", "1", "--optimizer", "sgd", "--lr", "0.25"]
    arguments += ["--custom-module", str(code), "--expert", "twice", "--allow-fetch"]
    arguments += ["--checkpoint-dir", str(saved), "--checkpoint-period", "3600", "--checkpoint-keep", "1"]
    x = torch.ones(1, 4)
    for factor in (2.0, 1.75):
        server = start(*arguments)
        host, _, port = ready_line(server).split()[2].rpartition(":")
        expert = lib.RemoteExpert("expert.0", host, int(port))
        assert expert.fetch_state()["factor"].tolist() == [factor] * 4
        assert expert(x).equal(factor * x)
        expert(x).sum().backward()  # the factor falls by 0.25
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0
        assert len(list(saved.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "peer", "python"),
    [
        (["--host", "127.0.0.1"], "127.0.0.1:{port}", '("127.0.0.1", {port})'),
        (["--announce", "[2001:db8::1]:9000"], "[2001:db8::1]:9000", '("2001:db8::1", 9000)'),
    ],
)
def test_commands_print_how_others_join(start: Start, options: list[str], peer: str, python: str) -> None:
    network = start("network", "--port", "0", *options)
    port = ready_line(network).rstrip().rpartition(":")[2]
    assert network.stdout is not None
    assert network.stdout.readline() == f"Join from the command line: --peer {peer.format(port=port)}\n"
    assert network.stdout.readline() == f"Join from Python: TesseractNetwork({python.format(port=port)})\n"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_ping_and_status_look_at_a_running_network() -> None:
    with lib.TesseractNetwork(port=0, host="127.0.0.1") as network:
        peer = f"127.0.0.1:{network.port}"
        network.declare_experts(["ffn.0.1", "ffn.1.1", "other.0"], "127.0.0.1", 4000)
        done = run("ping", peer, "--count", "2")
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(rf"({peer}: [0-9.]+ ms\n){{2}}", done.stdout)
        done = run("status", "--peer", peer, "--prefix", "ffn", "--grid", "2x2")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "nodes known: 1\nour address as they see it: 127.0.0.1\nexperts alive: 2 of 4\n"
        assert network.status()["peers"] == 0  # those who look are no part of it
    done = run("ping", peer, "--count", "1", "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (1, f"{peer}: no answer\n")
    done = run("status", "--peer", peer, "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (1, "nobody let us in within 0.2 s\n")


def test_ends_with_its_parent(start: Start) -> None:
    network = start("network", "--port", "0", "--exit-with-parent")
    ready_line(network)
    assert network.stdin is not None
    network.stdin.write("input is ignored\n")
    network.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        network.wait(timeout=0.5)
    network.stdin.close()
    assert network.wait(timeout=30) == 0
    network.stdin = None  # communicate() would flush it


@pytest.mark.parametrize("wrong", ["--grid=8by8", "--expert=fnn", "--custom-module=nowhere.py"])
def test_wrong_option_is_named_without_a_traceback(wrong: str) -> None:
    done = subprocess.run(
        [*COMMAND, "server", "--hidden", "8", wrong],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert wrong.partition("=")[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_version_names_what_was_built() -> None:
    done = subprocess.run([*COMMAND, "version"], capture_output=True, text=True, timeout=START_SECONDS, check=True)
    assert torch.__version__ in done.stdout
    assert re.search(r"^ops for CPU", done.stdout, re.MULTILINE)
