"""The file in which a network node keeps its contacts, its records and its key over a restart."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from learning_at_home.errors import InvalidArgument

SAVE_PERIOD = 300.0  # seconds
_MOST_BYTES = 1 << 20  # Limits::kStateBytes


@dataclass(frozen=True)
class SavedState:
    """What `StateFile.load` found: the node's state, and the seed of its key if that was kept."""

    state: bytes
    identity: bytes | None


class StateFile:
    """Reads the state once, then writes it every `SAVE_PERIOD` and at the end, from a thread of its own.

    A file is replaced whole or not at all (temporary file, fsync, rename) and is readable by its owner alone: the
    seed of the node's key may be inside. Trouble with the file is a RuntimeWarning, never the end of the node.

    Args:
        path: of the file; its folder must exist.
        network_id: of the node; a file of another network is the caller's mistake.
    """

    def __init__(self, path: str | os.PathLike[str], network_id: str):
        try:
            self.path = Path(os.fspath(path)).absolute()
        except (TypeError, ValueError):
            raise InvalidArgument(f"state_file: expected a path, got {path!r}") from None
        if not self.path.parent.is_dir():
            raise InvalidArgument(f"state_file: the folder {self.path.parent} does not exist")
        if self.path.is_dir():
            raise InvalidArgument(f"state_file: {self.path} is a folder")
        self._network_id = network_id
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def load(self) -> SavedState | None:
        """What was saved, or None. A damaged file is set aside as ``<name>.bad``."""
        from learning_at_home import _core

        try:
            with open(self.path, "rb") as file:
                state = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(f"cannot be read ({error.strerror}): starting without it")
            return None
        try:
            network_id, identity = _core.read_state(state)
        except InvalidArgument as error:
            bad = self.path.with_name(self.path.name + ".bad")
            with contextlib.suppress(OSError):
                os.replace(self.path, bad)
            self._warn(f"{error}; set aside as {bad.name}, starting without it")
            return None
        if network_id != self._network_id:
            raise InvalidArgument(
                f"state_file: {self.path} belongs to the network {network_id!r}, this node to {self._network_id!r}"
            )
        return SavedState(state, identity)

    def save(self, state: bytes) -> bool:
        """Replace the file. False, and a warning, if the disk does not let us."""
        temporary: str | None = None
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)  # mode 0600
            with os.fdopen(descriptor, "wb") as file:
                file.write(state)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            temporary = None
            self._sync_folder()
        except OSError as error:
            self._warn(f"cannot be written: {error.strerror}")
            return False
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
        return True

    def keep(self, current: Callable[[], bytes], period: float = SAVE_PERIOD) -> None:
        """Save what `current` returns every `period` seconds until `close`."""

        def run() -> None:
            while not self._stop.wait(period):
                try:
                    state = current()
                except RuntimeError:  # shut down meanwhile
                    return
                self.save(state)

        self._stop.clear()
        self._thread = threading.Thread(target=run, name="lah-state-file", daemon=True)
        self._thread.start()

    def close(self, state: bytes | None) -> None:
        """Stop saving; save for the last time what is given."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout=5.0)
        if state is not None:
            self.save(state)

    def _sync_folder(self) -> None:  # else a crash may undo the rename
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _warn(self, what: str) -> None:
        warnings.warn(f"state_file {self.path}: {what}", RuntimeWarning, stacklevel=4)
