"""An expert on another machine as a module of this one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learning_at_home import errors
from learning_at_home.client.codec import CodecArgument, CodecChoice
from learning_at_home.client.fetch import fetch_state
from learning_at_home.client.grad_scale import (
    GradScale,
    all_finite,
    checked_grad_scale,
    rescale_,
    scale_now,
    unscale,
)
from learning_at_home.client.transport import (
    BACKWARD,
    FORWARD,
    ExpertAddress,
    ExpertCall,
    Transport,
    get_transport,
)
from learning_at_home.nested import nested_compare, nested_flatten, nested_pack
from learning_at_home.schema import BatchTensorProto, ExpertSchema


class RemoteExpert(nn.Module):
    """Calls one expert; differentiable. The server recomputes the forward pass in the backward and steps its optimizer.

    Args:
        uid: the expert's name on its server.
        host, port: the server's TCP address.
        key: the server's 32-byte public key; None asks the server (trust on first use).
        insecure: connect without encryption.
        identity: the 32-byte seed of the caller's own key, for servers that let only some in, e.g. a
            `TesseractNetwork`'s `identity`. None calls under a key that no server knows.
        forward_timeout, backward_timeout: seconds that a call may take, whatever happens. None, the default, goes by
            how long such calls took so far; 30 s and a second for each megabyte until that is known.
        priority: 0 to 255, 0 by default: the server computes higher ones first.
        grad_scale: the factor by which your loss is scaled, for mixed precision: a number, or a function that returns
            it in each backward pass (`scaler.get_scale` of a `torch.amp.GradScaler`). The expert then learns from
            gradients divided by it, in float32, and yours come back multiplied. A gradient that is not finite is not
            sent: you get NaN, at which GradScaler skips its step.
        codec: how float32 tensors travel: "raw" (default), "bf16", "fp16", "int8", or "auto" by the link's measured
            speed; for each tensor by a sequence or a dict, see `client.codec.CodecChoice.parse`.

    Raises (from calls): a subclass of `errors.LearningAtHomeError` naming server, uid and phase.
    """

    def __init__(
        self,
        uid: str,
        host: str = "127.0.0.1",
        port: int = 8080,
        *,
        key: bytes | None = None,
        insecure: bool = False,
        identity: bytes | None = None,
        forward_timeout: float | None = None,
        backward_timeout: float | None = None,
        priority: int = 0,
        grad_scale: GradScale = None,
        codec: CodecArgument = "raw",
    ):
        super().__init__()
        if identity is not None and len(identity) != 32:
            raise errors.InvalidArgument("identity: expected a seed of 32 bytes, or None")
        self.uid, self.host, self.port = uid, host, port
        self.key, self.insecure, self._identity = key, insecure, identity
        self.forward_timeout, self.backward_timeout = forward_timeout, backward_timeout
        self.priority = checked_priority(priority)
        self.grad_scale = checked_grad_scale(grad_scale)
        self.codec = CodecChoice.parse(codec)
        self._transport: Transport | None = None
        self._address: ExpertAddress | None = None

    @property
    def transport(self) -> Transport:
        """The process's connections; taken at the first use."""
        if self._transport is None:
            self._transport = get_transport(self._identity)
        return self._transport

    @property
    def address(self) -> ExpertAddress:
        """The expert's connection. Name and key are asked for again when the server is down: it may have moved."""
        if self._address is None or self._address.peer in self.transport.down():
            try:
                peer = self.transport.connect(self.host, self.port, self.key, self.insecure)
            except errors.LearningAtHomeError as error:
                raise type(error)(f"connecting to expert '{self.uid}': {error}") from error
            self._address = ExpertAddress(self.uid, peer, f"server {self.host}:{self.port}")
        return self._address

    @property
    def schema(self) -> ExpertSchema:
        """What the expert takes and gives; asked once, then remembered."""
        return self.transport.schema(self.address, self.forward_timeout)

    @property
    def info(self) -> dict[str, Any]:
        """The same in the original's terms: forward_schema, outputs_schema, keyword_names."""
        schema = self.schema
        return {
            "forward_schema": (schema.args, schema.kwargs),
            "outputs_schema": schema.outputs,
            "keyword_names": sorted(schema.kwargs),
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the expert on batch-first tensors (any device) and return what it returns, on the first input's device.

        Raises:
            SchemaMismatch (a TypeError): structure, dtype or shape differ from the expert's schema.
            ExpertError: the expert's code raised; its traceback is the cause.
            DeadlineExceeded, PeerUnreachable, ExpertNotFound, Overloaded, ...
        """
        schema = self.schema
        inputs = check_inputs(f"forward of expert '{self.uid}' on {self.address.server}", schema, args, kwargs)
        device = inputs[0].device
        dummy = torch.empty(0, requires_grad=True)  # keeps the node in the graph whatever the inputs need
        outputs = _RemoteCall.apply(dummy, self, schema, *[tensor.cpu() for tensor in inputs])
        return nested_pack([tensor.to(device) for tensor in outputs], schema.outputs)

    def fetch_state(self, timeout: float = 60.0) -> dict[str, Tensor]:
        """Download the state_dict of the expert's module, at most 256 MiB, as it is between two batches.

        Raises:
            NotPermitted: its server was not made with `allow_fetch=True`; and every error of a call.
        """
        return fetch_state(self.transport, self.address, timeout).tensors

    def ping(self, timeout: float = 5.0) -> float:
        """Seconds of a round trip to the server's network thread, whatever its experts are doing.

        Raises:
            PeerUnreachable: no answer within `timeout` seconds.
        """
        round_trip = self.transport.ping(self.address.peer, timeout)
        if round_trip is None:
            where = f"ping of expert '{self.uid}' on {self.address.server}"
            raise errors.PeerUnreachable(f"{where}: no answer within {timeout} s")
        return round_trip

    def extra_repr(self) -> str:
        return f"uid={self.uid!r}, host={self.host!r}, port={self.port}"

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "_transport": None,
            "_address": None,
        }  # connections are made anew where it is loaded


def checked_priority(priority: int) -> int:
    """Return a call's priority, or raise InvalidArgument."""
    if not isinstance(priority, int) or not 0 <= priority <= 255:
        raise errors.InvalidArgument(f"priority: expected 0 to 255, got {priority!r}")
    return priority


def check_inputs(context: str, schema: ExpertSchema, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the flat inputs in the schema's order and dtype, or raise SchemaMismatch saying where and what differs."""
    if not nested_compare(schema.args, args) or not nested_compare(schema.kwargs, kwargs):
        raise errors.SchemaMismatch(
            f"{context}: expected arguments {_shown(schema.args)} and keywords {_shown(schema.kwargs)}, "
            f"got {_shown(args)} and {_shown(kwargs)}"
        )
    protos = schema.inputs_flat
    inputs: list[Tensor] = []
    for i, (proto, given) in enumerate(zip(protos, [*nested_flatten(args), *nested_flatten(kwargs)], strict=True)):
        if not isinstance(given, Tensor):
            raise errors.SchemaMismatch(f"{context}: input {i}: expected a tensor, got {type(given).__name__}")
        autocast = torch.is_autocast_enabled(given.device.type) and given.is_floating_point()
        tensor = given.to(proto.dtype) if autocast else given
        inputs.append(tensor)
        if not proto.fits(tensor):
            got = BatchTensorProto.from_tensor(tensor) if tensor.dim() else tensor.dtype
            raise errors.SchemaMismatch(f"{context}: input {i}: expected {proto}, got {got}")
        if len(tensor) != len(inputs[0]):
            raise errors.SchemaMismatch(
                f"{context}: input {i}: expected {len(inputs[0])} rows as in input 0, got {len(tensor)}"
            )
    return inputs


class _RemoteCall(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _dummy: Tensor, expert: RemoteExpert, schema: ExpertSchema, *inputs: Tensor) -> Any:
        ctx.expert, ctx.schema, ctx.training = expert, schema, expert.training
        ctx.save_for_backward(*inputs)
        rows = len(inputs[0])
        outputs = [proto.make_empty(rows) for proto in schema.outputs_flat]
        contiguous = [tensor.detach().contiguous() for tensor in inputs]
        if rows > 0:
            call = _call(expert, FORWARD, contiguous, [], outputs, ctx.training)
            _run(expert, call, expert.forward_timeout)
        ctx.mark_non_differentiable(*[tensor for tensor in outputs if not tensor.is_floating_point()])
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        inputs = [tensor.detach().contiguous() for tensor in ctx.saved_tensors]
        grads = [torch.zeros_like(tensor) for tensor in inputs if tensor.is_floating_point()]
        if len(inputs[0]) > 0:
            expert = ctx.expert
            scale = scale_now(expert.grad_scale)
            sent = output_grads(ctx.schema, grad_outputs, len(inputs[0]), scale)
            if expert.grad_scale is not None and not all_finite(sent):
                return _input_grads(inputs, [torch.full_like(grad, math.nan) for grad in grads])
            call = _call(expert, BACKWARD, inputs, sent, grads, ctx.training)
            _run(expert, call, expert.backward_timeout)
            for grad in grads:
                rescale_(grad, scale)
        return _input_grads(inputs, grads)


def _input_grads(inputs: list[Tensor], grads: list[Tensor]) -> Any:
    given = iter(grads)
    return (None, None, None, *(next(given) if tensor.is_floating_point() else None for tensor in inputs))


def output_grads(schema: ExpertSchema, grads: tuple[Tensor | None, ...], rows: int, scale: float) -> list[Tensor]:
    """The gradients that a backward call sends, divided by `scale`: one for each floating output, zeros for None."""
    return [
        torch.zeros(rows, *proto.instance_size, dtype=proto.dtype)
        if grad is None
        else unscale(grad, scale, proto.dtype).contiguous()
        for proto, grad in zip(schema.outputs_flat, grads, strict=True)
        if proto.dtype.is_floating_point
    ]


def _call(
    expert: RemoteExpert, method: int, inputs: list[Tensor], sent: list[Tensor], outputs: list[Tensor], training: bool
) -> ExpertCall:
    return ExpertCall(
        expert.address,
        method,
        [*inputs, *sent],
        outputs,
        training,
        expert.priority,
        codecs=expert.codec.of(len(inputs), len(sent)),
        result_codec=expert.codec.results,
    )


def _run(expert: RemoteExpert, call: ExpertCall, timeout: float | None) -> None:
    (outcome,) = expert.transport.call_many([call], timeout)
    if outcome.error is not None:
        raise outcome.error


def _shown(structure: Any) -> str:
    if isinstance(structure, dict):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in structure.items()) + "}"
    if isinstance(structure, (list, tuple)):
        return "(" + ", ".join(_shown(item) for item in structure) + ")"
    if isinstance(structure, Tensor):
        return f"{str(structure.dtype).removeprefix('torch.')}{list(structure.shape)}"
    return str(structure)
