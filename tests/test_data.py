"""The data sets of the examples: MNIST's files, fetched from a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from examples import data

PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
CONTENT = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]) + PIXELS.tobytes()
FILE = data.IdxFile("images.gz", (2, 3, 4), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address of a web server, and the folder it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_takes_the_mirror_that_works_and_keeps_the_file(mirror: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = mirror
    (folder / FILE.name).write_bytes(gzip.compress(CONTENT))
    cache = tmp_path / "cache"
    data.download(FILE, cache, (f"{address}not/here/", address))
    assert np.array_equal(data.read_idx(cache / FILE.name, FILE), PIXELS)
    data.download(FILE, cache, ())  # there already: needs no mirror
    assert [path.name for path in cache.iterdir()] == [FILE.name]


@pytest.mark.parametrize(
    "served",
    [gzip.compress(CONTENT[:-1]), gzip.compress(CONTENT + b"x"), gzip.compress(CONTENT)[:-9], b"<html>"],
    ids=["short", "long", "broken off", "not gzip"],
)
def test_damaged_download_is_refused_and_leaves_nothing(
    mirror: tuple[str, Path], tmp_path: Path, served: bytes
) -> None:
    address, folder = mirror
    (folder / FILE.name).write_bytes(served)
    with pytest.raises(data.DataError, match="--data-dir"):
        data.download(FILE, tmp_path / "cache", (address,))
    assert not list((tmp_path / "cache").iterdir())


def test_missing_folder_says_what_it_must_hold(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match=r"four \.gz files"):
        data.load("mnist", 0, tmp_path / "nowhere")


def test_digits_split_depends_on_the_seed_alone() -> None:
    first, again, other = data.load("digits", 1), data.load("digits", 1), data.load("digits", 2)
    assert first.train_x.equal(again.train_x)
    assert not first.train_x.equal(other.train_x)
    assert first.train_x.shape == (1437, 64)
    assert first.test_x.shape == (360, 64)
    assert first.pixels == 64
