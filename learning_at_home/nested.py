"""Nested structures of tensors. Lists and tuples keep their order, dicts go by sorted key, all else is a leaf."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def nested_flatten(structure: Any) -> Iterator[Any]:
    """Yield the leaves of a structure in order."""
    if isinstance(structure, (list, tuple)):
        for item in structure:
            yield from nested_flatten(item)
    elif isinstance(structure, dict):
        for key in sorted(structure):
            yield from nested_flatten(structure[key])
    else:
        yield structure


def nested_pack(flat: Any, structure: Any) -> Any:
    """Put leaves back into the shape of `structure`. Raises ValueError if their number differs."""
    leaves = iter(flat)
    packed = _pack(leaves, structure)
    if next(leaves, _END) is not _END:
        raise ValueError("flat: expected as many items as the structure has leaves, got more")
    return packed


def nested_map(function: Callable[..., Any], *structures: Any) -> Any:
    """Apply a function to the corresponding leaves of equal structures."""
    flat = [list(nested_flatten(structure)) for structure in structures]
    return nested_pack((function(*leaves) for leaves in zip(*flat, strict=True)), structures[0])


def nested_compare(first: Any, second: Any) -> bool:
    """True if two structures have the same containers and keys; leaves are not compared."""
    if isinstance(first, (list, tuple)):
        return (
            isinstance(second, (list, tuple))
            and len(first) == len(second)
            and all(nested_compare(a, b) for a, b in zip(first, second, strict=True))
        )
    if isinstance(first, dict):
        return (
            isinstance(second, dict)
            and first.keys() == second.keys()
            and all(nested_compare(first[key], second[key]) for key in first)
        )
    return not isinstance(second, (list, tuple, dict))


_END = object()


def _pack(leaves: Iterator[Any], structure: Any) -> Any:
    if isinstance(structure, (list, tuple)):
        items = [_pack(leaves, item) for item in structure]
        if hasattr(structure, "_fields"):
            return type(structure)(*items)
        return type(structure)(items)
    if isinstance(structure, dict):
        packed = {key: _pack(leaves, structure[key]) for key in sorted(structure)}
        return {key: packed[key] for key in structure}
    leaf = next(leaves, _END)
    if leaf is _END:
        raise ValueError("flat: expected as many items as the structure has leaves, got fewer")
    return leaf
