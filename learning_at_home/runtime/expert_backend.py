"""One expert on its server: its module, its optimizer, and how a batch goes through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from learning_at_home.errors import InvalidArgument, Rejected
from learning_at_home.nested import nested_compare, nested_flatten, nested_map, nested_pack
from learning_at_home.runtime.screening import Screened, all_finite, rows_to_reject
from learning_at_home.runtime.task_pool import TaskPool
from learning_at_home.schema import DUMMY_BATCH_SIZE, BatchTensorProto, ExpertSchema, TensorProto


class ExpertBackend:
    """Serves a module. Each aggregated batch of backward requests is one optimizer step (asynchronous SGD,
    Ryabinin & Gusev 2020); the forward pass is recomputed there, so nothing is kept between calls.

    Args:
        name: the expert's uid: `prefix(.int)*`, at most 128 bytes, e.g. "expert.3.14".
        expert: any `nn.Module`, also scripted. Batch-first tensors in, nested structure of tensors out.
        opt: its optimizer; it takes one step per backward batch, on the sum of the gradients.
        args_schema, kwargs_schema: nested structures of `BatchTensorProto`; at least one tensor in all.
        outputs_schema: the same for the outputs; None finds it out by one forward pass of 3 rows.
        clip_grad_norm: scales the gradients of an update down to this total L2 norm (Pascanu et al. 2013).
        scheduler: a learning rate scheduler of `opt`, or anything with `step()`; it steps once an update.
        max_input_norm, max_grad_norm: backward requests are `Rejected` if a row of a floating input, or of an output's
            gradient, has a larger L2 norm. Requests with NaN or infinite values there always are, alone.
        screen_forward: look at the inputs of forward requests in the same way.
        **task_pool_kwargs: `max_batch_size`, `min_batch_size`, `timeout`, `pool_size` of both pools.

    Raises:
        InvalidArgument: a name or schema that cannot be served.
    """

    def __init__(
        self,
        name: str,
        expert: nn.Module,
        opt: torch.optim.Optimizer,
        *,
        args_schema: Sequence[Any] | None = None,
        kwargs_schema: dict[str, Any] | None = None,
        outputs_schema: Any = None,
        clip_grad_norm: float | None = None,
        scheduler: Any = None,
        max_input_norm: float | None = None,
        max_grad_norm: float | None = None,
        screen_forward: bool = False,
        **task_pool_kwargs: Any,
    ):
        check_uid(name)
        limits = {"clip_grad_norm": clip_grad_norm, "max_input_norm": max_input_norm, "max_grad_norm": max_grad_norm}
        for limit, value in limits.items():
            if value is not None and not value > 0:
                raise InvalidArgument(f"expert '{name}': {limit}: expected a norm above 0 or None, got {value}")
        if scheduler is not None and not callable(getattr(scheduler, "step", None)):
            raise InvalidArgument(f"expert '{name}': scheduler: expected something with step(), got {scheduler!r}")
        self.name, self.expert, self.opt, self.scheduler = name, expert, opt, scheduler
        self.clip_grad_norm = clip_grad_norm
        self.max_input_norm, self.max_grad_norm, self.screen_forward = max_input_norm, max_grad_norm, screen_forward
        self.args_schema = _as_args(args_schema)
        self.kwargs_schema: dict[str, Any] = dict(kwargs_schema or {})
        self._flat_inputs = [*nested_flatten(self.args_schema), *nested_flatten(self.kwargs_schema)]
        self._plain = self._flat_inputs == list(self.args_schema)  # nothing nested, no keywords
        if not self._flat_inputs or not all(isinstance(proto, TensorProto) for proto in self._flat_inputs):
            raise InvalidArgument(
                f"expert '{name}': args_schema, kwargs_schema: expected BatchTensorProtos, got {self._flat_inputs}"
            )
        self.outputs_schema = self._find_outputs() if outputs_schema is None else outputs_schema
        self.autocast_dtype: torch.dtype | None = None  # set by the runtime
        self.updates = 0  # optimizer steps so far
        self.update_begun = False  # the batch that runs has entered the optimizer: it must not run again
        if isinstance(opt, torch.optim.Optimizer):
            opt.register_step_pre_hook(self._note_update)
        self.forward_pool, self.backward_pool = self._make_pools(task_pool_kwargs)

    @property
    def schema(self) -> ExpertSchema:
        """What callers must know."""
        return ExpertSchema(self.args_schema, self.kwargs_schema, self.outputs_schema, self.forward_pool.max_batch_size)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Run a batch without gradients. Flat inputs in schema order (args, then kwargs by name), flat outputs."""
        with torch.no_grad():
            outputs = self._run(inputs)
        return [tensor.detach() for tensor in outputs]

    def backward(self, *inputs_and_grads: Tensor) -> list[Tensor]:
        """Recompute a batch, backpropagate, step the optimizer once.

        Takes the flat inputs and a gradient for each floating output; returns a gradient for each floating input,
        zeros where the expert does not depend on it. If it raises before the update, the parameters and their
        gradients are what they were.

        Raises:
            Rejected: a gradient of a parameter is NaN or infinite; the optimizer never sees it.
        """
        count = len(self._flat_inputs)
        inputs = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs_and_grads[:count]]
        with self._own_gradients(), torch.enable_grad():
            outputs = [tensor for tensor in self._run(inputs) if tensor.is_floating_point()]
            grads = list(inputs_and_grads[count:])
            needed = [output.requires_grad for output in outputs]
            if any(needed):
                torch.autograd.backward(list(compress(outputs, needed)), list(compress(grads, needed)))
            if not all_finite([p.grad for p in self._parameters() if p.grad is not None]):
                raise Rejected("the gradients of the expert's parameters would be NaN or infinite")
        self.update_begun = True
        try:
            self.apply_gradients()
        except BaseException:
            self._clear_gradients()
            raise
        return [
            torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            for tensor in inputs
            if tensor.is_floating_point()
        ]

    def apply_gradients(self) -> None:
        """Clip, step the optimizer and the scheduler, clear the gradients. Override it, e.g. to accumulate."""
        if self.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters(), self.clip_grad_norm)
        self.opt.step()
        self.updates += 1
        if self.scheduler is not None:
            self.scheduler.step()
        self._clear_gradients()

    def rows_to_reject(self, inputs: Sequence[Tensor], backward: bool) -> dict[int, str]:
        """Rows of a batch (flat, as `forward` or `backward` takes it) that must not be computed, and why."""
        if not backward and not self.screen_forward:
            return {}
        count = len(self._flat_inputs)
        screened = [
            Screened(f"input {i}", tensor, self.max_input_norm, "max_input_norm")
            if i < count
            else Screened(f"output gradient {i - count}", tensor, self.max_grad_norm, "max_grad_norm")
            for i, tensor in enumerate(inputs)
            if tensor.is_floating_point()
        ]
        return rows_to_reject(screened)

    def get_info(self) -> dict[str, Any]:
        """The original's description of an expert."""
        return {
            "forward_schema": (self.args_schema, self.kwargs_schema),
            "outputs_schema": self.outputs_schema,
            "keyword_names": sorted(self.kwargs_schema),
        }

    def get_pools(self) -> tuple[TaskPool, TaskPool]:
        """The forward and the backward pool."""
        return self.forward_pool, self.backward_pool

    def _parameters(self) -> list[Tensor]:
        """What the optimizer updates."""
        return [p for group in self.opt.param_groups for p in group["params"]]

    def _clear_gradients(self) -> None:
        for p in self._parameters():  # as opt.zero_grad() does, without what it costs to be profiled
            p.grad = None

    @contextmanager
    def _own_gradients(self) -> Iterator[None]:
        """Gradients begin at nothing; they are added to those from before if all goes well, else they are dropped."""
        parameters = self._parameters()
        before = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        try:
            yield
        except BaseException:
            for p, grad in zip(parameters, before, strict=True):
                p.grad = grad
            raise
        for p, grad in zip(parameters, before, strict=True):
            if grad is not None:
                p.grad = grad if p.grad is None else grad.add_(p.grad)

    def _note_update(self, *_: Any) -> None:
        self.update_begun = True

    def _run(self, flat: Sequence[Tensor]) -> list[Tensor]:
        args, kwargs = (flat, {}) if self._plain else nested_pack(flat, (self.args_schema, self.kwargs_schema))
        if self.autocast_dtype is None:
            outputs = self.expert(*args, **kwargs)
        else:
            with torch.autocast(flat[0].device.type, self.autocast_dtype):
                outputs = self.expert(*args, **kwargs)
        if isinstance(outputs, Tensor) and isinstance(self.outputs_schema, TensorProto) and not self.autocast_dtype:
            return [outputs]
        if not nested_compare(self.outputs_schema, outputs):
            raise TypeError(
                f"expert '{self.name}' returned another structure than its outputs_schema {self.outputs_schema}"
            )
        tensors = list(nested_flatten(outputs))
        if self.autocast_dtype is not None:  # callers get the dtypes that the schema promises
            protos = nested_flatten(self.outputs_schema)
            tensors = [tensor.to(proto.dtype) for tensor, proto in zip(tensors, protos, strict=True)]
        return tensors

    def _find_outputs(self) -> Any:
        device = next((p.device for p in self.expert.parameters()), torch.device("cpu"))
        args, kwargs = nested_map(
            lambda proto: torch.zeros(DUMMY_BATCH_SIZE, *proto.instance_size, dtype=proto.dtype, device=device),
            (self.args_schema, self.kwargs_schema),
        )
        was_training = self.expert.training
        self.expert.eval()  # one pass of zeros must not touch running statistics
        with torch.no_grad():
            outputs = self.expert(*args, **kwargs)
        self.expert.train(was_training)
        return nested_map(BatchTensorProto.from_tensor, outputs)

    def _make_pools(self, kwargs: dict[str, Any]) -> tuple[TaskPool, TaskPool]:
        inputs = self._flat_inputs
        outputs = list(nested_flatten(self.outputs_schema))
        floating_inputs = [proto for proto in inputs if proto.dtype.is_floating_point]
        floating_outputs = [proto for proto in outputs if proto.dtype.is_floating_point]
        forward = TaskPool(self.forward, inputs, outputs, uid=self.name, **kwargs)
        backward = TaskPool(self.backward, [*inputs, *floating_outputs], floating_inputs, uid=self.name, **kwargs)
        return forward, backward


def check_uid(uid: str) -> None:
    """Raise InvalidArgument unless uid is `prefix(.int)*`, without leading zeros, at most 128 bytes."""
    prefix, *coordinates = uid.split(".") if isinstance(uid, str) else [""]
    good = prefix and len(uid.encode()) <= 128 and not any(c.isspace() for c in uid)
    if not good or not all(c.isascii() and c.isdigit() and str(int(c)) == c for c in coordinates):
        raise InvalidArgument(
            f"uid: expected prefix and coordinates as in 'expert.3.14' (128 bytes, no leading zeros), got {uid!r}"
        )


def _as_args(schema: Any) -> tuple[Any, ...]:
    if schema is None:
        return ()
    return (schema,) if isinstance(schema, TensorProto) else tuple(schema)
