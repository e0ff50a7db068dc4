"""Tensors and text as safetensors (https://github.com/huggingface/safetensors): no code in it, nothing is unpickled.

Reading is left to the library's checked decoder. Writing is here because the library's own needs numpy, which torch
does not, and makes a second copy of everything.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

_DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.bool: "BOOL",
}


def copied(tensor: Tensor) -> Tensor:
    """A contiguous copy in the CPU's memory, which shares nothing with any other tensor.

    Raises TypeError for dtypes and layouts that a safetensors file cannot hold.
    """
    if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided:
        raise TypeError(f"a safetensors file cannot hold {tensor.dtype}, {tensor.layout}")
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def raw(tensor: Tensor) -> Iterable[ctypes.Array[ctypes.c_char]]:
    """The bytes of a contiguous CPU tensor, not copied: one buffer, or none if it is empty."""
    return [(ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())] if tensor.nbytes else []


def write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write contiguous CPU tensors (see `copied`) and text by name."""
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # keeps each aligned
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in names:
        tensor = tensors[name]
        end = at + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        for buffer in raw(tensors[name]):
            file.write(buffer)


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file that is there whole or not at all, whatever happens meanwhile. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file, tensors, metadata)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> memoryview:
    """The same as a block of memory."""
    file = BytesIO()
    write(file, tensors, metadata)
    return file.getbuffer()


def from_bytes(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file from anywhere. Raises ValueError on anything else."""
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, KeyError, AssertionError, RuntimeError, RecursionError) as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"tensor {name!r}: unexpected dtype {tensor.dtype}")
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def describe(tensor: Tensor) -> str:
    """``float32[64, 16]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def differences(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str | None:
    """The first tensor that differs in name, dtype or shape, and how; None if all agree."""
    for name, tensor in expected.items():
        want = describe(tensor)
        if name not in got:
            return f"tensor '{name}': expected {want}, got none"
        if describe(got[name]) != want:
            return f"tensor '{name}': expected {want}, got {describe(got[name])}"
    more = next((name for name in got if name not in expected), None)
    return None if more is None else f"tensor '{more}': expected none, got {describe(got[more])}"
