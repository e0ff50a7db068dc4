"""One device of a server: its thread takes batches, and the memory they come in."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from learning_at_home.errors import CODES, ExpertError
from learning_at_home.runtime.batch import BatchRunner, Part
from learning_at_home.runtime.between_batches import BetweenBatches
from learning_at_home.runtime.expert_backend import ExpertBackend
from learning_at_home.runtime.state_pool import StatePool
from learning_at_home.runtime.task_pool import TaskPool

logger = logging.getLogger(__name__)

_TAKE_TIMEOUT = 1.0  # seconds between looks at whether to stop; stop() wakes the loop at once
_FIRST_SLAB = 1 << 20  # bytes


class Lane:
    """Takes the batches of one device, one after the other.

    Args:
        core: the `_core.ServerCore` that hands out batches.
        index: of this lane there.
        device: where its experts compute.
        pools: all pools of the core by their index, with their backend and whether they are for backward calls.
        state_pools: those for fetching experts, by their index.

    Attributes:
        between_batches: runs functions of other threads between two batches.
    """

    def __init__(
        self,
        core: Any,
        index: int,
        device: torch.device,
        pools: list[tuple[ExpertBackend, TaskPool, bool]],
        state_pools: Mapping[int, StatePool],
    ):
        self._core, self._index, self._pools, self._state_pools = core, index, pools, state_pools
        self.between_batches = BetweenBatches(core.wake)
        self.device = device
        self._runner = BatchRunner(core)
        self._slab = _slab(_FIRST_SLAB, device)

    def main(self) -> None:
        """Compute until the core is stopped."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.between_batches.open()
        try:
            self._serve()
        finally:
            self.between_batches.close()

    def _serve(self) -> None:
        while True:
            self.between_batches.run()
            try:
                taken = self._core.take(self._index, self._slab.data_ptr(), self._slab.numel(), _TAKE_TIMEOUT)
            except StopIteration:
                return
            if isinstance(taken, int):  # a larger batch than ever before
                self._slab = _slab(1 << (taken - 1).bit_length(), self.device)
            elif taken is not None:
                self._process(*taken)

    def _process(
        self, batch: int, pool_index: int, training: bool, offsets: list[int], rows: list[int], lent: Any
    ) -> None:
        if pool_index in self._state_pools:
            self._state_pools[pool_index].answer(self._core, batch)
            return
        backend, pool, backward = self._pools[pool_index]
        try:
            memory = self._slab if lent is None else torch.frombuffer(lent, dtype=torch.uint8)
            inputs = self._inputs(pool, memory, sum(rows), offsets)
            part = Part(batch, list(range(len(rows))), rows, inputs, memory if lent is not None else None)
            del memory, inputs
            self._runner.run(backend, pool, backward, training, part)
        except Exception as error:  # e.g. no memory on the device for the inputs; the next batch may fit
            logger.exception("expert '%s': a batch could not be run", backend.name)
            self._core.fail(batch, [], CODES[ExpertError], f"{type(error).__name__}: {error}"[:500], "")

    def _inputs(self, pool: TaskPool, memory: Tensor, rows: int, offsets: list[int]) -> list[Tensor]:
        inputs = []
        for proto, offset in zip(pool.inputs, offsets, strict=True):
            shape = (rows, *proto.instance_size)
            view = memory[offset : offset + proto.dtype.itemsize * prod(shape)].view(proto.dtype).view(shape)
            inputs.append(view if self.device.type == "cpu" else view.to(self.device, non_blocking=True))
        return inputs


def _slab(nbytes: int, device: torch.device) -> Tensor:
    # 64 bytes more than needed: the C++ side lays tensors out on 64-byte boundaries from an aligned start.
    slab = torch.empty(nbytes + 64, dtype=torch.uint8, pin_memory=device.type == "cuda")
    skip = -slab.data_ptr() % 64
    return slab[skip : skip + nbytes]
