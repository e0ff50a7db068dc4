"""One forward and one backward call per expert, as a single autograd node over the rows of all tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learning_at_home.client.codec import CodecChoice
from learning_at_home.client.gate_stats import GateStats
from learning_at_home.client.grad_scale import GradScale, all_finite, rescale_, scale_now
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
from learning_at_home.errors import NotFinite
from learning_at_home.schema import ExpertSchema


@dataclass(frozen=True)
class Waiting:
    """How long one direction waits: seconds, and answers per token (see `Quorum`)."""

    timeout: float | None
    k_min: int
    timeout_after_k_min: float


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
    grad_scale: GradScale
    detect_anomalies: bool
    codec: CodecChoice
    forward: Waiting
    backward: Waiting
    stats: GateStats
    ok: Tensor  # bool [R], rows whose expert answered the forward call; filled in by it

    def calls(
        self,
        experts: Sequence[tuple[ExpertAddress, int, int]],
        method: int,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
    ) -> list[ExpertCall]:
        """The calls of one direction: each expert's rows of inputs and outputs."""
        own = len(self.schema.inputs_flat)
        codecs, results = self.codec.of(own, len(inputs) - own), self.codec.results
        cut = zip(experts, _cut(inputs, experts), _cut(outputs, experts), strict=True)
        return [
            ExpertCall(address, method, ins, outs, self.training, self.priority, codecs=codecs, result_codec=results)
            for (address, _, _), ins, outs in cut
        ]

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
        for call, outcome in zip(calls, outcomes, strict=True) if self.detect_anomalies else ():
            if outcome.ok and not all_finite(call.outputs):
                outcome.error = NotFinite(f"{call.context_at(outcome.server)}: the answer holds NaN or infinity")
        self.stats.record(calls[0].method, calls, outcomes)
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
        calls = plan.calls(plan.experts, FORWARD, rows, outputs)
        if calls:
            outcomes = plan.run(plan.experts, calls, plan.forward)
            for expert, outcome in zip(plan.experts, outcomes, strict=True):
                plan.ok[expert[1] : expert[2]] = outcome.ok
                if outcome.ok:
                    ctx.answered.append((plan.transport.answered_by(expert[0], outcome), *expert[1:]))
        ctx.mark_non_differentiable(*[tensor for tensor in outputs if not tensor.is_floating_point()])
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        plan: RemotePlan = ctx.plan
        rows = ctx.saved_tensors
        grads = [torch.empty_like(tensor) for tensor in rows if tensor.is_floating_point()]
        scale = scale_now(plan.grad_scale)
        sent = output_grads(plan.schema, grad_outputs, len(plan.source), scale)
        if plan.grad_scale is not None and not all_finite(grad[plan.ok] for grad in sent):
            plan.stats.backward_skipped = len(ctx.answered)
            return _backward_result(rows, [torch.full_like(grad, math.nan) for grad in grads])
        calls = plan.calls(ctx.answered, BACKWARD, (*rows, *sent), grads)
        if not plan.ok.all():  # rows without an answer get no call
            for grad in grads:
                grad[~plan.ok] = 0
        if calls:
            outcomes = plan.run(ctx.answered, calls, plan.backward)
            for call, outcome in zip(calls, outcomes, strict=True):
                if not outcome.ok:  # no gradient through this expert, rather than half of one
                    for output in call.outputs:
                        output.zero_()
        for grad in grads:
            rescale_(grad, scale)
        return _backward_result(rows, grads)


def _backward_result(rows: Sequence[Tensor], grads: Sequence[Tensor]) -> Any:
    given = iter(grads)
    return (None, None, *(next(given) if tensor.is_floating_point() else None for tensor in rows))


def _cut(tensors: Sequence[Tensor], experts: Sequence[tuple[ExpertAddress, int, int]]) -> list[tuple[Tensor, ...]]:
    """For each expert its rows of all tensors."""
    if not tensors:
        return [() for _ in experts]
    sizes: list[int] = []  # of gaps and experts in turn: one split is several times cheaper than many slices
    at = 0
    for _, begin, end in experts:
        sizes += begin - at, end - begin
        at = end
    pieces = [tensor.split_with_sizes([*sizes, len(tensor) - at])[1::2] for tensor in tensors]
    return list(zip(*pieces, strict=True))
