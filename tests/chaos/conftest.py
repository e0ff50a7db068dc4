"""These tests run when asked for: ``pytest tests/chaos [--kills 1000] [--seconds 60]``, and by ``./run check``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Process

HERE = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=50, help="of torch-free servers; a tenth as many of real ones")
    parser.addoption("--seconds", type=float, default=5.0, help="of SIGSTOP, and of noise on each port")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = (config.invocation_params.dir / argument.partition("::")[0] for argument in config.args)
    return None if any(HERE in (path.resolve(), *path.resolve().parents) for path in asked) else True


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """Those put in here do not outlive the test."""
    started: list[Process] = []
    yield started
    for process in started:
        process.end()
