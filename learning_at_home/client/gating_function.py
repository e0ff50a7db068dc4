"""`GatingFunction`: a mixture of experts whose experts live on machines that come and go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learning_at_home import ops
from learning_at_home._network_arguments import grid_size_of
from learning_at_home.client.alive_experts import AliveExperts, Choice
from learning_at_home.client.beam_experts import BeamExperts
from learning_at_home.client.codec import CodecArgument, CodecChoice
from learning_at_home.client.fetch import export_gate
from learning_at_home.client.gate_stats import GateStats
from learning_at_home.client.grad_scale import GradScale, checked_grad_scale, scale_now
from learning_at_home.client.remote_expert import RemoteExpert, check_inputs, checked_priority
from learning_at_home.client.remote_mixture import RemotePlan, Waiting, remote_mixture
from learning_at_home.client.transport import get_transport
from learning_at_home.errors import InvalidArgument, LearningAtHomeError, NoExpertsAlive
from learning_at_home.nested import nested_flatten, nested_pack
from learning_at_home.nn.balance import add_gradient_of, balance_loss
from learning_at_home.nn.local_mixture import LocalMixture, MakeExpert
from learning_at_home.nn.router import full_precision
from learning_at_home.ops.arguments import MAX_CHOICES, MAX_EXPERTS
from learning_at_home.schema import BatchTensorProto, ExpertSchema

if TYPE_CHECKING:
    from learning_at_home.network import TesseractNetwork

_FIRST_MAP_TIMEOUT = 5.0  # seconds that the first step waits for the network's first answer


class GatingFunction(nn.Module):
    """Scores a product grid of experts, calls each token's best ones that are alive, mixes their answers.

    Expert (i1, ..., id) scores s1[i1] + ... + sd[id], slices of one linear layer (product keys: Lample et al. 2019;
    decentralised: Ryabinin & Gusev 2020). Every expert gets at most one forward and one backward call a step, with the
    rows of all tokens that chose it. The weights are a softmax over the experts that answered, per token. A failed
    backward call gives zero gradients. The gate's own parameter is `proj`; it always gets a gradient, so DDP works.

    Args:
        in_features: size of the last input dimension.
        grid_size: sizes of the grid's axes, 1 to 8 of them, each at most 65536. Up to 65536 experts in all, the choice
            is exact and among those in the network's alive map; beyond, it is `network.find_best_experts`'s, whose
            servers must know the grid (`grid_size` of `TesseractServer`).
        network: a started `TesseractNetwork`.
        k_best: experts a token.
        uid_prefix: experts are `{uid_prefix}.{i1}.….{id}`.
        k_min: answers that every token waits for, 1 by default.
        timeout_after_k_min: seconds for stragglers once every token has k_min answers or cannot get them, 1 by
            default.
        forward_timeout, backward_timeout: seconds that a direction may take, whatever happens. None, the default, goes
            by how long such calls took so far; 30 s and a second for each megabyte until that is known.
        backward_k_min: k_min of the backward pass, 1 by default.
        balance_weight: weight of the load-balancing loss whose gradient joins the backward pass (as if it were added to
            your loss), 0 by default.
        on_empty: what a token gets for which no expert answered: "zeros", or "raise" for `NoExpertsAlive`.
        priority: 0 to 255, 0 by default: servers compute calls of higher priority first.
        grad_scale: the factor by which your loss is scaled, for mixed precision: a number, or a function that returns
            it in each backward pass (`scaler.get_scale` of a `torch.amp.GradScaler`). Experts then learn from
            gradients divided by it, in float32. If any is not finite, none is sent (`last_stats.backward_skipped`)
            and yours are NaN, at which GradScaler skips its step. Layers whose backward pass came before have been
            updated.
        detect_anomalies: treat an expert whose outputs or input gradients hold NaN or infinity as one that failed
            (`NotFinite` in `last_stats.errors`), False by default.
        codec: how float32 tensors travel: "raw" (default), "bf16", "fp16", "int8", or "auto" by the link's measured
            speed; for each tensor by a sequence or a dict, see `client.codec.CodecChoice.parse`.
        num_workers, expert_padding: accepted for compatibility, without effect: there are no worker threads, and fewer
            experts alive than k_best need no padding.

    Attributes:
        last_stats: `GateStats` of the last step: who was called, who answered, how long it took. Print it, or its
            `summary()`.
    """

    def __init__(
        self,
        *,
        in_features: int,
        grid_size: Sequence[int],
        network: TesseractNetwork,
        k_best: int,
        num_workers: int | None = None,
        k_min: int = 1,
        timeout_after_k_min: float = 1.0,
        uid_prefix: str = "",
        expert_padding: Any = None,
        forward_timeout: float | None = None,
        backward_timeout: float | None = None,
        backward_k_min: int = 1,
        balance_weight: float = 0.0,
        on_empty: str = "zeros",
        priority: int = 0,
        grad_scale: GradScale = None,
        detect_anomalies: bool = False,
        codec: CodecArgument = "raw",
    ):
        super().__init__()
        self.in_features, self.grid_size = int(in_features), tuple(grid_size_of("grid_size", grid_size))
        if not 1 <= k_best <= MAX_CHOICES:
            raise InvalidArgument(f"k_best: expected 1 to {MAX_CHOICES}, got {k_best}")
        for name, value in (("k_min", k_min), ("backward_k_min", backward_k_min)):
            if not 1 <= value <= k_best:
                raise InvalidArgument(f"{name}: expected 1 to k_best ({k_best}), got {value}")
        if on_empty not in ("zeros", "raise"):
            raise InvalidArgument(f"on_empty: expected 'zeros' or 'raise', got {on_empty!r}")
        self.network, self.k_best, self.uid_prefix = network, k_best, uid_prefix
        self.forward_waiting = Waiting(_timeout("forward_timeout", forward_timeout), k_min, timeout_after_k_min)
        self.backward_waiting = Waiting(
            _timeout("backward_timeout", backward_timeout), backward_k_min, timeout_after_k_min
        )
        _seconds("timeout_after_k_min", timeout_after_k_min)
        self.balance_weight, self.on_empty = balance_weight, on_empty
        self.priority, self.grad_scale = checked_priority(priority), checked_grad_scale(grad_scale)
        self.detect_anomalies = detect_anomalies
        self.codec = CodecChoice.parse(codec)
        self.proj = nn.Linear(self.in_features, sum(self.grid_size))
        self.last_stats = GateStats()
        self._alive: AliveExperts | BeamExperts | None = None
        self._schema: ExpertSchema | None = None

    @property
    def alive(self) -> AliveExperts | BeamExperts:
        """The experts that may be chosen now. The first use waits for the network's first answer."""
        if self._alive is None:
            if not self.network.is_running:
                self.network.start()
            transport = get_transport(self.network.identity)
            kind = AliveExperts if math.prod(self.grid_size) <= MAX_EXPERTS else BeamExperts
            self._alive = kind(self.network, transport, self.uid_prefix, self.grid_size)
            self._alive.wait(1, min(_FIRST_MAP_TIMEOUT, self.forward_waiting.timeout or _FIRST_MAP_TIMEOUT))
        return self._alive

    def wait_for_experts(self, count: int, timeout: float = 30.0) -> bool:
        """Wait until at least `count` experts are alive; False if they are not after `timeout` seconds."""
        return self.alive.wait(count, timeout)

    def forward(self, input: Tensor, *args: Tensor, **kwargs: Tensor) -> Any:
        """Mix the experts' outputs for every token.

        Args:
            input: [..., in_features]; every vector along the last dimension is a token, routed on its own.
            *args, **kwargs: further expert arguments, [..., *their instance size], with the same leading sizes.

        Returns:
            The nested structure that the experts return, every tensor [..., *its instance size], on input's device.

        Raises:
            SchemaMismatch: arguments that do not fit the experts. NoExpertsAlive: see `on_empty`.
        """
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise InvalidArgument(f"input: expected [..., {self.in_features}], got {list(input.shape)}")
        lead, device = input.shape[:-1], input.device
        tokens = math.prod(lead)
        x_TH = input.reshape(tokens, self.in_features)
        choice = self._choose(x_TH)
        route = choice.route
        self.last_stats = stats = GateStats(experts_alive=choice.alive)
        schema = self._find_schema(choice, stats)
        flat = self._flat_inputs(schema, lead, tokens, (x_TH, *args), kwargs)
        if schema is None:  # nobody has told yet: outputs are as wide as inputs, as in every residual block
            proto = BatchTensorProto(self.in_features, dtype=input.dtype)
            schema = ExpertSchema((proto,), {}, proto, 1)
        sent = [ops.dispatch(tensor, route.index, route.rank, route.offset) for tensor in flat]
        plan = self._plan(choice, sent[0][1], schema, tokens, stats)
        answers = remote_mixture(plan, [rows for rows, _ in sent])
        self._handle_empty(plan)
        outputs = [
            ops.combine(rows_RH, route.score, route.index, route.rank, route.offset, ok=plan.ok)[0]
            for rows_RH in answers
        ]
        if route.stats.numel():
            loss = balance_loss(route.stats)
            stats.balance_loss = float(loss.detach())
            outputs[0] = add_gradient_of(outputs[0], loss, lambda: self.balance_weight * scale_now(self.grad_scale))
        shaped = [out.view(*lead, *out.shape[1:]).to(device) for out in outputs]
        return nested_pack(shaped, schema.outputs)

    def beam_search(self, grid_scores: Sequence[Tensor], k_best: int | None = None) -> list[list[RemoteExpert]]:
        """The best experts alive for each row of scores, best first (fewer than k_best if fewer are alive).

        Args:
            grid_scores: one [B, grid_size[d]] tensor for each axis.
            k_best: the gate's own by default.
        """
        logits = torch.cat([scores.detach().float().cpu() for scores in grid_scores], dim=-1)
        choice = self.alive.choose(logits, k_best or self.k_best)
        chosen = choice.route.index.tolist()
        return [[self.alive.expert(choice.experts[e]) for e in row if e >= 0] for row in chosen]

    def export(
        self, path: str | Path | None = None, *, make_expert: MakeExpert | None = None, timeout: float = 60.0
    ) -> LocalMixture:
        """Download the experts alive, from servers that permit it, into a module that computes the same without them.

        Args:
            path: a safetensors file to write, for `LocalMixture.load`.
            make_expert: uid → module; by default experts are made of their registered class with `hidden=in_features`.
            timeout: seconds for each expert.

        Raises:
            NoExpertsAlive; NotPermitted: no server gives its experts (if some do not, a warning says so);
            InvalidArgument: `make_expert` is needed; SchemaMismatch: it made something else.
        """
        return export_gate(self, path, make_expert, timeout)

    def extra_repr(self) -> str:
        return f"grid_size={self.grid_size}, k_best={self.k_best}, uid_prefix={self.uid_prefix!r}"

    def _choose(self, x_TH: Tensor) -> Choice:
        logits = full_precision(self.proj, x_TH).cpu()
        want_stats = self.balance_weight > 0 and self.training and torch.is_grad_enabled()
        return self.alive.choose(logits, self.k_best, want_stats=want_stats)

    def _plan(self, choice: Choice, source: Tensor, schema: ExpertSchema, tokens: int, stats: GateStats) -> RemotePlan:
        offset = choice.route.offset
        chosen = (offset[1:] > offset[:-1]).nonzero().flatten().tolist()
        bounds = offset.tolist()
        experts = [(choice.experts[e], bounds[e], bounds[e + 1]) for e in chosen]
        return RemotePlan(
            transport=self.alive.transport,
            schema=schema,
            experts=experts,
            source=source,
            k=self.k_best,
            tokens=tokens,
            training=self.training,
            priority=self.priority,
            grad_scale=self.grad_scale,
            detect_anomalies=self.detect_anomalies,
            codec=self.codec,
            forward=self.forward_waiting,
            backward=self.backward_waiting,
            stats=stats,
            ok=torch.zeros(tokens * self.k_best, dtype=torch.bool),
        )

    def _find_schema(self, choice: Choice, stats: GateStats) -> ExpertSchema | None:
        for address in choice.experts.values() if self._schema is None else ():
            try:
                self._schema = self.alive.transport.schema(address, self.forward_waiting.timeout)
                break
            except LearningAtHomeError as error:
                stats.errors.append(error)
        return self._schema

    def _flat_inputs(
        self,
        schema: ExpertSchema | None,
        lead: torch.Size,
        tokens: int,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
    ) -> list[Tensor]:
        flat = []
        for i, tensor in enumerate([*nested_flatten(args), *nested_flatten(kwargs)]):
            if i > 0 and tensor.shape[: len(lead)] != lead:
                raise InvalidArgument(
                    f"argument {i}: expected the leading sizes {list(lead)} of input, got {list(tensor.shape)}"
                )
            per_token = tensor if i == 0 else tensor.reshape(tokens, *tensor.shape[len(lead) :])
            flat.append(per_token.cpu())
        if schema is None:
            return flat[:1]
        args, kwargs = nested_pack(flat, (args, kwargs))
        return check_inputs(f"forward of experts '{self.uid_prefix}.*'", schema, args, kwargs)

    def _handle_empty(self, plan: RemotePlan) -> None:
        answered = torch.zeros(plan.tokens, dtype=torch.bool)
        answered[(plan.source[plan.ok] // self.k_best).long()] = True
        plan.stats.empty_tokens = plan.tokens - int(answered.sum())
        if plan.stats.empty_tokens and self.on_empty == "raise":
            causes = "; ".join(str(error) for error in plan.stats.errors[:3]) or "none is alive"
            raise NoExpertsAlive(
                f"no expert '{self.uid_prefix}.*' answered for {plan.stats.empty_tokens} of {plan.tokens} tokens: "
                f"{causes}"
            )


def _timeout(name: str, value: float | None) -> float | None:
    return None if value is None else _seconds(name, value)


def _seconds(name: str, value: float) -> float:
    if not (0 <= value <= 3600):
        raise InvalidArgument(f"{name}: expected 0 to 3600 seconds, got {value}")
    return float(value)
