"""What tests of `TesseractNetwork` share."""

from __future__ import annotations

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
