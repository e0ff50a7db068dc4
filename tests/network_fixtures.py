"""A pytest plugin: networks that find each other on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from networks import HERE, Join

import learning_at_home as lib


@pytest.fixture
def join() -> Iterator[Join]:
    """Makes started networks that join the first one made, and shuts all of them down."""
    with ExitStack() as stack:
        made: list[lib.TesseractNetwork] = []

        def make(*peers: tuple[str, int], **kwargs: object) -> lib.TesseractNetwork:
            if not peers and made:
                peers = ((HERE, made[0].port),)
            options: dict = {"port": 0, "host": HERE, **kwargs}
            network = stack.enter_context(lib.TesseractNetwork(*peers, **options))
            made.append(network)
            return network

        yield make
