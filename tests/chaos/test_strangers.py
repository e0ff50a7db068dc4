"""Noise, replayed and spoiled frames on every port, for `--seconds` each: nothing crashes, nothing grows."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from conftest import ExpertServer
from test_security import Victim

import learning_at_home as lib
from chaos.process_faults import descriptors, rss
from chaos.strangers import annoy_tcp, annoy_udp, noise, spoiled
from chaos.tcp_proxy import TcpProxy
from learning_at_home.client.transport import get_transport

MIB = 1 << 20
WARM_UP = 1.0  # seconds each, until every path has been in memory once


@pytest.fixture(params=["encrypted", "insecure"])
def victim(request: pytest.FixtureRequest) -> Iterator[Victim]:
    insecure = request.param == "insecure"
    with lib.TesseractNetwork(port=0, host="127.0.0.1") as root:
        process = ExpertServer(*(["--insecure"] if insecure else ["--network", str(root.port)]), "e=nop")
        try:
            yield Victim(process, insecure)
        finally:
            process.end()


@pytest.mark.timeout(900)
def test_every_port_bears_strangers(victim: Victim, request: pytest.FixtureRequest) -> None:
    seconds = request.config.getoption("--seconds")
    chance = random.Random(11)
    transport = get_transport()
    key = None if victim.insecure else transport._ask_key(*victim.tcp)
    with TcpProxy(victim.tcp, record=True) as proxy:
        assert victim.serves(proxy.port, key)
    said = max((bytes(up) for up, _ in proxy.recordings), key=len)
    makers = (lambda: noise(chance), lambda: said, lambda: spoiled(said, chance))
    for make in makers:
        annoy_tcp(victim.tcp, WARM_UP, make)
    before = rss(victim.pid), descriptors(victim.pid)
    made = [annoy_tcp(victim.tcp, seconds, make) for make in makers]
    made += [annoy_udp(address, seconds, lambda: noise(chance)) for address in victim.udp]
    assert victim.serves()
    growth = (rss(victim.pid) - before[0]) / MIB
    print(f"{made} connections and datagrams; memory {growth:+.1f} MiB, {descriptors(victim.pid) - before[1]:+d} fds")
    assert min(made) > 0
    # Without keys, recordings are good calls: a server remembers up to Limits::kKnownPeers of their connections.
    assert growth <= (96 if victim.insecure else 16)
