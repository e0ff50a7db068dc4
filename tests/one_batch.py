"""Requests that a runtime in this process runs as one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import learning_at_home as lib
from learning_at_home import errors

WIDTH = 4
POISON = 99.0


class Scale(nn.Module):
    """x * weight; counts its passes and raises at POISON. The gradient of `weight` is the sum of x * grad."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.passes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(len(x))
        if (x == POISON).any():
            raise RuntimeError("poisoned input")
        return x * self.weight


def backend_of(
    module: nn.Module, cls: type[lib.ExpertBackend] = lib.ExpertBackend, uid: str = "expert.0", **kwargs: object
) -> lib.ExpertBackend:
    opt = torch.optim.SGD(module.parameters(), lr=1.0)
    schema = lib.BatchTensorProto(WIDTH)
    return cls(uid, module, opt, args_schema=(schema,), outputs_schema=schema, **kwargs)


@contextmanager
def one_batch(backend: lib.ExpertBackend, **kwargs: object) -> Iterator[lib.TesseractRuntime]:
    """Requests submitted within run as one batch: the runtime starts afterwards."""
    runtime = lib.TesseractRuntime({backend.name: backend}, **kwargs)
    yield runtime
    runtime.start()


def answers(backend: lib.ExpertBackend, requests: Sequence[Sequence[Tensor]], backward: bool, **kwargs: object) -> list:
    """What each request of one batch gets: its tensors, or its error."""
    pool = backend.get_pools()[int(backward)]
    with one_batch(backend, **kwargs) as runtime:
        futures = [pool.submit_task(*tensors, timeout=30.0) for tensors in requests]
    outcomes: list = []
    for future in futures:
        try:
            outcomes.append(future.result())
        except errors.LearningAtHomeError as error:
            outcomes.append(error)
    assert runtime.shutdown(30.0)
    assert runtime.core.counters()["batches"] == 1
    return outcomes


def rows(value: float, count: int = 2) -> Tensor:
    return torch.full((count, WIDTH), value)
