"""learning_at_home.sim: networks in virtual time, from Python."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.dht import simulated_lookups
from examples import simulate_swarm
from learning_at_home.errors import InvalidArgument
from learning_at_home.sim import Swarm, check_swarm, study_lookups


def test_a_swarm_stores_and_finds_and_forgets() -> None:
    swarm = Swarm(20, seed=1, loss=0.05)
    swarm.run(10)
    stored = swarm.store(3, b"name", b"value", expiration=30)
    assert stored.replicas >= 8
    assert stored.seconds > 0.03
    assert swarm.get(17, b"name").values == (b"value",)
    assert swarm.get(17, b"other").values == ()
    swarm.run(30)
    assert swarm.get(16, b"name").values == ()
    status = swarm.status(5)
    assert status.ready
    assert status.peers > 8
    assert status.bytes_out > 1000
    assert len(swarm) == 20


def test_one_seed_is_one_history() -> None:
    def history(seed: int, sealed: bool) -> tuple[str, int]:
        swarm = Swarm(8, seed=seed, loss=0.1, duplicate=0.1, sealed=sealed)
        swarm.store(1, b"a", b"x")
        return swarm.log_hash, swarm.events

    for sealed in (False, True):
        assert history(1, sealed) == history(1, sealed)
        assert history(1, sealed) != history(2, sealed)


def test_virtual_time_costs_none_and_constant_round_trips_are_constant() -> None:
    swarm = Swarm(30, settled=True, rtt=0.1)
    began = time.monotonic()
    swarm.run(600)
    assert time.monotonic() - began < 60
    assert swarm.now == pytest.approx(600)
    swarm.store(2, b"a", b"x")
    empty = next(node for node in range(30) if swarm.status(node).records == 0)
    round_trips = swarm.get(empty, b"a").seconds / 0.1
    assert round_trips == pytest.approx(round(round_trips))
    assert 1 <= round(round_trips) <= 3


def test_the_dead_the_frozen_and_the_cut_off_find_nothing() -> None:
    swarm = Swarm(12, seed=2, rtt=0.05)
    swarm.run(5)
    swarm.store(1, b"a", b"x")
    everybody_else = [node for node in range(12) if node != 1]
    for break_it, mend_it in (
        (lambda: [swarm.kill(node) for node in everybody_else], lambda: [swarm.revive(n) for n in everybody_else]),
        (lambda: [swarm.freeze(node) for node in everybody_else], lambda: [swarm.thaw(n) for n in everybody_else]),
        (lambda: swarm.partition([1]), lambda: swarm.partition([])),
        (lambda: swarm.set_links(loss=1.0), lambda: swarm.set_links(rtt=0.05)),
    ):
        break_it()
        assert swarm.store(1, b"b", b"y").replicas == 0
        mend_it()
        swarm.run(5)
        assert swarm.store(1, b"b", b"y").replicas >= 5


def test_a_study_measures_lookups_and_says_how_far_it_is() -> None:
    said: list[tuple[str, int, int]] = []
    study = study_lookups(200, rtt=0.1, lookups=50, progress=lambda *told: said.append(told))
    assert len(study.gets) == len(study.closest) == len(study.stores) == 50
    assert min(study.gets) == pytest.approx(0.1)
    assert study.found == 50
    assert study.true_replicas == pytest.approx(1.0)
    assert {"nodes", "tables", "gets"} <= {what for what, _, _ in said}
    assert study.log_hash == study_lookups(200, rtt=0.1, lookups=50).log_hash


def test_the_benchmark_makes_rows_of_a_study() -> None:
    rows = simulated_lookups.rows_of("x", "RTT", study_lookups(100, rtt=0.1, lookups=20), 10)
    assert [row.name for row in rows[:3]] == ["get, x, p50", "get, x, p95", "8 closest, x, p50"]
    assert all(row.kind == "simulated" and row.ours == pytest.approx(round(row.ours)) for row in rows)


def test_an_error_of_the_listener_ends_a_study() -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study_lookups(200, progress=stop)


def test_a_small_swarm_keeps_its_promises() -> None:
    report = check_swarm(3, nodes=40, duration=360)
    assert report.violations == ()
    assert report.asked > 50
    assert report.found == report.asked


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: Swarm(0), "nodes"),
        (lambda: Swarm(2, loss=1.5), "loss"),
        (lambda: Swarm(2, rtt=0.0), "rtt"),
        (lambda: Swarm(2, seed=-1), "seed"),
        (lambda: Swarm(2).run(-1), "duration"),
        (lambda: Swarm(2).get(7, b"a"), "node"),
        (lambda: Swarm(2).store(0, b"a", b"x", expiration=601), "expiration"),
        (lambda: Swarm(2).store(0, b"a", b""), "value"),
        (lambda: study_lookups(3), "nodes"),
        (lambda: study_lookups(50, dead=1.0), "dead"),
        (lambda: check_swarm(1, duration=10), "duration"),
    ],
)
def test_bad_arguments_are_named(call: object, name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        call()  # type: ignore[operator]


def test_the_example_draws_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate_swarm, "QUICK_SIZES", [50, 100])
    picture = tmp_path / "swarm.png"
    simulate_swarm.main(quick=True, output=picture, seed=1, dead=0.1)
    assert picture.stat().st_size > 10_000
