"""The queue of one method of one expert. Requests gather in C++; Python sees whole batches only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from learning_at_home.errors import InvalidArgument
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

    def register(self, core: Any, method: int) -> int:
        """Add this pool to a `_core.ServerCore`; returns its index there."""
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
            )
        )
