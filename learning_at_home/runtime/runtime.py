"""The loop that computes: takes the most urgent batch, runs its expert, gives the results back."""

from __future__ import annotations

import atexit
import os
import sys
import threading

import torch
from torch import Tensor

from learning_at_home.errors import InvalidArgument
from learning_at_home.runtime.batch import BatchRunner, Part
from learning_at_home.runtime.expert_backend import ExpertBackend
from learning_at_home.runtime.task_pool import TaskPool
from learning_at_home.schema import TensorProto

_FORWARD, _BACKWARD = 1, 2  # csrc/rpc/message.hpp: Method
_TAKE_TIMEOUT = 1.0  # seconds between looks at whether to stop; stop() wakes the loop at once
_INTERRUPTED = 130  # exit status of a process that an interrupt ended, as shells count


class TesseractRuntime:
    """Owns one device and one thread. Requests are batched in C++; Python is entered twice a batch, never per request.

    Args:
        expert_backends: uid → backend. Their modules move to `device`.
        device: where experts compute; the CPU by default.
        autocast_dtype: torch.bfloat16 runs experts under `torch.autocast`; parameters, inputs and outputs keep their
            dtypes. float16 is refused: its gradients underflow without loss scaling, which is the trainers' to do.
        prefetch_batches, sender_threads: accepted for compatibility; results are sent by the network thread.

    Raises:
        InvalidArgument: no backends, a CUDA device where torch has none, or a dtype that autocast does not take.
    """

    def __init__(
        self,
        expert_backends: dict[str, ExpertBackend],
        prefetch_batches: int = 64,
        sender_threads: int = 1,
        device: torch.device | str | None = None,
        autocast_dtype: torch.dtype | None = None,
    ):
        from learning_at_home import _core

        if not expert_backends:
            raise InvalidArgument("expert_backends: expected at least one expert, got none")
        self.device = torch.device(device or "cpu")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise InvalidArgument(f"device: {self.device} was asked for, but this torch sees no CUDA device")
        if autocast_dtype not in (None, torch.bfloat16):
            hint = " (float16 needs loss scaling, which a server cannot do)" if autocast_dtype == torch.float16 else ""
            raise InvalidArgument(f"autocast_dtype: expected torch.bfloat16 or None, got {autocast_dtype}{hint}")
        self.expert_backends = expert_backends
        self.core = _core.ServerCore()
        self._runner = BatchRunner(self.core)
        self._pools: list[tuple[ExpertBackend, TaskPool, bool]] = []  # the last: backward
        for uid, backend in expert_backends.items():
            if uid != backend.name:
                raise InvalidArgument(f"expert_backends: key {uid!r} names a backend called {backend.name!r}")
            backend.expert.to(self.device)
            backend.autocast_dtype = autocast_dtype
            for pool, method in zip(backend.get_pools(), (_FORWARD, _BACKWARD), strict=True):
                pool.register(self.core, method)
                self._pools.append((backend, pool, method == _BACKWARD))
            self.core.set_description(uid, backend.schema.to_json())
        self._slab = _slab(1 << 20, self.device)
        self._thread: threading.Thread | None = None
        self._owner = os.getpid()
        self._abandoned = False  # a wait for the running batch was interrupted

    def main(self) -> None:
        """Compute until `shutdown()`. Runs in the calling thread."""
        while True:
            try:
                taken = self.core.take(self._slab.data_ptr(), self._slab.numel(), _TAKE_TIMEOUT)
            except StopIteration:
                return
            if isinstance(taken, int):  # a larger batch than ever before
                self._slab = _slab(1 << (taken - 1).bit_length(), self.device)
            elif taken is not None:
                self._process(*taken)

    def start(self) -> None:
        """Run `main` in a thread. An interpreter that exits meanwhile waits for the running batch."""
        self._thread = threading.Thread(target=self.main, name="lah-runtime", daemon=True)
        self._thread.start()
        atexit.register(self._end_with_interpreter)

    def shutdown(self, timeout: float | None = None) -> bool:
        """Refuse what waits, finish the running batch; True if the loop has ended within `timeout` seconds."""
        self.core.stop()
        if self._thread is None:
            return True
        try:
            self._thread.join(timeout)
        except KeyboardInterrupt:
            self._abandoned = True
            raise
        ended = not self._thread.is_alive()
        if ended:
            atexit.unregister(self._end_with_interpreter)
        return ended

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
        if self._thread is not None and self._thread.is_alive():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_INTERRUPTED)

    def _process(self, batch: int, pool_index: int, training: bool, offsets: list[int], rows: list[int]) -> None:
        backend, pool, backward = self._pools[pool_index]
        total = sum(rows)
        inputs = [self._view(proto, total, offset) for proto, offset in zip(pool.inputs, offsets, strict=True)]
        self._runner.run(backend, pool, backward, training, Part(batch, list(range(len(rows))), rows, inputs))

    def _view(self, proto: TensorProto, rows: int, offset: int) -> Tensor:
        shape = (rows, *proto.instance_size)
        nbytes = proto.dtype.itemsize
        for size in shape:
            nbytes *= size
        view = self._slab[offset : offset + nbytes].view(proto.dtype).view(shape)
        return view if self.device.type == "cpu" else view.to(self.device, non_blocking=True)


def _slab(nbytes: int, device: torch.device) -> Tensor:
    # 64 bytes more than needed: the C++ side lays tensors out on 64-byte boundaries from an aligned start.
    slab = torch.empty(nbytes + 64, dtype=torch.uint8, pin_memory=device.type == "cuda")
    skip = -slab.data_ptr() % 64
    return slab[skip : skip + nbytes]
