"""`TesseractNetwork` over real sockets on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings

import pytest
from networks import HERE, PATIENCE, Join, eventually

import learning_at_home as lib
from learning_at_home import errors

pytest_plugins = ["network_fixtures"]


def grid_uids(prefix: str, rows: int, columns: int) -> list[str]:
    return [f"{prefix}.{i}.{j}" for i in range(rows) for j in range(columns)]


def alive_uids(network: lib.TesseractNetwork, prefix: str, grid: tuple[int, ...]) -> set[str]:
    return {expert.uid for expert in network.alive_experts(prefix, grid)}


# --- records ------------------------------------------------------------------------------------------------


def test_lone_node_stores_and_finds(join: Join) -> None:
    """Note 6A-23: a node without neighbours could not store."""
    node = join()
    assert node.wait_ready(0)
    assert node.store("name", b"value") == 1
    assert node.get("name") == [(node.public_key, b"value")]
    node.declare_experts(["solo.0"], HERE, 4000)
    (expert,) = node.get_experts(["solo.0"])
    assert expert is not None
    assert (expert.host, expert.port, expert.key) == (HERE, 4000, node.public_key)


def test_records_travel_and_the_newest_wins(join: Join) -> None:
    nodes = [join() for _ in range(4)]
    assert all(node.wait_ready(PATIENCE) for node in nodes)
    assert nodes[1].store("name", b"old") >= 2
    nodes[1].store("name", b"new")
    nodes[2].store("name", b"other")
    for node in nodes:
        assert dict(node.get("name")) == {nodes[1].public_key: b"new", nodes[2].public_key: b"other"}
    assert nodes[0].get("absent") == []


def test_record_expires(join: Join) -> None:
    first, second = join(), join()
    assert second.wait_ready(PATIENCE)
    stored_at = time.time()
    second.store("name", b"value", expiration=0.5)
    assert eventually(lambda: first.get("name") == [])
    assert time.time() - stored_at >= 0.49


@pytest.mark.parametrize(
    ("name", "value", "expiration"),
    [
        ("", b"x", 60),
        ("n", b"", 60),
        ("n", b"x" * 751, 60),
        ("n", b"x", 601),
        ("n", b"x", 0),
        ("n", b"x", -1),
    ],
)
def test_bad_records_are_refused(join: Join, name: str, value: bytes, expiration: float) -> None:
    with pytest.raises(errors.InvalidArgument):
        join().store(name, value, expiration)


# --- experts ------------------------------------------------------------------------------------------------


def test_all_64_experts_of_one_call_are_seen(join: Join) -> None:
    """Note 6A-26: of 64 experts declared in one call, 45 to 59 were visible."""
    join()
    server, trainer = join(), join()
    uids = grid_uids("ffn", 8, 8)
    trainer.watch("ffn", [8, 8], period=0.1)
    assert server.declare_experts(uids, HERE, 4321, boot_id=9) >= 2
    assert eventually(lambda: alive_uids(trainer, "ffn", (8, 8)) == set(uids))
    version, experts = trainer.alive("ffn", [8, 8])
    assert version == trainer.alive_version("ffn", [8, 8]) > 0
    assert [expert[0] for expert in experts] == list(range(64))
    assert experts[9] == (9, "ffn.1.1", HERE, 4321, server.public_key, 9)
    found = trainer.get_experts([*uids, "ffn.9.9", "expert0"], heartbeat_expiration=120)
    assert [expert is not None for expert in found] == [True] * 64 + [False, False]


def test_first_k_active_keeps_order_and_skips_the_dead(join: Join) -> None:
    node = join()
    node.declare_experts(["ffn.1.5", "ffn.3.2", "expert0"], HERE, 4000)
    asked = ["ffn.0", "ffn.3", "ffn.2", "ffn.1", "expert0", "ffn.1.5", "absent"]
    assert node.first_k_active(asked, k=2) == ["ffn.3", "ffn.1"]
    assert node.first_k_active(asked, k=9, max_prefetch=4, heartbeat_expiration=1) == [
        "ffn.3",
        "ffn.1",
        "expert0",
        "ffn.1.5",
    ]


def test_dead_server_vanishes_and_a_new_one_takes_its_place(join: Join) -> None:
    root, trainer = join(), join()
    trainer.watch("ffn", [4], period=0.1)
    server = join()
    server.declare_experts(["ffn.0", "ffn.1"], HERE, 4000, update_period=0.5, expiration=1.5)
    assert eventually(lambda: len(trainer.alive("ffn", [4])[1]) == 2)
    server.shutdown()  # says nothing to anybody
    assert eventually(lambda: len(trainer.alive("ffn", [4])[1]) == 0)
    server = join((HERE, root.port))
    server.declare_experts(["ffn.1"], HERE, 4001, update_period=0.5, expiration=1.5)
    assert eventually(lambda: alive_uids(trainer, "ffn", (4,)) == {"ffn.1"})


def test_declarations_outlive_their_expiry_while_the_server_lives(join: Join) -> None:
    join()
    server, trainer = join(), join()
    server.declare_experts(["ffn.0"], HERE, 4000, update_period=0.2, expiration=4.0)
    declared_at = time.monotonic()
    trainer.watch("ffn", [1], period=0.1)
    assert eventually(lambda: len(trainer.alive("ffn", [1])[1]) == 1)
    while time.monotonic() < declared_at + 5.0:
        assert len(trainer.alive("ffn", [1])[1]) == 1
        time.sleep(0.05)


def test_undeclared_experts_vanish_at_the_next_refresh(join: Join) -> None:
    join()
    server, trainer = join(), join()
    server.declare_experts(["ffn.0"], HERE, 4000)
    trainer.watch("ffn", [1], period=0.1)
    assert eventually(lambda: len(trainer.alive("ffn", [1])[1]) == 1)
    server.undeclare_experts()
    assert eventually(lambda: len(trainer.alive("ffn", [1])[1]) == 0)


def test_restart_with_the_same_identity_is_seen_as_the_same_owner(join: Join) -> None:
    root, trainer = join(), join()
    trainer.watch("ffn", [1], period=0.1)
    seed = bytes(range(32))
    for boot_id, port in ((1, 4000), (2, 4001)):
        server = join((HERE, root.port), identity=seed)
        key = server.public_key
        server.declare_experts(["ffn.0"], HERE, port, boot_id=boot_id)
        wanted = (0, "ffn.0", HERE, port, key, boot_id)
        assert eventually(lambda wanted=wanted: list(trainer.alive("ffn", [1])[1]) == [wanted])
        server.shutdown()


def test_suspects_are_left_out_until_forgiven(join: Join) -> None:
    node = join()
    node.declare_experts(["ffn.0"], HERE, 4000, boot_id=5)
    assert node.wait_alive("ffn", [1], timeout=PATIENCE)
    node.suspect(node.public_key, 60.0)
    assert node.alive("ffn", [1])[1] == ()
    assert node.get_experts(["ffn.0"]) == [None]
    node.forgive(node.public_key)
    assert len(node.alive("ffn", [1])[1]) == 1
    node.suspect(node.public_key, 60.0, boot_id=4)  # an earlier incarnation
    assert len(node.alive("ffn", [1])[1]) == 1


def test_replicas_are_all_seen_and_the_choice_among_them_lasts(join: Join) -> None:
    root, trainer = join(), join()
    trainer.watch("ffn", [32], period=0.05)
    uids = [f"ffn.{i}" for i in range(32)]
    servers = [join((HERE, root.port)) for _ in range(3)]
    for i, server in enumerate(servers):
        server.declare_experts(uids[: 32 - i], HERE, 4000 + i, update_period=0.2, expiration=60.0)
    assert eventually(lambda: len(trainer.replicas("ffn", [32]).get(0, ())) == 2)

    def holders() -> dict[str, list[bytes]]:
        replicas = trainer.replicas("ffn", [32])
        first = trainer.alive_experts("ffn", [32])
        return {e.uid: [e.public_key, *(place[2] for place in replicas.get(e.flat_id, ()))] for e in first}

    found = holders()
    assert [len(found[uid]) for uid in uids] == [3] * 30 + [2, 1]
    for uid, keys in found.items():
        assert set(keys) == {server.public_key for server in servers[: len(keys)]}, uid
    assert len({keys[0] for keys in found.values()}) == 3  # they share the work
    version = trainer.alive_version("ffn", [32])
    packets = trainer.status()["packets_in"]
    assert eventually(lambda: trainer.status()["packets_in"] > packets + 60)  # refreshed again and again
    assert trainer.alive_version("ffn", [32]) == version
    (expert,) = trainer.get_experts(uids[:1])
    assert expert is not None
    assert expert.key == found[uids[0]][0]

    first = found[uids[0]][0]
    trainer.suspect(first, 60.0)
    assert holders()[uids[0]] == [key for key in found[uids[0]] if key != first]
    trainer.forgive(first)
    assert holders() == found


def test_two_prefixes_do_not_mix_and_a_number_may_end_a_prefix(join: Join) -> None:
    node = join()
    node.declare_experts(["layer.0.3", "layer.1.2", "other.3"], HERE, 4000)
    for prefix, uid in (("layer.0", "layer.0.3"), ("layer.1", "layer.1.2"), ("other", "other.3")):
        assert node.wait_alive(prefix, [4], timeout=PATIENCE)
        assert alive_uids(node, prefix, (4,)) == {uid}


def test_minority_schema_is_left_out_with_one_warning(join: Join) -> None:
    node = join()
    hashes = {"ffn.0": 7, "ffn.1": 7, "ffn.2": 2**64 - 1}
    node.declare_experts(hashes, HERE, 4000, schema_hashes=hashes)
    assert node.wait_alive("ffn", [4], timeout=PATIENCE)
    with pytest.warns(RuntimeWarning, match="1 experts of prefix 'ffn'"):
        assert alive_uids(node, "ffn", (4,)) == {"ffn.0", "ffn.1"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert alive_uids(node, "ffn", (4,)) == {"ffn.0", "ffn.1"}


def test_declaring_with_wait_timeout_works(join: Join) -> None:
    """Note 6A-18: declare_experts(wait_timeout > 0) raised, and would have reported too early."""
    join()
    server = join()
    assert server.declare_experts(["ffn.0"], HERE, 4000, wait_timeout=5) >= 2


def test_announced_address_is_what_the_server_says(join: Join) -> None:
    """Note 6A-20: 127.0.0.1 was announced whatever the server listened on."""
    join()
    server, trainer = join(), join()
    server.declare_experts(["ffn.0"], ["203.0.113.7", HERE], 4000)
    (expert,) = trainer.get_experts(["ffn.0"])
    assert expert is not None
    assert expert.host == "203.0.113.7"


def test_unannounced_address_is_the_one_peers_see(join: Join) -> None:
    join()
    server, trainer = join(), join()
    assert server.wait_ready(PATIENCE)
    server.declare_experts(["ffn.0"], None, 4000)
    (expert,) = trainer.get_experts(["ffn.0"])
    assert expert is not None
    assert expert.host == HERE


def test_time_zones_do_not_matter(join: Join) -> None:
    """Note 6A-8: heartbeats in naive local time died with the time zone."""
    root = join()
    code = (
        "import sys, time; time.tzset(); import learning_at_home as lib\n"
        f"with lib.TesseractNetwork(('{HERE}', {root.port}), port=0, host='{HERE}') as node:\n"
        "    print(node.declare_experts(['far.0'], '127.0.0.1', 4000), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    environment = {**os.environ, "TZ": "Pacific/Kiritimati"}  # UTC+14
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as server:
        assert server.stdout is not None
        assert int(server.stdout.readline()) >= 2
        (expert,) = root.get_experts(["far.0"])
        assert expert is not None
        server.communicate()


def test_lookups_from_many_threads(join: Join) -> None:
    """Note 6A-10: the network answered one caller at a time, each by lookups of its own."""
    join()
    server, trainer = join(), join()
    uids = grid_uids("ffn", 4, 4)
    server.declare_experts(uids, HERE, 4000)
    results: list[int] = []

    def look() -> None:
        for _ in range(20):
            results.append(sum(expert is not None for expert in trainer.get_experts(uids)))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [16] * 160
