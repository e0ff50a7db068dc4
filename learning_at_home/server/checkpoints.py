"""Experts on disk: saved while they train, found again at the next start."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from learning_at_home.errors import InvalidArgument
from learning_at_home.runtime.expert_backend import ExpertBackend
from learning_at_home.server.checkpoint_file import (
    DamagedFile,
    read_snapshot,
    restore_snapshot,
    take_snapshot,
    write_snapshot,
)

logger = logging.getLogger(__name__)

_SNAPSHOT_TIMEOUT = 60.0  # seconds that a copy may wait for the running batch
_WARN_PERIOD = 60.0  # seconds between warnings of the same failure
_LONGEST_NAME = 180  # bytes of a uid in a file name, whose limit is 255
_FILE = re.compile(r"(?P<uid>[^@]+)@(?P<generation>\d+)\.safetensors(?P<temporary>\.\d+\.tmp)?")

CallBetweenBatches = Callable[[str, Callable[[], Any], float], Any]


class Checkpoints:
    """Saves the experts of a server every `period` seconds, those that were updated meanwhile.

    A file holds one generation of one expert: ``expert.3.14@00000007.safetensors``. It is written aside, flushed to the
    disk and renamed, so it is complete or absent; a crash loses the updates of the last period. Copies are taken
    between two batches of the runtime, files are written by a thread of their own. One server at a time may use the
    files of a uid.

    Args:
        directory: made if absent.
        backends: uid → backend.
        between_batches: (uid, function, timeout) → what the function returns, called between two batches.
        period: seconds, 60 by default.
        keep: generations of each expert to keep, 2 by default.

    Raises:
        InvalidArgument: an argument out of range, a directory that cannot be made, an optimizer without state_dict.
    """

    def __init__(
        self,
        directory: str | Path,
        backends: Mapping[str, ExpertBackend],
        between_batches: CallBetweenBatches,
        *,
        period: float = 60.0,
        keep: int = 2,
    ):
        if not 0 < period <= 86_400:
            raise InvalidArgument(f"checkpoint_period: expected seconds above 0 and at most 86400, got {period}")
        if keep < 1:
            raise InvalidArgument(f"checkpoint_keep: expected at least 1, got {keep}")
        self.directory, self.period, self.keep = Path(directory), period, keep
        for uid, backend in backends.items():
            if not all(hasattr(backend.opt, name) for name in ("state_dict", "load_state_dict")):
                raise InvalidArgument(f"checkpoint_dir: the optimizer of expert '{uid}' has no state_dict")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidArgument(f"checkpoint_dir: {error}") from error
        self._errors: dict[str, str] = {}  # of experts whose last attempt failed
        self._backends, self._between_batches = dict(backends), between_batches
        self._names = {uid: encoded(uid) for uid in backends}
        self._steps = dict.fromkeys(backends, 0)
        for uid, backend in backends.items():
            self._count_steps(uid, backend)
        self._saved = {uid: self._state_of(uid) for uid in backends}
        self._generations = self._find_generations()
        self._damaged: set[Path] = set()
        self._saving = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned = -_WARN_PERIOD

    @property
    def last_error(self) -> str | None:
        """Why an expert is not saved that should be; None if all are."""
        return next(reversed(list(self._errors.values())), None)

    def restore(self) -> dict[str, int]:
        """Load the newest good generation of each expert that has one; returns uid → updates.

        A damaged file is skipped with a warning. What the optimizer was set to comes from the file, too.

        Raises:
            SchemaMismatch: a file of another expert. OSError: a file that cannot be read.
        """
        restored = {}
        for uid, backend in self._backends.items():
            for generation in reversed(self._generations[uid]):
                path = self._path(uid, generation)
                try:
                    snapshot = read_snapshot(path)
                except DamagedFile as error:
                    logger.warning("checkpoint %s is damaged and skipped: %s", path, error)
                    self._damaged.add(path)
                    continue
                restore_snapshot(snapshot, backend, path)
                restored[uid] = backend.updates
                self._saved[uid] = self._state_of(uid)
                break
        return restored

    def start(self) -> None:
        """Save every `period` seconds from now on, in a thread."""
        self._thread = threading.Thread(target=self._run, name="lah-checkpoints", daemon=True)
        self._thread.start()

    def save(self) -> int:
        """Save every expert that was updated since its last file; returns how many were written."""
        with self._saving:
            return sum(self._save_one(uid) for uid in self._changed())

    def close(self, save: bool) -> None:
        """End the thread. With `save`, which needs a runtime that has ended, save a last time."""
        self._stop.set()
        self._warned = -_WARN_PERIOD  # the last chance to tell
        if save:
            self.save()

    def _run(self) -> None:
        while not self._stop.wait(self.period):
            with self._saving:
                for uid in self._changed():
                    if self._stop.is_set():
                        return
                    self._save_one(uid)

    def _changed(self) -> list[str]:
        return [uid for uid, saved in self._saved.items() if self._state_of(uid) != saved]

    def _state_of(self, uid: str) -> tuple[int, int]:
        """Differs after an update: `updates`, and the optimizer's steps, if the backend applies gradients in its own
        way and counts nothing."""
        return self._backends[uid].updates, self._steps[uid]

    def _count_steps(self, uid: str, backend: ExpertBackend) -> None:
        def count(*_: Any) -> None:
            self._steps[uid] += 1

        if isinstance(backend.opt, torch.optim.Optimizer):
            backend.opt.register_step_post_hook(count)

    def _save_one(self, uid: str) -> bool:
        backend = self._backends[uid]
        generation = self._generations[uid][-1] + 1 if self._generations[uid] else 1
        try:
            snapshot, state = self._between_batches(
                uid, lambda: (take_snapshot(backend), self._state_of(uid)), _SNAPSHOT_TIMEOUT
            )
            write_snapshot(snapshot, self._path(uid, generation))
        except Exception as error:  # the next period tries again, and serving goes on
            self._complain(uid, f"expert '{uid}' was not saved: {error}")
            return False
        self._errors.pop(uid, None)
        self._saved[uid] = state
        self._generations[uid].append(generation)
        self._prune(uid)
        return True

    def _prune(self, uid: str) -> None:
        paths = {generation: self._path(uid, generation) for generation in self._generations[uid]}
        good = [generation for generation, path in paths.items() if path not in self._damaged]
        kept = good[-self.keep :]
        for generation in set(paths) - set(kept):
            with suppress(OSError):
                paths[generation].unlink()
        self._generations[uid] = kept

    def _complain(self, uid: str, message: str) -> None:
        self._errors[uid] = message
        now = time.monotonic()
        if now >= self._warned + _WARN_PERIOD:
            self._warned = now
            logger.warning("checkpoints in %s: %s", self.directory, message)

    def _path(self, uid: str, generation: int) -> Path:
        return self.directory / f"{self._names[uid]}@{generation:08d}.safetensors"

    def _find_generations(self) -> dict[str, list[int]]:
        """What the directory holds of our experts; removes what a crash left half written."""
        uids = {name: uid for uid, name in self._names.items()}
        found: dict[str, list[int]] = {uid: [] for uid in self._names}
        for path in self.directory.iterdir():
            match = _FILE.fullmatch(path.name)
            if match is None or match["uid"] not in uids:
                continue
            if match["temporary"]:
                with suppress(OSError):
                    path.unlink()
            else:
                found[uids[match["uid"]]].append(int(match["generation"]))
        return {uid: sorted(generations) for uid, generations in found.items()}


def encoded(uid: str) -> str:
    """A uid as part of a file name, distinct also where capital letters count as small ones."""
    safe = "".join(chr(c) if chr(c) in _SAFE else f"%{c:02x}" for c in uid.encode())
    if len(safe) <= _LONGEST_NAME:
        return safe
    return f"{safe[: _LONGEST_NAME - 33]}~{hashlib.sha256(uid.encode()).hexdigest()[:32]}"


_SAFE = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
