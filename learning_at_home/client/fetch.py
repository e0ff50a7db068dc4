"""Bringing experts home: the weights of one, or a whole mixture, from servers that allow it (`allow_fetch=True`)."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from learning_at_home import _safetensors
from learning_at_home.client.transport import STATE, ExpertAddress, ExpertCall, Transport
from learning_at_home.errors import (
    ExpertNotFound,
    NoExpertsAlive,
    NotPermitted,
    Overloaded,
    ProtocolError,
    SchemaMismatch,
)
from learning_at_home.nn.local_mixture import LocalMixture, MakeExpert, build_expert

if TYPE_CHECKING:
    from learning_at_home.client.gating_function import GatingFunction
    from learning_at_home.network import TesseractNetwork


_LOOKUP_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class ExpertState:
    """An expert as its server held it between two batches.

    tensors: the state_dict of its module. updates: optimizer steps so far. expert_class: see `register_expert_class`.
    """

    uid: str
    tensors: dict[str, Tensor]
    updates: int
    expert_class: str | None


def fetch_state(transport: Transport, address: ExpertAddress, timeout: float) -> ExpertState:
    """Download an expert, at most 256 MiB. Raises NotPermitted if its server keeps it, and every error of a call.

    A server gives few experts at a time; its Overloaded is waited out as long as `timeout` allows.
    """
    call = ExpertCall(address, STATE, (), ())
    deadline = time.monotonic() + timeout
    while True:
        (outcome,) = transport.call_many([call], max(deadline - time.monotonic(), 0.0))
        if outcome.error is None:
            break
        wait = outcome.error.retry_after if isinstance(outcome.error, Overloaded) else math.inf
        if time.monotonic() + wait >= deadline:
            raise outcome.error
        time.sleep(wait)
    try:
        tensors, metadata = _safetensors.from_bytes(outcome.description)
        updates = int(metadata.get("updates", "0"))
    except ValueError as error:
        raise ProtocolError(f"{call.context}: {error}") from error
    return ExpertState(address.uid, tensors, updates, metadata.get("expert_class"))


def load_state(state: ExpertState, module: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Load a fetched expert into a module, or into the one that a function makes. Raises SchemaMismatch."""
    target = module if isinstance(module, nn.Module) else module()
    expected = {name: value for name, value in target.state_dict().items() if isinstance(value, Tensor)}
    if (difference := _safetensors.differences(expected, state.tensors)) is not None:
        raise SchemaMismatch(f"expert '{state.uid}' does not fit {type(target).__name__}: {difference}")
    target.load_state_dict(state.tensors)
    return target


def fetch_expert(
    network: TesseractNetwork, uid: str, module: nn.Module | Callable[[], nn.Module] | None, timeout: float
) -> Any:
    """See `TesseractNetwork.fetch_expert`."""
    started = time.monotonic()
    (expert,) = network.get_experts([uid], timeout=min(timeout, _LOOKUP_TIMEOUT))
    if expert is None:
        raise ExpertNotFound(f"fetch of expert '{uid}': nobody alive declares it")
    state = fetch_state(expert.transport, expert.address, timeout - (time.monotonic() - started))
    return state.tensors if module is None else load_state(state, module)


def export_gate(
    gate: GatingFunction, path: str | Path | None, make_expert: MakeExpert | None, timeout: float
) -> LocalMixture:
    """See `GatingFunction.export`."""
    transport = gate.alive.transport
    addresses = gate.alive.refresh().experts
    if not addresses:
        raise NoExpertsAlive(f"no expert '{gate.uid_prefix}.*' is alive, so there is nothing to export")
    experts: dict[int, nn.Module] = {}
    classes: dict[int, str] = {}
    refused: list[NotPermitted] = []
    schema: Any = None
    for flat_id, address in addresses.items():
        try:
            state = fetch_state(transport, address, timeout)
        except NotPermitted as error:
            refused.append(error)
            continue
        schema = schema or transport.schema(address, timeout)
        fresh = build_expert(state.uid, state.expert_class, gate.in_features, make_expert)
        experts[flat_id] = load_state(state, fresh)
        if state.expert_class is not None:
            classes[flat_id] = state.expert_class
    if not experts:
        raise refused[0]
    if refused:
        warnings.warn(f"{len(refused)} of {len(addresses)} experts are not in the export: {refused[0]}", stacklevel=3)
    mixture = LocalMixture(
        gate.in_features, gate.grid_size, gate.k_best, experts, schema, uid_prefix=gate.uid_prefix, classes=classes
    )
    mixture.proj.load_state_dict(gate.proj.state_dict())
    mixture.train(gate.training)
    if path is not None:
        mixture.save(path)
    return mixture.to(gate.proj.weight.device)
