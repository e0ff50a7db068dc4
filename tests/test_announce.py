"""What servers and nodes tell others of their addresses: containers, forwarded ports, IPv6."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import torch
from expert_server import HIDDEN, backend
from networks import HERE, Join, eventually

import learning_at_home as lib
from learning_at_home._network_arguments import parse_announce
from learning_at_home.errors import InvalidArgument

pytest_plugins = ["network_fixtures"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("example.org", ("example.org", None)),
        ("example.org:80", ("example.org", 80)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("::1", ("::1", None)),
        ("[::1]", ("::1", None)),
        ("[fe80::1:2]:8080", ("fe80::1:2", 8080)),
    ],
)
def test_addresses_as_people_write_them(text: str, meant: tuple[str, int | None]) -> None:
    assert parse_announce(text) == meant


@pytest.mark.parametrize(
    "text", ["", ":80", "host:", "host:0", "host:65536", "host:-1", "host:٣", "[::1", "[::1]80", 80]
)
def test_other_addresses_are_named(text: object) -> None:
    with pytest.raises(InvalidArgument, match="announce"):
        parse_announce(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("announce", "host", "port"),
    [("10.1.2.3", "10.1.2.3", None), ("10.1.2.3:4567", "10.1.2.3", 4567), ("[2001:db8::7]:4567", "2001:db8::7", 4567)],
)
def test_trainers_are_told_what_is_announced(join: Join, announce: str, host: str, port: int | None) -> None:
    serving, asking = join(), join()
    server = lib.TesseractServer(serving, {"a.1": backend("a.1", "nop")}, "0.0.0.0", 0, announce=announce)
    with server:
        assert server.announce_port == (server.port if port is None else port)
        assert eventually(lambda: len(asking.alive_experts("a", [2])) == 1)
        (found,) = asking.alive_experts("a", [2])
        assert (found.host, found.port) == (host, server.announce_port)


@contextmanager
def forwarded(port: Callable[[], int]) -> Iterator[int]:
    """Another port that leads to this one, as a router or a container's host has it."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((HERE, 0)))

        def pump(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)

        def accept() -> None:
            with suppress(OSError):  # closed
                while True:
                    ends = listener.accept()[0], socket.create_connection((HERE, port()))
                    for end in ends:
                        stack.callback(end.close)
                    for source, sink in (ends, ends[::-1]):
                        threading.Thread(target=pump, args=(source, sink), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        stack.callback(listener.shutdown, socket.SHUT_RDWR)
        yield int(listener.getsockname()[1])


def test_experts_are_called_through_the_forwarded_port(join: Join) -> None:
    serving, asking = join(), join()
    with forwarded(lambda: server.port) as outside:
        experts = {"a.1": backend("a.1", "nop")}
        server = lib.TesseractServer(serving, experts, "0.0.0.0", 0, announce=f"{HERE}:{outside}")
        with server:
            gate = lib.GatingFunction(in_features=HIDDEN, grid_size=[2], network=asking, k_best=1, uid_prefix="a")
            assert gate.wait_for_experts(1)
            x = torch.randn(3, HIDDEN)
            assert gate(x).equal(x)
            assert {call.server for call in gate.last_stats.forward.values()} == {f"server {HERE}:{outside}"}


def test_nodes_tell_where_to_join() -> None:
    with lib.TesseractNetwork(port=0, host=HERE) as first:
        assert first.own_address() == (HERE, first.port)
        assert first.initial_peers_line() == f"--peer {HERE}:{first.port}"
        assert first.own_address("example.org") == ("example.org", first.port)
        assert first.initial_peers_line("[::1]:9") == "--peer [::1]:9"
        with lib.TesseractNetwork((HERE, first.port), port=0) as second:  # on every address
            host, port = second.own_address()
            assert port == second.port
            assert not ipaddress.ip_address(host).is_unspecified
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind((host, 0))  # it is one of this machine's
            with lib.TesseractNetwork((host, port), port=0) as third:
                assert third.wait_ready()
