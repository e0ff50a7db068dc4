"""`ExpertParallelMoE` on 2 and on 4 processes: a launch of each, which runs all checks of `expert_parallel_rank.py`."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import TESTS, Process
from expert_parallel_rank import CHECKS

SECONDS = 300.0  # for all checks of a launch, most of which a busy machine needs to import torch


def run(world: int, store: Path) -> list[Process]:
    """The processes of a launch, ended; those that do not end by themselves are killed."""
    processes: list[Process] = []
    try:
        for rank in range(world):
            processes.append(Process(TESTS / "expert_parallel_rank.py", str(rank), str(world), store))
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and any(process.popen.poll() is None for process in processes):
            time.sleep(0.05)
    finally:
        for process in processes:
            process.end()
    return processes


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Sequence[Process]]:
    """Runs so many ranks, once."""
    return functools.cache(lambda world: run(world, tmp_path_factory.mktemp("ranks") / "store"))


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize(
    ("world", "check"), [(world, check.__name__) for world, checks in CHECKS.items() for check in checks]
)
def test_on_every_rank(
    launch: Callable[[int], Sequence[Process]], monkeypatch: pytest.MonkeyPatch, world: int, check: str
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    ranks = launch(world)
    said = "\n".join(f"rank {rank}:\n" + "\n".join(p.stdout + p.stderr) for rank, p in enumerate(ranks))
    assert all(f"PASSED {check}" in process.stdout for process in ranks), said
