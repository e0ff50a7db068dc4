"""Images of handwritten digits: scikit-learn's small set, which needs no download, or MNIST."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
DOWNLOAD_SECONDS = 30.0  # without a byte


class IdxFile(NamedTuple):
    """One of MNIST's files. Digest and shape are of the content: mirrors compress it differently."""

    name: str
    shape: tuple[int, ...]
    sha256: str


MNIST = {
    "train_x": IdxFile(
        "train-images-idx3-ubyte.gz",
        (60_000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train_y": IdxFile(
        "train-labels-idx1-ubyte.gz",
        (60_000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "test_x": IdxFile(
        "t10k-images-idx3-ubyte.gz",
        (10_000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "test_y": IdxFile(
        "t10k-labels-idx1-ubyte.gz",
        (10_000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


class DataError(RuntimeError):
    """A data set could not be read or fetched; the message says what to do."""


@dataclass(frozen=True)
class Digits:
    """Images ``float32 [N, pixels]``, of zero mean and unit variance, and labels ``int64 [N]``."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def pixels(self) -> int:
        return self.train_x.shape[1]


def load(name: str, seed: int, folder: Path | None = None) -> Digits:
    """Load ``"digits"`` (1,797 images of 8x8, split 4:1 by ``seed``) or ``"mnist"`` (70,000 of 28x28).

    :param folder: where MNIST's four ``.gz`` files lie; by default a cache that they are downloaded to
    :raises DataError: a file is missing, damaged, or cannot be downloaded
    """
    return _mnist(folder) if name == "mnist" else _digits(seed)


def _digits(seed: int) -> Digits:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)
    return _normalised(train_x, train_y, test_x, test_y)


def _mnist(folder: Path | None) -> Digits:
    if folder is None:
        folder = cache_folder()
        for file in MNIST.values():
            download(file, folder)
    arrays = {part: read_idx(folder / file.name, file) for part, file in MNIST.items()}
    return _normalised(**arrays)


def _normalised(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> Digits:
    def images(x: np.ndarray) -> Tensor:
        return torch.tensor(x, dtype=torch.float32).flatten(1)

    mean, deviation = images(train_x).mean(), images(train_x).std()
    return Digits(
        train_x=(images(train_x) - mean) / deviation,
        train_y=torch.tensor(train_y, dtype=torch.int64),
        test_x=(images(test_x) - mean) / deviation,
        test_y=torch.tensor(test_y, dtype=torch.int64),
    )


def cache_folder() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME`` or ``~/.cache``, below it ``learning_at_home/mnist``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "learning_at_home" / "mnist"


def download(file: IdxFile, folder: Path, mirrors: tuple[str, ...] = MNIST_MIRRORS) -> None:
    """Fetch ``file`` into ``folder`` unless it is there. A damaged download leaves nothing behind."""
    path = folder / file.name
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    problems = []
    for mirror in mirrors:
        try:
            with urllib.request.urlopen(mirror + file.name, timeout=DOWNLOAD_SECONDS) as response:
                part.write_bytes(response.read(2 * _content_bytes(file)))
            read_idx(part, file)
            part.replace(path)
            return
        except (OSError, DataError) as error:  # URLError is an OSError
            problems.append(f"{mirror}: {error}")
        finally:
            part.unlink(missing_ok=True)
    raise DataError(
        "\n  ".join([f"could not download {file.name}:", *problems])
        + "\nGet MNIST's four files elsewhere and name their folder with --data-dir, "
        "or use --data digits, which needs no download."
    )


def read_idx(path: Path, file: IdxFile) -> np.ndarray:
    """The array in a gzipped IDX file of unsigned bytes, checked against the digest of ``file``."""
    try:
        with gzip.open(path, "rb") as stream:
            content = stream.read(_content_bytes(file) + 1)
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there; --data-dir must hold MNIST's four .gz files") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise DataError(f"{path} is not MNIST's {file.name}: sha256 {digest}, expected {file.sha256}")
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * len(file.shape)).reshape(file.shape)


def _content_bytes(file: IdxFile) -> int:
    return 4 + 4 * len(file.shape) + int(np.prod(file.shape))  # magic number, one int32 a dimension, bytes
