"""The loop that computes: takes the most urgent batch, runs its expert, gives the results back."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Sequence

import torch
from torch import Tensor

from learning_at_home.errors import CODES, ExpertError, InvalidArgument
from learning_at_home.runtime.expert_backend import ExpertBackend
from learning_at_home.runtime.task_pool import TaskPool
from learning_at_home.schema import TensorProto

_FORWARD, _BACKWARD = 1, 2  # csrc/rpc/message.hpp: Method
_TAKE_TIMEOUT = 1.0  # seconds between looks at whether to stop; stop() wakes the loop at once
_MAX_TRACEBACK = 16_000
_INTERRUPTED = 130  # exit status of a process that an interrupt ended, as shells count


class TesseractRuntime:
    """Owns one device and one thread. Requests are batched in C++; Python is entered twice a batch, never per request.

    Args:
        expert_backends: uid → backend. Their modules move to `device`.
        device: where experts compute; the CPU by default.
        prefetch_batches, sender_threads: accepted for compatibility; results are sent by the network thread.

    Raises:
        InvalidArgument: no backends, or a CUDA device where torch has none.
    """

    def __init__(
        self,
        expert_backends: dict[str, ExpertBackend],
        prefetch_batches: int = 64,
        sender_threads: int = 1,
        device: torch.device | str | None = None,
    ):
        from learning_at_home import _core

        if not expert_backends:
            raise InvalidArgument("expert_backends: expected at least one expert, got none")
        self.device = torch.device(device or "cpu")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise InvalidArgument(f"device: {self.device} was asked for, but this torch sees no CUDA device")
        self.expert_backends = expert_backends
        self.core = _core.ServerCore()
        self._pools: list[tuple[ExpertBackend, TaskPool]] = []
        for uid, backend in expert_backends.items():
            if uid != backend.name:
                raise InvalidArgument(f"expert_backends: key {uid!r} names a backend called {backend.name!r}")
            backend.expert.to(self.device)
            for pool, method in zip(backend.get_pools(), (_FORWARD, _BACKWARD), strict=True):
                pool.register(self.core, method)
                self._pools.append((backend, pool))
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

    def _process(self, batch: int, pool_index: int, rows: int, training: bool, offsets: list[int]) -> None:
        backend, pool = self._pools[pool_index]
        try:
            if backend.expert.training != training:
                backend.expert.train(training)
            inputs = [self._view(proto, rows, offset) for proto, offset in zip(pool.inputs, offsets, strict=True)]
            outputs = _checked(pool, rows, pool.process_func(*inputs))
        except Exception as error:  # an expert's error is its callers' to know, and never the server's end
            backend.opt.zero_grad()
            text = traceback.format_exc()[-_MAX_TRACEBACK:]
            self.core.fail(batch, CODES[ExpertError], f"{type(error).__name__}: {error}"[:500], text)
            return
        self.core.finish(batch, [(tensor.data_ptr(), tensor.nbytes) for tensor in outputs])

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


def _checked(pool: TaskPool, rows: int, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous CPU tensors that keep what the schema promises to callers."""
    if len(outputs) != len(pool.outputs):
        raise TypeError(f"expected {len(pool.outputs)} output tensors, got {len(outputs)}")
    checked = []
    for proto, tensor in zip(pool.outputs, outputs, strict=True):
        if not proto.fits(tensor) or len(tensor) != rows:
            raise TypeError(f"expected an output {proto} of {rows} rows, got {tensor.dtype}{list(tensor.shape)}")
        checked.append(tensor.detach().to("cpu").contiguous())
    return checked
