"""Batches as the runtime runs them: whole, or in parts when a request of theirs cannot be served."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from learning_at_home.errors import CODES, ExpertError, Rejected
from learning_at_home.runtime.expert_backend import ExpertBackend
from learning_at_home.runtime.task_pool import TaskPool

_LEND_FROM = 1 << 20  # bytes: csrc/base/limits.hpp, kChunkBytes
_SLACK = 1 << 20  # bytes of a storage that may be held for nothing while a result is sent
_MAX_HALVED = 128  # attempts; one culprit among 4096 requests takes 25
_MAX_MESSAGE = 500
_MAX_TRACEBACK = 16_000  # csrc/base/limits.hpp: kErrorTextBytes


@dataclass
class Part:
    """Some requests of batch `batch`: their indices, the rows of each, and their inputs laid end to end.

    memory: the request's own bytes, if the inputs are views of them rather than copies.
    """

    batch: int
    requests: list[int]
    rows: list[int]
    inputs: list[Tensor]
    memory: Tensor | None = None

    def halves(self) -> tuple[Part, Part]:
        """The first half of the requests and the rest, as views."""
        middle = len(self.requests) // 2
        cut = sum(self.rows[:middle])
        return (
            Part(self.batch, self.requests[:middle], self.rows[:middle], [tensor[:cut] for tensor in self.inputs]),
            Part(self.batch, self.requests[middle:], self.rows[middle:], [tensor[cut:] for tensor in self.inputs]),
        )

    def without(self, positions: set[int]) -> Part:
        """A copy that leaves out the requests at these positions."""
        spans = list(zip(accumulate(self.rows, initial=0), accumulate(self.rows), strict=False))
        kept = [i for i in range(len(self.requests)) if i not in positions]
        inputs = [torch.cat([tensor[slice(*spans[i])] for i in kept]) for tensor in self.inputs]
        return Part(self.batch, [self.requests[i] for i in kept], [self.rows[i] for i in kept], inputs)


class BatchRunner:
    """Runs batches through their experts and gives each request its answer; a bad request harms no other.

    Requests whose numbers the expert refuses are answered with `Rejected` before anything runs. If the expert raises,
    or returns what its schema does not promise, the batch is halved and run again, until the culprits are alone: they
    get `ExpertError` with the traceback, all others their results. Backward parts that succeed take one optimizer step
    each. Once the optimizer was entered a part is never run again, so that no gradient is applied twice: an error from
    there on goes to all of the part, and so does one of an expert that has overwritten its inputs. An expert that fails
    whatever it gets keeps its device only so long: after 128 attempts at a batch, parts that fail are not halved.

    Args:
        core: the `_core.ServerCore` that takes the answers.
    """

    def __init__(self, core: Any):
        self._core = core

    def run(self, backend: ExpertBackend, pool: TaskPool, backward: bool, training: bool, batch: Part) -> None:
        """Answer every request of a batch."""
        rest = self._screen(backend, backward, batch)
        todo = [rest] if rest is not None else []
        attempts = 0
        with in_mode(backend.expert, training) if backend.expert.training != training else nullcontext():
            while todo:
                part = todo.pop()
                attempts += 1
                if not self._attempt(backend, pool, part, may_halve=attempts <= _MAX_HALVED):
                    todo.extend(reversed(part.halves()))

    def _screen(self, backend: ExpertBackend, backward: bool, batch: Part) -> Part | None:
        """Refuse requests with bad rows; the rest of the batch, None if nothing is left."""
        bad_rows = backend.rows_to_reject(batch.inputs, backward)
        if not bad_rows:
            return batch
        culprits, suspects = set(), sorted(bad_rows)
        for i, (begin, end) in enumerate(zip(accumulate(batch.rows, initial=0), accumulate(batch.rows), strict=False)):
            bad = next((row for row in suspects if begin <= row < end), None)
            if bad is not None:
                culprits.add(i)
                self._fail(batch, [batch.requests[i]], Rejected, f"row {bad - begin}: {bad_rows[bad]}")
        return batch.without(culprits) if len(culprits) < len(batch.requests) else None

    def _attempt(self, backend: ExpertBackend, pool: TaskPool, part: Part, may_halve: bool) -> bool:
        """Run a part and answer it; False, with nothing applied, if it must be halved first."""
        backend.update_begun = False
        memory_uses = _uses(part.memory) if part.memory is not None else 0
        versions = [tensor._version for tensor in part.inputs]
        try:
            outputs = _checked(pool, sum(part.rows), pool.process_func(*part.inputs))
        except (Exception, SystemExit) as error:  # its callers' to know, and never the server's end
            intact = versions == [tensor._version for tensor in part.inputs]  # some experts write into their inputs
            if may_halve and len(part.requests) > 1 and intact and not backend.update_begun:
                return False
            cls = Rejected if isinstance(error, Rejected) else ExpertError
            message = str(error) if cls is Rejected else f"{type(error).__name__}: {error}"
            self._fail(part, part.requests, cls, message, traceback.format_exc())
            return True
        lend = len(part.requests) == 1 and _may_lend(outputs, part.memory, memory_uses)
        places = [(tensor.data_ptr(), tensor.nbytes) for tensor in outputs]
        self._core.finish(part.batch, part.requests, places, outputs if lend else None)
        return True

    def _fail(self, part: Part, requests: list[int], cls: type[Exception], message: str, trace: str = "") -> None:
        code = CODES[cls]  # type: ignore[index]
        self._core.fail(part.batch, requests, code, message[:_MAX_MESSAGE], trace[-_MAX_TRACEBACK:])


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Train or evaluate within; afterwards every submodule is in the mode that it was in."""
    was, before = module.training, [(submodule, submodule.training) for submodule in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        module.train(was)  # modules may do more than set a flag
        for submodule, was_training in before:
            submodule.training = was_training


def _checked(pool: TaskPool, rows: int, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous CPU tensors that keep what the schema promises to callers."""
    if len(outputs) != len(pool.outputs):
        raise TypeError(f"expected {len(pool.outputs)} output tensors, got {len(outputs)}")
    checked = []
    for proto, tensor in zip(pool.outputs, outputs, strict=True):
        if not proto.fits(tensor) or len(tensor) != rows:
            raise TypeError(f"expected an output {proto} of {rows} rows, got {tensor.dtype}{list(tensor.shape)}")
        checked.append(tensor.detach() if tensor.is_cpu else tensor.detach().to("cpu"))
    return [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in checked]


def _may_lend(outputs: list[Tensor], memory: Tensor | None, memory_uses: int) -> bool:
    """True if copying the outputs is worth avoiding and nobody else can write to them while they are being sent.

    An expert may return a parameter, something that it keeps, or its input: then more tensors share the storage than
    ours. `memory_uses`: of the request's own bytes, which are never used again, before the expert ran.
    """
    if sum(tensor.nbytes for tensor in outputs) < _LEND_FROM:
        return False
    for tensor in outputs:
        storage = tensor.untyped_storage()
        ours = sum(other.untyped_storage().data_ptr() == storage.data_ptr() for other in outputs)
        is_memory = memory is not None and storage.data_ptr() == memory.untyped_storage().data_ptr()
        if _uses(tensor) != ours + (memory_uses if is_memory else 0) or storage.nbytes() > 2 * tensor.nbytes + _SLACK:
            return False
    return True


def _uses(tensor: Tensor) -> int:
    """How many tensors share a tensor's storage; -1 if this torch does not tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return count(tensor.untyped_storage()._cdata) - 1 if count is not None else -1
