"""The loop that computes: takes the most urgent batch, runs its expert, gives the results back."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from learning_at_home.errors import InvalidArgument
from learning_at_home.runtime.expert_backend import ExpertBackend
from learning_at_home.runtime.lane import Lane
from learning_at_home.runtime.state_pool import StatePool
from learning_at_home.runtime.task_pool import TaskPool

T = TypeVar("T")

_FORWARD, _BACKWARD = 1, 2  # csrc/rpc/message.hpp: Method
_INTERRUPTED = 130  # exit status of a process that an interrupt ended, as shells count

Device = torch.device | str


class TesseractRuntime:
    """Owns the devices and one thread for each, which run their batches side by side. Requests are batched in C++;
    Python is entered twice a batch, never per request.

    Args:
        expert_backends: uid → backend. Their modules move to their device.
        device: where experts compute; the CPU by default. Several devices share the experts in turn, in sorted order
            of uids (naming one twice gives it two threads); a dict uid → device places each.
        autocast_dtype: torch.bfloat16 runs experts under `torch.autocast`; parameters, inputs and outputs keep their
            dtypes. float16 is refused: its gradients underflow without loss scaling, which is the trainers' to do.
        allow_fetch: give the experts' weights to anybody who asks.
        prefetch_batches, sender_threads: accepted for compatibility; results are sent by the network thread.

    Raises:
        InvalidArgument: no backends, a device that is not there, or a dtype that autocast does not take.
    """

    def __init__(
        self,
        expert_backends: dict[str, ExpertBackend],
        prefetch_batches: int = 64,
        sender_threads: int = 1,
        device: Device | Sequence[Device] | Mapping[str, Device] | None = None,
        autocast_dtype: torch.dtype | None = None,
        allow_fetch: bool = False,
    ):
        from learning_at_home import _core

        if not expert_backends:
            raise InvalidArgument("expert_backends: expected at least one expert, got none")
        if autocast_dtype not in (None, torch.bfloat16):
            hint = " (float16 needs loss scaling, which a server cannot do)" if autocast_dtype == torch.float16 else ""
            raise InvalidArgument(f"autocast_dtype: expected torch.bfloat16 or None, got {autocast_dtype}{hint}")
        self.devices, lane_of = _place(expert_backends, device)
        self.expert_backends = expert_backends
        self.core = _core.ServerCore()
        self._pools: list[tuple[ExpertBackend, TaskPool, bool]] = []  # the last: backward
        for uid, backend in expert_backends.items():
            if uid != backend.name:
                raise InvalidArgument(f"expert_backends: key {uid!r} names a backend called {backend.name!r}")
            backend.expert.to(self.devices[lane_of[uid]])
            backend.autocast_dtype = autocast_dtype
            for pool, method in zip(backend.get_pools(), (_FORWARD, _BACKWARD), strict=True):
                pool.register(self.core, method, lane_of[uid])
                self._pools.append((backend, pool, method == _BACKWARD))
            self.core.set_description(uid, backend.schema.to_json())
        states = [StatePool(backend) for backend in expert_backends.values()] if allow_fetch else []
        state_pools = {pool.register(self.core, lane_of[pool.backend.name]): pool for pool in states}
        self._lane_of = lane_of
        self._lanes = [Lane(self.core, i, device, self._pools, state_pools) for i, device in enumerate(self.devices)]
        self._threads: list[threading.Thread] = []
        self._owner = os.getpid()
        self._abandoned = False  # a wait for the running batches was interrupted

    @property
    def device(self) -> torch.device:
        """The first device."""
        return self.devices[0]

    def main(self) -> None:
        """Compute until `shutdown()`. Runs in the calling thread; further devices get threads of their own."""
        self._start_threads(self._lanes[1:])
        self._lanes[0].main()

    def call_between_batches(self, uid: str, function: Callable[[], T], timeout: float) -> T:
        """Call a function that touches an expert while no batch of it runs, and return what it returns.

        Raises DeadlineExceeded if that did not happen within `timeout` seconds, and what the function raises.
        """
        return self._lanes[self._lane_of[uid]].between_batches.call(function, timeout)

    def start(self) -> None:
        """Run every device in a thread. An interpreter that exits meanwhile waits for the running batches."""
        self._start_threads(self._lanes)

    def shutdown(self, timeout: float | None = None) -> bool:
        """Refuse what waits, finish the running batches; True if the loops have ended within `timeout` seconds."""
        self.core.stop()
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            for thread in self._threads:
                thread.join(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        except KeyboardInterrupt:
            self._abandoned = True
            raise
        ended = not self._is_running()
        if ended:
            atexit.unregister(self._end_with_interpreter)
        return ended

    def _start_threads(self, lanes: list[Lane]) -> None:
        for lane in lanes:
            thread = threading.Thread(target=lane.main, name=f"lah-runtime-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        atexit.register(self._end_with_interpreter)

    def _is_running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _end_with_interpreter(self) -> None:
        # A thread that computes while the interpreter is torn down ends the process by SIGABRT. So it is
        # waited for; once such a wait was interrupted, now or before, the process leaves without teardown.
        if os.getpid() != self._owner:
            return
        try:
            if not self._abandoned:
                self.shutdown()
                return
        except KeyboardInterrupt:
            pass
        if self._is_running():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)


def _place(
    experts: Mapping[str, ExpertBackend], device: Device | Sequence[Device] | Mapping[str, Device] | None
) -> tuple[list[torch.device], dict[str, int]]:
    """The devices, and the index of each expert's."""
    if isinstance(device, Mapping):
        if device.keys() != experts.keys():
            odd = sorted(device.keys() ^ experts.keys())
            raise InvalidArgument(f"device: expected a device for each expert and no other uid, look at {odd}")
        by_uid = {uid: _checked(device[uid]) for uid in experts}
        devices = sorted(set(by_uid.values()), key=str)
        return devices, {uid: devices.index(place) for uid, place in by_uid.items()}
    names = [device or "cpu"] if device is None or isinstance(device, (str, torch.device)) else list(device)
    if not names:
        raise InvalidArgument("device: expected at least one device, got none")
    devices = [_checked(name) for name in names]
    return devices, {uid: i % len(devices) for i, uid in enumerate(sorted(experts))}


def _checked(name: Device) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgument(f"device: {error}") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InvalidArgument(f"device: {device} was asked for, but this torch sees no CUDA device")
        if (device.index or 0) >= torch.cuda.device_count():
            raise InvalidArgument(f"device: expected one of {torch.cuda.device_count()} CUDA devices, got {device}")
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    return device
