"""The same for grids too large to know everybody: experts are chosen first, and then no others are known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learning_at_home import ops
from learning_at_home._network_beam import BestExperts
from learning_at_home.client.alive_experts import AliveView, Choice, ServerConnections
from learning_at_home.client.transport import ExpertAddress, Transport
from learning_at_home.errors import InvalidArgument

if TYPE_CHECKING:
    from learning_at_home.network import TesseractNetwork

_SEARCH_TIMEOUT = 5.0  # seconds; what is known by then is chosen from
_POLL = 0.02  # seconds between looks while waiting


class BeamExperts(ServerConnections):
    """Chooses by `TesseractNetwork.find_best_experts`.

    The experts that any token chose are numbered in the order of their positions in the grid, and routed like a grid of
    one axis that holds them alone. So a balancing loss knows nobody but them.
    """

    def __init__(self, network: TesseractNetwork, transport: Transport, prefix: str, grid: Sequence[int]):
        super().__init__(network, transport)
        self.prefix, self.grid = prefix, tuple(grid)
        self._down: frozenset[int] = frozenset()

    def __deepcopy__(self, memo: dict[int, object]) -> BeamExperts:
        return BeamExperts(self.network, self.transport, self.prefix, self.grid)

    def choose(self, logits: Tensor, k: int, *, want_stats: bool = False) -> Choice:
        """The k best experts alive of each row of [T, sum(grid)] logits, as far as a beam search finds them."""
        down = self.transport.down()
        self._tell_network(self._down, down)
        self._down = down
        found = self.network.find_best_experts(self.prefix, self.grid, logits, k, timeout=_SEARCH_TIMEOUT)
        experts = {}
        for number, expert in enumerate(found.experts):
            first = (expert.host, expert.port, expert.public_key, expert.boot_id)
            holders = self._living((first, *found.replicas.get(expert.flat_id, ())), down)
            if holders is not None:
                experts[number] = ExpertAddress(expert.uid, *holders)
        reachable = torch.zeros(len(found.experts) + 1, dtype=torch.bool)  # the last one stands for no choice
        reachable[list(experts)] = True
        index = found.index.masked_fill(~reachable[found.index.long()], -1)
        return Choice(
            experts, route_found(logits, self.grid, index, _ids(found), want_stats=want_stats), found.declared
        )

    def refresh(self) -> AliveView:
        """Raises InvalidArgument: nobody knows all experts of such a grid."""
        raise InvalidArgument(f"grid_size: the experts alive of a grid {list(self.grid)} cannot be listed")

    def wait(self, count: int, timeout: float) -> bool:
        """Wait until `count` experts are alive, as their servers count them; False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        nothing = torch.empty(0, sum(self.grid))
        while True:
            left = deadline - time.monotonic()
            found = self.network.find_best_experts(self.prefix, self.grid, nothing, 1, timeout=max(left, _POLL))
            if found.declared >= count and not found.unread:
                return True
            if left <= 0:
                return False
            time.sleep(_POLL)


def _ids(found: BestExperts) -> Tensor:
    return torch.tensor([expert.flat_id for expert in found.experts], dtype=torch.int64)


def route_found(
    logits: Tensor, grid: Sequence[int], index: Tensor, flat_ids: Tensor, *, want_stats: bool = False
) -> ops.Route:
    """The route of choices that a search made: `ops.route_grid`'s among nobody but the experts it found.

    Args:
        logits: [T, sum(grid)], float32; scores are differentiable in them.
        index: int32 [T, k] into flat_ids; -1 is void.
        flat_ids: int64 [E], positions in the grid.
        want_stats: see `ops.route_grid`; the softmax is over these experts.
    """
    count = max(len(flat_ids), 1)  # a plan of no experts has no offsets
    coordinates = coordinates_of(flat_ids if len(flat_ids) else torch.zeros(1, dtype=torch.int64), grid)
    axes = logits.split(list(grid), dim=1)
    void = index < 0
    chosen = index.clamp(min=0).long()
    score = _sum([axis.gather(1, at[chosen]) for axis, at in zip(axes, coordinates, strict=True)])
    plan = ops.plan(index, count)
    stats = logits.new_empty(0)
    if want_stats:
        scores = _sum([axis[:, at] for axis, at in zip(axes, coordinates, strict=True)])
        share = torch.softmax(scores, dim=1).sum(0) / max(len(scores), 1)
        stats = torch.stack([plan.count.to(share.dtype), share])
    return ops.Route(index, score.masked_fill(void, 0.0), plan.rank, plan.offset, logits.new_empty(0), stats)


def coordinates_of(flat_ids: Tensor, grid: Sequence[int]) -> list[Tensor]:
    """For each axis [E] coordinates, of [E] row-major positions."""
    coordinates: list[Tensor] = []
    for size in reversed(grid):
        coordinates.append(flat_ids % size)
        flat_ids = flat_ids // size
    return coordinates[::-1]


def _sum(terms: list[Tensor]) -> Tensor:
    """From left to right, as the search did."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
