"""Which experts of a grid a trainer may choose right now, declared in the network and not silent; and their choice."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch import Tensor

from learning_at_home import ops
from learning_at_home.client.remote_expert import RemoteExpert
from learning_at_home.client.transport import ExpertAddress, Transport

if TYPE_CHECKING:
    from learning_at_home.network import TesseractNetwork

_Place: TypeAlias = tuple[str, int, bytes, int]  # host, port, public key, boot id
_Holders: TypeAlias = tuple[int, str, tuple[int, ...]]  # connection, server, connections of replicas

_POLL = 0.005  # seconds between looks at the map while waiting for it
_SUSPECT_FOR = 60.0  # seconds: a record's lifetime; forgiven as soon as the server answers


@dataclass(frozen=True)
class AliveView:
    """One moment's answer: who is alive, by flat id, and the same as a bitmap for `ops.route_grid`."""

    experts: dict[int, ExpertAddress]
    bitmap: Tensor


class Choice(NamedTuple):
    """What each token chose. experts: by the ids of route.index, which says nothing about others. alive: how many."""

    experts: dict[int, ExpertAddress]
    route: ops.Route
    alive: int


class ServerConnections:
    """Connections to the servers of experts; those that fall silent are reported to the network."""

    def __init__(self, network: TesseractNetwork, transport: Transport):
        self.network, self.transport = network, transport
        self.owners: dict[int, tuple[bytes, int]] = {}  # connection → public key, boot id

    def _living(self, places: Sequence[_Place], down: frozenset[int]) -> _Holders | None:
        living: dict[int, str] = {}
        for host, port, key, boot_id in places:
            peer = self.transport.connect(host, port, key)
            self.owners[peer] = key, boot_id
            if peer not in down:
                living.setdefault(peer, f"server {host}:{port}")
        if not living:
            return None
        peer, *others = living
        return peer, living[peer], tuple(others)

    def _tell_network(self, before: frozenset[int], down: frozenset[int]) -> None:
        """Another owner of the same coordinates shall be chosen while a server is silent, or its own next life."""
        for peer in down - before:
            if peer in self.owners:
                key, boot_id = self.owners[peer]
                self.network.suspect(key, _SUSPECT_FOR, boot_id)
        for peer in before - down:
            if peer in self.owners:
                self.network.forgive(self.owners[peer][0])

    def expert(self, address: ExpertAddress) -> RemoteExpert:
        """An expert of a view as a module of its own."""
        host, port = address.server.removeprefix("server ").rsplit(":", 1)
        return RemoteExpert(address.uid, host, int(port), key=self.owners[address.peer][0])


class AliveExperts(ServerConnections):
    """A view of the network's alive map that costs nothing while the map does not change.

    The network refreshes the map in the background; servers that have fallen silent are left out at once and taken
    back when they answer.
    """

    def __init__(self, network: TesseractNetwork, transport: Transport, prefix: str, grid: Sequence[int]):
        super().__init__(network, transport)
        self.prefix, self.grid = prefix, tuple(grid)
        self.view = AliveView({}, ops.alive_bitmap([], math.prod(self.grid)))
        self._seen: tuple[int, frozenset[int]] = (-1, frozenset())
        network.watch(prefix, self.grid)

    def __deepcopy__(self, memo: dict[int, object]) -> AliveExperts:
        return AliveExperts(self.network, self.transport, self.prefix, self.grid)

    def refresh(self) -> AliveView:
        """Take over what changed. Threads may share a gate: each works on the view it was given."""
        version = self.network.alive_version(self.prefix, self.grid)
        down = self.transport.down()
        if (version, down) == self._seen:
            return self.view
        self._tell_network(self._seen[1], down)
        replicas = self.network.replicas(self.prefix, self.grid)
        version, entries = self.network.alive(self.prefix, self.grid)
        experts = {}
        known: dict[tuple[_Place, ...], _Holders | None] = {}  # experts of the same servers share them
        for flat_id, uid, *first in entries:
            places: Any = (tuple(first), *replicas.get(flat_id, ()))
            if places not in known:
                known[places] = self._living(places, down)
            holders = known[places]
            if holders is not None:
                experts[flat_id] = ExpertAddress(uid, *holders)
        self.view = AliveView(experts, ops.alive_bitmap(list(experts), math.prod(self.grid)))
        self._seen = (version, down)
        return self.view

    def choose(self, logits: Tensor, k: int, *, want_stats: bool = False) -> Choice:
        """The k best experts alive of each row of [T, sum(grid)] logits, exactly."""
        alive = self.refresh()
        route = ops.route_grid(logits, self.grid, k, alive=alive.bitmap, want_stats=want_stats)
        return Choice(alive.experts, route, len(alive.experts))

    def wait(self, count: int, timeout: float) -> bool:
        """Wait until `count` experts are alive (0: until the network has answered once); False after `timeout` s."""
        deadline = time.monotonic() + timeout
        while True:
            if len(self.refresh().experts) >= count and self._seen[0] > 0:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)
