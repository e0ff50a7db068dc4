"""One forward and one backward call per expert, as a single autograd node over the rows of all tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learning_at_home.client.remote_expert import output_grads
from learning_at_home.client.transport import (
    BACKWARD,
    FORWARD,
    CallOutcome,
    ExpertAddress,
    ExpertCall,
    Quorum,
    Transport,
)
from learning_at_home.schema import ExpertSchema


@dataclass(frozen=True)
class Waiting:
    """How long one direction waits: seconds, and answers per token (see `Quorum`)."""

    timeout: float
    k_min: int
    timeout_after_k_min: float


@dataclass
class GateStats:
    """What happened in a gate's last step. Filled in by the forward pass, completed by the backward pass."""

    experts_alive: int = 0
    forward_calls: int = 0
    forward_failed: int = 0
    backward_calls: int = 0
    backward_failed: int = 0
    empty_tokens: int = 0  # tokens for which no expert answered
    errors: list[Exception] = field(default_factory=list)  # of the failed calls
    balance_loss: float | None = None

    @property
    def failed(self) -> int:
        """Calls that failed, both ways."""
        return self.forward_failed + self.backward_failed


@dataclass
class RemotePlan:
    """Which rows go to which expert. Rows [begin, end) of an expert are contiguous."""

    transport: Transport
    schema: ExpertSchema
    experts: Sequence[tuple[ExpertAddress, int, int]]  # address, begin, end
    source: Tensor  # int32 [R], t * k + j
    k: int
    tokens: int
    training: bool
    priority: int
    forward: Waiting
    backward: Waiting
    stats: GateStats
    ok: Tensor  # bool [R], rows whose expert answered the forward call; filled in by it

    def call(
        self, address: ExpertAddress, method: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> ExpertCall:
        """One call of this plan."""
        return ExpertCall(address, method, inputs, outputs, self.training, self.priority)

    def run(
        self, experts: Sequence[tuple[ExpertAddress, int, int]], calls: list[ExpertCall], waiting: Waiting
    ) -> list[CallOutcome]:
        """Make the calls of one direction, waiting as long as the plan says."""
        sizes = [end - begin for _, begin, end in experts]
        quorum = Quorum(
            waiting.k_min,
            waiting.timeout_after_k_min,
            torch.cat([self.source[begin:end] for _, begin, end in experts]),
            self.k,
            self.tokens,
            list(itertools.accumulate(sizes, initial=0)),
        )
        outcomes = self.transport.call_many(calls, waiting.timeout, quorum)
        self.stats.errors.extend(outcome.error for outcome in outcomes if outcome.error is not None)
        return outcomes


def remote_mixture(plan: RemotePlan, rows: Sequence[Tensor]) -> list[Tensor]:
    """Run every expert of a plan on its rows; returns one [R, ...] tensor per expert output, and fills `plan.ok`.

    Rows without an answer hold garbage: only `combine(..., ok=plan.ok)` may read them.
    """
    dummy = torch.empty(0, requires_grad=True)  # every served forward gets its backward, whatever the rows need
    return list(_RemoteMixture.apply(dummy, plan, *rows))


class _RemoteMixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _dummy: Tensor, plan: RemotePlan, *rows: Tensor) -> Any:
        rows = tuple(tensor.detach().contiguous() for tensor in rows)
        outputs = [proto.make_empty(len(plan.source)) for proto in plan.schema.outputs_flat]
        ctx.plan, ctx.answered = plan, []
        ctx.save_for_backward(*rows)
        calls = [
            plan.call(address, FORWARD, _cut(rows, begin, end), _cut(outputs, begin, end))
            for address, begin, end in plan.experts
        ]
        if calls:
            outcomes = plan.run(plan.experts, calls, plan.forward)
            for expert, outcome in zip(plan.experts, outcomes, strict=True):
                plan.ok[expert[1] : expert[2]] = outcome.ok
                if outcome.ok:
                    ctx.answered.append(expert)
        plan.stats.forward_calls = len(calls)
        plan.stats.forward_failed = len(calls) - len(ctx.answered)
        ctx.mark_non_differentiable(*[tensor for tensor in outputs if not tensor.is_floating_point()])
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        plan: RemotePlan = ctx.plan
        rows = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in rows if tensor.is_floating_point()]
        sent = output_grads(plan.schema, grad_outputs, len(plan.source))
        calls = [
            plan.call(address, BACKWARD, _cut((*rows, *sent), begin, end), _cut(grads, begin, end))
            for address, begin, end in ctx.answered
        ]
        failed = 0
        if calls:
            outcomes = plan.run(ctx.answered, calls, plan.backward)
            for call, outcome in zip(calls, outcomes, strict=True):
                if not outcome.ok:  # no gradient through this expert, rather than half of one
                    failed += 1
                    for output in call.outputs:
                        output.zero_()
        plan.stats.backward_calls, plan.stats.backward_failed = len(calls), failed
        given = iter(grads)
        return (None, None, *(next(given) if tensor.is_floating_point() else None for tensor in rows))


def _cut(tensors: Sequence[Tensor], begin: int, end: int) -> list[Tensor]:
    return [tensor[begin:end] for tensor in tensors]
