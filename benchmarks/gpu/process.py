"""A stage: a process with a deadline, of which nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from benchmarks.worker import ROOT

TAIL = 40  # lines of the output of a stage that failed


@dataclass(frozen=True)
class Outcome:
    """How a stage ended. passed: None where it was left out."""

    name: str
    passed: bool | None
    words: str
    seconds: float = 0.0
    tail: str = ""

    def line(self) -> str:
        """In one line."""
        verdict = {True: "passed", False: "FAILED", None: "left out"}[self.passed]
        return f"{self.name}: {verdict}, {self.words} ({self.seconds:.0f} s)"


def run(name: str, command: Sequence[str], deadline: float, extra: Mapping[str, str] | None = None) -> Outcome:
    """Run a command from the root of the tree; its last line of output is what it says. Ends all that it started."""
    begun = time.monotonic()
    try:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | (extra or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Outcome(name, False, str(error))
    late = False
    try:
        output, _ = child.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        late = True
        _end(child)
        output, _ = child.communicate(timeout=30)
    except BaseException:  # Ctrl-C and the like must not leave the device busy
        _end(child)
        raise
    lines = [line for line in output.splitlines() if line.strip()]
    words = lines[-1].strip() if lines else "no output"
    if late:
        words = f"not done within {deadline:.0f} s"
    elif child.returncode:
        words = f"status {child.returncode}: {words}"
    passed = not late and child.returncode == 0
    return Outcome(name, passed, words, time.monotonic() - begun, "\n".join(lines[-TAIL:]))


def _end(child: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
