"""Expert modules by name: for ``learning-at-home server --expert NAME`` and for `GatingFunction.export`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from learning_at_home.errors import InvalidArgument
from learning_at_home.schema import DUMMY_BATCH_SIZE, BatchTensorProto

SampleInput = Callable[[int, int], "Tensor | tuple[Tensor, ...]"]
M = TypeVar("M", bound=type[nn.Module])


@dataclass(frozen=True)
class ExpertClass:
    """A class of experts: `module_class(hidden)` makes one, `sample_input(batch, hidden)` is what one may be given."""

    name: str
    module_class: type[nn.Module]
    sample_input: SampleInput

    def make(self, hidden: int) -> nn.Module:
        """A new expert of this width."""
        return self.module_class(hidden)

    def args_schema(self, hidden: int) -> tuple[BatchTensorProto, ...]:
        """What its experts take."""
        sample = self.sample_input(DUMMY_BATCH_SIZE, hidden)
        tensors = (sample,) if isinstance(sample, Tensor) else tuple(sample)
        if not tensors or not all(isinstance(tensor, Tensor) and tensor.dim() > 0 for tensor in tensors):
            raise InvalidArgument(f"sample_input of expert class '{self.name}': expected batch-first tensors")
        if any(len(tensor) != DUMMY_BATCH_SIZE for tensor in tensors):
            raise InvalidArgument(
                f"sample_input of expert class '{self.name}': expected {DUMMY_BATCH_SIZE} rows in each tensor, "
                f"got {[len(tensor) for tensor in tensors]}"
            )
        return tuple(BatchTensorProto.from_tensor(tensor) for tensor in tensors)


EXPERT_CLASSES: dict[str, ExpertClass] = {}


def register_expert_class(name: str, sample_input: SampleInput) -> Callable[[M], M]:
    """Decorate a module class so that it can be served and exported by name.

        @lib.register_expert_class("mlp", lambda batch, hidden: torch.empty(batch, hidden))
        class MLP(torch.nn.Module):
            def __init__(self, hidden): ...

    Args:
        name: of the class; it must be new, except when the same class is defined again (a notebook's cell, say).
        sample_input: (batch, hidden) → one tensor or a tuple of them, batch first; their values do not matter.

    Raises:
        InvalidArgument: the name belongs to another class, or is no word; TypeError: not a module class.
    """
    if not isinstance(name, str) or not name or any(c.isspace() for c in name):
        raise InvalidArgument(f"name: expected a word, got {name!r}")

    def register(cls: M) -> M:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"register_expert_class('{name}'): expected a subclass of nn.Module, got {cls!r}")
        known = EXPERT_CLASSES.get(name)
        if known is not None and _full_name(known.module_class) != _full_name(cls):
            raise InvalidArgument(f"name: '{name}' is taken by {_full_name(known.module_class)}")
        EXPERT_CLASSES[name] = ExpertClass(name, cls, sample_input)
        return cls

    return register


def find_expert_class(name: str) -> ExpertClass:
    """The class registered under a name. Raises InvalidArgument listing what there is."""
    if name not in EXPERT_CLASSES:
        raise InvalidArgument(f"expert class: expected one of {', '.join(sorted(EXPERT_CLASSES))}, got {name!r}")
    return EXPERT_CLASSES[name]


def class_name_of(module: nn.Module) -> str | None:
    """The name under which a module's class is registered, None if it is not."""
    return next((name for name, known in EXPERT_CLASSES.items() if known.module_class is type(module)), None)


def _full_name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
