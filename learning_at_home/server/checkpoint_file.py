"""One expert in one file: weights, optimizer, scheduler and number of updates, as safetensors with a checksum."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from learning_at_home import _safetensors
from learning_at_home.errors import SchemaMismatch
from learning_at_home.runtime.expert_backend import ExpertBackend

FORMAT = "learning_at_home checkpoint 1"


class DamagedFile(Exception):
    """A file that is incomplete, altered, or no checkpoint at all."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of an expert's state: tensors by name, and the structure that holds them, with its other values."""

    uid: str
    updates: int
    tensors: dict[str, Tensor]
    structure: str  # JSON


def take_snapshot(backend: ExpertBackend) -> Snapshot:
    """Copy the state of an expert. Raises TypeError if a part of it is neither tensor nor plain value."""
    tensors: dict[str, Tensor] = {}
    state = {
        "module": dict(backend.expert.state_dict()),
        "optimizer": backend.opt.state_dict(),
        "scheduler": None if backend.scheduler is None else backend.scheduler.state_dict(),
    }
    packed = {name: _pack(value, name, tensors) for name, value in state.items()}
    document = {"optimizer_class": type(backend.opt).__name__, "updates": backend.updates, "state": packed}
    return Snapshot(backend.name, backend.updates, tensors, json.dumps(document))


def write_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write a file that is there whole or not at all, whatever happens meanwhile. Raises OSError."""
    checksum = _checksum(snapshot.uid, snapshot.structure, snapshot.tensors)
    metadata = {"format": FORMAT, "uid": snapshot.uid, "structure": snapshot.structure, "crc32": checksum}
    _safetensors.write_file(path, snapshot.tensors, metadata)


def read_snapshot(path: Path) -> Snapshot:
    """Raises DamagedFile, or OSError if there is nothing to read."""
    try:
        tensors, metadata = _safetensors.from_bytes(path.read_bytes())
    except ValueError as error:
        raise DamagedFile(str(error)) from error
    if metadata.get("format") != FORMAT:
        raise DamagedFile(f"expected format {FORMAT!r}, got {metadata.get('format')!r}")
    uid, structure = metadata.get("uid", ""), metadata.get("structure", "")
    if metadata.get("crc32") != _checksum(uid, structure, tensors):
        raise DamagedFile("its content does not match its checksum")
    return Snapshot(uid, int(json.loads(structure)["updates"]), tensors, structure)


def restore_snapshot(snapshot: Snapshot, backend: ExpertBackend, path: Path) -> None:
    """Load a snapshot into an expert, which is left alone if the two do not fit.

    Raises:
        SchemaMismatch: another uid, tensors or optimizer; names file, what was expected, what came.
    """
    document = json.loads(snapshot.structure)
    state = {name: _unpack(value, snapshot.tensors) for name, value in document["state"].items()}
    wrong = _misfit(snapshot, document["optimizer_class"], state, backend)
    if wrong is not None:
        raise SchemaMismatch(f"checkpoint {path} does not fit expert '{backend.name}': {wrong}")
    try:
        backend.expert.load_state_dict(state["module"])
        backend.opt.load_state_dict(state["optimizer"])
        if backend.scheduler is not None and state["scheduler"] is not None:
            backend.scheduler.load_state_dict(state["scheduler"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise SchemaMismatch(f"checkpoint {path} does not fit expert '{backend.name}': {error}") from error
    backend.updates = snapshot.updates


def _misfit(snapshot: Snapshot, optimizer_class: str, state: dict[str, Any], backend: ExpertBackend) -> str | None:
    if snapshot.uid != backend.name:
        return f"uid: expected '{backend.name}', got '{snapshot.uid}'"
    expected = {k: v for k, v in backend.expert.state_dict().items() if isinstance(v, Tensor)}
    got = {k: v for k, v in state["module"].items() if isinstance(v, Tensor)}
    if (difference := _safetensors.differences(expected, got)) is not None:
        return difference
    if optimizer_class != type(backend.opt).__name__:
        return f"optimizer: expected {type(backend.opt).__name__}, got {optimizer_class}"
    sizes = [
        [len(group["params"]) for group in groups]
        for groups in (backend.opt.state_dict()["param_groups"], state["optimizer"]["param_groups"])
    ]
    return None if sizes[0] == sizes[1] else f"parameters of the optimizer: expected {sizes[0]}, got {sizes[1]}"


def _checksum(uid: str, structure: str, tensors: Mapping[str, Tensor]) -> str:
    crc = zlib.crc32(structure.encode(), zlib.crc32(uid.encode()))
    for name in sorted(tensors):
        crc = zlib.crc32(f"{name} {_safetensors.describe(tensors[name])}".encode(), crc)
        for buffer in _safetensors.raw(tensors[name]):
            crc = zlib.crc32(buffer, crc)
    return f"{crc:08x}"


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A structure as JSON, with its tensors, copied, aside. Containers are tagged, so that they stay what they are."""
    if isinstance(value, Tensor):
        while name in tensors:  # a key may hold a dot
            name += "'"
        tensors[name] = _safetensors.copied(value)
        return ["tensor", name]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)):
                raise TypeError(f"state '{name}': expected keys that are text or numbers, got {key!r}")
        return ["dict", [[key, _pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]]
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return ["tuple" if isinstance(value, tuple) else "list", items]
    if value is None or isinstance(value, (bool, int, float, str)):
        return ["value", value]
    raise TypeError(f"state '{name}': expected tensors and plain values, got {type(value).__name__}")


def _unpack(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    tag, content = document
    if tag == "tensor":
        return tensors[content]
    if tag == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    if tag == "value":
        return content
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if tag == "tuple" else items
