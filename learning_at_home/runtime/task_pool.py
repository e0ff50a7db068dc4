"""The queue of one method of one expert. Requests gather in C++; Python sees whole batches only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from learning_at_home.errors import DeadlineExceeded, InvalidArgument
from learning_at_home.nested import nested_flatten
from learning_at_home.schema import DTYPE_CODES, TensorProto

QUEUE_LIMIT = 8192  # csrc/base/limits.hpp: kPoolQueue


class TaskPool:
    """Aggregates requests into batches of at most `max_batch_size` rows, oldest first.

    Args:
        process_func: batch tensors in, batch tensors out (a sequence), rows in the same order.
        inputs_schema, outputs_schema: nested structures of `BatchTensorProto`.
        max_batch_size: rows; never exceeded.
        min_batch_size, timeout: a batch of fewer rows leaves only after its oldest request has waited `timeout`
            seconds (0 by default: whatever is there leaves as soon as the runtime is free).
        pool_size: requests that may wait; more are refused as Overloaded. 8192 by default and at most.
        uid: the expert's name, for errors.
        prefetch_batches, start, shm_manager, array_headers: accepted for compatibility, without effect.
    """

    def __init__(
        self,
        process_func: Callable[..., Sequence[Tensor]],
        inputs_schema: Any,
        outputs_schema: Any,
        max_batch_size: int = 4096,
        min_batch_size: int = 1,
        timeout: float | None = None,
        pool_size: int | None = None,
        prefetch_batches: int = 1,
        uid: str = "",
        shm_manager: Any = None,
        array_headers: Any = None,
        start: bool = False,
    ):
        if not 1 <= min_batch_size <= max_batch_size:
            raise InvalidArgument(
                f"min_batch_size: expected 1 to max_batch_size ({max_batch_size}), got {min_batch_size}"
            )
        if pool_size is not None and pool_size < 1:
            raise InvalidArgument(f"pool_size: expected 1 or more, got {pool_size}")
        self.process_func = process_func
        self.inputs: list[TensorProto] = list(nested_flatten(inputs_schema))
        self.outputs: list[TensorProto] = list(nested_flatten(outputs_schema))
        if not self.inputs:
            raise InvalidArgument("inputs_schema: expected at least one tensor, got none")
        self.max_batch_size, self.min_batch_size = int(max_batch_size), int(min_batch_size)
        self.timeout = 0.0 if timeout is None else float(timeout)
        self.queue_limit = min(pool_size or QUEUE_LIMIT, QUEUE_LIMIT)
        self.uid = uid
        self._core: Any = None
        self._method = 0

    def register(self, core: Any, method: int, lane: int = 0) -> int:
        """Add this pool to a lane (a device) of a `_core.ServerCore`; returns the pool's index there."""
        self._core, self._method = core, method
        return int(
            core.add_pool(
                self.uid,
                method,
                [(DTYPE_CODES[proto.dtype], proto.instance_size) for proto in self.inputs],
                [(DTYPE_CODES[proto.dtype], proto.instance_size) for proto in self.outputs],
                self.max_batch_size,
                self.min_batch_size,
                self.timeout,
                self.queue_limit,
                lane,
            )
        )

    def submit_task(self, *tensors: Tensor, training: bool = True, timeout: float = 30.0) -> TaskFuture:
        """Queue a request of this process, to be batched with all others; the tensors are copied.

        Args:
            *tensors: flat inputs in schema order, equal numbers of rows.
            training: the mode the expert runs in.
            timeout: seconds until the request expires.

        Raises:
            InvalidArgument: no runtime owns this pool. SchemaMismatch, Overloaded, ShuttingDown.
        """
        if self._core is None:
            raise InvalidArgument(f"pool '{self.uid}': no TesseractRuntime owns it, so nothing would run the task")
        local = [tensor.detach().cpu().contiguous() for tensor in tensors]
        specs = [(tensor.data_ptr(), DTYPE_CODES[tensor.dtype], tuple(tensor.shape)) for tensor in local]
        ticket = self._core.submit(self.uid, self._method, training, specs, timeout)
        return TaskFuture(self, ticket, len(local[0]), timeout)


class TaskFuture:
    """The answer to a `submit_task`, once it is there."""

    def __init__(self, pool: TaskPool, ticket: int, rows: int, timeout: float):
        self._pool, self._ticket, self._rows = pool, ticket, rows
        self._expires = time.monotonic() + timeout
        self._outputs: list[Tensor] | None = None

    def result(self, timeout: float | None = None) -> list[Tensor]:
        """The output tensors. Raises the task's typed error, or DeadlineExceeded after `timeout` seconds
        (by default, when the request expires)."""
        if self._outputs is None:
            left = max(self._expires - time.monotonic(), 0.0)
            stream = self._pool._core.wait(self._ticket, left if timeout is None else min(timeout, left))
            if stream is None:
                raise DeadlineExceeded(f"task of pool '{self._pool.uid}': no result yet")
            self._outputs = _split(self._pool.outputs, self._rows, stream)
        return self._outputs


def _split(protos: Sequence[TensorProto], rows: int, stream: bytes) -> list[Tensor]:
    """Cut a stream (csrc/rpc/stream.hpp: tensors on 64-byte boundaries) into tensors."""
    buffer, at, tensors = torch.frombuffer(bytearray(stream), dtype=torch.uint8), 0, []
    for proto in protos:
        tensor = proto.make_empty(rows).detach()
        tensor.view(-1).view(torch.uint8).copy_(buffer[at : at + tensor.nbytes])
        at += (tensor.nbytes + 63) // 64 * 64
        tensors.append(tensor)
    return tensors
