"""`LocalMixture`: what a `GatingFunction` computes, with the experts in this process."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learning_at_home import _safetensors, ops
from learning_at_home.errors import InvalidArgument, SchemaMismatch
from learning_at_home.nested import nested_flatten, nested_pack
from learning_at_home.nn.registry import EXPERT_CLASSES, find_expert_class
from learning_at_home.nn.router import full_precision
from learning_at_home.schema import ExpertSchema

MakeExpert = Callable[[str], nn.Module]  # uid → module

FORMAT = "learning_at_home mixture 1"


class LocalMixture(nn.Module):
    """A mixture of experts on a product grid, routed as `GatingFunction` routes: no network, nothing that can fail.

    Args:
        in_features: size of the last input dimension.
        grid_size: sizes of the grid's axes.
        k_best: experts a token; fewer where there are not as many.
        experts: flat, row-major position in the grid → module. Cells without one are never chosen.
        schema: what the experts take and give.
        uid_prefix: of the experts' names where they came from.
        classes: flat id → name of a registered class, for `load`.

    Attributes:
        proj: the gate. experts: `nn.ModuleDict` by flat id.
    """

    def __init__(
        self,
        in_features: int,
        grid_size: Sequence[int],
        k_best: int,
        experts: Mapping[int, nn.Module],
        schema: ExpertSchema,
        *,
        uid_prefix: str = "",
        classes: Mapping[int, str] | None = None,
    ):
        super().__init__()
        self.in_features, self.grid_size, self.k_best = in_features, tuple(grid_size), k_best
        self.schema, self.uid_prefix, self.classes = schema, uid_prefix, dict(classes or {})
        self.proj = nn.Linear(in_features, sum(self.grid_size))
        self.experts = nn.ModuleDict({str(flat_id): experts[flat_id] for flat_id in sorted(experts)})
        self.present: Tensor
        self.register_buffer("present", ops.alive_bitmap(list(experts), math.prod(self.grid_size)), persistent=False)

    def forward(self, input: Tensor, *args: Tensor, **kwargs: Tensor) -> Any:
        """The same arguments and result as `GatingFunction.forward`; every tensor on the module's device."""
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise InvalidArgument(f"input: expected [..., {self.in_features}], got {list(input.shape)}")
        lead = input.shape[:-1]
        tokens = math.prod(lead)
        structure = ((input, *args), kwargs)
        flat = [tensor.reshape(tokens, *tensor.shape[len(lead) :]) for tensor in nested_flatten(structure)]
        logits = full_precision(self.proj, flat[0])
        route = ops.route_grid(logits, self.grid_size, self.k_best, alive=self.present)
        sent = [ops.dispatch(tensor, route.index, route.rank, route.offset)[0] for tensor in flat]
        outputs = [
            ops.combine(rows, route.score, route.index, route.rank, route.offset)[0]
            for rows in self._run_experts(sent, route.offset.tolist(), structure)
        ]
        return nested_pack([out.view(*lead, *out.shape[1:]) for out in outputs], self.schema.outputs)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file; it is there whole or not at all."""
        tensors = {}
        for name, value in self.state_dict().items():
            if not isinstance(value, Tensor):
                raise TypeError(f"state '{name}': expected a tensor, got {type(value).__name__}")
            tensors[name] = _safetensors.copied(value)
        description = {
            "in_features": self.in_features,
            "grid_size": self.grid_size,
            "k_best": self.k_best,
            "uid_prefix": self.uid_prefix,
            "experts": {flat_id: self.classes.get(int(flat_id)) for flat_id in self.experts},
            "schema": self.schema.to_json(),
        }
        _safetensors.write_file(Path(path), tensors, {"format": FORMAT, "mixture": json.dumps(description)})

    @classmethod
    def load(cls, path: str | Path, make_expert: MakeExpert | None = None) -> LocalMixture:
        """Read what `save` wrote.

        Args:
            make_expert: uid → module, for experts that are not of a registered class.

        Raises:
            ValueError: not such a file. SchemaMismatch: its experts do not fit those that were made.
        """
        tensors, metadata = _safetensors.from_bytes(Path(path).read_bytes())
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT!r}, got {metadata.get('format')!r}")
        description = json.loads(metadata["mixture"])
        hidden, grid, prefix = description["in_features"], description["grid_size"], description["uid_prefix"]
        classes = {int(flat_id): name for flat_id, name in description["experts"].items()}
        mixture = cls(
            hidden,
            grid,
            description["k_best"],
            {e: build_expert(uid_of(e, grid, prefix), name, hidden, make_expert) for e, name in classes.items()},
            ExpertSchema.from_json(description["schema"]),
            uid_prefix=prefix,
            classes={flat_id: name for flat_id, name in classes.items() if name is not None},
        )
        if (difference := _safetensors.differences(mixture.state_dict(), tensors)) is not None:
            raise SchemaMismatch(f"{path}: {difference}")
        mixture.load_state_dict(tensors)
        return mixture

    def extra_repr(self) -> str:
        return f"grid_size={self.grid_size}, k_best={self.k_best}, uid_prefix={self.uid_prefix!r}"

    def _run_experts(self, sent: list[Tensor], bounds: list[int], structure: Any) -> list[Tensor]:
        """Every expert on its rows; one [R, ...] tensor for each output."""
        protos = self.schema.outputs_flat
        pieces: list[list[Tensor]] = [[] for _ in protos]
        for flat_id, expert in self.experts.items():
            begin, end = bounds[int(flat_id)], bounds[int(flat_id) + 1]
            if begin < end:
                args, kwargs = nested_pack([rows[begin:end] for rows in sent], structure)
                for outputs, tensor in zip(pieces, nested_flatten(expert(*args, **kwargs)), strict=True):
                    outputs.append(tensor)
        unused = len(sent[0]) - bounds[-1]
        return [
            torch.cat([*outputs, torch.zeros(unused, *proto.instance_size, dtype=proto.dtype, device=sent[0].device)])
            for proto, outputs in zip(protos, pieces, strict=True)
        ]


def build_expert(uid: str, expert_class: str | None, hidden: int, make_expert: MakeExpert | None) -> nn.Module:
    """A new module for an expert. Raises InvalidArgument if nothing says what it is made of."""
    if make_expert is not None:
        return make_expert(uid)
    if expert_class is None or expert_class not in EXPERT_CLASSES:
        kind = "of no registered class" if expert_class is None else f"of class '{expert_class}', not registered here"
        raise InvalidArgument(f"make_expert: needed, since expert '{uid}' is {kind}")
    return find_expert_class(expert_class).make(hidden)


def uid_of(flat_id: int, grid: Sequence[int], prefix: str) -> str:
    """The uid of a grid cell, the last axis fastest."""
    coordinates: list[str] = []
    for size in reversed(grid):
        flat_id, coordinate = divmod(flat_id, size)
        coordinates.append(str(coordinate))
    return ".".join([prefix, *reversed(coordinates)])
