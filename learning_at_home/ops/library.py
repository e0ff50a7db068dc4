"""Defines the ops and finds their kernels: the binary `_C`, or the reference where there is none."""

from __future__ import annotations

import importlib.util
import platform
import warnings
from collections.abc import Callable
from typing import Any

import torch

from . import fakes, grouped, reference, schemas

BINARY = "learning_at_home._C"


def load_binary() -> str | None:
    """Load `_C`. Returns None, or the reason why this did not work."""
    spec = importlib.util.find_spec(
        BINARY
    )  # not a path beside this file: an editable install keeps the binary in its build folder
    if spec is None or spec.origin is None:
        return f"no file {BINARY.replace('.', '/')}.so in this installation"
    try:
        torch.ops.load_library(spec.origin)
    except (OSError, RuntimeError) as error:  # torch says "could not load"; its cause says why
        return str(error.__cause__ or error)
    missing = [name for name in schemas.SCHEMAS if not has_kernel(name, "CPU")]
    return f"{spec.origin} lacks {', '.join(missing)}: it was built from other sources" if missing else None


def has_kernel(name: str, key: str) -> bool:
    """Whether the op has a kernel of its own under this dispatch key ("CPU", "CUDA")."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"{schemas.NAMESPACE}::{name}", key))


def fallback(name: str) -> Callable[..., Any]:
    """The reference op, for devices without kernels of their own; warns where there should be some."""
    function = getattr(reference, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        device = next(x.device.type for x in args if isinstance(x, torch.Tensor))
        if device == "cuda" and has_kernel(name, "CPU"):
            warnings.warn(
                "learning_at_home was built without CUDA kernels: its ops run as plain torch on CUDA "
                "tensors, several times slower. Install nvcc and build again.",
                RuntimeWarning,
                stacklevel=2,
            )
        return function(*args, **kwargs)

    return run


def explain(cause: str) -> str:
    """The warning of an installation without a working binary."""
    return (
        "learning_at_home could not load its compiled ops and runs them as plain torch: "
        "the same results, several times slower.\n"
        f"What happened: {cause}\n"
        "Likely causes:\n"
        "  1. The package was not built, or is imported from its source folder: "
        "pip install --no-build-isolation .\n"
        "  2. torch is older than 2.10.\n"
        "  3. The binary was built for another processor or C library: build it on this machine, as in 1.\n"
        f"This is torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}."
    )


def load() -> torch.library.Library:
    """Define the ops, register fakes and reference, load the binary. A binary that does not load is a
    warning, not an error.
    """
    library = schemas.define()
    fakes.register(library)
    grouped.implement(library)
    for name in schemas.SCHEMAS:
        library.impl(name, fallback(name), "CompositeExplicitAutograd")
    cause = load_binary()
    if cause is not None:
        warnings.warn(explain(cause), RuntimeWarning, stacklevel=3)
    return library
