"""What an expert takes and gives: dtype and shape of every tensor, without its batch dimension."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from learning_at_home.nested import nested_flatten

DUMMY_BATCH_SIZE = 3  # rows of the forward pass that finds out an expert's outputs

# Codes of csrc/rpc/message.hpp.
DTYPE_CODES: dict[torch.dtype, int] = {
    torch.float32: 1,
    torch.float64: 2,
    torch.float16: 3,
    torch.bfloat16: 4,
    torch.int8: 5,
    torch.int16: 6,
    torch.int32: 7,
    torch.int64: 8,
    torch.uint8: 9,
    torch.bool: 10,
}
_DTYPES_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPE_CODES}


@dataclass(frozen=True, init=False)
class TensorProto:
    """Describes one tensor. A size of None stands for any (the batch dimension of `BatchTensorProto`).

    Args:
        size: the sizes, e.g. ``(None, 64)``.
        dtype: torch.float32 by default.
        requires_grad: whether `make_empty` returns a tensor that requires grad.
        layout, device, pin_memory: accepted for compatibility; calls carry strided CPU tensors.
    """

    size: tuple[int | None, ...]
    dtype: torch.dtype
    requires_grad: bool

    def __init__(
        self,
        size: Any,
        dtype: torch.dtype | None = None,
        layout: torch.layout = torch.strided,
        device: Any = None,
        requires_grad: bool = False,
        pin_memory: bool = False,
    ):
        dtype = dtype or torch.float32
        if dtype not in DTYPE_CODES:
            raise TypeError(f"dtype: expected one of {sorted(_DTYPES_BY_NAME)}, got {dtype}")
        if layout is not torch.strided:
            raise TypeError(f"layout: expected torch.strided, got {layout}")
        object.__setattr__(self, "size", tuple(None if n is None else int(n) for n in size))
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "requires_grad", requires_grad)

    def make_empty(self, *sizes: int) -> torch.Tensor:
        """A tensor of this kind with the free sizes filled in."""
        free = iter(sizes)
        shape = [next(free) if n is None else n for n in self.size]
        return torch.empty(shape, dtype=self.dtype, requires_grad=self.requires_grad)

    @cached_property
    def instance_size(self) -> tuple[int, ...]:
        """Sizes of one row."""
        return tuple(n for n in self.size[1:] if n is not None)

    def fits(self, tensor: torch.Tensor) -> bool:
        """True if a tensor has this dtype and these sizes."""
        shape = tensor.shape
        if tensor.dtype != self.dtype or len(shape) != len(self.size):
            return False
        if shape[1:] == self.instance_size and self.size[0] in (None, shape[0]):  # every tensor of a call
            return True
        return all(want is None or want == got for want, got in zip(self.size, shape, strict=True))

    def __str__(self) -> str:
        sizes = ", ".join("*" if n is None else str(n) for n in self.size)
        return f"{str(self.dtype).removeprefix('torch.')}[{sizes}]"


class BatchTensorProto(TensorProto):
    """A tensor with a leading batch dimension of any size: ``BatchTensorProto(64)`` is float32[*, 64].

    Args:
        instance_size: sizes of one row, as numbers or as one tuple or list.
        **kwargs: as for `TensorProto`.
    """

    def __init__(self, *instance_size: Any, **kwargs: Any):
        if len(instance_size) == 1 and isinstance(instance_size[0], (list, tuple, torch.Size)):
            instance_size = tuple(instance_size[0])
        super().__init__((None, *instance_size), **kwargs)

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor) -> BatchTensorProto:
        """Describe the rows of a batch."""
        return cls(*tensor.shape[1:], dtype=tensor.dtype)


@dataclass(frozen=True)
class ExpertSchema:
    """Arguments, keyword arguments and outputs of an expert, as nested structures of `BatchTensorProto`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    max_batch_size: int

    @cached_property
    def inputs_flat(self) -> tuple[BatchTensorProto, ...]:
        return (*nested_flatten(self.args), *nested_flatten(self.kwargs))

    @cached_property
    def outputs_flat(self) -> tuple[BatchTensorProto, ...]:
        return tuple(nested_flatten(self.outputs))

    def to_json(self) -> str:
        """The answer to an info call."""
        return json.dumps(
            {
                "args": _to_json(self.args),
                "kwargs": _to_json(self.kwargs),
                "outputs": _to_json(self.outputs),
                "max_batch_size": self.max_batch_size,
            },
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> ExpertSchema:
        """Read what `to_json` wrote. Raises ValueError on anything else."""
        try:
            document = json.loads(text)
            return cls(
                args=_from_json(document["args"]),
                kwargs=_from_json(document["kwargs"]),
                outputs=_from_json(document["outputs"]),
                max_batch_size=int(document["max_batch_size"]),
            )
        except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(f"not a description of an expert: {error!r}") from error

    def hash(self) -> int:
        """64 bits that differ between experts that cannot stand in for each other."""
        document = json.loads(self.to_json())
        del document["max_batch_size"]
        digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()
        return int.from_bytes(digest[:8], "little")


def _to_json(value: Any) -> list[Any]:
    """Containers and leaves as tagged lists, so that tuples and lists stay what they are."""
    if isinstance(value, TensorProto):
        return ["tensor", str(value.dtype).removeprefix("torch."), list(value.instance_size)]
    if isinstance(value, dict):
        return ["dict", {str(key): _to_json(item) for key, item in value.items()}]
    return ["tuple" if isinstance(value, tuple) else "list", [_to_json(item) for item in value]]


def _from_json(value: Any) -> Any:
    tag, content, *sizes = value
    if tag == "tensor":
        return BatchTensorProto(*(int(n) for n in sizes[0]), dtype=_DTYPES_BY_NAME[content])
    if tag == "dict":
        return {str(key): _from_json(item) for key, item in content.items()}
    items = [_from_json(item) for item in content]
    return tuple(items) if tag == "tuple" else items
