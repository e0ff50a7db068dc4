"""The one network thread of this process: started by the first object that needs it, stopped with the last."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

_lock = threading.Lock()
_current: tuple[int, weakref.ref[Any]] | None = None  # process id and thread; never keeps the thread alive


def get_net_thread() -> Any:
    """Return this process's `_core.NetThread`, starting it if there is none. Hold the result to keep it running."""
    global _current  # noqa: PLW0603 - one thread per process is the point
    from learning_at_home import _core

    with _lock:
        thread = _current[1]() if _current is not None and _current[0] == os.getpid() else None
        if thread is None:
            thread = _core.NetThread()
            _current = (os.getpid(), weakref.ref(thread))
        return thread
