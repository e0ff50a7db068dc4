"""Gives an expert's weights to whoever asks, between two batches of its runtime."""

from __future__ import annotations

import ctypes
import traceback
from typing import Any

import torch

from learning_at_home import _safetensors
from learning_at_home.errors import CODES, ExpertError
from learning_at_home.nn.registry import class_name_of
from learning_at_home.runtime.expert_backend import ExpertBackend
from learning_at_home.schema import DTYPE_CODES

STATE = 4  # csrc/rpc/message.hpp: Method
MAX_STATE = 256 << 20  # csrc/base/limits.hpp: kCallBytes
_QUEUE = 64  # requests that may wait


class StatePool:
    """The queue of requests for one expert's state; the answer is a safetensors file of the module's state_dict.

    Its metadata: uid, updates (optimizer steps so far), and expert_class if the module's class is registered.
    """

    def __init__(self, backend: ExpertBackend):
        self.backend = backend

    def register(self, core: Any, lane: int) -> int:
        """Add this pool to a lane (a device) of a `_core.ServerCore`; returns the pool's index there."""
        outputs = [(DTYPE_CODES[torch.uint8], ())]
        return int(core.add_pool(self.backend.name, STATE, [], outputs, 1, 1, 0.0, _QUEUE, lane))

    def answer(self, core: Any, batch: int) -> None:
        """Answer one request. Runtime thread."""
        try:
            state = self.state()
        except Exception as error:
            core.fail(batch, [], CODES[ExpertError], f"{type(error).__name__}: {error}"[:500], traceback.format_exc())
            return
        buffer = (ctypes.c_char * len(state)).from_buffer(state)
        core.finish(batch, [], [(ctypes.addressof(buffer), len(state))])

    def state(self) -> memoryview:
        """The file. Raises TypeError if it is too large or the module holds what a file cannot."""
        backend = self.backend
        tensors = {}
        for name, value in backend.expert.state_dict().items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"state '{name}': expected a tensor, got {type(value).__name__}")
            tensors[name] = _safetensors.copied(value)
        metadata = {"uid": backend.name, "updates": str(backend.updates)}
        if (kind := class_name_of(backend.expert)) is not None:
            metadata["expert_class"] = kind
        state = _safetensors.to_bytes(tensors, metadata)
        if len(state) > MAX_STATE:
            raise TypeError(f"expert '{backend.name}' of {len(state)} bytes is larger than one call ({MAX_STATE})")
        return state
