"""What tests of `TesseractNetwork` share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import learning_at_home as lib

HERE = "127.0.0.1"
PATIENCE = 30.0  # seconds; for a busy machine, never waited for in full
Join = Callable[..., lib.TesseractNetwork]


def eventually(check: Callable[[], bool], within: float = PATIENCE) -> bool:
    deadline = time.monotonic() + within
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def raised_in_child(use: Callable[[], object]) -> str:
    """What a forked child's RuntimeError says; empty if it raises none."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            use()
        except RuntimeError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return said


def said_when_interrupted(code: str) -> str:
    """What a process of this code, interrupted once it printed "waiting", writes to stderr until it ends."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE)
    return stderr.decode()
