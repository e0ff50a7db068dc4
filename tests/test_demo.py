"""The demo, shortened: a server dies and returns, the run goes on, and nothing outlives it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 240.0


def start(output: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo as the leader of a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--output", str(output), *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def assert_group_ends(leader: int, seconds: float) -> None:
    """No process of the group is left, or the last one ends in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(leader, signal.SIGKILL)
    pytest.fail("processes of the demo outlived it")


@pytest.mark.timeout(SECONDS + 60)
def test_demo_loses_a_server_gets_it_back_and_leaves_nothing_behind(tmp_path: Path) -> None:
    curve = tmp_path / "curve.png"
    demo = start(curve, "--steps", "60", "--hidden", "16", "--batch", "64", "--min-accuracy", "0.2")
    output, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 0, output
    assert_group_ends(demo.pid, 0.5)

    assert re.search(r"^step 20: server 1 killed .*SIGKILL", output, re.MULTILINE), output
    assert re.search(r"^step 40: server 1 started again .*fresh experts", output, re.MULTILINE), output
    summary = output.strip().splitlines()[-1]
    found = re.search(
        r"test accuracy (0\.\d+|1\.000) after 60 steps in \d+ s; "
        r"experts alive 64, (\d+) after server 1 was killed at step 20, 64 after it came back at step 40 .*; "
        r"(\d+) of (\d+) calls failed",
        summary,
    )
    assert found, summary
    alive, failed, calls = (int(found[group]) for group in (2, 3, 4))
    assert alive <= 43
    assert 0 < failed < calls / 4
    assert curve.read_bytes().startswith(b"\x89PNG")


def test_killed_demo_leaves_no_orphans(tmp_path: Path) -> None:
    demo = start(tmp_path / "curve.png", "--steps", "100000")
    assert demo.stdout is not None
    deadline = time.monotonic() + 90
    line = ""
    while not line.startswith("step "):  # training goes on, so every process is up
        assert select.select([demo.stdout], [], [], deadline - time.monotonic())[0], "no step in time"
        line = demo.stdout.readline()
        assert line, "the demo ended"
    demo.kill()
    demo.communicate()
    assert_group_ends(demo.pid, 30)


@pytest.mark.timeout(SECONDS)
def test_demo_that_learns_too_little_fails_and_says_so(tmp_path: Path) -> None:
    demo = start(tmp_path / "curve.png", "--steps", "3", "--batch", "2", "--hidden", "8")
    output, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 1, output
    assert re.search(r"^demo: test accuracy 0\.\d+ is below 0\.95$", output, re.MULTILINE), output
    assert_group_ends(demo.pid, 0.5)
