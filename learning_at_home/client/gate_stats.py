"""What happened in one step of a gate: who was called, who answered, how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from learning_at_home.client.transport import BACKWARD, FORWARD, CallOutcome, ExpertCall
from learning_at_home.errors import LearningAtHomeError


@dataclass(slots=True)
class CallStats:
    """One call of a step. Times in seconds; those that only the server knows are 0 if it did not answer.

    server: the one that answered, or failed last, where the expert has replicas.
    queue_time, service_time, batch_rows: of the batch in which the server computed it.
    wait_time: how long another request would have waited there then.
    elapsed: from start to end, as the trainer saw it.
    wire_bytes: of the tensors of request and result, as they travelled.
    """

    uid: str
    server: str
    rows: int
    error: LearningAtHomeError | None
    elapsed: float
    queue_time: float
    service_time: float
    batch_rows: int
    wait_time: float
    retried: int
    hedged: bool
    wire_bytes: int

    def __str__(self) -> str:
        if self.error is not None:
            return type(self.error).__name__
        seen = f"{1e3 * self.elapsed:.1f} ms: " if self.elapsed else ""
        return (
            f"{seen}queued {1e3 * self.queue_time:.1f} ms, "
            f"computed {1e3 * self.service_time:.1f} ms in a batch of {self.batch_rows}"
            + (f", retried {self.retried}x" if self.retried else "")
            + (", hedged" if self.hedged else "")
        )


@dataclass
class GateStats:
    """What happened in a gate's last step. Filled in by the forward pass, completed by the backward pass.

    Attributes:
        forward, backward: uid → `CallStats`.
        backward_skipped: backward calls not made, because the gradient was not finite (see `grad_scale`).
        empty_tokens: tokens for which no expert answered.
        errors: of the failed calls, and of questions for the schema.
        balance_loss: if the gate has a `balance_weight`.
    """

    experts_alive: int = 0
    forward_calls: int = 0
    forward_failed: int = 0
    backward_calls: int = 0
    backward_failed: int = 0
    backward_skipped: int = 0
    empty_tokens: int = 0
    errors: list[Exception] = field(default_factory=list)
    balance_loss: float | None = None
    forward: dict[str, CallStats] = field(default_factory=dict, repr=False)
    backward: dict[str, CallStats] = field(default_factory=dict, repr=False)

    @property
    def failed(self) -> int:
        """Calls that failed, both ways."""
        return self.forward_failed + self.backward_failed

    @property
    def chosen(self) -> dict[str, int]:
        """uid → rows sent there: the load of each expert."""
        return {uid: call.rows for uid, call in self.forward.items()}

    @property
    def answered(self) -> dict[str, int]:
        """uid → rows, of the experts that answered the forward call."""
        return {uid: call.rows for uid, call in self.forward.items() if call.error is None}

    @property
    def retried(self) -> int:
        """How often calls were sent again, both ways."""
        return sum(call.retried for call in self._all)

    @property
    def hedged(self) -> int:
        """Calls for which a replica was asked too."""
        return sum(call.hedged for call in self._all)

    def record(self, method: int, calls: Sequence[ExpertCall], outcomes: Sequence[CallOutcome]) -> None:
        """Take over the outcomes of one direction."""
        told = {call.address.uid: _stats(call, outcome) for call, outcome in zip(calls, outcomes, strict=True)}
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        self.errors.extend(errors)
        if method == FORWARD:
            self.forward, self.forward_calls, self.forward_failed = told, len(calls), len(errors)
        elif method == BACKWARD:
            self.backward, self.backward_calls, self.backward_failed = told, len(calls), len(errors)

    def summary(self) -> str:
        """A table: one line for each expert chosen, the busiest first."""
        width = max(map(len, self.forward), default=0)
        lines = [str(self)]
        for uid, call in sorted(self.forward.items(), key=lambda item: -item[1].rows):
            back = f"; backward {self.backward[uid]}" if uid in self.backward else ""
            lines.append(f"  {uid:{width}}  {call.rows:6} rows  {call.server}  forward {call}{back}")
        return "\n".join(lines)

    def __str__(self) -> str:
        text = (
            f"{self.experts_alive} experts alive, {len(self.forward)} chosen; "
            f"forward: {_share(self.forward_calls, self.forward_failed)}; "
            f"backward: {_share(self.backward_calls, self.backward_failed)}"
        )
        counts = {
            "skipped as not finite": self.backward_skipped,
            "tokens without an answer": self.empty_tokens,
            "retried": self.retried,
            "hedged": self.hedged,
        }
        return text + "".join(f", {count} {name}" for name, count in counts.items() if count)

    @property
    def wire_bytes(self) -> int:
        """Bytes of tensors that travelled, both ways."""
        return sum(call.wire_bytes for call in self._all)

    @property
    def _all(self) -> list[CallStats]:
        return [*self.forward.values(), *self.backward.values()]


def _share(calls: int, failed: int) -> str:
    return f"{calls - failed} of {calls} answered"


def _stats(call: ExpertCall, outcome: CallOutcome) -> CallStats:
    return CallStats(
        uid=call.address.uid,
        server=outcome.server,
        rows=call.inputs[0].shape[0],
        error=outcome.error,
        elapsed=outcome.elapsed,
        queue_time=outcome.queue_time,
        service_time=outcome.service_time,
        batch_rows=outcome.batch_rows,
        wait_time=outcome.wait_time,
        retried=outcome.retried,
        hedged=outcome.hedged,
        wire_bytes=outcome.wire_bytes,
    )
