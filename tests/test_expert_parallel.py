"""`ExpertParallelMoE` on 2 and on 4 processes: one launch of each, which runs all checks of `expert_parallel_rank.py`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
from conftest import TESTS, Process
from expert_parallel_rank import CHECKS

SECONDS = 110.0  # for all checks of a launch, under the timeout of a test


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    """The processes, ended; those that do not end are killed."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    processes: list[Process] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        try:
            for rank in range(request.param):
                words = (str(rank), str(request.param), str(store))
                processes.append(Process(TESTS / "expert_parallel_rank.py", *words))
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline and any(process.popen.poll() is None for process in processes):
                time.sleep(0.05)
        finally:
            for process in processes:
                process.end()
        yield processes


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_on_every_rank(ranks: list[Process], check: str) -> None:
    said = "\n".join(f"rank {rank}:\n" + "\n".join(p.stdout + p.stderr) for rank, p in enumerate(ranks))
    assert all(f"PASSED {check}" in process.stdout for process in ranks), said
