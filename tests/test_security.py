"""Strangers: who may connect, what they can cost before they have proved anything, and that noise only counts."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from chaos.process_faults import descriptors, forget_peak, rss
from chaos.strangers import (
    MSGPACK_BOMBS,
    Address,
    annoy_tcp,
    annoy_udp,
    memory_bombs,
    noise,
    pour,
    spoiled,
)
from chaos.tcp_proxy import TcpProxy
from conftest import ExpertServer, Process, wait_until
from expert_server import HIDDEN, backend

import learning_at_home as lib
from learning_at_home import errors

Spawn = Callable[..., Process]
MIB = 1 << 20
SOON = 15.0  # seconds; what is refused is known at once, the rest is for a busy machine
ANNOYED = 1.0  # seconds of noise on each port


def key_of(identity: bytes) -> bytes:
    """The public key of a seed."""
    return lib.TesseractNetwork(port=0, identity=identity).public_key


def expert(server: lib.TesseractServer, identity: bytes | None = None, **kwargs: object) -> lib.RemoteExpert:
    return lib.RemoteExpert("e", port=server.port, identity=identity, forward_timeout=SOON, **kwargs)


def call(remote: lib.RemoteExpert) -> bool:
    x = torch.ones(1, HIDDEN)
    return torch.equal(remote(x), x)


# --- access lists -------------------------------------------------------------------------------------------


def test_only_listed_keys_are_let_in() -> None:
    friend, stranger = bytes([1] * 32), bytes([2] * 32)
    with lib.TesseractServer(None, {"e": backend("e", "nop")}, port=0, allow=[key_of(friend)]) as server:
        assert call(expert(server, friend))
        begin = time.monotonic()
        for unknown in (stranger, None):
            with pytest.raises(errors.NotPermitted, match=r"'e' on .*refused by the server's access list"):
                call(expert(server, unknown))
        assert time.monotonic() - begin < SOON
        assert server.counters()["denied"] >= 2
        assert server.counters()["requests"] == 1
        assert call(expert(server, friend))


def test_a_denied_caller_is_out_at_once_and_the_others_stay() -> None:
    good, bad = bytes([3] * 32), bytes([4] * 32)
    with lib.TesseractServer(None, {"e": backend("e", "nop")}, port=0) as server:
        first, second = expert(server, good), expert(server, bad)
        assert call(first)
        assert call(second)
        assert server.counters()["connections"] == 2
        server.deny(key_of(bad))
        wait_until(lambda: server.counters()["connections"] == 1, SOON, "the connection ends")

        def denied() -> bool:
            try:
                call(second)
            except errors.NotPermitted:
                return True
            except errors.LearningAtHomeError:  # the old connection's end, not yet the new one's refusal
                return False
            raise AssertionError("a denied caller was served")

        wait_until(denied, 2 * SOON, "the caller learns that it is refused")
        assert call(first)
        fresh = expert(server, bad)
        with pytest.raises(errors.LearningAtHomeError):
            call(fresh)
        assert server.counters()["requests"] == 3


def test_a_gate_calls_under_its_networks_key(network: lib.TesseractNetwork) -> None:
    with (
        lib.TesseractNetwork(("127.0.0.1", network.port), port=0, host="127.0.0.1", start=True) as serving,
        lib.TesseractServer(serving, {"e.0": backend("e.0", "nop")}, port=0, allow=[network.public_key]) as server,
    ):
        gate = lib.GatingFunction(in_features=HIDDEN, grid_size=[1], network=network, k_best=1, uid_prefix="e")
        assert gate.wait_for_experts(1, timeout=60)
        out = gate(torch.ones(1, HIDDEN))
        assert torch.equal(out.detach(), torch.ones(1, HIDDEN)), gate.last_stats
        assert server.counters()["requests"] == 1


def test_arguments_of_access_lists_are_checked() -> None:
    experts = {"e": backend("e", "nop")}
    for options in ({"allow": [b"short"]}, {"deny": [bytes(31)]}, {"insecure": True, "deny": [bytes(32)]}):
        with pytest.raises(errors.InvalidArgument):
            lib.TesseractServer(None, experts, port=0, **options)
    with pytest.raises(errors.InvalidArgument, match="identity"):
        lib.RemoteExpert("e", identity=b"short")
    with lib.TesseractServer(None, experts, port=0, insecure=True) as server, pytest.raises(errors.InvalidArgument):
        server.deny(bytes(32))


def test_unencrypted_servers_are_asked_for_and_local() -> None:
    experts = {"e": backend("e", "nop")}
    for address in ("0.0.0.0", "192.0.2.1"):
        with pytest.raises(errors.InvalidArgument, match="insecure: only loopback"):
            lib.TesseractServer(None, experts, address, 0, insecure=True)
    with lib.TesseractServer(None, experts, port=0, insecure=True) as server:
        assert call(expert(server, insecure=True))
    with lib.TesseractServer(None, experts, port=0) as server:  # encrypted by default: NULL is refused
        hasty = lib.RemoteExpert("e", port=server.port, insecure=True, forward_timeout=1.0)
        with pytest.raises(errors.LearningAtHomeError):
            hasty(torch.ones(1, HIDDEN))
        assert server.counters()["requests"] == 0


# --- strangers ----------------------------------------------------------------------------------------------


class Victim:
    """A server process, encrypted or not, and a call that shows that it lives."""

    def __init__(self, process: ExpertServer, insecure: bool):
        self.process, self.pid, self.insecure = process, process.pid, insecure
        self.tcp: Address = ("127.0.0.1", process.port)
        self.udp: list[Address] = [("127.0.0.1", port) for port in (process.port, process.network_port) if port]

    def serves(self, port: int | None = None, key: bytes | None = None) -> bool:
        """A call of 4 MB comes back."""
        remote = lib.RemoteExpert("e", port=port or self.tcp[1], key=key, insecure=self.insecure, forward_timeout=60.0)
        x = torch.ones(256, 4096 // HIDDEN, HIDDEN).reshape(-1, HIDDEN)[:4096]
        return torch.equal(remote(x), x)


@pytest.fixture(scope="module", params=["encrypted", "insecure"])
def victim(request: pytest.FixtureRequest) -> Iterator[Victim]:
    insecure = request.param == "insecure"
    with lib.TesseractNetwork(port=0, host="127.0.0.1") as root:
        options = ["--insecure"] if insecure else ["--network", str(root.port)]
        process = ExpertServer(*options, "e=nop")
        try:
            target = Victim(process, insecure)
            assert target.serves()
            yield target
        finally:
            process.end()


def test_memory_bombs_of_strangers_cost_nothing(victim: Victim) -> None:
    for bomb in memory_bombs():  # once, to have every path of libzmq in memory
        pour(victim.tcp, bomb, 1 << 16, seconds=0.5)
    before = rss(victim.pid)
    forget_peak(victim.pid)
    for bomb in memory_bombs():
        crowd = [threading.Thread(target=pour, args=(victim.tcp, bomb, 50 * MIB, 2.0)) for _ in range(4)]
        for stranger in crowd:
            stranger.start()
        for stranger in crowd:
            stranger.join()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for address in victim.udp:
            for bomb in MSGPACK_BOMBS:
                for packet in (bomb, b"\x01\x01" + bytes(56) + bomb, b"\x01\x02" + bytes(56) + bomb):
                    sender.sendto(packet, address)
    assert victim.serves()
    assert rss(victim.pid, peak=True) - before <= 16 * MIB


def test_noise_and_spoiled_recordings_only_count(victim: Victim) -> None:
    chance = random.Random(5)
    key = None if victim.insecure else lib.client.transport.get_transport()._ask_key(*victim.tcp)
    with TcpProxy(victim.tcp, record=True) as proxy:
        assert victim.serves(proxy.port, key)
    said = max((bytes(up) for up, _ in proxy.recordings), key=len)
    assert len(said) > 4096 * HIDDEN * 4
    answers = [
        annoy_tcp(victim.tcp, ANNOYED, lambda: noise(chance)),
        annoy_tcp(victim.tcp, ANNOYED, lambda: said),  # replayed as it was
        annoy_tcp(victim.tcp, ANNOYED, lambda: spoiled(said, chance)),
    ]
    answers += [annoy_udp(address, ANNOYED / 3, lambda: noise(chance)) for address in victim.udp]
    assert min(answers) > 3
    assert victim.serves()


def test_connections_that_ended_are_not_counted() -> None:
    chance = random.Random(7)
    for insecure in (False, True):
        with lib.TesseractServer(None, {"e": backend("e", "nop")}, port=0, insecure=insecure) as server:
            address = ("127.0.0.1", server.port)
            storms = [threading.Thread(target=annoy_tcp, args=(address, 1.0, lambda: noise(chance))) for _ in range(4)]
            for storm in storms:
                storm.start()
            for _ in range(2000):
                socket.create_connection(address).close()
            for storm in storms:
                storm.join()
            caller = expert(server, insecure=insecure)
            assert call(caller)
            wait_until(lambda s=server: s.counters()["connections"] == 1, 30, "only the caller is connected")


def test_a_storm_of_connections_does_no_harm(victim: Victim) -> None:
    before = descriptors(victim.pid)
    memory = rss(victim.pid)
    for _ in range(1000):
        socket.create_connection(victim.tcp).close()
    held = [socket.create_connection(victim.tcp) for _ in range(200)]
    assert victim.serves()
    for stranger in held:
        stranger.close()
    wait_until(lambda: descriptors(victim.pid) <= before + 4, 30, "all descriptors are given back")
    assert rss(victim.pid) - memory <= 16 * MIB
    assert victim.serves()
