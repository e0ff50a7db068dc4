"""_core.pyi says what the bindings are: the same names, with the same parameters; and docstrings name their limits."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import learning_at_home as lib
from learning_at_home import _core

STUB = ast.parse((Path(lib.__file__).parent / "_core.pyi").read_text(encoding="utf-8"))
Parameters = list[tuple[str, bool]]  # name ("" for one that cannot be named), whether it may be left out


def parameters(function: ast.FunctionDef) -> Parameters:
    arguments = function.args
    named = [(each.arg, each in arguments.args) for each in [*arguments.posonlyargs, *arguments.args]]
    required = len(named) - len(arguments.defaults)
    listed = [(name if by_name else "", i >= required) for i, (name, by_name) in enumerate(named)]
    return listed[1:] if named and named[0][0] == "self" else listed


def bound(function: object) -> Parameters:
    """As pybind11 writes them into the docstring."""
    signature = str(function.__doc__).splitlines()[0]
    (parsed,) = ast.parse(f"def {signature}: ...").body
    assert isinstance(parsed, ast.FunctionDef)
    return [("" if name.startswith("arg") else name, optional) for name, optional in parameters(parsed)]


def of_module() -> dict[str, Parameters | None]:
    """Every name with its parameters; None for properties and constants."""
    found: dict[str, Parameters | None] = {}
    for name, value in vars(_core).items():
        if name.startswith("__"):
            continue
        if not isinstance(value, type):
            found[name] = bound(value) if callable(value) else None
            continue
        for member, inner in vars(value).items():
            if isinstance(inner, property):
                found[f"{name}.{member}"] = None
            elif (not member.startswith("_") or member == "__init__") and "self: " in str(inner.__doc__):
                found[f"{name}.{member}"] = bound(inner)
    return found


def of_stub() -> dict[str, Parameters | None]:
    found: dict[str, Parameters | None] = {}
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = parameters(node)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is None:
            found[node.target.id] = None
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name != "__buffer__":
                    found[f"{node.name}.{inner.name}"] = None if inner.decorator_list else parameters(inner)
    return found


def test_the_stub_names_what_is_bound() -> None:
    assert of_stub() == of_module()


@pytest.mark.parametrize(
    ("documented", "limit"),
    [
        (lib.TesseractNetwork.store, "kRecordPayloadBytes"),
        (lib.TesseractNetwork.store_many, "kNamesPerCall"),
        (lib.TesseractNetwork.get_many, "kNamesPerCall"),
        (lib.TesseractNetwork.listen, "kSubscriptions"),
        (lib.TesseractNetwork, "kOpenCalls"),
    ],
)
def test_docstrings_name_the_limits(documented: object, limit: str) -> None:
    assert re.search(rf"\b{_core.LIMITS[limit]:,}\b", str(documented.__doc__))
